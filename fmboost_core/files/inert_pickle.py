"""Read what torch.save wrote without running it.

A pickle is a program that names functions to call. Here every name stands for an inert `Record` of its arguments,
so nothing a file asks for is ever imported or called; tensors, and the containers of OmegaConf in which Lightning
keeps settings, are then recognised by name and turned into plain data.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

_DTYPES = {
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}


@dataclass(frozen=True)
class LazyTensor:
    """A tensor in a file that is read by `load`, which raises ValueError where the file does not hold it."""

    shape: tuple[int, ...]
    load: Callable[[], Tensor]


class Record:
    """What a pickle wanted to make of a class or a function: its name, the arguments and the state. Does nothing."""

    name = ""

    def __new__(cls, *args: Any, **_: Any) -> Record:
        record = object.__new__(cls)
        record.args, record.state, record.entries, record.elements = args, None, {}, []
        return record

    def __init__(self, *_: Any, **__: Any) -> None:
        self.args: tuple[Any, ...]
        self.state: Any
        self.entries: dict[Any, Any]
        self.elements: list[Any]

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries[key] = value

    def append(self, value: Any) -> None:
        self.elements.append(value)

    def extend(self, values: Any) -> None:
        self.elements.extend(values)


class _Storage(NamedTuple):
    dtype: torch.dtype
    key: str
    length: int


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        return type("Record", (Record,), {"name": f"{module}.{name}"})

    def persistent_load(self, pid: Any) -> _Storage:
        _, kind, key, _, length = pid
        return _Storage(_DTYPES[kind.name], key, length)


def read_checkpoint(path: Path) -> Any:
    """The object in a file of torch.save, as plain containers, numbers, strings, `LazyTensor` and opaque `Record`.

    Raises ValueError with one sentence where the file is not of torch's zip format, is damaged or is malformed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            root = _root(archive)
            if f"{root}/byteorder" in archive.namelist() and archive.read(f"{root}/byteorder") != b"little":
                raise ValueError("its numbers are big-endian")
            found = _Unpickler(io.BytesIO(_stored(archive, f"{root}/data.pkl"))).load()
        return _plain(found, _Reader(path, root), {})
    except Exception as error:  # a malformed pickle raises whatever its opcodes lead to
        raise ValueError(
            f"{path} cannot be read as a checkpoint of torch.save ({type(error).__name__}: {error}); "
            "it is damaged, of another kind, or older than torch 1.6: save it again with a current torch"
        ) from error


def _root(archive: zipfile.ZipFile) -> str:
    roots = [n.removesuffix("/data.pkl") for n in archive.namelist() if n.endswith("/data.pkl") and n.count("/") == 1]
    if len(roots) != 1:
        raise ValueError("it has no data.pkl")
    return roots[0]


def _stored(archive: zipfile.ZipFile, name: str) -> bytes:
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed, which torch never does")
    return archive.read(name)


class _Reader(NamedTuple):
    path: Path
    root: str

    def tensor(self, storage: _Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
        try:
            with zipfile.ZipFile(self.path) as archive:
                data = bytearray(_stored(archive, f"{self.root}/data/{storage.key}"))
            flat = torch.frombuffer(data, dtype=storage.dtype) if data else torch.empty(0, dtype=storage.dtype)
            if flat.numel() != storage.length:
                raise ValueError(f"{flat.numel()} numbers, expected {storage.length}")
            return flat.as_strided(shape, stride, offset)
        except Exception as error:
            raise ValueError(f"a tensor in {self.path} is damaged ({error}): get the file again") from error


def _plain(value: Any, reader: _Reader, seen: dict[int, Any]) -> Any:
    """`value` without the records that have a plain meaning; `seen` keeps shared and cyclic parts from multiplying."""
    if id(value) in seen:
        return seen[id(value)]
    if isinstance(value, dict):
        result = seen[id(value)] = {}
        result.update((key, _plain(item, reader, seen)) for key, item in value.items())
        return result
    if isinstance(value, list):
        result = seen[id(value)] = []
        result.extend(_plain(item, reader, seen) for item in value)
        return result
    if isinstance(value, tuple) and not isinstance(value, _Storage):
        result = seen[id(value)] = tuple(_plain(item, reader, seen) for item in value)
        return result
    if isinstance(value, Record):
        result = seen[id(value)] = _meaning(value, reader, seen)
        return result
    return value


def _meaning(record: Record, reader: _Reader, seen: dict[int, Any]) -> Any:
    if record.name == "torch._utils._rebuild_tensor_v2":
        storage, offset, shape, stride = record.args[:4]
        return LazyTensor(tuple(shape), lambda: reader.tensor(storage, offset, shape, stride))
    if record.name == "torch._utils._rebuild_parameter":
        return _plain(record.args[0], reader, seen)
    if record.name.startswith("omegaconf.") and isinstance(record.state, dict):
        for key in ("_content", "_val"):  # of containers, of values
            if key in record.state:
                return _plain(record.state[key], reader, seen)
    if record.entries:  # a subclass of dict, such as Lightning's AttributeDict
        return _plain(record.entries, reader, seen)
    return record
