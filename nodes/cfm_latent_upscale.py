"""CFM Latent Upscale: the whole method as one node."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..fmboost_core import LATENT_SPACES, SOLVERS, Sampling
from ..fmboost_core.cascade import lifts, stage_seed
from ..fmboost_core.memory import SMALLEST_TILE
from ..fmboost_core.sampling import STEPS
from ..fmboost_core.solver import Callback, evaluations
from ..fmboost_core.vae.protocol import VAE
from .host.files import TROUBLE
from .host.latents import LatentFormat, Latents, choose_space
from .host.memory import HALF, HostModel, within_memory
from .host.preview import Progress
from .host.schema import ADVANCED, LATENT_CATEGORY, CFMType, schema, seed_input
from .host.vae import doubts_about, find_vae
from .noise_augment import KEY, noise_behind

log = logging.getLogger(__name__)


class CFMLatentUpscale(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FMBoost_CFMLatentUpscale",
            display_name="CFM Latent Upscale",
            category=LATENT_CATEGORY,
            description=(
                "Enlarges latents 2x or 4x, as the model was trained to, with Coupling Flow Matching. The result is "
                "final: decode it, no second sampling is needed."
            ),
            search_aliases=[
                "upscale",
                "upscaler",
                "enlarge",
                "superres",
                "super resolution",
                "hires",
                "hires fix",
                "2x",
                "4x",
                "increase resolution",
                "latent upscale",
                "upscale latent",
                "flow matching",
                "CFM",
                "FMBoost",
            ],
            inputs=[
                CFMType.Input("model", tooltip="The CFM model, from Load CFM Model."),
                io.Latent.Input("samples", tooltip="The latents to enlarge, from KSampler or VAE Encode."),
                io.Int.Input(
                    "steps",
                    default=STEPS,
                    min=1,
                    max=1000,
                    tooltip=(
                        "Steps through the flow. The models that come with FMBoost are made for 4 and lose little with "
                        "2 or 1; models without their last training stage need 10 or more."
                    ),
                ),
                seed_input(),
                io.Combo.Input(
                    "solver",
                    options=list(SOLVERS),
                    default="euler",
                    optional=True,
                    tooltip=(
                        "How the flow is followed. euler calls the network once a step, midpoint and heun twice, heun3 "
                        "three and rk4 four times. dopri5 chooses its own steps and ignores their number."
                    ),
                ),
                io.Int.Input(
                    "noise_step",
                    default=-1,
                    min=-1,
                    max=999,
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip=(
                        "Noise at the start of the flow, a step of the cosine schedule: -1 as the model was trained, 0 "
                        "none, 999 only noise. A Noise Augment in front of this node takes precedence."
                    ),
                ),
                io.Int.Input(
                    "tile_size",
                    default=0,
                    min=0,
                    max=4096,
                    step=16,
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip=(
                        "0 shows the network the whole image. Otherwise the side of its tiles in latent pixels of the "
                        "result (64 is 512 pixels): memory then depends on the tile, and there are no seams."
                    ),
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip=(
                        "The VAE of your checkpoint, which decodes and encodes once before the flow; models without "
                        "pixel-space upsampling (psu) ignore it. Left open, the TAESD in models/vae_approx is used."
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
                    extra_dict=ADVANCED,
                    tooltip="Which scaling the latents have. auto: that of the family the model was trained on.",
                ),
                io.Int.Input(
                    "scale",
                    default=0,
                    min=0,
                    max=16,
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip=(
                        "How many times larger each side gets. 0: as the model says. A power of that (4 or 8 for a "
                        "model of 2) lifts several times in a row, each time with all steps."
                    ),
                ),
                io.Boolean.Input(
                    "trajectory",
                    default=False,
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip=(
                        "Puts what the result looked like at every network call into the second output, as a batch "
                        "that ends with the result. Of several lifts, the last one."
                    ),
                ),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="samples",
                    tooltip="The enlarged latents, for VAE Decode. noise_mask and batch_index are kept.",
                ),
                io.Latent.Output(
                    display_name="trajectory",
                    tooltip=(
                        "With trajectory on, the way to the result, image after image, for VAE Decode; otherwise the "
                        "result alone."
                    ),
                ),
            ],
        )

    @classmethod
    def execute(cls, model: HostModel, samples: dict[str, Any], steps: int, seed: int, **options: Any) -> io.NodeOutput:
        options = _Options(**options)
        latents = Latents(samples)
        model.check_samples(latents.raw)
        if 0 < options.tile_size < SMALLEST_TILE:
            raise ValueError(f"tile_size is {options.tile_size}: expected 0 (whole) or a number from {SMALLEST_TILE}")
        space = choose_space(model, options.latent_space, latents)
        count = _count_lifts(model, options)
        low, sampling = _denoised(latents, options.sampling(steps, seed))
        scaling, device = LatentFormat(space), model.patcher.load_device
        low = scaling.process_in(low.to(device))
        source = None if options.source is None else scaling.process_in(_source(options, model, low).to(device))
        make_vae = find_vae(model, options.vae, space)
        doubts = doubts_about(options.vae, model, space)
        if doubts:
            log.warning("CFM Latent Upscale: %s", doubts)
        passes = 2 if model.config.flow.upsampling == "psu" else 0
        progress = Progress(device, space, low.shape[0] * count, evaluations(sampling.solver, steps), passes)
        batch_index = latents.batch_index
        began, results, paths = time.perf_counter(), [], []
        # An adaptive solver chooses the steps of each image for itself.
        alone = evaluations(sampling.solver, steps) is None
        together = 1 if alone else model.images_at_once(*_result_size(low, model.scale**count), options.tile_size)
        for first in range(0, low.shape[0], together):
            images = slice(first, first + together)
            high, path = low[images], []
            for stage in range(count):
                progress.begin(first * count + stage * high.shape[0], high.shape[0])
                of_stage = replace(sampling, seed=stage_seed(sampling.seed, stage), batch_index=batch_index[images])
                lift = _Lift(
                    model,
                    of_stage,
                    partial(make_vae, passed=progress.passed),
                    None if source is None else source[images],
                    _keeping(path, progress.update) if options.trajectory else progress.update,
                )
                high, tile = within_memory(partial(lift, high), sampling.tile, max(_result_size(high, model.scale)))
                sampling = replace(sampling, tile=tile)
            results.append(high)
            paths.append(torch.stack([*path, high.cpu()], dim=1).flatten(0, 1))
        result = scaling.process_out(torch.cat(results))
        summary = _summary(latents.raw, result, space.folded_pixels, progress.evaluations, time.perf_counter() - began)
        log.info("CFM Latent Upscale: %s", summary)
        progress.show(f"{summary}\n{doubts}".rstrip())
        latent = latents.repack(result)
        latent.pop(KEY, None)  # it describes the samples that came in
        if not options.trajectory:
            return io.NodeOutput(latent, {"samples": latent["samples"]})
        return io.NodeOutput(latent, latents.pack(scaling.process_out(torch.cat(paths))))


@dataclass(frozen=True)
class _Options:
    """The optional inputs."""

    solver: str = "euler"
    noise_step: int = -1
    tile_size: int = 0
    vae: Any = None
    source: dict[str, Any] | None = None
    latent_space: str = "auto"
    scale: int = 0
    trajectory: bool = False

    def sampling(self, steps: int, seed: int) -> Sampling:
        noise_step = None if self.noise_step < 0 else self.noise_step
        return Sampling(steps=steps, solver=self.solver, seed=seed, noise_step=noise_step, tile=self.tile_size)


@dataclass(frozen=True)
class _Lift:
    """One lift of some images in tiles of a given size; in float32 once half precision has overflowed."""

    model: HostModel
    sampling: Sampling
    make_vae: Callable[[int], VAE | None]
    source: Tensor | None
    callback: Callback

    def __call__(self, low: Tensor, tile: int) -> Tensor:
        """Raises ValueError for a result that is not finite in float32 either."""
        sampling, vae = replace(self.sampling, tile=tile), self.make_vae(tile)
        model = self.model.in_float32() if self.model.overflowed else self.model
        high = model.upscale(low, sampling, vae=vae, source=self.source, callback=self.callback)
        if not high.isfinite().all() and model.dtype in HALF:
            log.warning("CFM Latent Upscale: %s overflowed, repeating the run in float32", model.dtype)
            self.model.overflowed = True
            return self(low, tile)
        if not high.isfinite().all():
            raise ValueError(
                f"the CFM model '{self.model.name}' gave values that are not finite for these latents: check that they "
                f"are of the {self.model.space.name} family and not already broken, or use another model file "
                f"({TROUBLE})"
            )
        return high


def _denoised(latents: Latents, sampling: Sampling) -> tuple[Tensor, Sampling]:
    """The raw latents to lift and how: behind Noise Augment the clean ones, with its noise drawn at the new size."""
    noise = noise_behind(latents)
    if noise is not None:
        return noise.clean, replace(sampling, noise_step=noise.noise_step, seed=noise.seed)
    if KEY in latents.origin:
        log.warning(
            "CFM Latent Upscale: the samples changed after Noise Augment and are lifted as they are, noise and "
            "all: connect Noise Augment to this node directly"
        )
    return latents.raw, sampling


def _count_lifts(model: HostModel, options: _Options) -> int:
    """How many lifts in a row make `scale`, 0 being the model's own. Raises ValueError where no number does."""
    scale = options.scale
    if scale in (0, model.scale):
        return 1
    count = lifts(model.scale, scale)
    made = model.scale**count
    if made != scale:
        raise ValueError(
            f"scale is {scale} and lifts by {model.scale} make {made}: choose that, decode, and reduce the picture "
            f"with Upscale Image By {scale / made:g}"
        )
    if options.source is not None:
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


