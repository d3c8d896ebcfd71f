"""A training run as data: one TOML file, read strictly."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..checkpoint import shipped_models
from ..config import FlowConfig, ModelConfig, NetConfig, check_kinds, from_one
from ..latent_spaces import latent_space
from .objectives import COLOUR_BLOCK

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

OBJECTIVES = {"cfm": "coupling", "fm": "gaussian", "regression": "coupling", "sr3": "diffusion"}
"""What to learn, and the path in [flow] that goes with it."""
T_SAMPLINGS = ("uniform", "logit_normal")


@dataclass(frozen=True)
class DataSettings:
    cache: str  # folder for latents, made once; or a file of `fmboost pack`, which needs neither photos nor vae
    photos: str = ""  # folder of pictures, or of .tar shards of them (webdataset)
    vae: str = ""  # TAESD file or folder
    validation: str = ""  # folder of held-out photos
    latent_space: str = "sd15"
    short_sides: tuple[int, ...] = (512,)  # px; every photo is encoded at each of them
    flips: bool = False  # also mirrored, which latents cannot be after encoding
    latent_noise: float = 0.0  # also with noise of up to this standard deviation on the low latent; the paper has none
    reflow_model: str = ""  # a model file, or a shipped model, whose results to learn instead of the photos' latents
    reflow_steps: int = 12  # Euler, of that model
    license: str = ""  # of the photos, for the model file

    def __post_init__(self) -> None:
        if isinstance(sides := self.short_sides, (int, list)):  # as TOML has one or several
            object.__setattr__(self, "short_sides", tuple(sides) if isinstance(sides, list) else (sides,))
        check_kinds(self)
        from_one(self, "reflow_steps")
        if not self.short_sides or min(self.short_sides) < 1:
            raise ValueError(f"short_sides is {list(self.short_sides)}: expected pixels, such as [512]")
        if self.latent_noise < 0:
            raise ValueError(f"latent_noise is {self.latent_noise}: expected a standard deviation from 0")


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
    t_sampling: str = "uniform"
    decoded_weight: float = 0.0  # of the decoded error beside the velocity's; 0 as in the paper
    colour_weight: float = 0.0  # of the error of the decoded mean colours; 0 as in the paper
    mean_decoded_weight: float = 0.0  # of that of the mean, with flow.posterior_mean
    decoded_window: int = 8  # latent pixels, for all three
    noise_from: int = -1  # each x0 noised to a step from this to flow.noise_step, so that either can be chosen later
    precision: str = "bf16"  # or "no"
    seed: int = 0
    log_every: int = 50
    log_with: str = ""  # a tracker of accelerate's, such as tensorboard, beside the CSV files
    save_every: int = 500
    validate_every: int = 2000
    validation_photos: int = 16
    validation_steps: int = 10  # Euler

    def __post_init__(self) -> None:
        check_kinds(self)
        from_one(self, "steps", "batch", "crop", "log_every", "save_every", "validate_every", "validation_steps")
        for name, allowed in (
            ("objective", OBJECTIVES),
            ("t_sampling", T_SAMPLINGS),
            ("precision", ("bf16", "fp16", "no")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}: expected one of {', '.join(allowed)}")
        fits = self.decoded_window % COLOUR_BLOCK == 0 and self.decoded_window <= self.crop
        if self.decodes and not fits:
            raise ValueError(
                f"decoded_window is {self.decoded_window}: expected an even number of latent pixels, at most the crop, "
                f"{self.crop}"
            )

    @property
    def decodes(self) -> bool:
        """Whether a part of the loss is of decoded pictures."""
        return bool(self.decoded_weight or self.colour_weight or self.mean_decoded_weight)


@dataclass(frozen=True)
class RunSettings:
    name: str
    data: DataSettings
    train: TrainSettings
    net: NetConfig = field(default_factory=NetConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    license: str = "MIT"  # of the weights

    def __post_init__(self) -> None:
        objective, path = self.train.objective, OBJECTIVES[self.train.objective]
        if self.flow.path != path:
            raise ValueError(f"objective {objective} goes with flow.path {path!r}: it is {self.flow.path!r}")
        if self.flow.posterior_mean and objective != "cfm":
            raise ValueError(f"flow.posterior_mean is a start for objective cfm: it is {objective!r}")
        if self.train.mean_decoded_weight and not self.flow.posterior_mean:
            raise ValueError("mean_decoded_weight is for flow.posterior_mean, which is off: leave it out")
        if not -1 <= self.train.noise_from <= self.flow.noise_step:
            raise ValueError(
                f"noise_from is {self.train.noise_from}: expected 0 to flow.noise_step, {self.flow.noise_step}, or -1"
            )
        pixels = latent_space(self.data.latent_space).pixels
        if self.train.colour_weight and pixels % self.flow.scale:
            raise ValueError(f"colour_weight compares whole pixels: scale is {self.flow.scale}, expected 2, 4 or 8")
        if objective == "sr3" and (self.data.validation or self.train.decodes):
            raise ValueError("validation and the decoded loss follow a flow, which sr3 has not: leave both out")

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides the weights."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def model_config(self, trained_on: dict[str, Any] | None = None) -> ModelConfig:
        regression = self.train.objective == "regression"  # which starts from a clean x0
        return ModelConfig(
            net=self.net,
            flow=replace(self.flow, noise_step=0) if regression else self.flow,
            latent_space=self.data.latent_space,
            trained_on={"objective": self.train.objective, **(trained_on or {})},
            license=self.license,
            sha256=self.fingerprint,
        )


def read_settings(path: str | Path, overrides: Sequence[str] = ()) -> RunSettings:
    """Read a run from TOML. Paths in ``[data]``, and ``train.start_from``, are relative to the file.

    `overrides` are ``section.name=value`` with a TOML value (a bare word is text), and their paths are relative to
    the working directory. Raises ValueError that names what is wrong.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no training configuration at {path}: expected a .toml file, see configs/")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not TOML: {error}") from error
    _resolve_paths(values, path.parent)
    for override in overrides:
        _override(values, override)
    data = _section(DataSettings, values.pop("data", {}), f"{path}, [data]")
    missing = [name for name in ("photos", "vae") if not data.get(name)]
    if missing and not str(data["cache"]).endswith(".safetensors"):
        raise ValueError(f"{path}, [data]: missing {', '.join(missing)}: only a packed cache, .safetensors, needs none")
    flow = FlowConfig(**_section(FlowConfig, values.pop("flow", {}), f"{path}, [flow]"))
    net = _section(NetConfig, values.pop("net", {}), f"{path}, [net]")
    space = latent_space(data.get("latent_space", "sd15"))
    net = {"in_channels": space.channels + flow.context_channels(space), "out_channels": space.channels, **net}
    train = _section(TrainSettings, values.pop("train", {}), f"{path}, [train]")
    top = _section(RunSettings, {**values, "data": 0, "train": 0}, str(path))
    top.update(data=DataSettings(**data), train=TrainSettings(**train), net=NetConfig(**net), flow=flow)
    settings = RunSettings(**top)
    settings.model_config()  # network and latent space fit, or a sentence
    return settings


PATHS = {"data": ("photos", "validation", "vae", "cache", "reflow_model"), "train": ("start_from",)}


def _resolve_paths(values: dict[str, Any], base: Path) -> None:
    """In place; models that ship keep their names."""
    for section, names in PATHS.items():
        given = values.get(section)
        if not isinstance(given, dict):  # nothing, or what is refused later
            continue
        for name in names:
            text = given.get(name)
            if isinstance(text, str) and text and text not in shipped_models():
                given[name] = str((base / Path(text).expanduser()).resolve())


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
    required = {n for n, f in known.items() if _required(f)}
    missing = sorted(required - set(values))
    if missing:
        raise ValueError(f"{where}: missing {', '.join(missing)}")
    return dict(values)


def _required(f: Any) -> bool:
    return f.default is MISSING and f.default_factory is MISSING
