"""Autoencoder files: TAESD pairs and combined files, diffusers folders, and the one that ships."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..latent_spaces import LATENT_SPACES, LatentSpace, latent_space
from .autoencoder import Autoencoder
from .kl import is_kl_folder, load_kl
from .tiny import tiny_autoencoder

WEIGHTS = Path(__file__).parents[1] / "weights"


def shipped_vae(space: str) -> Path | None:
    """The file of the small autoencoder of a latent space that ships with the package, if there is one."""
    path = WEIGHTS / f"fmboost-{space}-vae.safetensors"
    return path if path.is_file() else None


def load_vae(
    path: str | Path,
    *,
    space: str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Autoencoder:
    """Load an autoencoder, frozen.

    `path` is one of the two files of a TAESD pair (``taesd_encoder.safetensors`` or ``.pth``; the other is found
    beside it), a file that holds both under the prefixes ``encoder.`` and ``decoder.``, a folder with such files, or
    the folder of a full autoencoder as diffusers writes it, which needs diffusers. `space` names the latent space
    where the file name does not tell it, and picks the pair in a folder. Pickles are read by torch's weights-only
    loader alone. Raises ValueError or FileNotFoundError with one sentence.
    """
    path = Path(path)
    vae = load_kl(path, space) if is_kl_folder(path) else _load_tiny(path, space)
    return vae.ready(device, dtype)


def _load_tiny(path: Path, space: str | None) -> Autoencoder:
    if path.is_dir():
        path = _pair_in_folder(path, space)
    if not path.is_file():
        raise FileNotFoundError(f"no autoencoder at {path}: expected a TAESD file, its pair, or a folder with both")
    named = _space_from_name(path)
    found = latent_space(space) if space else named
    if found is not None and named is not None and named != found:
        raise ValueError(f"{path} is named as the autoencoder of {named.name} latents: expected one of {found.name}")
    weights = _nets(path)
    if set(weights) != {"encoder", "decoder"}:
        have = next(iter(weights))
        other = "decoder" if have == "encoder" else "encoder"
        sibling = path.with_name(path.name.replace(have, other))
        if sibling == path or not sibling.is_file():
            raise FileNotFoundError(f"{path} holds only the {have}: expected its {other} beside it, as {sibling.name}")
        weights |= _nets(sibling, other)
    channels = weights["encoder"]["14.weight"].shape[0]
    if found is None:
        found = _space_from_channels(path, channels)
    if channels != found.channels:
        raise ValueError(
            f"{path} makes latents of {channels} channels: {found.name} latents have {found.channels}; "
            "choose the autoencoder of that family"
        )
    return tiny_autoencoder(found, weights["encoder"], weights["decoder"], path)


_ENDS = {"encoder": ("0.weight", "14.weight"), "decoder": ("1.weight", "19.weight")}
"""First and last convolution of each net."""


def _nets(path: Path, wanted: str | None = None) -> dict[str, dict[str, Tensor]]:
    """The nets in a file, or the `wanted` one of them, under plain keys. Raises ValueError where it is no TAESD."""
    nets = _split(_read(path))
    for name in [wanted] if wanted else list(nets) or ["autoencoder"]:
        ends = [nets.get(name, {}).get(key) for key in _ENDS.get(name, ())]
        if not ends or any(end is None or end.ndim != 4 for end in ends):
            raise ValueError(
                f"{path} is not a TAESD {name}: expected the layers of madebyollin/taesd; choose such a file"
            )
    return {name: nets[name] for name in ([wanted] if wanted else nets)}


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix in {".safetensors", ".sft"}:
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read as weights ({type(error).__name__}): expected a TAESD file, .safetensors or .pth"
        ) from error
    if not isinstance(found, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items()):
        raise ValueError(f"{path} is not a TAESD autoencoder: expected tensors by name, found a {type(found).__name__}")
    return found


def _split(state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Sort keys into the two nets: bare keys by the first layer they have, prefixed ones by their prefix."""
    nets: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        prefixed = re.fullmatch(r"(?:taesd_)?(encoder|decoder)\.(?:(layers)\.(?=\d+\.))?(.+)", key)
        if prefixed:
            name, layers, key = prefixed.groups()
            if layers and name == "decoder":  # diffusers does not count the clamp in front
                number, rest = key.split(".", 1)
                key = f"{int(number) + 1}.{rest}"
        else:
            name = "encoder" if "0.weight" in state else "decoder"
        nets.setdefault(name, {})[key] = value
    return nets


def _pair_in_folder(folder: Path, space: str | None) -> Path:
    if space is None:
        raise ValueError(f"{folder} is a folder: give the encoder file in it, or the latent space wanted")
    stem = latent_space(space).taesd
    for suffix in (".safetensors", ".pth"):
        candidate = folder / f"{stem}_encoder{suffix}"
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"{folder} holds no {stem}_encoder.safetensors or .pth for {space} latents")


def _space_from_name(path: Path) -> LatentSpace | None:
    stem = re.sub(r"_?(encoder|decoder)", "", path.stem)
    return next((s for s in LATENT_SPACES.values() if stem in {s.taesd, s.name, f"fmboost-{s.name}-vae"}), None)


def _space_from_channels(path: Path, channels: int) -> LatentSpace:
    fitting = [s for s in LATENT_SPACES.values() if s.channels == channels]
    if not fitting:
        raise ValueError(f"{path} is not a TAESD autoencoder: no known latent space has {channels} channels")
    names = " or ".join(s.name for s in fitting)
    raise ValueError(f"{path} does not tell its latent space ({names} fit): name it with space=")