def _result_size(latents: Tensor, scale: int) -> tuple[int, int]:
    return scale * latents.shape[2], scale * latents.shape[3]


def _source(options: _Options, model: HostModel, low: Tensor) -> Tensor:
    """Raw latents of `source`, one for each of `low`. Raises ValueError unless they have the size of the result."""
    assert options.source is not None
    raw = Latents(options.source, "source").raw
    expected = (low.shape[0], low.shape[1], model.scale * low.shape[2], model.scale * low.shape[3])
    if raw.shape[0] == 1:
        raw = raw.expand(expected[0], -1, -1, -1)
    if raw.shape != expected:
        raise ValueError(
            f"source has shape {tuple(raw.shape)}: expected that of the result, {expected}; enlarge it "
            f"{model.scale}x first (Upscale Latent By), or leave source open"
        )
    return raw


def _summary(low: Tensor, high: Tensor, pixels: int, calls: int, seconds: float) -> str:
    (h, w), (high_h, high_w) = low.shape[2:], high.shape[2:]
    images = f"{low.shape[0]} images, " if low.shape[0] > 1 else ""
    sizes = f"{w}x{h} -> {high_w}x{high_h} latent, {w * pixels}x{h * pixels} -> {high_w * pixels}x{high_h * pixels} px"
    return f"{images}{sizes}, {calls} evaluation{'s' * (calls != 1)}, {seconds:.1f} s"
