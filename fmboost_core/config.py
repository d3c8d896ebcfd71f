"""What a model is, as data: frozen dataclasses that travel as JSON inside the weight file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from .latent_spaces import LatentSpace, latent_space
from .upsample import UPSAMPLINGS

FORMAT_VERSION = 1
ATTENTION_LAYOUTS = ("standard", "fm_boosting")
PATHS = ("coupling", "gaussian", "diffusion")


@dataclass(frozen=True)
class NetConfig:
    """The U-Net of paper Tab. 8; the defaults are its 306M column."""

    in_channels: int = 8  # x_t and the context, side by side
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
    pool_factor: int = 1  # > 1: a strided convolution in front and a transposed one behind
    attention_layout: str = "standard"

    def __post_init__(self) -> None:
        for name in ("channel_mult", "attention_resolutions"):
            if isinstance(value := getattr(self, name), list):  # as JSON and TOML have it
                object.__setattr__(self, name, tuple(value))
        check_kinds(self)
        _one_of("attention_layout", self.attention_layout, ATTENTION_LAYOUTS)
        for f in fields(self):
            value = getattr(self, f.name)
            numbers = value if isinstance(value, tuple) else (value,)
            if f.type in ("int", "tuple[int, ...]") and min(numbers, default=1) < 1:
                raise ValueError(f"{f.name} is {value}: expected whole numbers from 1")
        if not self.channel_mult:
            raise ValueError("channel_mult is empty: expected a multiplier for each level of the network")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}: expected 0 to less than 1")
        if self.model_channels % 32:
            raise ValueError(
                f"model_channels is {self.model_channels}: expected a multiple of 32, the groups of its norms"
            )

    @property
    def size_multiple(self) -> int:
        """Latent heights and widths the bare network takes are multiples of this."""
        return self.pool_factor * 2 ** (len(self.channel_mult) - 1)


@dataclass(frozen=True)
class FlowConfig:
    """Where the flow starts and what path it takes (paper 3.2)."""

    path: str = "coupling"
    sigma_min: float = 0.0
    upsampling: str = "nearest"
    noise_step: int = 0  # index of the cosine schedule at inference, 0..999; 0 leaves x0 clean
    scale: int = 2
    picture_context: bool = False  # not in the paper: the decoded low latent, folded to channels, joins the context
    back_projection: int = 0  # not in the paper: rounds of agreement with the low picture after the flow
    posterior_mean: bool = False  # not in the paper: a flow without context, from the network's own mean of x1

    def __post_init__(self) -> None:
        check_kinds(self)
        _one_of("path", self.path, PATHS)
        _one_of("upsampling", self.upsampling, UPSAMPLINGS)
        if not 0 <= self.noise_step <= 999:
            raise ValueError(f"noise_step is {self.noise_step}: expected 0 (no noise) to 999")
        if self.path != "coupling" and self.noise_step:
            raise ValueError(f"a Gaussian start is noise already: noise_step is {self.noise_step}, expected 0")
        if not 0 <= self.sigma_min < 1:
            raise ValueError(f"sigma_min is {self.sigma_min}: expected 0 to less than 1")
        from_one(self, "scale")
        if self.back_projection < 0:
            raise ValueError(f"back_projection is {self.back_projection}: expected a number of rounds from 0")
        if self.back_projection and self.upsampling != "psu":
            raise ValueError(
                f"back_projection needs upsampling psu, with its autoencoder: upsampling is {self.upsampling}"
            )
        if self.posterior_mean and self.path != "coupling":
            raise ValueError(f"posterior_mean is a start of the coupling path: path is {self.path!r}")
        if self.picture_context and self.upsampling != "psu":
            raise ValueError(
                f"picture_context needs upsampling psu, which decodes the picture: upsampling is {self.upsampling}"
            )

    def context_channels(self, space: LatentSpace) -> int:
        """Channels of the context: the upsampled latent, and the pixels of the low picture below a latent pixel."""
        folded = 3 * (space.pixels // self.scale) ** 2 if self.picture_context else 0
        return space.channels + folded


@dataclass(frozen=True)
class ModelConfig:
    """Everything the sampler needs, and where the weights come from."""

    net: NetConfig = field(default_factory=NetConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    latent_space: str = "sd15"
    trained_on: Mapping[str, Any] = field(default_factory=dict)
    license: str = ""
    sha256: str = ""  # of the training configuration
    transport: bool = False  # not in the paper: a linear map ends a lift (`transport.py`)
    corrections: bool = False  # not in the paper: linear maps are the rounds of back projection
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        check_kinds(self)
        space = latent_space(self.latent_space)
        if self.flow.picture_context and space.pixels % self.flow.scale:
            raise ValueError(f"a picture context does not fold at scale {self.flow.scale}: expected 2, 4 or 8")
        if self.corrections and (not self.flow.back_projection or space.pixels % self.flow.scale):
            raise ValueError("corrections are rounds of back projection at scale 2, 4 or 8: this model has none")
        channels = space.channels
        expected = channels + self.flow.context_channels(space)
        if (self.net.in_channels, self.net.out_channels) != (expected, channels):
            raise ValueError(
                f"a network of {self.net.in_channels} input and {self.net.out_channels} output channels does not fit "
                f"{self.latent_space} latents: expected {expected} (x_t and context) and {channels}"
            )

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        """Strict both ways: a missing or an unknown setting is a ValueError that names it."""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"the model's settings are not JSON ({error}): the file is damaged or foreign") from error
        found = values.get("format_version") if isinstance(values, dict) else None
        if found != FORMAT_VERSION:
            raise ValueError(
                f"the model file has format version {found!r}, this version of FMBoost reads {FORMAT_VERSION}: "
                "update FMBoost or convert the model again"
            )
        values["net"] = _strict(NetConfig, values.get("net"), "net")
        values["flow"] = _strict(FlowConfig, values.get("flow"), "flow")
        return _strict(cls, values, "model")


_YOUNGER = {"model": {"transport": False, "corrections": False}, "flow": {"posterior_mean": False}}
"""Settings that the first files do not mention, with what they mean there."""


def _strict(kind: type[Any], values: Any, where: str) -> Any:
    names = {f.name for f in fields(kind)}
    if isinstance(values, dict):
        values = {**_YOUNGER.get(where, {}), **values}
    if not isinstance(values, dict) or set(values) != names:
        given = set(values) if isinstance(values, dict) else set()
        raise ValueError(
            f"the {where} settings do not match this version of FMBoost: missing {sorted(names - given) or 'none'}, "
            f"unknown {sorted(given - names) or 'none'}"
        )
    return kind(**values)


_KINDS: dict[str, tuple[type[Any] | tuple[type[Any], ...], str]] = {
    "int": (int, "a whole number"),
    "float": ((int, float), "a number"),
    "bool": (bool, "true or false"),
    "str": (str, "a text"),
    "tuple[int, ...]": (tuple, "a list of whole numbers"),
    "Mapping[str, Any]": (Mapping, "an object"),
}


def check_kinds(config: Any) -> None:
    """Raise ValueError where a setting, of a file written by anyone, is not of the kind it is declared to be."""
    for f in fields(config):
        kind, said = _KINDS.get(str(f.type), (object, ""))
        value = getattr(config, f.name)
        fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        if isinstance(value, tuple):
            fits = fits and all(type(v) is int for v in value)
        if not fits:
            raise ValueError(f"{f.name} is {value!r}: expected {said}")


def from_one(settings: Any, *names: str) -> None:
    """Raise ValueError unless each of these settings is at least 1."""
    for name in names:
        if getattr(settings, name) < 1:
            raise ValueError(f"{name} is {getattr(settings, name)}: expected a whole number from 1")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}: expected one of {', '.join(allowed)}")
