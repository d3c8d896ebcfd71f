"""What the experiments share: photos, the autoencoder, and networks trained once and kept."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fmboost_core import Autoencoder, CFMModel, load_model, load_vae
from fmboost_core.images.files import load_photo, save_photo
from fmboost_core.images.folders import Photo, find_photos
from fmboost_core.images.resize import reduce
from fmboost_core.train.run import train
from fmboost_core.train.settings import DataSettings, RunSettings, TrainSettings

from .presets import RECIPES, Preset
from .sr3 import DiffusionModel


class Lab:
    """Everything lies in `out`: ``photos/``, ``cache/``, ``nets/NAME/``, and the reports beside them.

    `photos` and `held_out` are folders; `vae` a TAESD file or folder, or a diffusers AutoencoderKL folder; `fid` the
    Inception weights of `open_fid`, if they are at hand.
    """

    def __init__(
        self,
        preset: Preset,
        out: Path,
        photos: Path,
        held_out: Path,
        vae: Path,
        fid: Path | None = None,
        device: str = "cpu",
    ) -> None:
        self.preset, self.out, self.vae_path, self.fid, self.device = preset, out, vae, fid, device
        self.sources = {"train": photos, "held_out": held_out}
        self.ran: dict[str, str] = {}  # what was trained or loaded, for the reports

    @cached_property
    def vae(self) -> Autoencoder:
        return load_vae(self.vae_path, space="sd15", device=self.device)

    @cached_property
    def held_out(self) -> list[Photo]:
        return find_photos(self._folder("held_out", self.preset.held_out))

    def example(self, number: int) -> tuple[Tensor, Tensor]:
        """A held-out photo (1, 3, H, W), and the latent of the photo reduced by the scale."""
        photo = load_photo(self.held_out[number], self.preset.short_side, 8 * self.preset.scale).to(self.device)
        return photo, self.vae.encode(reduce(photo, self.preset.scale))

    def originals(self, count: int | None) -> list[Photo]:
        """Held-out photos at their own size."""
        return spread(find_photos(self.sources["held_out"]), count)

    def model(self, name: str, step: int | None = None) -> CFMModel:
        """The network `name` of `RECIPES` after `step` steps (all of them), trained where it is not there yet."""
        path = self.train(name, step or self.preset.milestones[-1])
        model = load_model(path, device=self.device)
        facts = model.config.trained_on
        if model.config.sha256 != self.settings(name, facts["steps"]).fingerprint:
            raise ValueError(f"{path} was trained with other settings: choose another folder as --out, or delete it")
        self.ran[name] = f"{facts['examples']} crops in {facts['steps']} steps"
        return DiffusionModel(model.config, model.net) if RECIPES[name].objective == "sr3" else model

    def train(self, name: str, step: int) -> Path:
        """The model file after `step` steps. All milestones before it are kept on the way."""
        folder = self.out / "nets" / name
        for milestone in self.preset.milestones:
            kept = folder / f"{name}.{milestone:06d}.safetensors"
            if not kept.exists():
                resume = any((folder / "state").glob("step-*"))
                with torch.inference_mode(False), torch.enable_grad():  # experiments ask for networks without either
                    written = train(self.settings(name, milestone), folder, resume=resume)
                shutil.copyfile(written, kept)
            if milestone == step:
                return kept
        raise ValueError(f"{step} training steps are no milestone: expected one of {self.preset.milestones}")

    def settings(self, name: str, steps: int) -> RunSettings:
        preset, recipe = self.preset, RECIPES[name]
        return RunSettings(
            name,
            DataSettings(
                photos=str(self._folder("train", preset.photos)),
                vae=str(self.vae_path),
                cache=str(self.out / "cache"),
                short_sides=(preset.short_side,),
            ),
            TrainSettings(
                steps,
                objective=recipe.objective,
                **{"save_every": preset.milestones[-1], "log_every": 20, **preset.train},
            ),
            preset.big if recipe.big else preset.net,
            recipe.flow(preset.scale),
        )

    def _folder(self, kind: str, count: int | None) -> Path:
        """The photos themselves, or `count` of them reduced once, so that no experiment reads large files again."""
        if count is None or self.preset.short_side >= 1024:
            return self.sources[kind]
        folder = self.out / "photos" / kind
        return reduced(self.sources[kind], folder, count, self.preset.short_side, 8 * self.preset.scale)


def reduced(source: Path, folder: Path, count: int, short_side: int, multiple: int) -> Path:
    """`folder`, with `count` of the photos of `source` reduced into it. Raises ValueError where it has another's."""
    done, origin = folder / "done", str(source.resolve())
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        for number, path in enumerate(spread(find_photos(source), count)):
            save_photo(load_photo(path, short_side, multiple), folder / f"{number:04d}.png")
        done.write_text(origin, encoding="utf-8")
    if (found := done.read_text(encoding="utf-8")) != origin:
        raise ValueError(f"{folder} has its photos from {found}, not {origin}: choose another folder as --out")
    return folder


def spread(items: Sequence[Photo], count: int | None) -> list[Photo]:
    """`count` of the items, evenly spread."""
    if count is None or count >= len(items):
        return list(items)
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]


def synthetic_photos(folder: Path, count: int, side: int) -> Path:
    """Pictures of smooth colour with sharp discs on it, for runs that only show that everything works."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        rng = np.random.default_rng(i)
        noise = Image.fromarray(rng.integers(0, 255, (6, 7, 3), dtype=np.uint8))
        picture = np.array(noise.resize((side + 64, side), Image.Resampling.BICUBIC))
        y, x = np.mgrid[:side, : side + 64]
        for _ in range(12):
            cy, cx, radius = rng.integers(side), rng.integers(side + 64), rng.integers(4, side // 5)
            picture[(y - cy) ** 2 + (x - cx) ** 2 < radius**2] = rng.integers(0, 255, 3)
        Image.fromarray(picture).save(folder / f"{i}.png")
    return folder
