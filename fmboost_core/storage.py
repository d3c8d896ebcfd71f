"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor


def check_folder(path: str | Path) -> None:
    """Raise FileNotFoundError unless the folder of `path` is there: for what is written after much work."""
    folder = Path(path).parent
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder} to write {Path(path).name} into: make it first")


def write_tensors(tensors: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file in the place of what was there. Raises OSError, and leaves what was there, where it
    cannot be written."""
    check_folder(path)
    partial = Path(path).with_name(f"{Path(path).name}.{os.getpid()}.part")
    try:
        # Not save_file: its files are readable to their owner alone, and its errors are of a kind of their own.
        partial.write_bytes(save(dict(tensors), None if metadata is None else dict(metadata)))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
