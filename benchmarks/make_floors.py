"""Write what `tests/core/test_floors.py` holds every shipped model to: latents of two photos, and their lift.

python benchmarks/make_floors.py --photos FOLDER_WITH_MANIFEST --vae FOLDER [MODEL...]

Run it after a model's file has changed on purpose, for that model. `--vae` holds the TAESD pair of every family.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import torch
from safetensors.torch import save_file

from fmboost_core import load_model, load_vae, shipped_models
from fmboost_core.photos import centre_square, load_photo
from fmboost_core.train.data import compact, encode_example, from_bytes
from fmboost_core.train.objectives import context_of

FLOORS = Path(__file__).parents[1] / "tests" / "core" / "floors"
CHOSEN = ("val/0036.jpg", "val/0571.jpg")
LOW = 16  # latent pixels
STEPS = 4
LARGEST = 300 * 1024  # bytes; 16 channels leave room for one photo


def write_floor(name: str, photos: Path, vae_folder: Path, origins: dict[str, str]) -> str:
    """Encode, lift and store; returns a line with what was found."""
    model = load_model(name)
    vae = load_vae(vae_folder, space=model.space.name)
    size = LOW * model.scale * model.space.pixels
    chosen = CHOSEN if model.space.channels == 4 else CHOSEN[:1]
    examples = []
    for file in chosen:
        crop = centre_square(load_photo(photos / file, 512, size // LOW), size)
        examples.append(compact(encode_example(crop, model.scale, vae)))
    stored = {key: torch.stack([e[key] for e in examples]) for key in examples[0]}
    batch = {k: from_bytes(v) if k == "picture" else v.float() for k, v in stored.items()}
    context = context_of(model.config.flow, batch)
    lifted = model.upscale(batch["low"], steps=STEPS, context=context, back_projection=0)
    figures = {label: _figures(latent, batch["high"]) for label, latent in (("lifted", lifted), ("psu", batch["psu"]))}
    path = FLOORS / f"{name}.safetensors"
    metadata = {"steps": str(STEPS), "origin": " | ".join(origins[file] for file in chosen)}
    save_file({**stored, "lifted": lifted.half().contiguous()}, path, metadata=metadata)
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path} is {path.stat().st_size} bytes: expected at most {LARGEST}")
    return f"{name}: {path.stat().st_size >> 10} KiB, {figures}"


def _figures(latent: torch.Tensor, high: torch.Tensor) -> dict[str, float]:
    """Mean squared error to the truth, and the largest shift of a channel's mean."""
    shift = (latent - high).mean(dim=(0, 2, 3)).abs().max()
    return {"mse": round((latent - high).square().mean().item(), 4), "shift": round(shift.item(), 4)}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="default: every shipped model without a floor")
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True)
    args = parser.parse_args()
    with (args.photos / "manifest.csv").open(encoding="utf-8") as file:
        origins = {r["file"]: f"{r['source_repo']}/{r['source_path']}; {r['licence']}" for r in csv.DictReader(file)}
    FLOORS.mkdir(exist_ok=True)
    for name in args.models or [n for n in shipped_models() if not (FLOORS / f"{n}.safetensors").is_file()]:
        print(write_floor(name, args.photos, args.vae, origins))


if __name__ == "__main__":
    main()
