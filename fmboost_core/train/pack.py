"""Cached examples in one file, to carry to another machine: there neither photos nor the autoencoder are needed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..storage import write_tensors
from ..vae import TinyVAE
from .data import ORDER, read_example
from .reflow import reflow_identity
from .settings import RunSettings

METADATA_KEY = "fmboost_cache"


def pack(cache: str | Path, out: str | Path, limit: int | None = None) -> int:
    """Write the examples of the folder `cache` into the file `out`, and what they depend on into its metadata.

    With `limit`, in bytes, as many of them as fit, evenly spread over variants and names. Returns how many. Raises
    ValueError where `cache` is no cache, `out` would not be taken for a packed one, or nothing fits.
    """
    cache, out = Path(cache), Path(out)
    if not is_packed(out):
        raise ValueError(f"{out} would not be taken for a packed cache: expected a name that ends in .safetensors")
    record = cache / "cache.json"
    files = _ordered(cache) if record.is_file() else []
    if not files:
        raise ValueError(f"{cache} is no latent cache: expected the folder data.cache of an earlier 'fmboost train'")
    if limit is not None:
        files = _spread(files, limit)
    tensors: dict[str, Tensor] = {}
    for n, file in enumerate(files):
        tensors.update({f"{n:06d}.{key}": value for key, value in read_example(file).items()})
    write_tensors(tensors, out, {METADATA_KEY: record.read_text(encoding="utf-8")})
    return len(files)


def is_packed(cache: str | Path) -> bool:
    """Whether a cache of that name is one file, not a folder."""
    return Path(cache).suffix == ".safetensors"


def read_packed(path: str | Path, settings: RunSettings, vae: TinyVAE | None) -> list[dict[str, Tensor]]:
    """The examples, in their order. Raises ValueError where they are not of the latents `settings` asks for, or not
    of `vae`, where there is one."""
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
            if text is None:
                raise ValueError(f"{path} is not a packed cache: expected a file written by 'fmboost pack'")
            _check_identity(path, json.loads(text), settings, vae)
            examples: dict[str, dict[str, Tensor]] = {}
            for name in sorted(file.keys()):
                number, key = name.split(".", 1)
                examples.setdefault(number, {})[key] = file.get_tensor(name)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no packed cache at {path}: make one with 'fmboost pack CACHE {path}'") from error
    except SafetensorError as error:
        raise ValueError(f"the packed cache {path} is damaged ({error}): pack it again") from error
    return list(examples.values())


def _check_identity(path: str | Path, found: dict[str, str | int], settings: RunSettings, vae: TinyVAE | None) -> None:
    data = settings.data
    wanted: dict[str, str | int] = {"latent_space": data.latent_space, "scale": settings.flow.scale}
    if vae is not None:
        wanted["autoencoder"] = vae.fingerprint()
    elif "autoencoder" in found:  # nothing to compare it with
        wanted["autoencoder"] = found["autoencoder"]
    wanted |= reflow_identity(data)
    if found != wanted:
        raise ValueError(f"the packed cache {path} was made with {found}, this run has {wanted}: pack another cache")


def _ordered(cache: Path) -> list[Path]:
    """The examples of a cache in the order of its last run, so that crops are the same; then others, by name."""
    files = {file.name: file for file in sorted(cache.glob("*.safetensors"))}
    order = cache / ORDER
    names = json.loads(order.read_text(encoding="utf-8")) if order.is_file() else []
    return [files.pop(name) for name in names if name in files] + list(files.values())


def _spread(files: list[Path], limit: int) -> list[Path]:
    sizes = np.array([file.stat().st_size for file in files])
    count = len(files)
    while count:
        chosen = ((np.arange(count) + 0.5) * len(files) / count).astype(int)
        if sizes[chosen].sum() <= limit:
            return [files[i] for i in chosen]
        count = min(count - 1, int(count * limit / sizes[chosen].sum()))
    raise ValueError(f"no example fits into {limit / 2**20:g} MiB: the smallest has {sizes.min() / 2**20:.2f} MiB")
