"""The main job on what ships: latents of a few photos, lifted, and compared with the true large ones."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from . import metrics
from .model import CFMModel
from .photos import save_photo
from .solver import STEPS
from .train.data import compact, from_bytes
from .train.objectives import context_of
from .upsample import VAE, resize_pixels, upsample

EXAMPLES = Path(__file__).parent / "demo"
SPACE, SCALE = "sd15", 2  # of the examples


def write_example(path: Path, latents: dict[str, Tensor], origin: str) -> None:
    """Store an example as `train.data.encode_example` makes it, with where the photo is from and its licence."""
    save_file(compact(latents), path, metadata={"origin": origin})


def read_examples() -> list[dict[str, Any]]:
    """The examples that ship: ``name``, ``origin``, (1, C, h, w) ``low``, ``high``, ``psu`` latents and the decoded low
    one as ``picture``."""
    examples = []
    for path in sorted(EXAMPLES.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            latents = {k: file.get_tensor(k)[None].float() for k in ("low", "high", "psu")}
            latents["picture"] = from_bytes(file.get_tensor("picture")[None])
            examples.append({"name": path.stem, "origin": (file.metadata() or {}).get("origin", ""), **latents})
    return examples


@torch.inference_mode()
def run_demo(
    model: CFMModel,
    vae: VAE,
    out: Path,
    *,
    steps: int = STEPS,
    solver: str = "euler",
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Lift every example; write ``demo.png`` and ``report.json`` into `out` and return the report.

    Each method is judged against the true large latent: in latents (mean squared error) and decoded (PSNR in dB,
    high-frequency energy as a share of the truth's, sliced Wasserstein distance of Laplacian patches), and against
    the decoded low latent (mean colour, and grids of 2 and 8 px in what it lacks). Raises ValueError for a model of
    another latent space or scale than the examples'.
    """
    if (model.space.name, model.scale) != (SPACE, SCALE):
        raise ValueError(
            f"the model lifts {model.space.name} latents x{model.scale} and the demo's are {SPACE} x{SCALE}: choose "
            "such a model, or look at this one with 'fmboost upscale' or 'fmboost evaluate'"
        )
    latents: dict[str, list[Tensor]] = {}
    images: dict[str, list[Tensor]] = {}
    rows: list[Tensor] = []
    enlarged: list[Tensor] = []
    seconds = 0.0
    examples = read_examples()
    for i, example in enumerate(examples):
        progress(example["name"])
        low, context = example["low"], context_of(model.config.flow, example)
        began = time.perf_counter()
        lifted = model.upscale(
            low,
            steps=steps,
            solver=solver,
            seed=seed,
            batch_index=[i],
            context=context,
            vae=vae,
        )
        seconds += time.perf_counter() - began
        methods = {
            "nearest": upsample(low, model.scale, "nearest"),
            "bilinear": upsample(low, model.scale, "bilinear"),
            "CFM": lifted,
            "truth": example["high"],
        }
        for name, latent in methods.items():
            latents.setdefault(name, []).append(latent)
            images.setdefault(name, []).append(vae.decode(latent))
        small = vae.decode(low)
        enlarged.append(resize_pixels(small, model.scale))
        blocks = small.repeat_interleave(model.scale, 2).repeat_interleave(model.scale, 3)
        rows.append(torch.cat([blocks, *(images[name][-1] for name in ("nearest", "CFM", "truth"))], dim=3))
    high, truth, small = torch.cat(latents["truth"]), torch.cat(images["truth"]), torch.cat(enlarged)
    report: dict[str, Any] = {
        "latent_space": model.config.latent_space,
        "low": list(examples[0]["low"].shape[1:]),
        "high": list(examples[0]["high"].shape[1:]),
        "steps": steps,
        "solver": solver,
        "seed": seed,
        "seconds_per_image": seconds / len(examples),
        "photos": {e["name"]: e["origin"] for e in examples},
        "picture": "columns: the small latent decoded, nearest, CFM, truth",
        "methods": {n: _judge(torch.cat(latents[n]), high, torch.cat(images[n]), truth, small) for n in latents},
    }
    out.mkdir(parents=True, exist_ok=True)
    save_photo(torch.cat(rows, dim=2), out / "demo.png")
    (out / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    return report


def _judge(latents: Tensor, high: Tensor, images: Tensor, truth: Tensor, small: Tensor) -> dict[str, float | None]:
    energy = metrics.high_frequency_energy
    psnr = float(metrics.psnr(images, truth).mean())
    return {
        "latent_mse": float((latents - high).square().mean()),
        "psnr_db": psnr if math.isfinite(psnr) else None,  # none for equal pictures: JSON knows no infinity
        "high_frequency": float(energy(images).sum() / energy(truth).sum()),
        "patch_distance": metrics.sliced_wasserstein(images, truth).mean,
        "colour": float(metrics.mean_colour_error(images, small).mean()),
        "grid_2px": metrics.periodicity(images - small, 2),
        "grid_8px": metrics.periodicity(images - small, 8, besides=2),
    }


def demo_table(report: dict[str, Any]) -> str:
    """The report's figures as text."""
    lines = [f"{'':10s} {'latent MSE':>10s} {'PSNR dB':>8s} {'sharpness':>9s} {'patch distance':>14s}"]
    for name, row in report["methods"].items():
        psnr = "" if row["psnr_db"] is None else f"{row['psnr_db']:.2f}"
        sharp, distance = row["high_frequency"], row["patch_distance"]
        lines.append(f"{name:10s} {row['latent_mse']:10.4f} {psnr:>8s} {sharp:9.2f} {distance:14.4f}")
    return "\n".join(lines)
