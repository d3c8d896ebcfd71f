"""Fit the map that ends a lift (`transport.py`) to a trained model, on photos."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from ..checkpoint import load_model, save_model
from ..photos import find_photos, load_photo
from ..transport import Moments, optimal_transport
from ..upsample import back_project
from ..vae import load_vae
from .data import encode_example
from .objectives import context_of

log = logging.getLogger(__name__)


@torch.inference_mode()
def fit_transport(
    origin: str | Path,
    out: str | Path,
    photos: str | Path,
    vae: str | Path,
    *,
    strength: float = 1.0,
    steps: int = 4,
    noise_step: int | None = None,
    limit: int | None = 60,
    short_side: int | None = 512,
    seed: int = 0,
    device: torch.device | str = "cpu",
    vae_dtype: torch.dtype = torch.float32,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Write the model `origin` with its transport to `out`; returns how many photos it was fitted on.

    `limit` photos, evenly spread over the folder, are lifted in `steps` of Euler, with the model's back projection and
    without, and what comes out is compared with their own latents. Maps that `origin` has are put aside first.
    `noise_step` becomes that of the new file. Photos that cannot be read are named in the log and skipped. Raises
    ValueError where none can.
    """
    model = load_model(origin, device=device)
    model.transports, config = (), model.config
    flow = config.flow if noise_step is None else replace(config.flow, noise_step=noise_step)
    opened = load_vae(vae, space=model.space.name, device=device, dtype=vae_dtype)
    opened.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # up to twice as fast on a CPU
    found = find_photos(photos)
    count = min(limit or len(found), len(found))
    results, truths, used = [Moments() for _ in range(1 + bool(flow.back_projection))], Moments(), 0
    for i in range(count):
        progress(i, count)
        photo = found[int((i + 0.5) * len(found) / count)]
        try:
            image = load_photo(photo, short_side, model.space.pixels * model.scale).to(device)
        except (OSError, ValueError) as error:
            log.warning("skipped %s: %s", photo, error)
            continue
        example = {name: tensor[None] for name, tensor in encode_example(image, model.scale, opened).items()}
        settings = {
            "steps": steps,
            "seed": seed,
            "noise_step": flow.noise_step,
            "batch_index": [i],
            "context": context_of(flow, example),
        }
        lifted = model.upscale(example["low"], **settings, back_projection=0)
        results[0].add(lifted)
        if flow.back_projection:
            results[1].add(back_project(lifted, example["picture"], model.scale, opened, flow.back_projection))
        truths.add(example["high"])
        used += 1
    progress(count, count)
    if not used:
        raise ValueError(f"none of the {count} photos could be used")
    maps = [optimal_transport(moments, truths, strength) for moments in results]
    note = f"strength {strength:g}, {used} photos in {steps} Euler steps"
    config = replace(config, flow=flow, trained_on={**config.trained_on, "transport": note}, transport=True)
    weight, bias = (torch.stack(part) for part in zip(*maps, strict=True))
    save_model(out, config, {**model.net.state_dict(), "transport.weight": weight, "transport.bias": bias})
    return used
