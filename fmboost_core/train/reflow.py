"""Straighter flows from a trained one (rectified flow, Liu et al. 2022, arXiv 2209.03003): not in the paper.

A trained model's own results take the place of the photos' latents, each with the noise it came from. The pairs are
then one to one, so that a second model learns almost straight lines between them and needs fewer steps.

What one model gets wrong the next would learn; the colours of its pictures can be put right on the way (`agree`).
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checkpoint import load_model, resolve
from ..config import FlowConfig
from ..flow import join_context
from ..model import CFMModel
from ..noise import draw_noise
from ..upsample import VAE
from .settings import DataSettings


def origin_digest(origin: str | Path) -> str:
    """SHA-256 of a model's file, shortened: tells one model's results from another's."""
    return hashlib.sha256(resolve(origin).read_bytes()).hexdigest()[:16]


def reflow_identity(data: DataSettings) -> dict[str, str | int]:
    """What a cache of these results depends on, beside the photos' latents; nothing without a reflow."""
    if not data.reflow_model:
        return {}
    agreed = {"reflow_agreement": str(data.reflow_agreement)} if data.reflow_agreement else {}
    return {"reflow_model": origin_digest(data.reflow_model), "reflow_steps": data.reflow_steps, **agreed}


class Reflow:
    """The model file or shipped model `origin`, run for `steps` of Euler on every cached example.

    `agreement` > 0 is the rate at which results are then moved towards the colours of the low picture (`agree`).
    Raises ValueError where it does not start as `flow` does: its noise would not be the one that is learnt.
    """

    def __init__(
        self, origin: str | Path, steps: int, flow: FlowConfig, device: torch.device | str, agreement: float = 0.0
    ) -> None:
        self.model: CFMModel = load_model(origin, device=device)
        self.steps, self.agreement = steps, agreement
        found = replace(self.model.config.flow, back_projection=flow.back_projection)
        if found != flow:
            raise ValueError(f"reflow of {origin}, whose flow is {found}: expected that of [flow], {flow}")
        if flow.upsampling != "psu":
            raise ValueError(f"reflow of upsampling {flow.upsampling}: expected psu, which is what is cached")

    @torch.inference_mode()
    def __call__(self, example: dict[str, Tensor], vae: VAE, seed: int) -> dict[str, Tensor]:
        """`example` of `data.encode_example` with the model's result as ``high``, and its ``noise`` (C, h, w)."""
        psu, picture = example["psu"][None].float(), example["picture"][None]
        context = join_context(psu, picture) if self.model.config.flow.picture_context else psu
        high = self.model.upscale(example["low"][None], steps=self.steps, seed=seed, vae=vae, context=context)
        if self.agreement:
            high = agree(high, picture, self.model.scale, vae, self.agreement)
        return {**example, "high": high[0], "noise": draw_noise(high.shape, seed)[0]}


BLOCK = 4  # px of the low picture


def agree(high: Tensor, picture: Tensor, scale: int, vae: VAE, rate: float, rounds: int = 3) -> Tensor:
    """Move a lifted latent (B, C, H, W) until its decoded image has the colours of the low picture, block by block.

    Steps of gradient descent through the decoder, with momentum, on the squared difference of the means of blocks of
    4 x 4 px of `picture`, (B, 3, p H / scale, p W / scale) in [0, 1]. Detail within a block is free and stays. An
    encoder has no part in it, so that it holds where `upsample.back_project` does not: latents whose mean colour is
    wrong by some 2/255 have the right low frequencies, and are wrong in how the decoder reads their detail. It needs
    gradients and the time of three decodes a round: for what is learnt, not for every lift.
    """
    with torch.inference_mode(False), torch.enable_grad():
        x, motion = high.clone(), torch.zeros_like(high)
        wanted = F.avg_pool2d(picture.clone(), BLOCK)
        for _ in range(rounds):
            moved = x.detach().requires_grad_()
            difference = F.avg_pool2d(vae.decode(moved), scale * BLOCK) - wanted
            error = 0.5 * (scale * BLOCK) ** 2 * difference.square().sum()  # the area: a rate for every scale
            motion = 0.5 * motion - rate * torch.autograd.grad(error, moved)[0]
            x = x + motion
    return x.detach()
