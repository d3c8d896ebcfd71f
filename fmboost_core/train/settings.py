"""A training run as data: one TOML file, read strictly."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..config import (
    ContextEncoderConfig,
    FlowConfig,
    ModelConfig,
    NetConfig,
    check_choice,
    check_range,
    check_types,
    context_channels,
)
from ..files.model_file import shipped_models
from ..latent_spaces import latent_space

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

OBJECTIVES = {
    "cfm": "coupling",
    "fm": "gaussian",
    "regression": "coupling",
    "sr3": "diffusion",
    "context": "coupling",
    "few_step": "coupling",
    "autoencoder": "coupling",
}
"""What to learn, and the path in [flow] that goes with it."""
MANY = 10**9


@dataclass(frozen=True)
class DataSettings:
    cache: str = ""  # folder for latents; or a file of `fmboost pack`, which needs no photos
    photos: tuple[str, ...] = ()  # folders of pictures, or of .tar shards of them (webdataset)
    shares: tuple[float, ...] = ()  # of the crops, one for each folder (default: by their area)
    vae: str = ""  # TAESD file or folder
    validation: str = ""  # folder of held-out photos
    latent_space: str = "sd15"
    short_sides: tuple[int, ...] = (512,)  # px; every photo is encoded at each of them
    flips: bool = False  # also mirrored, which latents cannot be after encoding
    license: str = ""  # of the photos, for the model file

    def __post_init__(self) -> None:
        for name in ("photos", "shares", "short_sides"):
            value = getattr(self, name)  # TOML has one or a list of several
            object.__setattr__(self, name, tuple(value) if isinstance(value, list | tuple) else (value,))
        check_types(self)
        if not self.short_sides or min(self.short_sides) < 1:
            raise ValueError(f"short_sides is {list(self.short_sides)}: expected pixels, such as [512]")
        if self.shares and len(self.shares) != len(self.photos):
            raise ValueError(f"{len(self.shares)} shares for {len(self.photos)} folders of photos: expected one each")
        if self.shares and min(self.shares) <= 0:
            raise ValueError(f"shares are {list(self.shares)}: expected numbers above 0, such as [0.8, 0.2]")


@dataclass(frozen=True)
class TrainSettings:
    steps: int
    objective: str = "cfm"
    start_from: str = ""  # a model file, or a shipped model, whose weights to begin with
    batch: int = 16  # over all processes
    crop: int = 32  # high latent pixels
    learning_rate: float = 1e-3
    warmup: int = 200  # steps of linear rise
    decay: int = 0  # last steps, of linear fall to 0
    weight_decay: float = 0.01
    beta2: float = 0.99
    grad_clip: float = 1.0
    ema: float = 0.999
    upsampled_weight: float = 0.3  # of the L1 error of a learned context's upsampled latent
    disturbed: float = 0.0  # share of the crops that are changed, so as to look like what users have (`disturb.py`)
    cascaded: float = 0.0  # share of the crops lifted from a first lift's result, as in a cascade
    precision: str = "bf16"  # or fp16, or no
    seed: int = 0
    log_every: int = 50
    log_with: str = ""  # a tracker of accelerate's, such as tensorboard, beside the CSV files
    save_every: int = 500
    validate_every: int = 2000
    validation_photos: int = 16

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("steps", "batch", "crop", "log_every", "save_every", "validate_every", "validation_photos"):
            check_range(self, name, 1, MANY)
        check_choice("objective", self.objective, tuple(OBJECTIVES))
        check_choice("precision", self.precision, ("bf16", "fp16", "no"))
        for name in ("disturbed", "cascaded"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}: expected a share of the crops, 0 to 1")


@dataclass(frozen=True)
class FewStepSettings:
    """The third stage (`few_step.py`): weights of the parts of its loss, 0 leaving a part out."""

    steps: int = 4  # Euler, of the trajectory that is learned
    window: int = 16  # latent pixels on a side that are decoded
    latent: float = 0.5
    pixel: float = 2.0
    # A shift of all of a flat area is little to every other part, and the first thing that is seen in a drawing.
    colour: float = 3.0  # means of blocks of 32 px
    # Features are compared by direction alone, and adversaries like contrast: textures came out a third too contrasty.
    contrast: float = 20.0  # of details of 1 to 8 px in such blocks
    features: float = 3.0
    structure: float = 1.0  # structure and texture of the same features
    picture_adversary: float = 0.1
    feature_adversary: float = 0.1
    latent_adversary: float = 0.05
    adversaries_from: int = 200  # training step
    adversary_rate: float = 2.0  # their learning rate, over that of the network

    def __post_init__(self) -> None:
        check_types(self)
        check_range(self, "steps", 1, 64)
        check_range(self, "window", 8, MANY)
        if self.window % 2:
            raise ValueError(f"few_step.window is {self.window}: expected an even number of latent pixels")


@dataclass(frozen=True)
class AutoencoderSettings:
    """A small autoencoder that agrees with the one in data.vae (`autoencoder.py`); train.crop is in px there."""

    width: int = 32

    def __post_init__(self) -> None:
        check_types(self)
        check_range(self, "width", 8, 256)


@dataclass(frozen=True)
class RunSettings:
    name: str
    data: DataSettings
    train: TrainSettings
    net: NetConfig = field(default_factory=NetConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    context_encoder: ContextEncoderConfig | None = None
    few_step: FewStepSettings = field(default_factory=FewStepSettings)
    autoencoder: AutoencoderSettings = field(default_factory=AutoencoderSettings)
    license: str = "MIT"  # of the weights

    def __post_init__(self) -> None:
        objective, path = self.train.objective, OBJECTIVES[self.train.objective]
        if self.flow.path != path:
            raise ValueError(f"objective {objective} goes with flow.path {path!r}: it is {self.flow.path!r}")
        if objective == "sr3" and self.data.validation:
            raise ValueError("validation follows a flow, which objective sr3 does not have: leave data.validation out")
        if objective == "context":
            _check_context(self.context_encoder, self.data.latent_space, self.flow.scale)
        window, scale = self.few_step.window, self.flow.scale
        if objective == "few_step" and (window > self.train.crop or window % scale):
            raise ValueError(
                f"few_step.window is {window}: expected a multiple of the scale {scale}, at most train.crop, "
                f"{self.train.crop}"
            )
        if self.train.cascaded and scale != 2:
            raise ValueError(f"cascaded crops are for models of scale 2: set train.cascaded to 0 at scale {scale}")

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides the weights."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def model_config(self, trained_on: dict[str, Any] | None = None) -> ModelConfig:
        regression = self.train.objective == "regression"  # which starts from a clean x0
        return ModelConfig(
            net=self.net,
            flow=replace(self.flow, noise_step=0) if regression else self.flow,
            context_encoder=self.context_encoder,
            latent_space=self.data.latent_space,
            trained_on={"objective": self.train.objective, **(trained_on or {})},
            license=self.license,
            sha256=self.fingerprint,
        )


def _check_context(encoder: ContextEncoderConfig | None, space: str, scale: int) -> None:
    """Raise ValueError unless a context encoder can imitate pixel-space upsampling."""
    if encoder is None:
        raise ValueError("objective context trains a context encoder: set flow.upsampling to learned")
    features = 3 * (latent_space(space).pixels // scale) ** 2
    if encoder.features != features:
        raise ValueError(
            f"objective context makes the folded low picture, {features} features for {space} at scale {scale}: "
            f"context_encoder.features is {encoder.features}"
        )


SECTIONS = {
    "data": DataSettings,
    "train": TrainSettings,
    "flow": FlowConfig,
    "context_encoder": ContextEncoderConfig,
    "few_step": FewStepSettings,
    "autoencoder": AutoencoderSettings,
}
PATHS = {"data": ("photos", "validation", "vae", "cache"), "train": ("start_from",)}


def read_settings(path: str | Path, overrides: Sequence[str] = ()) -> RunSettings:
    """Read a run from TOML. Paths in ``[data]``, and ``train.start_from``, are relative to the file.

    `overrides` are ``section.name=value`` with a TOML value (a bare word is a string); their paths are relative to
    the working directory. Raises ValueError or FileNotFoundError that names what is wrong.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no training configuration at {path}: expected a .toml file, see configs/")
    try:
        values = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not in UTF-8 ({error.reason}): save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not TOML: {error}") from error
    _resolve_paths(values, path.parent)
    for override in overrides:
        _override(values, override)
    sections = {
        name: kind(**_section(kind, values.pop(name), f"{path}, [{name}]"))
        for name, kind in SECTIONS.items()
        if name in values or name in {"data", "train"} and values.setdefault(name, {}) is not None
    }
    _check_sources(sections["data"], sections["train"].objective, str(path))
    space = latent_space(sections["data"].latent_space)
    flow = sections.setdefault("flow", FlowConfig())
    if flow.upsampling == "learned":
        sections.setdefault("context_encoder", ContextEncoderConfig())
    context = context_channels(space, flow, sections.get("context_encoder"))
    net = _section(NetConfig, values.pop("net", {}), f"{path}, [net]")
    net = NetConfig(**{"in_channels": space.channels + context, "out_channels": space.channels, **net})
    rest = _section(RunSettings, {**values, "data": 0, "train": 0}, str(path))
    settings = RunSettings(**{**rest, **sections, "net": net})
    settings.model_config()  # network and latent space fit, or a sentence
    return settings


