"""Other people's checkpoints into our model file: the authors' Lightning ``.ckpt`` and plain state dicts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..config import FlowConfig, ModelConfig, NetConfig
from ..latent_spaces import latent_space as find_space
from .inert_pickle import LazyTensor, read_checkpoint
from .model_file import check_weights, save_model

PREFIXES = {"ema": "ema_model.ema_model.net.", "online": "model.net."}
"""Where the authors' trainer keeps its two sets of weights."""

ANCHOR = "time_embed.0.weight"
"""A key every network has once: what stands in front of it is the prefix of a set of weights."""

# The authors' network settings: their name, ours, their default (EfficientUNet).
_NET_SETTINGS: tuple[tuple[str, str, Any], ...] = (
    ("in_channels", "in_channels", None),
    ("model_channels", "model_channels", None),
    ("out_channels", "out_channels", None),
    ("num_res_blocks", "num_res_blocks", None),
    ("attention_resolutions", "attention_resolutions", None),
    ("dropout", "dropout", 0.0),
    ("channel_mult", "channel_mult", (1, 2, 3, 4)),
    ("conv_resample", "conv_resample", True),
    ("dim_head", "head_channels", 64),
    ("num_heads", "num_heads", 4),
    ("use_linear_attn", "linear_attention", True),
    ("use_scale_shift_norm", "scale_shift_norm", True),
    ("pool_factor", "pool_factor", -1),
)


def convert_checkpoint(
    path_in: str | Path,
    path_out: str | Path,
    *,
    weights: str = "ema",
    config: str | Path | None = None,
    latent_space: str | None = None,
    scale: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> str:
    """Write the network in `path_in` as a model file; returns a sentence that says what was converted.

    `path_in` is a Lightning checkpoint of CompVis/fm-boosting, whose settings are inside, or with `config` a plain
    state dict (.pt, .pth, .ckpt or .safetensors) under guided-diffusion names, in whose attention layers q, k and v
    lie one behind the other. `config` is a JSON file like the metadata of a model file: ``net`` and ``flow``, and
    what else differs from the defaults. `weights` chooses between the moving average and the online weights where
    there are both. `latent_space` (sd15 unless told) and `scale` are for what a Lightning checkpoint does not say:
    without `scale` it is worked out from the sizes trained on.

    Nothing in `path_in` is executed. Raises ValueError, or FileNotFoundError, with one sentence; then nothing is
    written.
    """
    if weights not in PREFIXES:
        raise ValueError(f"weights is {weights!r}: expected one of {', '.join(PREFIXES)}")
    path_in, path_out = Path(path_in), Path(path_out)
    if not path_in.is_file():
        raise FileNotFoundError(f"no checkpoint at {path_in}")
    if path_out.suffix != ".safetensors":
        raise ValueError(f"the output is {path_out}: expected a name that ends in .safetensors")
    state, settings = _read(path_in)
    if config is not None:
        model = _written_config(Path(config), latent_space, scale)
    elif settings is not None:
        model = _authors_config(settings, path_in, latent_space or "sd15", scale)
    else:
        raise ValueError(
            f"{path_in} holds no settings of the authors' trainer: describe its network in a JSON file "
            "with net and flow, and give that as config"
        )
    prefix = _prefix(list(state), weights, path_in)
    chosen = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
    check_weights(model, {key: value.shape for key, value in chosen.items()}, path_in)
    save_model(path_out, model, {key: value.load() for key, value in chosen.items()}, dtype=dtype)
    kind = next((name for name, known in PREFIXES.items() if known == prefix), "plain")
    size = sum(math.prod(value.shape) for value in chosen.values())
    return (
        f"converted the {kind} weights of {path_in} to {path_out}: {size:,} parameters, {model.latent_space} "
        f"x{model.flow.scale}, {model.flow.path} from {model.flow.upsampling}, noise_step {model.flow.noise_step}"
    )


def _read(path: Path) -> tuple[dict[str, LazyTensor], Mapping[str, Any] | None]:
    """The tensors of a checkpoint by name, and the settings of the authors' trainer where it has them."""
    if path.suffix in {".safetensors", ".sft"}:
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file ({error}): get it again") from error
        return {key: LazyTensor(tuple(t.shape), lambda t=t: t) for key, t in tensors.items()}, None
    found = read_checkpoint(path)
    state = found.get("state_dict", found) if isinstance(found, dict) else None
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}: expected a state dict, bare or under state_dict")
    settings = found.get("hyper_parameters")
    settings = settings | {"global_step": found.get("global_step")} if isinstance(settings, dict) else {}
    tensors = {key: value for key, value in state.items() if isinstance(key, str) and isinstance(value, LazyTensor)}
    return tensors, settings if "fm_cfg" in settings else None


