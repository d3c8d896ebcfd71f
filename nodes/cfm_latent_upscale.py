"""CFM Latent Upscale: the whole method as one node."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..fmboost_core import LATENT_SPACES, SOLVERS
from ..fmboost_core.cascade import lifts, stage_seed
from ..fmboost_core.solver import STEPS, Callback
from ..fmboost_core.upsample import UPSAMPLINGS, VAE
from . import host
from .noise_augment import KEY, noise_behind

log = logging.getLogger(__name__)

SMALLEST_TILE = 16


class CFMLatentUpscale(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="FMBoost_CFMLatentUpscale",
            display_name="CFM Latent Upscale",
            category=host.CATEGORY,
            description=(
                "Lifts latents to the size the model was trained for (2x, 4x) with Coupling Flow Matching. The result "
                "is final: decode it, no second sampling is needed."
            ),
            search_aliases=[
                "hires fix",
                "latent upscale",
                "super resolution",
                "flow matching",
                "CFM",
                "FMBoost",
                "upscale latent",
            ],
            inputs=[
                host.CFMType.Input("model", tooltip="The CFM model, from Load CFM Model."),
                io.Latent.Input("samples", tooltip="The latents to lift, from KSampler or VAE Encode."),
                io.Int.Input(
                    "steps",
                    default=STEPS,
                    min=1,
                    max=1000,
                    tooltip=(
                        "Steps through the flow. The models that come with FMBoost are made for 4; others may need 10 "
                        "or more. One is the average of all possible results: smooth."
                    ),
                ),
                host.seed_input(),
                io.Combo.Input(
                    "solver",
                    options=list(SOLVERS),
                    default="euler",
                    optional=True,
                    tooltip=(
                        "How the flow is followed. euler: one network call a step. midpoint, heun: two; heun3: three; "
                        "rk4: four. dopri5 chooses its own steps and ignores their number."
                    ),
                ),
                io.Int.Input(
                    "noise_step",
                    default=-1,
                    min=-1,
                    max=999,
                    optional=True,
                    extra_dict=host.ADVANCED,
                    tooltip=(
                        "Noise in the start of the flow, a step of the cosine schedule: -1 as the model was trained, "
                        "0 none, 999 all. Noise Augment in front of this node goes before this setting."
                    ),
                ),
                io.Combo.Input(
                    "upsampling",
                    options=["auto", *UPSAMPLINGS],
                    default="auto",
                    optional=True,
                    extra_dict=host.ADVANCED,
                    tooltip=(
                        "How the small latent is enlarged before the flow. auto: as the model was trained; anything "
                        "else is off its training, and the models that ship refuse it. psu goes through pixels and "
                        "needs a VAE."
                    ),
                ),
                io.Int.Input(
                    "tile_size",
                    default=0,
                    min=0,
                    max=4096,
                    step=16,
                    optional=True,
                    extra_dict=host.ADVANCED,
                    tooltip=(
                        "0: the network sees the image whole. Else the side of its tiles in latents of the result "
                        "(64 is 512 pixels): memory then depends on the tile, not on the image, and there are no seams."
                    ),
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip=(
                        "For models that start from pixel-space upsampling (psu): the VAE of the latents, or a TAESD "
                        "from Load VAE. Left open, the TAESD in models/vae_approx is used, else the one FMBoost brings."
                    ),
                ),
                io.Latent.Input(
                    "source",
                    optional=True,
                    tooltip=(
                        "Latents of the size of the result, to start the flow from instead of the enlarged samples. "
                        "They are noised only if noise_step says so."
                    ),
                ),
                io.Combo.Input(
                    "latent_space",
                    options=["auto", *LATENT_SPACES],
                    default="auto",
                    optional=True,
                    extra_dict=host.ADVANCED,
                    tooltip="Which scaling the latents have. auto: the one of the model's family.",
                ),
                io.Int.Input(
                    "scale",
                    default=0,
                    min=0,
                    max=16,
                    optional=True,
                    extra_dict=host.ADVANCED,
                    tooltip=(
                        "How many times larger, along each side. 0: as the model says. A power of that (4 or 8 for a "
                        "model of 2) lifts several times in a row, each time with steps of its own."
                    ),
                ),
                io.Int.Input(
                    "back_projection",
                    default=-1,
                    min=-1,
                    max=10,
                    optional=True,
                    extra_dict=host.ADVANCED,
                    tooltip=(
                        "Rounds after the flow that make the result, reduced, agree with the samples: -1 as the model "
                        "says, 0 none. Needs a VAE; the one FMBoost brings is too coarse for it, then there are none."
                    ),
                ),
                io.Boolean.Input(
                    "trajectory",
                    default=False,
                    optional=True,
                    extra_dict=host.ADVANCED,
                    tooltip=(
                        "Puts what the result looked like at every network call into the second output, as a batch "
                        "that ends with the result. Of several lifts the last one."
                    ),
                ),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="samples",
                    tooltip="The lifted latents, for VAE Decode. noise_mask and batch_index are kept.",
                ),
                io.Latent.Output(
                    display_name="trajectory",
                    tooltip=(
                        "With trajectory on, the way to the result, image after image, for VAE Decode; else the result "
                        "alone."
                    ),
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: host.HostModel,
        samples: dict[str, Any],
        steps: int,
        seed: int,
        solver: str = "euler",
        noise_step: int = -1,
        upsampling: str = "auto",
        tile_size: int = 0,
        vae: Any = None,
        source: dict[str, Any] | None = None,
        latent_space: str = "auto",
        scale: int = 0,
        back_projection: int = -1,
        trajectory: bool = False,
    ) -> io.NodeOutput:
        latents = host.Latents(samples)
        model.check_latents(latents.raw)
        if 0 < tile_size < SMALLEST_TILE:
            raise ValueError(f"tile_size is {tile_size}: expected 0 (whole) or a number from {SMALLEST_TILE}")
        space = host.choose_space(model, latent_space)
        count = _lifts(model, scale, source)
        rounds = None if back_projection < 0 else back_projection
        if upsampling != "auto":
            model = model.variant(upsampling=upsampling)
        low, step = latents.raw, None if noise_step < 0 else noise_step
        noise = noise_behind(latents)
        if noise is not None:
            low, step, seed = noise.clean, noise.noise_step, noise.seed
        if noise is None and KEY in samples:
            log.warning(
                "CFM Latent Upscale: the samples changed after Noise Augment and are lifted as they are, noise and "
                "all: connect Noise Augment to this node directly"
            )
        scaling, device = host.latent_format(space.name), model.patcher.load_device
        low = scaling.process_in(low.to(device))
        start = None if source is None else scaling.process_in(_source(source, model, low).to(device))
        make_vae = host.find_vae(model, vae, space, rounds)
        evaluations = steps * SOLVERS[solver].evaluations
        progress = host.Progress(device, space.name, low.shape[0] * count, evaluations or None)
        began, results, frames = time.perf_counter(), [], []
        # One by one, so that no image depends on its neighbours and memory not on their number.
        for i in range(low.shape[0]):
            high, path = low[i : i + 1], []
            for stage in range(count):
                report = partial(progress.update, i * count + stage)
                run = partial(
                    _lift,
                    model,
                    high,
                    make_vae,
                    steps=steps,
                    solver=solver,
                    seed=stage_seed(seed, stage),
                    noise_step=step,
                    batch_index=latents.batch_index[i : i + 1],
                    x0=None if start is None else start[i : i + 1],
                    callback=_keeping(path, report) if trajectory else report,
                    back_projection=rounds,
                )
                high, tile_size = _within_memory(run, tile_size, model.scale * max(high.shape[2:]))
            results.append(high)
            frames += [*path, high.cpu()]
        result = scaling.process_out(torch.cat(results))
        _log_done(low, result, space.pixels, solver, progress.evaluations, time.perf_counter() - began)
        latent = latents.repack(result)
        latent.pop(KEY, None)  # it describes the samples that came in
        return io.NodeOutput(latent, latents.pack(scaling.process_out(torch.cat(frames))))


def _lifts(model: host.HostModel, scale: int, source: Any) -> int:
    """How many lifts in a row make `scale`, 0 being the model's own. Raises ValueError where no number does."""
    if scale in (0, model.scale):
        return 1
    count = lifts(model.scale, scale)
    made = model.scale**count
    if made != scale:
        raise ValueError(
            f"scale is {scale} and lifts by {model.scale} make {made}: choose that, decode, and reduce the picture "
            f"with Upscale Image By {scale / made:g}"
        )
    if source is not None:
        raise ValueError(
            f"scale is {scale}, {count} lifts in a row, and source is for one: leave source open, or scale 0"
        )
    return count


