"""A CFM model: a velocity network, what it was trained for, and the whole method around it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import tiling
from .config import ModelConfig
from .flow import make_context, source
from .latent_spaces import LatentSpace, latent_space
from .noise import augment, draw_noise
from .solver import STEPS, Callback, integrate
from .transport import Convolution
from .upsample import VAE, back_project


class CFMModel:
    """Lifts scaled latents (B, C, h, w) to (B, C, scale*h, scale*w).

    `net` may live anywhere and in any floating type: inputs are cast to `device` and `dtype` (by default those of
    its weights), what it returns is cast back to float32. `transports` are the last step of a lift: none, or one for
    lifts without back projection and, where the model has it, one for those with it; `corrections` the rounds of its
    back projection, where they are fitted (`transport.py`).
    """

    def __init__(
        self,
        config: ModelConfig,
        net: nn.Module,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        transports: Sequence[Convolution] = (),
        corrections: Sequence[Convolution] = (),
    ) -> None:
        weight = next(net.parameters())
        self.config, self.net = config, net
        self.transports, self.corrections = transports, corrections
        self.device = torch.device(device) if device is not None else weight.device
        self.dtype = dtype or weight.dtype

    @property
    def scale(self) -> int:
        """Target size over source size."""
        return self.config.flow.scale

    @property
    def space(self) -> LatentSpace:
        return latent_space(self.config.latent_space)

    def integrate_bytes(self, batch: int, height: int, width: int, tile: int = 0) -> int:
        """Bytes `integrate` needs at its worst, beside the weights and its arguments, for x0 (batch, C, height, width).

        A network is largest where its first level is taken up again: what comes from below, that joined to a skip
        connection, the same after its norm and its activation, the skip connections still to come; and what a
        convolution reorders, its weights among it. The state outside is float32 and whole. `benchmarks/memory.py`
        compares with measured peaks.
        """
        net = self.config.net
        first, below = net.channel_mult[0], net.channel_mult[min(1, len(net.channel_mult) - 1)]
        joined = first + below
        width_of_all = below + 4 * joined + (net.num_res_blocks + 1) * first
        pixels = batch * min(tile or height, height) * min(tile or width, width)
        network = pixels * net.model_channels * width_of_all / net.pool_factor**2 * self.dtype.itemsize
        weights = 9 * joined * first * net.model_channels**2 * self.dtype.itemsize
        state = batch * height * width * (net.in_channels + 4 * net.out_channels) * 4
        return int(network + weights + state)

    @torch.no_grad()
    def velocity(self, x: Tensor, t: Tensor, context: Tensor, *, tile: int = 0) -> Tensor:
        """v(t, [x, context]) float32; x, context (B, C, h, w) of any size, t (B,) or a scalar in [0, 1].

        `tile` > 0 computes it window by window, at most `tile` latent pixels on a side, blended over an overlap of a
        quarter: the state stays whole, so there are no seams in the result.
        """
        both = torch.cat([x, context], dim=1)
        t = t.expand(x.shape[0]) if t.ndim == 0 else t

        def network(pair: Tensor) -> Tensor:
            repeat = pair.shape[0] // t.shape[0]
            return self._network(pair, t.repeat(repeat))

        if tile and max(x.shape[2:]) > tile:
            return tiling.blend(network, both, tile, tile // 4)
        return network(both)

    def _network(self, pair: Tensor, t: Tensor) -> Tensor:
        height, width = pair.shape[2:]
        multiple = self.config.net.size_multiple
        # At least two pixels at the lowest level: norms have no answer for one value.
        right, below = (max(-side % multiple, 2 * multiple - side) for side in (width, height))
        padding = (0, right, 0, below)
        padded = F.pad(pair, padding, mode="replicate").to(self.device, self.dtype)
        channels = self.space.channels
        x, context = padded[:, :channels], padded[:, channels:]
        v = self.net(x, t.to(self.device), context)
        return v[:, :, :height, :width].to(pair.device, torch.float32)

    def integrate(
        self,
        x0: Tensor,
        context: Tensor,
        *,
        steps: int = STEPS,
        solver: str = "euler",
        callback: Callback | None = None,
        tile: int = 0,
        reverse: bool = False,
    ) -> Tensor:
        """Solve dx/dt = v(t, [x, context]) from x0 at t = 0 to x1 at t = 1, or back with `reverse`.

        All latents are (B, C, h, w), scaled. `callback(evaluation, total, t, estimate)` sees every network
        evaluation and stops the run by raising; `total` is None for an adaptive solver. Raises ValueError where
        shapes do not fit the model or each other.
        """
        self.check_latents(x0)
        self._check_context(context, (x0.shape[0], *x0.shape[2:]))
        velocity = partial(self.velocity, tile=tile)
        return integrate(velocity, x0, context, steps=steps, solver=solver, callback=callback, reverse=reverse).x1

    def upscale(
        self,
        low: Tensor,
        *,
        steps: int = STEPS,
        solver: str = "euler",
        seed: int = 0,
        noise_step: int | None = None,
        vae: VAE | None = None,
        callback: Callback | None = None,
        batch_index: Sequence[int] | None = None,
        tile: int = 0,
        x0: Tensor | None = None,
        context: Tensor | None = None,
        back_projection: int | None = None,
    ) -> Tensor:
        """The method of paper Fig. 3: low scaled latents (B, C, h, w) -> (B, C, scale*h, scale*w), float32.

        Upsample `low`, keep that as the context, noise it into x0, integrate; then back projection and the model's
        transport, where it has them. `noise_step` None is the step in the model's settings; more noise gives more
        texture. `vae` is needed by models that start from pixel-space
        upsampling. Image b draws its noise from (seed, batch_index[b]). `x0`, a latent of the target
        size, takes the place of the upsampled one as the source, and is noised only where `noise_step` asks for it.
        `context`, where it is at hand (`flow.make_context`), saves making it again. `back_projection` None is the
        number of rounds (`upsample.back_project`) in the model's settings; they need the `vae`, and are left out
        where it says it is `coarse`. Raises ValueError where the channels are not those of the model's latent space.
        """
        self.check_latents(low)
        flow = self.config.flow
        rounds = flow.back_projection if back_projection is None else back_projection
        if rounds and vae is not None and vae.coarse:
            rounds = 0
        picture = None  # decoded once, for both ends of the flow
        if vae is not None and (rounds or (context is None and flow.upsampling == "psu")):
            picture = vae.decode(low.float())
        x0, context = self.start(
            low,
            seed=seed,
            noise_step=noise_step,
            vae=vae,
            batch_index=batch_index,
            x0=x0,
            context=context,
            picture=picture,
            tile=tile,
        )
        if rounds and vae is None:
            raise ValueError(f"{rounds} rounds of back projection need the vae: pass it as vae=, or back_projection=0")
        high = self.integrate(x0, context, steps=steps, solver=solver, callback=callback, tile=tile)
        if rounds and vae is not None and picture is not None:
            high = back_project(high, picture, self.scale, vae, rounds, self.corrections)
        if self.transports:
            high = self.transports[min(rounds, len(self.transports) - 1)](high)
        return high

    def start(
        self,
        low: Tensor,
        *,
        seed: int = 0,
        noise_step: int | None = None,
        vae: VAE | None = None,
        batch_index: Sequence[int] | None = None,
        x0: Tensor | None = None,
        context: Tensor | None = None,
        picture: Tensor | None = None,
        tile: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """x0 (B, C, scale*h, scale*w) and the context of the flow that lifts `low`; settings as in `upscale`.

        `picture` is the decoded low latent, where it is at hand. With `flow.posterior_mean` (Ohayon et al. 2024, arXiv
        2410.00418) the upsampled latent becomes the network's mean of x1, by one Euler step from it, and the flow sees
        zeros for its context: it moves the mean to where latents of photos lie, and no farther.
        """
        self.check_latents(low)
        flow, channels = self.config.flow, self.space.channels
        if context is None:
            context = make_context(flow, low.float(), vae, picture)
        self._check_context(context, (low.shape[0], self.scale * low.shape[2], self.scale * low.shape[3]))
        upsampled = context[:, :channels]
        noise = draw_noise(upsampled.shape, seed, batch_index).to(context)
        if flow.posterior_mean:
            if x0 is None:
                upsampled = self.integrate(upsampled, context, steps=1, tile=tile)
            context = torch.zeros_like(context)
        if x0 is None:
            return source(flow, upsampled, noise, noise_step), context
        if x0.shape != upsampled.shape:
            raise ValueError(f"a source of shape {tuple(x0.shape)}: expected the target's, {tuple(upsampled.shape)}")
        return augment(x0.float(), noise_step or 0, noise), context

    def _check_context(self, context: Tensor, images: tuple[int, ...]) -> None:
        batch, height, width = images
        expected = (batch, self.config.flow.context_channels(self.space), height, width)
        if context.shape != expected:
            raise ValueError(f"a context of shape {tuple(context.shape)}: expected {expected}")

    def check_latents(self, latents: Tensor) -> None:
        """Raise ValueError unless these are (B, C, h, w) with the channels of the model's latent space."""
        if latents.ndim != 4 or latents.shape[1] != self.space.channels:
            raise ValueError(
                f"latents of shape {tuple(latents.shape)} do not fit this model: it was trained on {self.space.name} "
                f"latents, (B, {self.space.channels}, h, w); use a model of the family your latents come from"
            )
