"""Model files: one .safetensors, weights under plain U-Net keys, settings as JSON in the metadata under ``fmboost``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..config import ModelConfig
from ..model import CFMModel, build_network
from ..storage import write_tensors

METADATA_KEY = "fmboost"
WEIGHT_TYPES = (torch.float32, torch.float16, torch.bfloat16)
WEIGHTS = Path(__file__).parents[1] / "weights"


def shipped_models() -> dict[str, Path]:
    """The models that ship with the package, by name."""
    return {path.stem: path for path in sorted(WEIGHTS.glob("fmboost-*-x*.safetensors"))}


def find_model(path_or_name: str | Path) -> Path:
    """The file of a shipped model's name, or the path itself. Raises FileNotFoundError where there is neither."""
    shipped = shipped_models()
    if str(path_or_name) in shipped:
        return shipped[str(path_or_name)]
    path = Path(path_or_name)
    if not path.is_file():
        names = ", ".join(shipped) or "none"
        raise FileNotFoundError(f"no model {path_or_name}: expected a .safetensors file or a shipped model ({names})")
    return path


def read_config(metadata: Mapping[str, str] | None, origin: str | Path) -> ModelConfig:
    """The settings in a file's metadata. Raises ValueError that names `origin` where it is not a model of ours."""
    text = (metadata or {}).get(METADATA_KEY)
    if text is None:
        raise ValueError(
            f"{origin} is not an FMBoost model: it has no '{METADATA_KEY}' settings in its metadata; "
            "choose a CFM model file, or convert a checkpoint of the paper's authors with 'fmboost convert'"
        )
    try:
        return ModelConfig.from_json(text)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{origin}: {error}") from error


def check_weights(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]], origin: str | Path) -> None:
    """Raise ValueError unless names and shapes are exactly those of what `config` describes."""
    expected = {k: tuple(v.shape) for k, v in build_network(config, device="meta").state_dict().items()}
    wrong = {
        "missing": sorted(set(expected) - set(shapes)),
        "unknown": sorted(set(shapes) - set(expected)),
        "of another shape": sorted(k for k in set(shapes) & set(expected) if tuple(shapes[k]) != expected[k]),
    }
    if any(wrong.values()):
        found = "; ".join(f"{len(keys)} {what} ({', '.join(keys[:3])})" for what, keys in wrong.items() if keys)
        raise ValueError(f"the weights in {origin} do not fit its settings: {found}; get the file again")


def read_model_file(path: str | Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Settings and weights of a model file, checked against each other. Raises ValueError with one sentence."""
    try:
        with safe_open(path, framework="pt") as file:
            config = read_config(file.metadata(), path)
            names = list(file.keys())
            check_weights(config, {k: tuple(file.get_slice(k).get_shape()) for k in names}, path)
            weights = {k: file.get_tensor(k) for k in names}
    except SafetensorError as error:
        if Path(path).suffix in {".ckpt", ".pt", ".pth"}:
            hint = f"turn it into a model with 'fmboost convert {path} OUT.safetensors'"
        else:
            hint = "the file is truncated or of another kind: get it again"
        raise ValueError(f"{path} is not a safetensors file ({error}); {hint}") from error
    wrong = [k for k, v in weights.items() if v.dtype not in WEIGHT_TYPES or not v.isfinite().all()]
    if wrong:
        raise ValueError(
            f"{len(wrong)} weights in {path} ({', '.join(wrong[:3])}) are not finite floating-point numbers of 16 or "
            "32 bits: the file is damaged; get it again"
        )
    return config, weights


def load_model(
    path_or_name: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> CFMModel:
    """Load a model file, or a shipped model by name, ready to run.

    `dtype` is that of the weights and of the network's arithmetic; the flow itself is float32. Raises
    FileNotFoundError or ValueError with one sentence that says what was found and what was expected.
    """
    config, state = read_model_file(find_model(path_or_name))
    net = build_network(config, dtype=dtype, device=device)
    net.load_state_dict(state)
    return CFMModel(config, net.eval().requires_grad_(False))


def save_model(
    path: str | Path, config: ModelConfig, state: Mapping[str, Tensor], dtype: torch.dtype = torch.float16
) -> None:
    """Write a model file, whole or not at all.

    Raises ValueError where weights and settings do not match or a weight is not finite in `dtype`, and OSError where
    the file cannot be written.
    """
    check_weights(config, {k: tuple(v.shape) for k, v in state.items()}, path)
    weights = {k: v.detach().to("cpu", dtype).contiguous() for k, v in state.items()}
    bad = [k for k, v in weights.items() if not v.isfinite().all()]
    if bad:
        raise ValueError(f"weights are not finite in {dtype}: {', '.join(bad[:3])}; nothing was written")
    write_tensors(weights, path, {METADATA_KEY: config.to_json()})
