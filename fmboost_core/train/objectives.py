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
    `mean_weight` is the weight of the images that teach the mean of x1 (`mean`, a mask).
    """

    vae: VAE
    weight: float
    window: int  # latent pixels on a side; with `colour_weight`, like top and left, a multiple of the block
    top: int
    left: int
    colour_weight: float = 0.0
    mean_weight: float = 0.0

    def __call__(self, estimate: Tensor, x1: Tensor, picture: Tensor, mean: Tensor | None = None) -> Tensor:
        shown = self.vae.decode(self._window(estimate))
        loss = shown.new_zeros(())
        if self.weight or self.mean_weight:
            weight = self.weight if mean is None else torch.where(mean, self.mean_weight, self.weight)
            with torch.no_grad():
                truth = self.vae.decode(self._window(x1))
            loss = loss + (weight * (shown - truth).square().mean(dim=(1, 2, 3))).mean()
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
    noise_from: int = -1,
) -> Tensor:
    """Loss of a batch of `LatentCrops`.

    ``cfm`` and ``fm``: flow matching on the path of `flow`, coupling or Gaussian (Eq. 9, 13). ``regression``: the mean
    of x1 given the low latent, which is the same network at t = 0 from a clean start, solved by one Euler step.
    With `flow.posterior_mean` one network learns that of a share of the examples, and of the others the flow from the
    mean it has, without context.
    ``sr3``: the noise in a noised x1 (Saharia et al. 2022), by the schedule of paper Tab. 8.
    """
    context, x1 = context_of(flow, batch), batch["high"]
    if name == "sr3":
        steps, noise = diffusion_steps(spread_times(batch["t"], t_sampling)), batch["noise"]
        x_t = diffusion_schedule().add_noise(x1, noise, steps)
        return velocity_loss(net(x_t, steps / DIFFUSION_STEPS, context), noise)
    upsampled, mean = context[:, : x1.shape[1]], None
    if name == "regression":
        t, x_t, velocity = torch.zeros_like(batch["t"]), upsampled, x1 - upsampled
    elif flow.posterior_mean:
        with torch.no_grad():
            start = upsampled + net(upsampled, torch.zeros_like(batch["t"]), context).float()
        mean = batch["t"] < MEAN_SHARE  # these examples teach it, as a regression's do
        t = spread_times(((batch["t"] - MEAN_SHARE) / (1 - MEAN_SHARE)).clamp(min=0), t_sampling).where(~mean, 0)
        x0 = upsampled.where(_each(mean), _noised(flow, start, batch, noise_from))
        (x_t, velocity), context = sample_path(flow, x0, x1, t, batch["noise"]), context * _each(mean)
    else:
        t = spread_times(batch["t"], t_sampling)
        x_t, velocity = sample_path(flow, _noised(flow, upsampled, batch, noise_from), x1, t, batch["noise"])
    predicted = net(x_t, t, context).float()
    loss = velocity_loss(predicted, velocity)
    if decoded is not None:
        loss = loss + decoded(x_t + (1 - _each(t)) * predicted, x1, batch["picture"], mean)
    return loss


MEAN_SHARE = 0.25
"""Of the examples of a flow from the mean of x1: so many teach that mean."""


def _noised(flow: FlowConfig, start: Tensor, batch: dict[str, Tensor], noise_from: int) -> Tensor:
    """x0 of `start`, noised to the step of `flow`; with `noise_from` from 0 on each to one between the two."""
    if noise_from < 0:
        return source(flow, start, batch["noise"])
    steps = (noise_from + batch["level"] * (flow.noise_step + 1 - noise_from)).long().tolist()
    return torch.stack([source(flow, *one) for one in zip(start, batch["noise"], steps, strict=True)])


def _each(values: Tensor) -> Tensor:
    """(B,) numbers of images, to go with (B, C, h, w)."""
    return values.view(-1, 1, 1, 1)


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
