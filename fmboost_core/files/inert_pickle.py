"""Read what torch.save wrote without running it.

A pickle is a program that names functions to call. Here its opcodes are interpreted by a machine that has no way to
import or call anything: every call becomes an inert `Record` of its name and arguments. Tensors, and the containers of
OmegaConf in which Lightning keeps settings, are then recognised by name and turned into plain data. Work and memory are
bounded by the size of the file.
"""

from __future__ import annotations

import math
import pickletools
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

LARGEST, LONGEST = 16 * 2**20, 120_000
"""Bytes and opcodes of a pickle. Tensors lie outside it: that of the authors' largest model, with its optimizer, has
about 60,000 opcodes."""
DEEPEST = 200
"""Levels of nested containers."""

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


@dataclass(eq=False)
class Record:
    """What a pickle wanted to make of a class or a function: its name, the arguments and the state. Does nothing."""

    name: str
    args: Any = ()
    state: Any = None
    entries: dict[Any, Any] = field(default_factory=dict)
    elements: list[Any] = field(default_factory=list)


class _Storage(NamedTuple):
    dtype: torch.dtype
    key: str
    length: int


def read_checkpoint(path: Path) -> Any:
    """The object in a file of torch.save, as plain containers, numbers, strings, `LazyTensor` and opaque `Record`.

    Raises ValueError with one sentence where the file is not of torch's zip format, is damaged or is malformed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            root = _root(archive)
            if f"{root}/byteorder" in archive.namelist() and archive.read(f"{root}/byteorder") != b"little":
                raise ValueError("its numbers are big-endian")
            found = _Machine().run(_stored(archive, f"{root}/data.pkl", LARGEST))
        return _Plain(_Reader(path, root)).of(found, 0)
    except Exception as error:  # a malformed pickle raises whatever its opcodes lead to
        raise ValueError(
            f"{path} cannot be read as a checkpoint of torch.save ({type(error).__name__}: {str(error)[:200]}); "
            "it is damaged, of another kind, or older than torch 1.6: save it again with a current torch"
        ) from error


class _Machine:
    """The stack machine of pickle, protocols 0 to 5, without the means to import or to call."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        """The object that the pickle `data` describes. Raises ValueError, IndexError, KeyError or TypeError."""
        for number, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if number > LONGEST:
                raise ValueError(f"it has more than {LONGEST} opcodes")
            name = opcode.name
            if name == "STOP":
                return self.stack.pop()
            if name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name]())
            elif name in _ARGUMENTS:
                self.stack.append(argument)
            elif (step := getattr(self, f"_{name.lower()}", None)) is not None:
                step(argument)
            else:
                raise ValueError(f"it uses {name}, which torch never writes")
        raise ValueError("it has no end")

    def _since_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _proto(self, _: Any) -> None: ...

    def _frame(self, _: Any) -> None: ...

    def _mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def _pop(self, _: Any) -> None:
        self.stack.pop()

    def _pop_mark(self, _: Any) -> None:
        self._since_mark()

    def _dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    # Memory

    def _put(self, number: int) -> None:
        self.memo[number] = self.stack[-1]

    _binput = _long_binput = _put

    def _memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _get(self, number: int) -> None:
        self.stack.append(self.memo[number])

    _binget = _long_binget = _get

    # Containers

    def _list(self, _: Any) -> None:
        self.stack.append(self._since_mark())

    def _tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._since_mark()))

    def _frozenset(self, _: Any) -> None:
        self.stack.append(tuple(self._since_mark()))

    def _dict(self, _: Any) -> None:
        self.stack.append(dict(_pairs(self._since_mark())))

    def _last(self, count: int) -> None:
        items = [self.stack.pop() for _ in range(count)]
        self.stack.append(tuple(reversed(items)))

    def _tuple1(self, _: Any) -> None:
        self._last(1)

    def _tuple2(self, _: Any) -> None:
        self._last(2)

    def _tuple3(self, _: Any) -> None:
        self._last(3)

    def _append(self, _: Any) -> None:
        item = self.stack.pop()
        self._extend([item])

    def _appends(self, _: Any) -> None:
        self._extend(self._since_mark())

    _additems = _appends

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        (target.elements if isinstance(target, Record) else target).extend(items)

    def _setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._update([key, value])

    def _setitems(self, _: Any) -> None:
        self._update(self._since_mark())

    def _update(self, items: list[Any]) -> None:
        target = self.stack[-1]
        (target.entries if isinstance(target, Record) else target).update(_pairs(items))

    # What would import and call

    def _global(self, name: str) -> None:
        self.stack.append(Record(name.replace(" ", ".", 1)))

    def _stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(Record(f"{module}.{name}"))

    def _reduce(self, _: Any) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        self.stack.append(Record(getattr(function, "name", ""), args))

    _newobj = _reduce

    def _newobj_ex(self, _: Any) -> None:
        self.stack.pop()  # keyword arguments
        self._reduce(None)

    def _obj(self, _: Any) -> None:
        kind, *args = self._since_mark()
        self.stack.append(Record(getattr(kind, "name", ""), tuple(args)))

    def _inst(self, name: str) -> None:
        self.stack.append(Record(name.replace(" ", ".", 1), tuple(self._since_mark())))

    def _build(self, _: Any) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Record):
            self.stack[-1].state = state

    def _binpersid(self, _: Any) -> None:
        _, kind, key, _, length = self.stack.pop()
        self.stack.append(_Storage(_DTYPES[kind.name], str(key), int(length)))


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": list,
}
_ARGUMENTS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}


def _pairs(items: list[Any]) -> Iterator[tuple[Any, Any]]:
    """Keys and values. A nested tuple as a key is refused: Python would walk through it, at every use, to hash it."""
    for key, value in zip(items[::2], items[1::2], strict=True):
        parts = key if isinstance(key, tuple) else (key,)
        if len(parts) > 8 or any(isinstance(p, tuple) or (isinstance(p, int) and p.bit_length() > 64) for p in parts):
            raise ValueError("a key is neither a plain value nor a short tuple of plain values")
        yield key, value


def _root(archive: zipfile.ZipFile) -> str:
    roots = [n.removesuffix("/data.pkl") for n in archive.namelist() if n.endswith("/data.pkl") and n.count("/") == 1]
    if len(roots) != 1:
        raise ValueError("it has no data.pkl")
    return roots[0]


def _stored(archive: zipfile.ZipFile, name: str, most: float = math.inf) -> bytes:
    entry = archive.getinfo(name)
    if entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed, which torch never does")
    if entry.file_size > most:
        raise ValueError(f"{name} has {entry.file_size} bytes: expected at most {most}")
    return archive.read(name)


class _Reader(NamedTuple):
    path: Path
    root: str

    def tensor(self, storage: _Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
        try:
            if math.prod(shape) > storage.length:
                raise ValueError(f"{math.prod(shape)} numbers of a storage of {storage.length}")
            with zipfile.ZipFile(self.path) as archive:
                data = bytearray(_stored(archive, f"{self.root}/data/{storage.key}"))
            flat = torch.frombuffer(data, dtype=storage.dtype) if data else torch.empty(0, dtype=storage.dtype)
            if flat.numel() != storage.length:
                raise ValueError(f"{flat.numel()} numbers, expected {storage.length}")
            return flat.as_strided(shape, stride, offset)
        except Exception as error:
            raise ValueError(f"a tensor in {self.path} is damaged ({error}): get the file again") from error


class _Plain:
    """Objects without the records that have a plain meaning; shared and cyclic parts are made once."""

    def __init__(self, reader: _Reader) -> None:
        self.reader = reader
        self.seen: dict[int, Any] = {}

    def of(self, value: Any, depth: int) -> Any:
        if depth > DEEPEST:
            raise ValueError(f"its containers are nested more than {DEEPEST} deep")
        if id(value) in self.seen:
            return self.seen[id(value)]
        if isinstance(value, dict):
            result = self.seen[id(value)] = {}
            result.update((key, self.of(item, depth + 1)) for key, item in value.items())
            return result
        if isinstance(value, list):
            result = self.seen[id(value)] = []
            result.extend(self.of(item, depth + 1) for item in value)
            return result
        if isinstance(value, Record):
            result = self.seen[id(value)] = self._meaning(value, depth)
            return result
        if isinstance(value, tuple) and not isinstance(value, _Storage):
            result = self.seen[id(value)] = tuple(self.of(item, depth + 1) for item in value)
            return result
        return value

    def _meaning(self, record: Record, depth: int) -> Any:
        if record.name == "torch._utils._rebuild_tensor_v2":
            storage, offset, shape, stride = record.args[:4]
            size = tuple(map(int, shape))
            return LazyTensor(size, lambda: self.reader.tensor(storage, offset, size, stride))
        if record.name == "torch._utils._rebuild_parameter":
            return self.of(record.args[0], depth + 1)
        if record.name.startswith("omegaconf.") and isinstance(record.state, dict):
            for key in ("_content", "_val"):  # of containers, of values
                if key in record.state:
                    return self.of(record.state[key], depth + 1)
        if record.entries or record.name == "collections.OrderedDict":  # and Lightning's AttributeDict
            return self.of(record.entries, depth + 1)
        return record
