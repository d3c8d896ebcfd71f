"""Feed mutated model files and hostile pickles to the readers, and count what they say.

    python tools/fuzz.py --count 20000 --seed 0

Each case must end, within a second of processor time and 500 MB beyond the file's size, in one sentence (ValueError) or
in a model that is whole. Prints a table of outcomes by kind of mutation, and exits with 1 where one is anything else.
`tests/core/test_fuzz.py` runs a few hundred cases.
"""

from __future__ import annotations

import argparse
import io
import json
import pickle
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

sys.path.insert(0, str(Path(__file__).parents[1]))

from fmboost_core import FlowConfig, ModelConfig, NetConfig, convert_checkpoint
from fmboost_core.files.model_file import read_model_file
from fmboost_core.model import build_network

MEGABYTES = 500
Case = tuple[str, bytes]

EVIL: list[Any] = [0, -1, 1, 2**15, 2**31, 2**63, 1e308, -0.5, None, True, "", "x", [], {}, [1] * 50, [2**20], {"a": 1}]


def model_file() -> tuple[dict[str, torch.Tensor], ModelConfig]:
    """A small valid model."""
    config = ModelConfig(
        net=NetConfig(8, 4, 32, 1, (1,), (), 1, 8), flow=FlowConfig(noise_step=200), trained_on={"steps": 1}
    )
    torch.manual_seed(0)
    return {k: v.half() for k, v in build_network(config).state_dict().items()}, config


def model_cases(rng: random.Random) -> Iterator[Case]:
    """Endless mutations of a model file, by kind."""
    weights, config = model_file()
    settings = json.loads(config.to_json())
    good = save(weights, {"fmboost": json.dumps(settings)})
    header_length = struct.unpack("<Q", good[:8])[0]
    header = json.loads(good[8 : 8 + header_length])

    def with_settings(text: str) -> bytes:
        return save(weights, {"fmboost": text})

    def with_header(text: str, body: bytes = good[8 + header_length :]) -> bytes:
        data = text.encode("utf-8", "surrogatepass")
        return struct.pack("<Q", len(data)) + data + body

    while True:
        changed = json.loads(json.dumps(settings))
        section = rng.choice([changed, changed["net"], changed["flow"]])
        name = rng.choice(list(section))
        section[name] = rng.choice(EVIL)
        yield "a setting", with_settings(json.dumps(changed))
        for name in ("num_res_blocks", "model_channels", "channel_mult", "in_channels", "num_heads", "pool_factor"):
            changed = json.loads(json.dumps(settings))
            size = rng.choice([64, 4096, 10**6, 10**9])
            changed["net"][name] = [size] * rng.randint(1, 40) if name == "channel_mult" else size
            yield "a large network", with_settings(json.dumps(changed))
        depth = rng.choice([100, 5000, 100_000])
        yield "deep JSON", with_settings("[" * depth + "]" * depth)
        yield "deep JSON", with_settings('{"a":' * depth + "1" + "}" * depth)
        yield "deep JSON", with_header("[" * depth + "]" * depth)
        data = bytearray(good)
        for _ in range(rng.randint(1, 20)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        yield "flipped bytes", bytes(data)
        yield "truncated", good[: rng.randrange(len(good))]
        yield "a wrong length", struct.pack("<Q", rng.choice([0, 1, 2**20, 2**40, 2**63])) + good[8:]
        changed = json.loads(json.dumps(header))
        tensor = changed[rng.choice([k for k in changed if k != "__metadata__"])]
        field = rng.choice(["dtype", "shape", "data_offsets"])
        tensor[field] = rng.choice(
            {
                "dtype": ["I64", "BOOL", "F64", "U8", "C64", "F8_E4M3", "X"],
                "shape": [[2**40], [0], [-1], [2**31, 2**31], []],
                "data_offsets": [[0, 0], [5, 1], [0, 2**60], [-1, 4]],
            }[field]
        )
        yield f"a tensor's {field}", with_header(json.dumps(changed))
        broken = dict(weights)
        name = rng.choice(list(broken))
        kind = rng.choice(["nan", "inf", "int", "bool", "complex", "double"])
        broken[name] = {
            "nan": lambda t: torch.full_like(t, float("nan")),
            "inf": lambda t: torch.full_like(t, float("inf")),
            "int": lambda t: t.to(torch.int32),
            "bool": lambda t: t.bool(),
            "complex": lambda t: t.to(torch.complex64),
            "double": lambda t: t.double(),
        }[kind](broken[name])
        yield f"{kind} weights", save(broken, {"fmboost": json.dumps(settings)})


def pickle_cases(rng: random.Random) -> Iterator[Case]:
    """Endless hostile checkpoints, by kind."""

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (eval, ("__import__('pathlib').Path('PAYLOAD-RAN').touch()",))

    real = io.BytesIO()
    torch.save({"state_dict": {"time_embed.0.weight": torch.zeros(4, 4)}}, real)
    with zipfile.ZipFile(real) as archive:
        root = archive.namelist()[0].split("/")[0]
        program = archive.read(f"{root}/data.pkl")

    def checkpoint(data: bytes, extra: dict[str, bytes] | None = None) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr(f"{root}/data.pkl", data)
            for name, content in {f"{root}/data/0": bytes(64), **(extra or {})}.items():
                archive.writestr(name, content)
        return out.getvalue()

    def bomb(levels: int) -> bytes:
        layer = b"]\x94" + b"".join(b"]\x94(" + b"h%c" % i * 8 + b"e" for i in range(levels))
        return b"\x80\x04" + layer + b"."

    while True:
        yield "a payload", checkpoint(pickle.dumps({"state_dict": Payload()}, protocol=rng.randint(0, 5)))
        depth = rng.choice([150, 3000, 35_000, 200_000])
        yield "deep lists", checkpoint(b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b".")
        yield "deep tuples", checkpoint(b"\x80\x02)" + b"\x85" * depth + b".")
        yield "deep calls", checkpoint(b"\x80\x02cos\nsystem\n" + b")R" * depth + b".")
        yield "deep states", checkpoint(b"\x80\x02" + b"cx\ny\n)R" * depth + b"b" * (depth - 1) + b".")
        yield "a bomb of references", checkpoint(bomb(rng.randint(5, 60)))
        yield "a long number", checkpoint(b"\x80\x02\x8b" + struct.pack("<I", 10**6) + b"\x7f" * 10**6 + b".")
        yield "a deep key", checkpoint(b"\x80\x02}" + b")" + b"2\x86" * rng.choice([20, 60]) + b"Ns.")
        yield "a cycle", checkpoint(b"\x80\x02]q\x00h\x00a.")
        data = bytearray(program)
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        yield "flipped opcodes", checkpoint(bytes(data))
        yield (
            "random opcodes",
            checkpoint(bytes(rng.choices(program + bytes(range(256)), k=rng.randint(1, 400))) + b"."),
        )
        large = program.replace(b"K\x04K\x04\x86", b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86")
        yield "a large tensor", checkpoint(large)
        yield "a stretched tensor", checkpoint(program.replace(b"K\x04K\x01\x86", b"K\x00K\x00\x86"))
        whole = bytearray(real.getvalue())
        for _ in range(rng.randint(1, 20)):
            whole[rng.randrange(len(whole))] = rng.randrange(256)
        yield "flipped bytes", bytes(whole)
        yield "truncated", real.getvalue()[: rng.randrange(len(real.getvalue()))]
        squeezed = io.BytesIO()
        with zipfile.ZipFile(squeezed, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"{root}/data.pkl", b"\x80\x02" + b"N0" * 10**6 + b"N.")
        yield "a compressed program", squeezed.getvalue()


class TooLongError(BaseException):
    """Raised by the alarm; not an Exception, so that no reader catches it."""


def attempt(read: Callable[[Path], Any], data: bytes, path: Path, seconds: float = 1.0) -> str:
    """``sentence``, ``accepted``, or what else happened."""

    def ring(*_: object) -> None:
        raise TooLongError

    path.write_bytes(data)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + len(data) + MEGABYTES * 2**20, resource.RLIM_INFINITY))
    signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        read(path)
        return "accepted"
    except ValueError as error:
        said = str(error)
        return "sentence" if said and "\n" not in said and len(said) < 1000 else "ValueError, no sentence"
    except TooLongError:
        return "too long"
    except BaseException as error:
        return type(error).__name__
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def read_model(path: Path) -> None:
    config, weights = read_model_file(path)
    build_network(config).load_state_dict(weights)
    if not all(v.isfinite().all() for v in weights.values()):
        raise AssertionError("weights that are not finite were accepted")


