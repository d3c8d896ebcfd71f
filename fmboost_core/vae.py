"""Tiny autoencoders in the TAESD layout (madebyollin/taesd): images in, scaled latents out, and back.

They let the library work on photographs without a host. Their latents agree with those of the full
autoencoder of the same family, so a CFM model trained on one serves the other.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from . import tiling
from .latent_spaces import LATENT_SPACES, LatentSpace, latent_space


class _Clamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(_conv(width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width))
        self.fuse = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.fuse(self.conv(x) + x)


def _conv(c_in: int, c_out: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=bias)


def _encoder(channels: int, width: int) -> nn.Sequential:
    layers: list[nn.Module] = [_conv(3, width), _Block(width)]
    for _ in range(3):
        layers += [_conv(width, width, stride=2, bias=False), *(_Block(width) for _ in range(3))]
    return nn.Sequential(*layers, _conv(width, channels))


def _decoder(channels: int, width: int) -> nn.Sequential:
    layers: list[nn.Module] = [_Clamp(), _conv(channels, width), nn.ReLU()]
    for _ in range(3):
        layers += [*(_Block(width) for _ in range(3)), nn.Upsample(scale_factor=2), _conv(width, width, bias=False)]
    return nn.Sequential(*layers, _Block(width), _conv(width, 3))


class TinyVAE(nn.Module):
    """Encoder and decoder of one latent space; 8 pixels per latent pixel.

    Width and channels are read from the shapes of the weights, so a smaller net of the same layout loads too.
    """

    def __init__(self, space: LatentSpace, width: int = 64, encoder_width: int | None = None) -> None:
        super().__init__()
        self.space = space
        self.coarse = min(width, encoder_width or width) < 64
        """Too far from the full autoencoder to correct a latent by: narrower than TAESD."""
        self.tile = 96
        """Latent pixels: larger pictures go through in windows of this size, so that memory stays bounded."""
        self.encoder = _encoder(space.channels, encoder_width or width)
        self.decoder = _decoder(space.channels, width)

    def fingerprint(self) -> str:
        """SHA-256 of the weights, shortened: tells one autoencoder's latents from another's, in any precision."""
        digest = hashlib.sha256()
        for weight in self.state_dict().values():
            digest.update(weight.bfloat16().float().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1], H and W multiples of 8 -> (B, C, H/8, W/8) scaled latents."""
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] % 8 or images.shape[3] % 8:
            raise ValueError(
                f"images of shape {tuple(images.shape)}: expected (B, 3, H, W) with H and W multiples of 8; "
                "crop or resize first"
            )
        weight = next(self.encoder.parameters())
        images = images.to(weight.device, weight.dtype)
        if max(images.shape[2:]) > 8 * self.tile:
            return tiling.blend(lambda x: self.encoder(x).float(), images, self.tile, self.tile // 4, unit_in=8)
        return self.encoder(images).float()

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) scaled latents -> (B, 3, 8h, 8w) images in [0, 1]."""
        if latents.ndim != 4 or latents.shape[1] != self.space.channels:
            raise ValueError(
                f"latents of shape {tuple(latents.shape)}: this {self.space.name} autoencoder expects "
                f"(B, {self.space.channels}, h, w)"
            )
        weight = next(self.decoder.parameters())
        latents = latents.to(weight.device, weight.dtype)
        if max(latents.shape[2:]) > self.tile:
            images = tiling.blend(lambda z: self.decoder(z).float(), latents, self.tile, self.tile // 4, unit_out=8)
        else:
            images = self.decoder(latents).float()
        return images.clamp(0, 1)


def load_vae(
    path: str | Path,
    *,
    space: str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> TinyVAE:
    """Load a TAESD-layout autoencoder, frozen.

    `path` is one of the two files of a pair (``taesd_encoder.safetensors`` or ``.pth``; the other is found beside
    it), a file that holds both under ``encoder.`` / ``decoder.`` prefixes, or a folder with such files; or the folder
    of a full autoencoder as diffusers writes it (`kl_vae`), which needs diffusers. `space`
    is needed where the file name does not tell it, and picks the pair in a folder. Raises ValueError, or
    FileNotFoundError, with one sentence; pickles are only ever read by torch's weights-only loader.
    """
    path = Path(path)
    if (path / "config.json").is_file():
        from .kl_vae import is_kl_vae, load_kl_vae

        if is_kl_vae(path):
            return load_kl_vae(path, space, device, dtype)
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
    encoder, decoder = weights["encoder"], weights["decoder"]
    channels = encoder["14.weight"].shape[0]
    if found is None:
        found = _space_from_channels(path, channels)
    if channels != found.channels:
        raise ValueError(
            f"{path} makes latents of {channels} channels: {found.name} latents have {found.channels}; "
            "choose the autoencoder of that family"
        )
    vae = TinyVAE(found, width=decoder["1.weight"].shape[0], encoder_width=encoder["0.weight"].shape[0])
    try:
        vae.encoder.load_state_dict(encoder)
        vae.decoder.load_state_dict(decoder)
    except RuntimeError as error:
        raise ValueError(f"{path} is not a TAESD autoencoder: {' '.join(str(error).split())[:300]}") from error
    return ready(vae, device, dtype)


def ready(vae: TinyVAE, device: torch.device | str, dtype: torch.dtype) -> TinyVAE:
    """Frozen, on its device; with channels last, which is up to twice as fast on a CPU."""
    vae.to(device=device, dtype=dtype, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return vae.eval().requires_grad_(False)


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
    """Sort keys into the two nets: bare keys are told apart by the first layer, prefixed ones by their prefix."""
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
    raise ValueError(f"{path} does not tell its latent space ({names} fit): say which, as space=")
