"""What the tests of training share: photos without files of their own, the autoencoder that ships, and a small run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fmboost_core import load_vae
from fmboost_core.cli.main import main
from fmboost_core.train.latents import LatentSet, Ragged
from fmboost_core.train.settings import RunSettings, read_settings
from fmboost_core.vae.files import shipped_vae

CONFIG = """
name = "tiny"
[data]
photos = "photos"
vae = "{vae}"
cache = "cache"
short_sides = [128]
[net]
model_channels = 32
channel_mult = [1]
num_res_blocks = 1
attention_resolutions = []
num_heads = 1
[flow]
upsampling = "nearest"
noise_step = 200
[train]
steps = 6
batch = 2
crop = 16
warmup = 2
decay = 2
precision = "no"
log_every = 2
save_every = 3
"""


@pytest.fixture(scope="session")
def vae():
    return load_vae(shipped_vae("sd15"), space="sd15")


def draw_photo(path: Path, seed: int = 0, size: tuple[int, int] = (160, 128)) -> Path:
    """Smooth colours of (width, height) px."""
    few = np.random.default_rng(seed).integers(0, 255, (5, 6, 3), dtype=np.uint8)
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(few).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture(scope="session")
def draw() -> Callable[..., Path]:
    return draw_photo


class Place:
    """A folder with three photos and a configuration of a small run on them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.config = folder, folder / "tiny.toml"
        for i in range(3):
            draw_photo(folder / "photos" / f"{i}.png", i, (160 + 32 * i, 128))
        self.config.write_text(CONFIG.format(vae=shipped_vae("sd15")), encoding="utf-8")

    def settings(self, *overrides: str) -> RunSettings:
        return read_settings(self.config, overrides)

    def train(self, out: str, *overrides: str, resume: bool = False) -> int:
        """The exit status of ``fmboost train`` in the folder `out`."""
        words = [word for text in overrides for word in ("--set", text)] + ["--resume"] * resume
        return main(["train", str(self.config), "--out", str(self.folder / out), *words])

    def whole(self, kind: str) -> Path:
        """The folder of a run with the overrides of `KINDS` that was never interrupted; not to be written into."""
        folder = self.folder / f"whole-{kind}"
        if not folder.exists():
            assert self.train(folder.name, *KINDS[kind]) == 0
        return folder


LEARNED = (
    "flow.upsampling=learned",
    "context_encoder.width=8",
    "context_encoder.depth=1",
    "context_encoder.features=4",
)
KINDS = {
    "learned": LEARNED,
    "cfm": (*LEARNED, "train.disturbed=0.5", "train.cascaded=0.5"),
    "context": ("flow.upsampling=learned", "context_encoder.width=8", "train.objective=context"),
    "few_step": (*LEARNED, "train.objective=few_step", "few_step.window=8", "few_step.adversaries_from=103"),
    "autoencoder": ("train.objective=autoencoder", "train.crop=32", "autoencoder.width=8", "name=fmboost-sd15-vae"),
}
"""Adversaries begin to learn in the fourth of the six steps."""


@pytest.fixture(scope="session")
def kinds() -> dict[str, tuple[str, ...]]:
    return KINDS


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Place:
    return Place(tmp_path_factory.mktemp("place"))


@pytest.fixture
def latents() -> Callable[..., LatentSet]:
    """Random examples of a model of scale 2 with these sizes of low latents, of every kind."""

    def make(sizes: list[tuple[int, int]], **identity: Any) -> LatentSet:
        draw = torch.Generator().manual_seed(0)
        kinds = {}
        for kind, channels, unit in (
            ("low", 4, 1),
            ("high", 4, 2),
            ("psu", 4, 2),
            ("lower", 4, 0.5),
            ("picture", 3, 8),
        ):
            shapes = [(channels, int(h * unit), int(w * unit)) for h, w in sizes]
            if kind == "picture":
                images = [torch.randint(256, shape, generator=draw, dtype=torch.uint8) for shape in shapes]
            else:
                images = [torch.randn(shape, generator=draw).half() for shape in shapes]
            kinds[kind] = Ragged.join(images)
        return LatentSet(kinds, {"latent_space": "sd15", "scale": 2, "psu": 1, **identity})

    return make