def _keeping(path: list[Tensor], report: Callback) -> Callback:
    """`report`, which also keeps the estimates of the run in `path`; another run starts it anew."""

    def keep(evaluation: int, total: int | None, t: float, estimate: Tensor) -> None:
        if evaluation == 1:
            path.clear()
        path.append(estimate.cpu())
        report(evaluation, total, t, estimate)

    return keep


def _lift(
    model: host.HostModel, low: Tensor, make_vae: Callable[[int], VAE] | None, tile: int, **settings: Any
) -> Tensor:
    """`model.upscale` in tiles of `tile`; once more in float32 where half precision overflowed. Raises ValueError if
    that does too."""
    settings |= {"tile": tile, "vae": make_vae(tile) if make_vae is not None else None}
    high = model.upscale(low, **settings)
    if not high.isfinite().all() and model.dtype in host.HALF:
        log.warning("CFM Latent Upscale: %s overflowed, repeating the run in float32", model.dtype)
        high = model.variant(dtype=torch.float32).upscale(low, **settings)
    if not high.isfinite().all():
        raise ValueError(
            f"the CFM model '{model.name}' gave values that are not finite for these latents: check that they are of "
            f"the {model.space.name} family and not already broken, or use another model file"
        )
    return high


def _within_memory(run: Callable[[int], Tensor], tile: int, side: int) -> tuple[Tensor, int]:
    """run(tile), and where memory is not enough once more with tiles of half the side, which are then kept."""
    try:
        return run(tile), tile
    except Exception as error:
        smaller = min(tile or side, side) // 2 // SMALLEST_TILE * SMALLEST_TILE
        if not host.is_out_of_memory(error) or not smaller:
            raise
    # Outside the handler, whose traceback would keep the tensors of the failed run alive.
    log.warning("CFM Latent Upscale: out of memory, trying once more with tile_size %d", smaller)
    return run(smaller), smaller


def _source(source: dict[str, Any], model: host.HostModel, low: Tensor) -> Tensor:
    """Raw latents of `source`, one for each of `low`. Raises ValueError unless they have the size of the result."""
    raw = host.Latents(source, "source").raw
    expected = (low.shape[0], low.shape[1], model.scale * low.shape[2], model.scale * low.shape[3])
    if raw.shape[0] == 1:
        raw = raw.expand(expected[0], -1, -1, -1)
    if raw.shape != expected:
        raise ValueError(
            f"source has shape {tuple(raw.shape)}: expected that of the result, {expected}; enlarge it "
            f"{model.scale}x first (Upscale Latent By), or leave source open"
        )
    return raw


def _log_done(low: Tensor, high: Tensor, pixels: int, solver: str, calls: int, seconds: float) -> None:
    (h, w), (high_h, high_w) = low.shape[2:], high.shape[2:]
    log.info(
        "CFM Latent Upscale: %d x (%dx%d -> %dx%d latent, %dx%d pixels), %s, %d evaluations, %.2f s",
        *(low.shape[0], w, h, high_w, high_h, high_w * pixels, high_h * pixels, solver, calls, seconds),
    )
