"""What a network learns from an aligned pair of latents: the paper's flows, and what it compares them with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..config import FlowConfig
from ..context import interpolate, join_context
from ..flow import make_source, sample_path, velocity_loss
from ..unet import UNet

DIFFUSION_STEPS = 1000
CLIP = 5.0  # scaled latents stay within it; unbounded, an estimate of x1 from pure noise is an error over 5e-5


def context_of(net: UNet, flow: FlowConfig, batch: dict[str, Tensor]) -> Tensor:
    """The context of a batch, with gradients to a context encoder; `context.make_context` without an autoencoder."""
    if flow.upsampling == "learned":
        assert net.context_encoder is not None
        return net.context_encoder(batch["low"]).float()
    if flow.upsampling == "psu":
        return join_context(flow, batch["psu"], batch["picture"])
    return interpolate(batch["low"], flow.scale, flow.upsampling)


def context_loss(context: Tensor, flow: FlowConfig, batch: dict[str, Tensor]) -> Tensor:
    """How far a learned `context` is from that of pixel-space upsampling with the low picture. Not in the paper.

    The L1 error of the upsampled latent, and twice the squared error of the folded picture. A network trained on
    pixel-space upsampling goes on from there without its autoencoder.
    """
    target = join_context(replace(flow, upsampling="psu", picture_context=True), batch["psu"], batch["picture"])
    channels = batch["high"].shape[1]
    upsampled = (context[:, :channels] - target[:, :channels]).abs().mean()
    return upsampled + 2 * (context[:, channels:] - target[:, channels:]).square().mean()


def flow_loss(objective: str, net: nn.Module, flow: FlowConfig, batch: dict[str, Tensor], context: Tensor) -> Tensor:
    """Loss of a batch of `LatentCrops` with its context.

    ``cfm`` and ``fm``: flow matching on the path of `flow`, coupling or Gaussian (Eq. 9, 13). ``regression``: the mean
    of x1 given the low latent, which is the same network at t = 0 from a clean source, solved by one Euler step.
    ``sr3``: the noise in a noised x1 (Saharia et al. 2022), on the schedule of paper Tab. 8. No gradient
    reaches the upsampled latent in `context`.
    """
    x1, t, noise = batch["high"], batch["t"], batch["noise"]
    upsampled = context[:, : x1.shape[1]]
    if objective == "sr3":
        steps = diffusion_steps(t)
        x_t = diffusion_schedule().add_noise(x1, noise, steps)
        return velocity_loss(net(x_t, steps / DIFFUSION_STEPS, context), noise)
    if objective == "regression":
        return velocity_loss(net(upsampled, torch.zeros_like(t), context), x1 - upsampled)
    x_t, velocity = sample_path(flow, make_source(flow, upsampled, noise), x1, t, noise)
    return velocity_loss(net(x_t, t, context), velocity)


def diffusion_schedule(spacing: Literal["leading", "trailing"] = "leading") -> Any:
    """The paper's SR3 (Tab. 8): 1000 steps, cosine schedule, the network predicts the noise; a diffusers DDIMScheduler.

    `spacing` is diffusers' `timestep_spacing`: ``leading`` is that of latent diffusion, ``trailing`` starts at pure
    noise. Raises ValueError where diffusers is not installed.
    """
    try:
        from diffusers import DDIMScheduler
    except ImportError as error:
        raise ValueError("objective sr3 needs diffusers: install it with pip install 'fmboost[paper]'") from error
    return DDIMScheduler(
        num_train_timesteps=DIFFUSION_STEPS,
        beta_schedule="squaredcos_cap_v2",
        timestep_spacing=spacing,
        steps_offset=1 if spacing == "leading" else 0,
        clip_sample_range=CLIP,
    )


def diffusion_steps(t: Tensor) -> Tensor:
    """Uniform times in [0, 1] as steps 0..999."""
    return (t * DIFFUSION_STEPS).long().clamp(max=DIFFUSION_STEPS - 1)
