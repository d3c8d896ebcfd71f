"""What a network is trained to do with an aligned pair of latents."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import FlowConfig
from ..flow import join_context, sample_path, source, velocity_loss
from ..upsample import VAE, upsample

COLOUR_BLOCK = 2  # latent pixels


class DecodedLoss(NamedTuple):
    """The picture the network is heading for, beside the velocity: not in the paper, which compares latents only.

    Equal errors of latents are not equally visible. A window of the estimate of x1 is decoded by a frozen autoencoder.
    `weight` times its mean squared error against the same window of x1 joins the loss, and `colour_weight` times that
    of its mean colours against the low `picture`, in blocks of 2 latent pixels: a decoder reads colour from detail,
    too, so that latents with the right low frequencies may still have the wrong colour. Detail within a block is free.
    """

    vae: VAE
    weight: float
    window: int  # latent pixels on a side; with `colour_weight`, like top and left, a multiple of the block
    top: int
    left: int
    colour_weight: float = 0.0

    def __call__(self, estimate: Tensor, x1: Tensor, picture: Tensor) -> Tensor:
        shown = self.vae.decode(self._window(estimate))
        loss = shown.new_zeros(())
        if self.weight:
            with torch.no_grad():
                truth = self.vae.decode(self._window(x1))
            loss = loss + self.weight * (shown - truth).square().mean()
        if self.colour_weight:
            block = COLOUR_BLOCK * picture.shape[3] // x1.shape[3]
            small = self._window(F.avg_pool2d(picture, block), COLOUR_BLOCK)
            colours = F.avg_pool2d(shown, shown.shape[3] // small.shape[3])
            loss = loss + self.colour_weight * (colours - small).square().mean()
        return loss

    def _window(self, images: Tensor, divisor: int = 1) -> Tensor:
        top, left, side = (n // divisor for n in (self.top, self.left, self.window))
        return images[:, :, top : top + side, left : left + side]


def context_of(flow: FlowConfig, batch: dict[str, Tensor]) -> Tensor:
    """The context, of what is cached: `flow.make_context` without its autoencoder."""
    if flow.upsampling != "psu":
        return upsample(batch["low"], flow.scale, flow.upsampling)
    return join_context(batch["psu"], batch["picture"]) if flow.picture_context else batch["psu"]


def objective_loss(
    name: str,
    net: nn.Module,
    flow: FlowConfig,
    batch: dict[str, Tensor],
    t_sampling: str = "uniform",
    decoded: DecodedLoss | None = None,
) -> Tensor:
    """Loss of a batch of `LatentCrops`.

    ``cfm`` and ``fm``: flow matching on the path of `flow`, coupling or Gaussian (Eq. 9, 13). ``regression``: the mean
    of x1 given the low latent, which is the same network at t = 0 from a clean start, solved by one Euler step.
    ``sr3``: the noise in a noised x1 (Saharia et al. 2022), by the schedule of paper Tab. 8.
    """
    context, x1 = context_of(flow, batch), batch["high"]
    if name == "sr3":
        steps, noise = diffusion_steps(spread_times(batch["t"], t_sampling)), batch["noise"]
        x_t = diffusion_schedule().add_noise(x1, noise, steps)
        return velocity_loss(net(x_t, steps / DIFFUSION_STEPS, context), noise)
    upsampled = context[:, : x1.shape[1]]
    if name == "regression":
        t, x_t, velocity = torch.zeros_like(batch["t"]), upsampled, x1 - upsampled
    else:
        t = spread_times(batch["t"], t_sampling)
        x0 = source(flow, upsampled, batch["noise"])
        x_t, velocity = sample_path(flow, x0, x1, t, batch["noise"])
    predicted = net(x_t, t, context).float()
    loss = velocity_loss(predicted, velocity)
    if decoded is not None:
        loss = loss + decoded(x_t + (1 - t.view(-1, 1, 1, 1)) * predicted, x1, batch["picture"])
    return loss


DIFFUSION_STEPS = 1000
CLIP = 5.0  # scaled latents stay within it; unbounded, an estimate of x1 from pure noise is an error over 5e-5


def diffusion_schedule(spacing: Literal["leading", "trailing"] = "leading") -> Any:
    """The paper's SR3 (Tab. 8): 1000 steps, cosine schedule, the network predicts the noise; a diffusers DDIMScheduler.

    `spacing` is diffusers' `timestep_spacing`: ``leading`` is that of latent diffusion, ``trailing`` starts at pure
    noise. Raises ValueError where diffusers is not installed.
    """
    try:
        from diffusers import DDIMScheduler
    except ImportError as error:
        raise ValueError("sr3 needs diffusers: install it with pip install 'fmboost[paper]'") from error
    return DDIMScheduler(
        num_train_timesteps=DIFFUSION_STEPS,
        beta_schedule="squaredcos_cap_v2",
        timestep_spacing=spacing,
        steps_offset=1 if spacing == "leading" else 0,
        clip_sample_range=CLIP,
    )


def diffusion_steps(uniform: Tensor) -> Tensor:
    """Uniform times in [0, 1] as steps 0..999."""
    return (uniform * DIFFUSION_STEPS).long().clamp(max=DIFFUSION_STEPS - 1)


def spread_times(uniform: Tensor, sampling: str) -> Tensor:
    """Uniform times, or their logit-normal image, which favours the middle of the path."""
    if sampling == "uniform":
        return uniform
    return torch.sigmoid(2**0.5 * torch.erfinv((2 * uniform - 1).clamp(-0.999999, 0.999999)))
