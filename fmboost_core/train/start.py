"""The weights a run begins with, where they are those of another model: of any latent space and scale."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checkpoint import read_model_file, resolve, take_maps
from ..config import ModelConfig
from ..unet import UNet

ENDS = ("in_channels", "out_channels")


def start_from(net: UNet, wanted: ModelConfig, origin: str | Path) -> str:
    """Give `net`, made for `wanted`, the weights of the model file or shipped model `origin`; say which.

    Networks may differ in their channels alone. With as many latent channels everything is taken, also into another
    latent space, and the context is fitted (`_fit_context`). With another number the first and the last convolution
    stay as they are in `net`: fresh. Raises ValueError that names the settings where the networks differ otherwise.
    """
    config, weights = read_model_file(resolve(origin))
    take_maps(weights)  # fitted to that model's results, not to this one's
    ours, theirs = asdict(wanted.net), asdict(config.net)
    other = [k for k in ours if k not in ENDS and ours[k] != theirs[k]]
    if other:
        found = ", ".join(f"{k} {theirs[k]} (here {ours[k]})" for k in other)
        raise ValueError(f"{origin} is another network than [net] describes, with {found}: take its settings")
    first, last = ("pool.down_conv", "un_pool.up_conv") if wanted.net.pool_factor > 1 else ("input_blocks.0.0", "out.2")
    key, channels, context = f"{first}.weight", config.net.out_channels, "context as it was"
    if channels != wanted.net.out_channels:
        fresh = (f"{first}.", f"{last}.")
        weights = {k: v for k, v in weights.items() if not k.startswith(fresh)}
        context = f"fresh first and last convolution ({first}, {last})"
    elif ours != theirs:
        weights[key], context = _fit_context(weights[key].float(), 2 * channels, wanted.net.in_channels)
    net.load_state_dict({**net.state_dict(), **weights})
    into = "" if _family(config) == _family(wanted) else f" into {_family(wanted)}"
    return f"starting from {origin}, {_family(config)}{into}: {context}, all other weights taken"


def _family(config: ModelConfig) -> str:
    return f"{config.latent_space} x{config.flow.scale} {config.flow.upsampling}"


def _fit_context(weight: Tensor, latents: int, wanted: int) -> tuple[Tensor, str]:
    """The first convolution (O, latents + picture, k, k) for a context with another picture, or with none.

    A picture that is new begins unheard. One that is folded otherwise, as at another scale, is heard as if it were
    enlarged or reduced to the old number of pixels: a pixel weighs what the pixels weighed in its place.
    """
    kept, old = weight[:, :latents], weight[:, latents:]
    new = wanted - latents
    if new == 0:
        return kept, "no picture in the context any more"
    if old.shape[1] == 0:
        return F.pad(kept, (0, 0, 0, 0, 0, new)), f"{new} channels of a picture new in the context, unheard"
    before, now = (round((n / 3) ** 0.5) for n in (old.shape[1], new))
    pixels = old.unflatten(1, (3, before, before)).movedim((2, 3), (-2, -1)).flatten(0, 3)[None]
    pixels = F.adaptive_avg_pool2d(pixels, now)[0] * (before / now) ** 2
    folded = pixels.unflatten(0, (old.shape[0], 3, *old.shape[2:])).movedim((-2, -1), (2, 3)).flatten(1, 3)
    return torch.cat([kept, folded], dim=1), f"picture folded by {now} instead of {before} px, first weights summed"
