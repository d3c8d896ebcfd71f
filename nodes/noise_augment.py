"""Noise Augment: the noise of paper 3.2.3 as a node of its own.

The paper noises the source of the flow only, after upsampling, and keeps the conditioning clean. So the output
carries the clean latent and how it was noised beside the noised samples: CFM Latent Upscale takes the former, every
other node the latter.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from comfy_api.latest import io
from torch import Tensor

from ..fmboost_core import LATENT_SPACES
from ..fmboost_core.noise import augment, draw_noise
from .host.latents import LatentFormat, Latents
from .host.memory import HostModel
from .host.schema import LATENT_CATEGORY, CFMType, schema, seed_input

KEY = "fmboost_noise"


class Noise(NamedTuple):
    """What lies under `KEY`: `clean` are raw latents (N, C, h, w), row n was noised from (seed, batch_index[n])."""

    clean: Tensor
    noise_step: int
    seed: int
    batch_index: tuple[int, ...]
    space: str


def noised(noise: Noise) -> Tensor:
    """Raw latents with the noise `noise` describes."""
    scaling = LatentFormat(LATENT_SPACES[noise.space])
    clean = scaling.process_in(noise.clean)
    drawn = draw_noise(clean.shape, noise.seed, noise.batch_index).to(clean)
    return scaling.process_out(augment(clean, noise.noise_step, drawn))


def noise_behind(latents: Latents) -> Noise | None:
    """How these samples were noised, each of them found among the output of Noise Augment, whichever nodes chose,
    repeated or numbered them; None if one is not there: nodes in between copy unknown keys along with samples of
    their own."""
    noise: Noise | None = latents.origin.get(KEY)
    if noise is None or noise.clean.shape[1:] != latents.raw.shape[1:]:
        return None
    given = noised(noise)
    found = latents.raw.to(given)
    # Within the rounding of half precision, in which some hosts pass latents.
    near = partial(torch.allclose, rtol=1e-2, atol=1e-2 * float(given.std()))
    origins = [next((i for i, image in enumerate(given) if near(image, one)), None) for one in found]
    if None in origins:
        return None
    return noise._replace(clean=noise.clean[origins], batch_index=latents.batch_index)


class NoiseAugment(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FMBoost_NoiseAugment",
            display_name="Noise Augment",
            category=LATENT_CATEGORY,
            description=(
                "Adds noise to latents on the schedule CFM models are trained with. In front of CFM Latent Upscale it "
                "sets how far the result may leave its input: more noise, more invented detail."
            ),
            search_aliases=["noise augmentation", "add noise", "detail strength", "FMBoost", "flow matching"],
            inputs=[
                CFMType.Input("model", tooltip="The CFM model, which knows its latent family and noise schedule."),
                io.Latent.Input("samples", tooltip="The latents to add noise to, from KSampler or VAE Encode."),
                io.Int.Input(
                    "noise_step",
                    default=-1,
                    min=-1,
                    max=999,
                    tooltip=(
                        "How much noise, as a step of the cosine schedule: -1 as the model was trained, 0 none, "
                        "200 little, 400 a third of the power, 999 all."
                    ),
                ),
                seed_input(),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="samples",
                    tooltip=(
                        "The noised latents. CFM Latent Upscale still sees the clean ones, and draws this noise at the "
                        "size of its result."
                    ),
                ),
            ],
        )

    @classmethod
    def execute(cls, model: HostModel, samples: dict[str, Any], noise_step: int, seed: int) -> io.NodeOutput:
        latents = Latents(samples)
        model.check_samples(latents.raw)
        step = model.config.flow.noise_step if noise_step < 0 else noise_step
        noise = Noise(latents.raw, step, seed, latents.batch_index, model.space.name)
        return io.NodeOutput(latents.repack(noised(noise), **{KEY: noise}))