def _check_sources(data: DataSettings, objective: str, where: str) -> None:
    if objective == "autoencoder":
        needed, hint = ("photos", "vae"), "a small autoencoder learns from photos and a larger one"
    elif data.cache.endswith(".safetensors"):
        return
    else:
        needed, hint = (
            ("photos", "vae", "cache"),
            "only a run on packed latents (.safetensors) needs no photos and no autoencoder",
        )
    missing = [name for name in needed if not any(getattr(data, name))]
    if missing:
        raise ValueError(f"{where}, [data]: missing {', '.join(missing)}: {hint}")


def _resolve_paths(values: dict[str, Any], base: Path) -> None:
    """In place; names of shipped models stay names."""

    def resolved(text: Any) -> Any:
        if isinstance(text, list):
            return [resolved(item) for item in text]
        if not isinstance(text, str) or not text or text in shipped_models():
            return text
        return str((base / Path(text).expanduser()).resolve())

    for section, names in PATHS.items():
        given = values.get(section)
        if isinstance(given, dict):  # anything else is refused later
            given.update({name: resolved(given[name]) for name in names if name in given})


def _override(values: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    *section, name = key.strip().split(".")
    if not equals or len(section) > 1:
        raise ValueError(f"setting {text!r}: expected SECTION.NAME=VALUE, such as train.steps=5000")
    try:
        parsed = tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        parsed = value
    if section:
        new = {section[0]: {name: parsed}}
        _resolve_paths(new, Path())
        values[section[0]] = {**_table(values.get(section[0], {}), section[0]), **new[section[0]]}
    else:
        values[name] = parsed


def _table(values: Any, where: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise ValueError(f"{where} is {values!r}: expected a section of settings, such as train.steps=5000")
    return values


def _section(kind: type[Any], values: Any, where: str) -> dict[str, Any]:
    values = _table(values, where)
    known = {f.name: f for f in fields(kind)}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(f"{where}: unknown setting {', '.join(unknown)}; expected some of {', '.join(known)}")
    required = {n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING}
    missing = sorted(required - set(values))
    if missing:
        raise ValueError(f"{where}: missing {', '.join(missing)}")
    return dict(values)