def _prefix(keys: list[str], weights: str, origin: Path) -> str:
    found = sorted({key[: -len(ANCHOR)] for key in keys if key.endswith(ANCHOR)})
    if PREFIXES[weights] in found:
        return PREFIXES[weights]
    if len(found) == 1 and found[0] not in PREFIXES.values():
        return found[0]
    if not found:
        raise ValueError(f"{origin} holds no network with guided-diffusion names: there is no key ending in {ANCHOR}")
    have = ", ".join(repr(p) for p in found)
    raise ValueError(
        f"{origin} holds no {weights} weights: expected them under {PREFIXES[weights]!r}, found networks under {have}; "
        "choose the other of ema and online, or another checkpoint"
    )


# --- settings


def _authors_config(settings: Mapping[str, Any], origin: Path, space: str, scale: int | None) -> ModelConfig:
    """ModelConfig from the hyper-parameters of the authors' TrainerFMBoost. Refuses what has no counterpart here."""
    flow = _section(settings, "fm_cfg", origin)
    net = _section(flow, "net_cfg", origin)
    values = {ours: net.get(theirs, default) for theirs, ours, default in _NET_SETTINGS}
    missing = [theirs for theirs, ours, _ in _NET_SETTINGS if values[ours] is None]
    unknown = sorted(map(str, set(net) - {theirs for theirs, _, _ in _NET_SETTINGS}))
    if missing or unknown:
        raise ValueError(
            f"the network settings in {origin} are not those of the authors' EfficientUNet: "
            f"missing {missing or 'none'}, unknown {unknown or 'none'}"
        )
    gaussian = bool(settings.get("start_from_noise", False))
    kind = settings.get("upsampling_mode", "bilinear")
    kind_context = settings.get("upsampling_mode_context") or kind
    refused = {
        f"schedule {flow.get('schedule')!r}": flow.get("schedule", "linear") != "linear",
        f"a context upsampled by {kind_context!r} beside a source upsampled by {kind!r}": kind_context != kind,
        "cross-attention": bool(settings.get("ca_context", False)),
        "no concatenated context": not (settings.get("concat_context", False) or gaussian),
    }
    for what, given in refused.items():
        if given:
            raise ValueError(f"{origin} was trained with {what}, which FMBoost does not support")
    if scale is None:
        scale = _scale(settings, space, origin)
    facts = {k: settings.get(k) for k in ("low_res_size", "high_res_size", "global_step", "lr", "ema_rate")}
    try:
        values["pool_factor"] = max(1, values["pool_factor"])
        return ModelConfig(
            net=NetConfig(**values, attention_layout="fm_boosting"),
            flow=FlowConfig(
                path="gaussian" if gaussian else "coupling",
                sigma_min=float(flow.get("sigma_min", 0.0)),
                upsampling=kind,
                noise_step=max(0, settings.get("noising_step", -1)),
                scale=scale,
            ),
            latent_space=space,
            trained_on={k: v for k, v in facts.items() if isinstance(v, int | float)},
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"the settings in {origin} do not make a model: {error}") from error


def _section(settings: Mapping[str, Any], name: str, origin: Path) -> dict[str, Any]:
    """The constructor arguments under settings[name], which the authors keep as target and params."""
    value = settings.get(name)
    params = value.get("params") if isinstance(value, dict) else None
    if not isinstance(params, dict):
        raise ValueError(f"{origin} was not written by the authors' trainer: its settings have no {name}.params")
    return params


def _scale(settings: Mapping[str, Any], space: str, origin: Path) -> int:
    """Target over source size.

    The authors give image sizes, except that the small one is in latent pixels where latents were made beforehand
    (no first stage); the large one is only ever printed there, so it may be in either.
    """
    low, high = settings.get("low_res_size"), settings.get("high_res_size")
    if isinstance(low, int) and isinstance(high, int) and low > 0:
        sizes = [high]
        if settings.get("first_stage_cfg") is None:
            sizes = [high // find_space(space).pixels, high]
        for size in sizes:
            if size % low == 0 and size // low > 1:
                return size // low
    raise ValueError(
        f"the sizes in {origin} (low {low}, high {high}) do not tell how far it upscales: give the scale, such as 2"
    )


def _written_config(path: Path, space: str | None, scale: int | None) -> ModelConfig:
    """A hand-written ModelConfig: what is missing has its default, what is unknown is refused by name."""
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read the settings in {path} ({error}): expected a JSON file") from error
    if not isinstance(given, dict) or not isinstance(given.get("net"), dict) or not isinstance(given.get("flow"), dict):
        raise ValueError(f"{path} does not describe a model: expected a JSON object with the objects net and flow")
    for name, argument, said in (
        ("latent_space", space, given.setdefault("latent_space", space or "sd15")),
        ("scale", scale, given["flow"].setdefault("scale", scale or FlowConfig.scale)),
    ):
        if argument not in (None, said):
            raise ValueError(f"{name} is {argument} and {path} says {said}: give it in one place")
    complete = asdict(ModelConfig()) | given
    complete["net"] = asdict(NetConfig()) | given["net"]
    complete["flow"] = asdict(FlowConfig()) | given["flow"]
    try:
        return ModelConfig.from_json(json.dumps(complete))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