def read_pickle(path: Path) -> None:
    config = path.with_name("config.json")
    config.write_text(json.dumps({"net": {"model_channels": 32}, "flow": {}}))
    convert_checkpoint(path, path.with_name("out.safetensors"), config=config)


def fuzz(count: int, seed: int, seconds: float) -> dict[str, Counter[str]]:
    """Outcomes by kind of mutation, of `count` cases of each reader."""
    outcomes: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for reader, cases, read, suffix in (
            ("model file", model_cases, read_model, "safetensors"),
            ("checkpoint", pickle_cases, read_pickle, "ckpt"),
        ):
            stream = cases(random.Random(seed))
            for _ in range(count):
                kind, data = next(stream)
                outcome = attempt(read, data, Path(folder) / f"case.{suffix}", seconds)
                if Path("PAYLOAD-RAN").exists():
                    outcome = "code ran"
                outcomes.setdefault(f"{reader}, {kind}", Counter())[outcome] += 1
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20000, help="cases of each reader (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1.0, help="of processor time a case (default: %(default)s)")
    args = parser.parse_args()
    began = time.perf_counter()
    outcomes = fuzz(args.count, args.seed, args.seconds)
    print("| mutation | sentence | accepted | anything else |\n|---|--:|--:|---|")
    for kind, counts in sorted(outcomes.items()):
        rest = {k: n for k, n in counts.items() if k not in {"sentence", "accepted"}}
        print(f"| {kind} | {counts['sentence']} | {counts['accepted']} | {rest or ''} |")
    print(f"\n{2 * args.count} cases, seed {args.seed}, {time.perf_counter() - began:.0f} s")
    return int(any(set(counts) - {"sentence", "accepted"} for counts in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
