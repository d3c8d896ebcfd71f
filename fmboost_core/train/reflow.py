"""Straighter flows from a trained one (rectified flow, Liu et al. 2022, arXiv 2209.03003): not in the paper.

A trained model's own results take the place of the photos' latents, each with the noise it came from. The pairs are
then one to one, so that a second model learns almost straight lines between them and needs fewer steps.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint import load_model, resolve
from ..config import FlowConfig
from ..model import CFMModel
from ..noise import draw_noise
from ..upsample import VAE
from .objectives import context_of
from .settings import DataSettings


def origin_digest(origin: str | Path) -> str:
    """SHA-256 of a model's file, shortened: tells one model's results from another's."""
    return hashlib.sha256(resolve(origin).read_bytes()).hexdigest()[:16]


def reflow_identity(data: DataSettings) -> dict[str, str | int]:
    """What a cache of these results depends on, beside the photos' latents; nothing without a reflow."""
    if not data.reflow_model:
        return {}
    origin = origin_digest(data.reflow_model)
    return {"reflow_model": origin, "reflow_steps": data.reflow_steps, "back_projection": 0}


class Reflow:
    """The model file or shipped model `origin`, run for `steps` of Euler on every cached example.

    Its transport is learnt with the flow. Its back projection is left out: it follows the new model again. Raises
    ValueError where it lifts other latents than those of `space`, or does not start as `flow` does: its noise would
    not be the one that is learnt.
    """

    def __init__(
        self, origin: str | Path, steps: int, flow: FlowConfig, space: str, device: torch.device | str
    ) -> None:
        self.model: CFMModel = load_model(origin, device=device)
        if self.model.space.name != space:
            raise ValueError(f"reflow of {origin}, which lifts {self.model.space.name} latents: expected {space} ones")
        self.steps = steps
        found = replace(self.model.config.flow, back_projection=flow.back_projection)
        if found != flow:
            raise ValueError(f"reflow of {origin}, whose flow is {found}: expected that of [flow], {flow}")
        if flow.posterior_mean:
            raise ValueError(f"reflow of {origin}, which starts from its own mean: a new network's would be another")
        if flow.upsampling != "psu":
            raise ValueError(f"reflow of upsampling {flow.upsampling}: expected psu, which is what is cached")

    @torch.inference_mode()
    def __call__(self, example: dict[str, Tensor], vae: VAE, seed: int) -> dict[str, Tensor]:
        """`example` of `data.encode_example` with the model's result as ``high``, and its ``noise`` (C, h, w)."""
        one = {name: tensor[None].float() for name, tensor in example.items()}
        context = context_of(self.model.config.flow, one)
        high = self.model.upscale(one["low"], steps=self.steps, seed=seed, vae=vae, context=context, back_projection=0)
        return {**example, "high": high[0], "noise": draw_noise(high.shape, seed)[0]}
