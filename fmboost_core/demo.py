"""The main job on what ships: latents of a few photos, lifted, and compared with the true large ones."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from .context import interpolate, join_context
from .evaluate import metrics
from .images.files import save_photo
from .images.resize import enlarge
from .model import CFMModel
from .sampling import Sampling
from .vae.protocol import VAE

EXAMPLES = Path(__file__).parent / "demo"
SPACE, SCALE = "sd15", 2  # of the examples


def read_examples() -> list[dict[str, Any]]:
    """The examples that ship: ``name``, ``origin``, and tensors of one image each, as `encode_example` makes them.

    ``low`` and ``high`` are latents in float32; ``psu`` and ``picture``, what pixel-space upsampling by TAESD makes of
    the low one, spare the demo an autoencoder better than the small one that ships.
    """
    examples = []
    for path in sorted(EXAMPLES.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            tensors = {k: file.get_tensor(k)[None].float() for k in ("low", "high", "psu", "picture")}
            tensors["picture"] /= 255
            examples.append({"name": path.stem, "origin": (file.metadata() or {}).get("origin", ""), **tensors})
    return examples


@torch.inference_mode()
def run_demo(
    model: CFMModel,
    vae: VAE,
    out: Path,
    sampling: Sampling | None = None,
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Lift every example; write ``demo.png`` and ``report.json`` into `out` and return the report.

    Each method is compared with the decoded truth: PSNR in dB, and the energy of fine detail as a share of the truth's.
    Raises ValueError for a model of another latent space or scale than the examples'.
    """
    sampling = sampling or Sampling()
    if (model.space.name, model.scale) != (SPACE, SCALE):
        raise ValueError(
            f"the model lifts {model.space.name} latents x{model.scale} and the demo's are {SPACE} x{SCALE}: choose "
            "such a model, or look at this one with 'fmboost upscale' or 'fmboost evaluate'"
        )
    images: dict[str, list[Tensor]] = {}
    rows: list[Tensor] = []
    seconds = 0.0
    examples = read_examples()
    for i, example in enumerate(examples):
        progress(example["name"])
        began = time.perf_counter()
        lifted = lift_example(model, example, replace(sampling, batch_index=(i,)))
        seconds += time.perf_counter() - began
        small = vae.decode(example["low"])
        shown = {
            "latent, nearest": vae.decode(interpolate(example["low"], SCALE, "nearest")),
            "picture, bilinear": enlarge(small, SCALE),
            "CFM": vae.decode(lifted),
            "truth": vae.decode(example["high"]),
        }
        for name, image in shown.items():
            images.setdefault(name, []).append(image)
        rows.append(torch.cat([interpolate(small, SCALE, "nearest"), *shown.values()], dim=3))
    truth = torch.cat(images["truth"])
    report: dict[str, Any] = {
        "latent_space": model.config.latent_space,
        "low": list(examples[0]["low"].shape[1:]),
        "high": list(examples[0]["high"].shape[1:]),
        "steps": sampling.steps,
        "solver": sampling.solver,
        "seed": sampling.seed,
        "seconds_per_image": seconds / len(examples),
        "photos": {e["name"]: e["origin"] for e in examples},
        "picture": "columns: the small latent decoded, " + ", ".join(images),
        "methods": {name: _compare(torch.cat(images[name]), truth) for name in images},
    }
    out.mkdir(parents=True, exist_ok=True)
    save_photo(torch.cat(rows, dim=2), out / "demo.png")
    (out / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    return report


def lift_example(model: CFMModel, example: Mapping[str, Tensor], sampling: Sampling) -> Tensor:
    """`CFMModel.upscale`, with the pixel-space upsampling of the example where the model starts from that."""
    if model.config.flow.upsampling == "psu":
        context = join_context(model.config.flow, example["psu"], example["picture"])
    else:
        context = model.make_context(example["low"])
    return model.integrate(model.make_source(context, sampling), context, sampling)


def _compare(images: Tensor, truth: Tensor) -> dict[str, float | None]:
    energy = metrics.high_frequency_energy
    psnr = float(metrics.psnr(images, truth).mean())
    return {
        "psnr_db": psnr if math.isfinite(psnr) else None,  # none for equal pictures: JSON has no infinity
        "detail": float(energy(images).sum() / energy(truth).sum()),
    }


def demo_table(report: dict[str, Any]) -> str:
    """The report's figures as text."""
    lines = [f"{'':18s} {'PSNR dB':>8s} {'detail':>7s}"]
    for name, row in report["methods"].items():
        psnr = "" if row["psnr_db"] is None else f"{row['psnr_db']:.2f}"
        lines.append(f"{name:18s} {psnr:>8s} {row['detail']:7.2f}")
    return "\n".join(lines)
