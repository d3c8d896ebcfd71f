"""Write what `tests/core/test_floors.py` holds every shipped model to: latents of photos, and their lift.

    python -m tools.make_floors --photos FOLDER_WITH_MANIFEST --vae FOLDER [MODEL...]

Run it after a model's file has changed on purpose, for that model. `--vae` holds the TAESD pair of every family.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from fmboost_core import CFMModel, Sampling, load_model, load_vae, shipped_models
from fmboost_core.context import interpolate
from fmboost_core.demo import lift_example
from fmboost_core.images.files import load_photo
from fmboost_core.images.resize import centre_square
from fmboost_core.storage import write_tensors
from fmboost_core.train.encode import compact, encode_example

FLOORS = Path(__file__).parents[1] / "tests" / "core" / "floors"
CHOSEN = ("val/0036.jpg", "val/0571.jpg")
SIDES = (16, 12, 8)  # of the low latent: the first whose file is small enough
LARGEST = 100_000  # bytes
STEPS = 4


def lift(model: CFMModel, stored: dict[str, Tensor]) -> Tensor:
    """The lift of the latents in a floor; the test makes it in the same way."""
    example = {kind: value.float() / (255 if kind == "picture" else 1) for kind, value in stored.items()}
    return lift_example(model, example, Sampling(steps=STEPS))


def examples(model: CFMModel, vae: Any, photos: Path, files: tuple[str, ...], side: int) -> dict[str, Tensor]:
    """What a floor holds of the centres of the photos, in half precision, and the picture in bytes."""
    size = side * model.scale * model.space.pixels
    found = []
    for file in files:
        crop = centre_square(load_photo(photos / file, 512, size // side), size)
        found.append(compact(encode_example(crop, model.config.flow, vae)))
    stored = {kind: torch.stack([example[kind] for example in found]) for kind in found[0] if kind != "lower"}
    return {**stored, "lifted": lift(model, stored).half().contiguous()}


def write_floor(name: str, photos: Path, vae_folder: Path, origins: dict[str, str]) -> str:
    """Encode, lift and store; returns a line with what was found."""
    model = load_model(name)
    vae = load_vae(vae_folder, space=model.space.name)
    files = CHOSEN if model.space.channels == 4 else CHOSEN[:1]
    metadata = {"steps": str(STEPS), "origin": " | ".join(origins[file] for file in files)}
    for side in SIDES:
        stored = examples(model, vae, photos, files, side)
        size = len(save(stored, metadata))
        if size <= LARGEST:
            break
    else:
        raise ValueError(f"the floor of {name} has {size} bytes at its smallest: expected at most {LARGEST}")
    write_tensors(stored, FLOORS / f"{name}.safetensors", metadata)
    high = stored["high"].float()
    start = stored.get("psu", interpolate(stored["low"].float(), model.scale, "bilinear")).float()
    lifted, before = (float((latent - high).square().mean()) for latent in (stored["lifted"].float(), start))
    shift = float((stored["lifted"].float() - high).mean(dim=(0, 2, 3)).abs().max())
    return f"{name}: {size >> 10} KiB, low {side}, squared error {lifted:.4f} (start {before:.4f}), shift {shift:.3f}"


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="default: every shipped model")
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True)
    args = parser.parse_args()
    with (args.photos / "manifest.csv").open(encoding="utf-8") as file:
        origins = {r["file"]: f"{r['source_repo']}/{r['source_path']}; {r['licence']}" for r in csv.DictReader(file)}
    FLOORS.mkdir(exist_ok=True)
    for name in args.models or shipped_models():
        print(write_floor(name, args.photos, args.vae, origins))


if __name__ == "__main__":
    main()
