"""Fit the maps that end a lift (`transport.py`) to a trained model, on photos."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint import load_model, save_model
from ..photos import find_photos, load_photo
from ..solver import STEPS
from ..storage import check_folder
from ..transport import Convolution, Moments, Regression, optimal_transport
from ..upsample import back_project, fold_lacking, reduce_pixels
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
    steps: int = STEPS,
    noise_step: int | None = None,
    corrections: int = 0,
    limit: int | None = 60,
    short_side: int | None = 512,
    seed: int = 0,
    device: torch.device | str = "cpu",
    vae_dtype: torch.dtype = torch.float32,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Write the model `origin` with maps that end its lifts to `out`; returns of how many photos they are.

    `limit` photos, evenly spread over the folder, are lifted in `steps` of Euler and kept in memory; a transport is
    fitted to the results without back projection and one to those with it. With `corrections`, so many rounds of back
    projection become those of the new model, each a convolution fitted to what the one before leaves, where without
    its rounds pass the encoder. Maps that `origin` has are put aside first. `noise_step` becomes that of the new file.
    Photos that cannot be read are named in the log and skipped. Raises ValueError where none can.
    """
    check_folder(out)
    model = load_model(origin, device=device)
    model.transports, model.corrections, config = (), (), model.config
    flow = config.flow if noise_step is None else replace(config.flow, noise_step=noise_step)
    flow = replace(flow, back_projection=corrections) if corrections else flow
    opened = load_vae(vae, space=model.space.name, device=device, dtype=vae_dtype)
    found = find_photos(photos)
    count = min(limit or len(found), len(found))
    examples, lifted = [], []
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
        lifted.append(model.upscale(example["low"], **settings, back_projection=0))
        examples.append({"high": example["high"].float(), "picture": example["picture"]})
    progress(count, count)
    if not examples:
        raise ValueError(f"none of the {count} photos could be used")
    transports, rounds = [_transport(lifted, examples, strength)], []
    for _ in range(corrections):
        lacking = [
            fold_lacking(e["picture"] - reduce_pixels(opened.decode(y), model.scale), y)
            for y, e in zip(lifted, examples, strict=True)
        ]
        regression = Regression()
        for y, e, r in zip(lifted, examples, lacking, strict=True):
            regression.add(r, e["high"] - y)
        rounds.append(regression.solve())
        lifted = [y + rounds[-1](r) for y, r in zip(lifted, lacking, strict=True)]
    if flow.back_projection and not rounds:
        lifted = [
            back_project(y, e["picture"], model.scale, opened, flow.back_projection)
            for y, e in zip(lifted, examples, strict=True)
        ]
    if flow.back_projection:
        transports.append(_transport(lifted, examples, strength))
    note = f"strength {strength:g}, {len(examples)} photos in {steps} Euler steps"
    about = {**config.trained_on, "transport": note}
    config = replace(config, flow=flow, trained_on=about, transport=True, corrections=bool(rounds))
    state = {**model.net.state_dict(), **_stacked("transport", transports), **_stacked("correction", rounds)}
    save_model(out, config, state)
    return len(examples)


def _transport(results: Sequence[Tensor], examples: Sequence[dict[str, Tensor]], strength: float) -> Convolution:
    before, after = Moments(), Moments()
    for result, example in zip(results, examples, strict=True):
        before.add(result)
        after.add(example["high"])
    return optimal_transport(before, after, strength)


def _stacked(name: str, maps: Sequence[Convolution]) -> dict[str, Tensor]:
    if not maps:
        return {}
    return {f"{name}.{part}": torch.stack([getattr(m, part) for m in maps]) for part in Convolution._fields}
