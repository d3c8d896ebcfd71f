"""Beginning a run with the weights of another model, of any latent space and scale."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from ..config import ModelConfig, NetConfig
from ..files.model_file import find_model, read_model_file
from ..unet import UNet

ENDS = ("in_channels", "out_channels")
ENCODER = "context_encoder."


def start_from(net: UNet, wanted: ModelConfig, origin: str | Path) -> str:
    """Give `net`, made for `wanted`, the weights of the model file or shipped model `origin`; returns what was taken.

    Networks may differ in their numbers of channels. With as many latent channels everything is taken, also into
    another latent space, and the network starts by ignoring channels that are new in the context. With another number
    the layers that touch latents start fresh. A context encoder is taken where both models have the same, apart from
    the layers whose shapes differ. Raises ValueError that names the settings in which the networks differ otherwise.
    """
    config, weights = read_model_file(find_model(origin))
    ours, theirs = asdict(wanted.net), asdict(config.net)
    other = [k for k in ours if k not in ENDS and ours[k] != theirs[k]]
    if other:
        found = ", ".join(f"{k} {theirs[k]} (here {ours[k]})" for k in other)
        raise ValueError(f"{origin} is another network than [net] describes, with {found}: take its settings")
    first, last = end_layers(wanted.net)
    key, said = f"{first}.weight", "context"
    if config.net.out_channels != wanted.net.out_channels:
        weights = {k: v for k, v in weights.items() if not k.startswith((f"{first}.", f"{last}."))}
        said = f"fresh first and last convolution ({first}, {last})"
    elif (new := wanted.net.in_channels - config.net.in_channels) != 0:
        weights[key] = _with_channels(weights[key].float(), wanted.net.in_channels)
        said = f"{abs(new)} channels {'more, ignored at first,' if new > 0 else 'fewer'} in the context"
    if config.net.out_channels == wanted.net.out_channels:
        before, now = _context(config), _context(wanted)
        said += " as it was" if before == now else f" that was {before} and is {now}"
    fresh = net.state_dict()
    taken = {k: v for k, v in weights.items() if k in fresh and v.shape == fresh[k].shape}
    lost = sorted(k for k in set(fresh) - set(taken) if k.startswith(ENCODER))
    if lost:
        said += f", fresh context encoder ({len(lost)} of its tensors)"
    net.load_state_dict({**fresh, **taken})
    into = "" if _family(config) == _family(wanted) else f" into {_family(wanted)}"
    return f"starting from {origin}, {_family(config)}{into}: {said}, all other weights taken"


def end_layers(net: NetConfig) -> tuple[str, str]:
    """The names of the convolutions that touch latents, the first and the last of the network."""
    return ("pool.down_conv", "un_pool.up_conv") if net.pool_factor > 1 else ("input_blocks.0.0", "out.2")


def _family(config: ModelConfig) -> str:
    return f"{config.latent_space} x{config.flow.scale} {config.flow.upsampling}"


def _context(config: ModelConfig) -> str:
    if config.context_encoder is not None:
        return f"learned with {config.context_encoder.features} features"
    return config.flow.upsampling + (" with the low picture" if config.flow.picture_context else "")


def _with_channels(weight: Tensor, channels: int) -> Tensor:
    """A convolution's weight (O, I, k, k) cut, or extended by zeros, to `channels` inputs."""
    return F.pad(weight[:, :channels], (0, 0, 0, 0, 0, max(0, channels - weight.shape[1])))
