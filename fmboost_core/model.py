"""A CFM model: a velocity network, what it was trained for, and the whole method around it (paper Fig. 3)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import context, solver, tiling
from .config import ModelConfig
from .flow import make_source
from .latent_spaces import LatentSpace, latent_space
from .noise import augment, draw_noise
from .sampling import Sampling
from .solver import Callback
from .unet import UNet
from .vae.protocol import VAE


def build_network(config: ModelConfig, *, operations: Any = nn, **factory: Any) -> UNet:
    """The fresh network of `config`: a U-Net, with the context encoder as its child where the model has one.

    `factory` are the other arguments of `UNet`: ``attention``, ``dtype`` and ``device``.
    """
    net = UNet(config.net, operations=operations, **factory)
    if config.context_encoder is not None:
        channels, scale = config.net.out_channels, config.flow.scale
        where = {name: factory[name] for name in ("dtype", "device") if name in factory}
        net.context_encoder = context.ContextEncoder(
            channels, scale, config.context_encoder, operations=operations, **where
        )
    return net


class CFMModel:
    """Lifts scaled latents (B, C, h, w) to (B, C, scale*h, scale*w).

    `net` may be on any device and of any floating type: its inputs are cast to `device` and `dtype`, by default those
    of its weights, and its results are cast back to float32.
    """

    def __init__(
        self,
        config: ModelConfig,
        net: UNet,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        weight = next(net.parameters())
        self.config, self.net = config, net
        self.device = torch.device(device) if device is not None else weight.device
        self.dtype = dtype or weight.dtype

    @property
    def scale(self) -> int:
        """Target size over source size."""
        return self.config.flow.scale

    @property
    def space(self) -> LatentSpace:
        return latent_space(self.config.latent_space)

    def upscale(
        self,
        low: Tensor,
        sampling: Sampling | None = None,
        *,
        vae: VAE | None = None,
        source: Tensor | None = None,
        callback: Callback | None = None,
        **settings: Any,
    ) -> Tensor:
        """Lift scaled latents (B, C, h, w) to (B, C, scale*h, scale*w), float32, by the method of paper Fig. 3.

        `settings` are fields of `Sampling`, for short calls such as ``model.upscale(low, steps=4, seed=0)``. `vae` is
        needed by models that start from pixel-space upsampling. `source`, a latent of the target size, takes the place
        of the upsampled one as the start of the flow, and is noised only where `noise_step` asks for it. `callback`
        sees every network evaluation and stops the run by raising. Raises ValueError where shapes do not fit.
        """
        sampling = replace(sampling or Sampling(), **settings)
        context = self.make_context(low, vae)
        x0 = self.make_source(context, sampling, source)
        return self.integrate(x0, context, sampling, callback)

    def make_context(self, low: Tensor, vae: VAE | None = None) -> Tensor:
        """What the network sees beside x_t: (B, C', scale*h, scale*w), the upsampled latent first (`context.py`)."""
        self.check_latents(low)
        return context.make_context(self.config.flow, low.float(), vae=vae, encoder=self._encode_context)

    def make_source(self, context: Tensor, sampling: Sampling, source: Tensor | None = None) -> Tensor:
        """x0 (B, C, H, W): the upsampled latent in `context`, or `source`, with the noise of `sampling`."""
        upsampled = context[:, : self.space.channels]
        noise = draw_noise(upsampled.shape, sampling.seed, sampling.batch_index).to(context)
        if source is None:
            return make_source(self.config.flow, upsampled, noise, sampling.noise_step)
        if source.shape != upsampled.shape:
            raise ValueError(
                f"a source of shape {tuple(source.shape)}: expected the shape of the result, {tuple(upsampled.shape)}"
            )
        return augment(source.float(), sampling.noise_step or 0, noise)

    def integrate(
        self,
        x0: Tensor,
        context: Tensor,
        sampling: Sampling,
        callback: Callback | None = None,
        *,
        reverse: bool = False,
        frames: int = 0,
    ) -> Tensor:
        """Solve dx/dt = v(t, [x, context]) from x0 (B, C, H, W) at t = 0 to x1 at t = 1, or back with `reverse`.

        Returns x1 or, with `frames`, that many states at even times, (frames, B, C, H, W). An adaptive solver solves
        the images one by one, so that no image changes another. Raises ValueError where shapes do not fit.
        """
        self._check_flow(x0, context)
        follow = partial(
            solver.integrate,
            steps=sampling.steps,
            solver=sampling.solver,
            callback=callback,
            reverse=reverse,
            frames=frames or 2,
        )
        together = solver.evaluations(sampling.solver, sampling.steps) is not None
        groups = [slice(None)] if together else [slice(i, i + 1) for i in range(x0.shape[0])]
        states = [
            follow(partial(self.velocity, context=context[images], tile=sampling.tile), x0[images]) for images in groups
        ]
        states = torch.cat(states, dim=1)
        return states if frames else states[-1]

    @torch.no_grad()
    def velocity(self, x: Tensor, t: Tensor, context: Tensor, *, tile: int = 0) -> Tensor:
        """v(t, [x, context]) in float32; x, context (B, C, h, w) of any size, t (B,) in [0, 1].

        With `tile` above 0 it is computed in windows of at most `tile` latent pixels on a side, blended over an
        overlap of a quarter. The state stays whole, so the result has no seams.
        """

        def windows(pair: Tensor) -> Tensor:
            return self._network(pair, t.repeat(pair.shape[0] // t.shape[0]))

        pair = torch.cat([x, context], dim=1)
        if tile and max(x.shape[2:]) > tile:
            return tiling.blend(windows, pair, tile, _overlap(tile))
        return windows(pair)

    def _network(self, pair: Tensor, t: Tensor) -> Tensor:
        height, width = pair.shape[2:]
        multiple = self.config.net.size_multiple
        # At least two pixels at the lowest level: the norms cannot normalise a single value.
        right, bottom = (max(-side % multiple, 2 * multiple - side) for side in (width, height))
        padded = F.pad(pair, (0, right, 0, bottom), mode="replicate").to(self.device, self.dtype)
        channels = self.space.channels
        v = self.net(padded[:, :channels], t.to(self.device), padded[:, channels:])
        return v[:, :, :height, :width].to(pair.device, torch.float32)

    @torch.no_grad()
    def _encode_context(self, low: Tensor) -> Tensor:
        assert self.net.context_encoder is not None
        return self.net.context_encoder(low.to(self.device, self.dtype)).to(low.device, torch.float32)

    def bytes_needed(self, batch: int, height: int, width: int, tile: int = 0) -> int:
        """Peak bytes of `integrate` for x0 (batch, C, height, width), without the weights and its arguments.

        The network peaks where its first level continues after the lower ones: there are the lower level's result,
        the same joined to a skip connection, that after its norm and after its activation, the skip connections still
        to come, and what a convolution reorders, its weights among it. The state outside is float32 and whole.
        `benchmarks/memory.py` compares this with measured peaks.
        """
        net = self.config.net
        first, below = net.channel_mult[0], net.channel_mult[min(1, len(net.channel_mult) - 1)]
        joined = first + below
        channels = net.model_channels * (below + 4 * joined + (net.num_res_blocks + 1) * first)
        rows, columns = (tiling.windows(side, tile or side, _overlap(tile))[0] for side in (height, width))
        pixels = batch * rows * columns / net.pool_factor**2
        weights = 9 * joined * first * net.model_channels**2
        state = batch * height * width * (net.in_channels + 4 * net.out_channels) * 4
        return int((pixels * channels + weights) * self.dtype.itemsize + state)

    def check_latents(self, latents: Tensor, *, folded: bool = False) -> None:
        """Raise ValueError unless these are (B, C, h, w) with the channels of the model's latent space, or with those
        that ComfyUI has if they are `folded`."""
        channels = self.space.folded_channels if folded else self.space.channels
        if latents.ndim != 4 or latents.shape[1] != channels:
            raise ValueError(
                f"latents of shape {tuple(latents.shape)} do not fit this model: it was trained on {self.space.name} "
                f"latents, (B, {channels}, h, w); use a model of the family your latents come from"
            )

    def _check_flow(self, x0: Tensor, context: Tensor) -> None:
        self.check_latents(x0)
        expected = (x0.shape[0], self.config.context_channels, *x0.shape[2:])
        if context.shape != expected:
            raise ValueError(f"a context of shape {tuple(context.shape)}: expected {expected}")


def _overlap(tile: int) -> int:
    """Latent pixels that neighbouring tiles of the network share."""
    return tile // 4
