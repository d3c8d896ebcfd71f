"""What a model is, as data: frozen dataclasses that are stored as JSON in the weight file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from .latent_spaces import LatentSpace, latent_space

FORMAT_VERSION = 2
ATTENTION_LAYOUTS = ("standard", "fm_boosting")
PATHS = ("coupling", "gaussian", "diffusion")
UPSAMPLINGS = ("nearest", "bilinear", "psu", "learned")


@dataclass(frozen=True)
class NetConfig:
    """The U-Net of paper Tab. 8; the defaults are its 306M column."""

    in_channels: int = 8  # x_t and the context, concatenated
    out_channels: int = 4
    model_channels: int = 128
    num_res_blocks: int = 3
    channel_mult: tuple[int, ...] = (1, 2, 4, 8)
    attention_resolutions: tuple[int, ...] = (8, 16)  # downsampling factors, not sizes
    num_heads: int = 4
    head_channels: int = 64
    linear_attention: bool = False
    conv_resample: bool = True
    scale_shift_norm: bool = True
    dropout: float = 0.0
    pool_factor: int = 1  # above 1: a strided convolution at the input and a transposed one at the output
    attention_layout: str = "standard"

    def __post_init__(self) -> None:
        for name in ("channel_mult", "attention_resolutions"):
            if isinstance(value := getattr(self, name), list):  # JSON and TOML have lists
                object.__setattr__(self, name, tuple(value))
        check_types(self)
        check_choice("attention_layout", self.attention_layout, ATTENTION_LAYOUTS)
        check_range(self, "in_channels", 1, 4096)
        check_range(self, "out_channels", 1, 1024)
        check_range(self, "model_channels", 32, 2048)
        check_range(self, "num_res_blocks", 1, 16)
        check_range(self, "num_heads", 1, 64)
        check_range(self, "head_channels", 1, 1024)
        check_range(self, "pool_factor", 1, 8)
        for name, values, largest in (
            ("channel_mult", self.channel_mult, 32),
            ("attention_resolutions", self.attention_resolutions, 2**16),
        ):
            if len(values) > 8 or not all(1 <= value <= largest for value in values):
                raise ValueError(f"{name} is {list(values)}: expected at most 8 whole numbers from 1 to {largest}")
        if not self.channel_mult:
            raise ValueError("channel_mult is empty: expected a multiplier for each level of the network")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}: expected 0 to less than 1")
        if self.model_channels % 32:
            raise ValueError(f"model_channels is {self.model_channels}: expected a multiple of 32, the norms' groups")
        if self.model_channels * max(self.channel_mult) > 8192:
            raise ValueError(
                f"model_channels {self.model_channels} times channel_mult {max(self.channel_mult)} is a level of "
                f"{self.model_channels * max(self.channel_mult)} channels: expected at most 8192"
            )

    @property
    def size_multiple(self) -> int:
        """The height and width of the network's input must be multiples of this."""
        return self.pool_factor * 2 ** (len(self.channel_mult) - 1)


@dataclass(frozen=True)
class FlowConfig:
    """Where the flow starts and what path it takes (paper 3.2)."""

    path: str = "coupling"
    sigma_min: float = 0.0
    upsampling: str = "nearest"
    noise_step: int = 0  # index of the cosine schedule at inference, 0..999; 0 leaves x0 clean
    scale: int = 2
    picture_context: bool = False  # not in the paper: the decoded low latent joins the context

    def __post_init__(self) -> None:
        check_types(self)
        check_choice("path", self.path, PATHS)
        check_choice("upsampling", self.upsampling, UPSAMPLINGS)
        check_range(self, "noise_step", 0, 999)
        check_range(self, "scale", 1, 16)
        if self.path != "coupling" and self.noise_step:
            raise ValueError(f"path {self.path} starts from pure noise: noise_step is {self.noise_step}, expected 0")
        if not 0 <= self.sigma_min < 1:
            raise ValueError(f"sigma_min is {self.sigma_min}: expected 0 to less than 1")
        if self.picture_context and self.upsampling != "psu":
            raise ValueError(
                f"picture_context needs upsampling psu, which decodes the picture: upsampling is {self.upsampling}"
            )


@dataclass(frozen=True)
class ContextEncoderConfig:
    """The network that makes the context from the low latent alone, for upsampling ``learned``. Not in the paper."""

    width: int = 96
    depth: int = 6  # residual blocks at the low resolution
    features: int = 48  # channels of the context beside the upsampled latent

    def __post_init__(self) -> None:
        check_types(self)
        check_range(self, "width", 8, 1024)
        check_range(self, "depth", 0, 64)
        check_range(self, "features", 0, 1024)


