"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save
from torch import Tensor


def check_folder(path: str | Path) -> None:
    """Raise FileNotFoundError unless the folder of `path` exists, and IsADirectoryError where `path` is one itself."""
    folder = Path(path).parent
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder} to write {Path(path).name} into: make it first")
    if Path(path).is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the name of a file")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A path beside `path` to write to; it takes the place of `path` unless the block raises."""
    check_folder(path)
    partial = Path(path).with_name(f".{os.getpid()}-{time.monotonic_ns()}.part")  # short, whatever the name
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        if error.filename is None and error.errno is not None:  # as of a full disk
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        partial.unlink(missing_ok=True)


def write_tensors(tensors: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file in place of what was there. Raises OSError, and leaves what was there, on failure."""
    with replacing(path) as partial:
        # Not save_file: its files are readable by their owner alone, and its errors are of a kind of their own.
        partial.write_bytes(save(dict(tensors), None if metadata is None else dict(metadata)))
