"""The third stage: every evaluation of a few-step trajectory becomes a picture worth keeping. Not in the paper.

Flow training gives one evaluation the blur of a mean and many evaluations texture (paper Tab. 4). Here the model walks
its own Euler trajectory, without gradient, to a random step; its estimate of x1 there is compared with the truth in
latents, in pixels and in the features of a frozen network, and has to deceive adversaries.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ..evaluate.judge import Features, perceptual_distance, structure_texture_distance
from ..evaluate.metrics import colour_error, contrast_error
from ..flow import make_source
from ..images.resize import enlarge
from ..vae.autoencoder import Autoencoder
from .adversaries import Adversaries, Views, deceived, hinge
from .loop import ADVERSARIES, NETWORK, Losses
from .settings import RunSettings

LITE1 = (1, 4, 7, 11)
"""Blocks of EfficientNet-Lite1 with strides 4, 8, 16 and 16. The judge is Lite0, which no model is trained on."""

LowViews = tuple[Tensor, list[Tensor]]


class FewStep:
    """The objective ``few_step`` of `settings`; `vae` decodes windows of the estimates."""

    def __init__(self, settings: RunSettings, vae: Autoencoder) -> None:
        self.settings, self.flow, self.weights, self.vae = settings, settings.flow, settings.few_step, vae
        device = next(vae.parameters()).device
        self.features = Features(variant=1, after=LITE1).to(device)
        sizes = [f.shape[1] for f in self.features(torch.zeros(1, 3, 64, 64, device=device))]
        self.adversaries = Adversaries(vae.space.channels, sizes)

    def losses(self, modules: dict[str, nn.Module], batch: dict[str, Tensor], context: Tensor, step: int) -> Losses:
        """The network's loss, then the adversaries', which see the same estimates.

        No gradient reaches the upsampled latent in `context`.
        """
        weights, x1, channels = self.weights, batch["high"], batch["high"].shape[1]
        rng = np.random.default_rng((self.settings.train.seed, step, 2))
        taken = int(rng.integers(weights.steps))
        window = window_corner((x1.shape[-1] - weights.window) // self.flow.scale + 1, self.flow.scale, rng)
        estimate = self._estimate(modules[NETWORK], batch, context, taken)
        upsampled = context[:, :channels].detach()  # cut out of a tensor that has one
        with torch.no_grad():
            low = self._low_views(batch, window)
            real = self._views(x1, upsampled, low, window)
        made = self._views(estimate, upsampled, low, window)
        seen = {
            "latent": (estimate - x1).abs().mean(),
            "pixel": (made.picture - real.picture).abs().mean(),
            "colour": colour_error(made.picture, real.picture).mean() / 255,
            "contrast": contrast_error(made.picture, real.picture).mean() / 255,
            "features": perceptual_distance(list(made.features), list(real.features)).mean(),
            "structure": structure_texture_distance(list(made.features), list(real.features), tiny=1e-4).mean(),
        }
        loss = sum((getattr(weights, name) * value for name, value in seen.items()), x1.new_zeros(()))
        adversaries = modules[ADVERSARIES]
        if step >= weights.adversaries_from:
            adversaries.requires_grad_(False)  # judges now, learns below
            scores = adversaries(made)
            adversaries.requires_grad_(True)
            loss = (
                loss
                + weights.picture_adversary * deceived(scores.picture)
                + weights.feature_adversary * deceived(scores.features)
                + weights.latent_adversary * deceived(scores.latents)
            )
        yield NETWORK, loss, {name: value.detach() for name, value in seen.items()}
        if step >= weights.adversaries_from - 100:
            made = made.detached()
            right, wrong = adversaries(real), adversaries(made)
            parts = [hinge(r, w) for r, w in zip(right, wrong, strict=True)]
            yield ADVERSARIES, torch.stack(parts).sum(), {}

    def _estimate(self, net: nn.Module, batch: dict[str, Tensor], context: Tensor, taken: int) -> Tensor:
        """x1 as the network sees it after `taken` steps of its trajectory, with gradient through that evaluation."""
        steps, known = self.weights.steps, context.detach()
        x = make_source(self.flow, known[:, : batch["high"].shape[1]], batch["noise"])
        times = torch.arange(steps, device=x.device) / steps
        with torch.no_grad():
            for t in times[:taken]:
                x = x + net(x, t.expand(len(x)), known).float() / steps
        t = times[taken]
        return x + (1 - t) * net(x, t.expand(len(x)), context).float()

    def _views(self, latents: Tensor, upsampled: Tensor, low: LowViews, window: tuple[int, int]) -> Views:
        top, left = window
        cut = latents[:, :, top : top + self.weights.window, left : left + self.weights.window]
        picture = nearly_clamped(self.vae.decoder(cut).float())
        return Views(picture, low[0], self.features(picture), low[1], latents, upsampled)

    def _low_views(self, batch: dict[str, Tensor], window: tuple[int, int]) -> LowViews:
        """The same window of the decoded low latent, enlarged, and the features of that."""
        scale, side = self.flow.scale, self.weights.window // self.flow.scale
        top, left = (corner // scale for corner in window)
        if "picture" in batch:  # the whole of it, of which the context was made
            top, left, side = (self.vae.space.pixels * length for length in (top, left, side))
            small = batch["picture"][:, :, top : top + side, left : left + side]
        else:
            small = self.vae.decoder(batch["low"][:, :, top : top + side, left : left + side]).float()
        picture = enlarge(small.clamp(0, 1), scale)
        return picture, self.features(picture)


def nearly_clamped(pictures: Tensor) -> Tensor:
    """Decoded pictures, with a fifth of what is below -0.05 and above 1.05 left.

    Clamped wholly, pixels blacker than black would send no gradient, and so never come back.
    """
    inside = pictures.clamp(-0.05, 1.05)
    return inside + 0.2 * (pictures - inside)


def window_corner(places: int, apart: int, rng: np.random.Generator) -> tuple[int, int]:
    """Top and left of a window that fits in `places` places of a side, `apart` latent pixels from each other.

    Half of the draws, for each side, are at one of its ends. From even draws the outermost pixels are in one window of
    `places`, those in the middle in all, and the borders of pictures come out too contrasty.
    """
    even, ends = rng.integers(places, size=2), rng.choice([0, places - 1], size=2)
    top, left = apart * np.where(rng.random(2) < 0.5, ends, even)
    return int(top), int(left)