@dataclass(frozen=True)
class ModelConfig:
    """Everything the sampler needs, and where the weights come from."""

    net: NetConfig = field(default_factory=NetConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    context_encoder: ContextEncoderConfig | None = None
    latent_space: str = "sd15"
    trained_on: Mapping[str, Any] = field(default_factory=dict)
    license: str = ""
    sha256: str = ""  # of the training configuration
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        check_types(self)
        space = latent_space(self.latent_space)
        if (self.context_encoder is not None) != (self.flow.upsampling == "learned"):
            raise ValueError("a context_encoder goes with upsampling 'learned': expected both or neither")
        if self.flow.picture_context and space.pixels % self.flow.scale:
            raise ValueError(f"a picture context cannot be folded at scale {self.flow.scale}: expected 2, 4 or 8")
        expected = space.channels + context_channels(space, self.flow, self.context_encoder)
        if (self.net.in_channels, self.net.out_channels) != (expected, space.channels):
            raise ValueError(
                f"a network of {self.net.in_channels} input and {self.net.out_channels} output channels does not fit "
                f"{self.latent_space} latents: expected {expected} (x_t and context) and {space.channels}"
            )

    @property
    def context_channels(self) -> int:
        """Channels of the context: the upsampled latent and what goes with it."""
        return context_channels(latent_space(self.latent_space), self.flow, self.context_encoder)

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        """Parse strictly: a missing or an unknown setting is a ValueError that names it."""
        try:
            values = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"the model's settings are not JSON ({error}): the file is damaged or foreign") from error
        found = values.get("format_version") if isinstance(values, dict) else None
        if found == 1:
            raise ValueError(
                "the file was written by FMBoost 0.1 (format 1), whose back projection and transports this version "
                "does not have: get the current file of this model, or train it again"
            )
        if found != FORMAT_VERSION:
            raise ValueError(
                f"the model file has format version {found!r}, this version of FMBoost reads {FORMAT_VERSION}: "
                "update FMBoost or convert the model again"
            )
        encoder = values.get("context_encoder")
        values["net"] = _strict(NetConfig, values.get("net"), "net")
        values["flow"] = _strict(FlowConfig, values.get("flow"), "flow")
        values["context_encoder"] = (
            None if encoder is None else _strict(ContextEncoderConfig, encoder, "context_encoder")
        )
        return _strict(cls, values, "model")


def context_channels(space: LatentSpace, flow: FlowConfig, encoder: ContextEncoderConfig | None) -> int:
    """Channels of the context: the upsampled latent, then the folded low picture or the encoder's features."""
    if encoder is not None:
        return space.channels + encoder.features
    return space.channels + (3 * (space.pixels // flow.scale) ** 2 if flow.picture_context else 0)


def _strict(config: type[Any], values: Any, where: str) -> Any:
    names = {f.name for f in fields(config)}
    if not isinstance(values, dict) or set(values) != names:
        given = set(values) if isinstance(values, dict) else set()
        raise ValueError(
            f"the {where} settings do not match this version of FMBoost: missing {sorted(names - given) or 'none'}, "
            f"unknown {sorted(given - names) or 'none'}"
        )
    return config(**values)


_TYPES: dict[str, tuple[type[Any] | tuple[type[Any], ...], str]] = {
    "int": (int, "a whole number"),
    "float": ((int, float), "a number"),
    "bool": (bool, "true or false"),
    "str": (str, "a string"),
    "Mapping[str, Any]": (Mapping, "an object"),
}
_ITEMS = {"int": "whole numbers", "float": "numbers", "str": "strings"}


def check_types(config: Any) -> None:
    """Raise ValueError where a field does not hold the type it is declared with: files may be written by anyone."""
    for f in fields(config):
        declared, value = str(f.type), getattr(config, f.name)
        if declared.startswith("tuple["):
            item = declared[len("tuple[") :].split(",")[0]
            fits = isinstance(value, tuple) and all(_is(v, item) for v in value)
            expected = f"a list of {_ITEMS[item]}"
        elif declared in _TYPES:
            fits, expected = _is(value, declared), _TYPES[declared][1]
        else:
            continue
        if not fits:
            raise ValueError(f"{f.name} is {value!r}: expected {expected}")


def _is(value: Any, declared: str) -> bool:
    return isinstance(value, _TYPES[declared][0]) and (declared == "bool" or not isinstance(value, bool))


def check_range(config: Any, name: str, least: int, most: int) -> None:
    """Raise ValueError unless the field `name` lies between `least` and `most`."""
    if not least <= getattr(config, name) <= most:
        raise ValueError(f"{name} is {getattr(config, name)}: expected a whole number from {least} to {most}")


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}: expected one of {', '.join(allowed)}")
