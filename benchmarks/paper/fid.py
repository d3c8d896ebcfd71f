"""FID (Heusel et al. 2017), for those who have the Inception weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def open_fid(weights: str | Path) -> Any:
    """torchmetrics' FrechetInceptionDistance on the user's Inception file: ``update(images, real=...)``, ``compute()``.

    `weights` is torch-fidelity's ``weights-inception-2015-12-05-6726825d.pth``. Never downloads: raises ValueError
    where the file or a package is missing.
    """
    if not Path(weights).is_file():
        raise ValueError(f"no Inception weights at {weights}: FID needs a file that you have, nothing is downloaded")
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance

        return FrechetInceptionDistance(feature=2048, normalize=True, feature_extractor_weights_path=str(weights))
    except ImportError as error:  # torchmetrics says it this way too where torch-fidelity is missing
        raise ValueError("FID needs torchmetrics and torch-fidelity: install both with pip") from error
