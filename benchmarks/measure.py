"""What the benchmarks share: a clock for neighbours in time, what a machine gives at best, and where time goes."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

KINDS = {
    "convolutions": ("conv",),
    "attention and matrix products": ("attention", "attn", "addmm", "::mm", "bmm", "linear", "softmax"),
    "norms": ("norm",),
    "activations": ("silu", "gelu", "relu", "sigmoid", "tanh"),
    "copies": ("copy", "cat", "clone", "contiguous", "_to_copy", "fill", "zero", "empty", "upsample", "memcpy"),
    "sums and products": ("add", "mul", "sub", "div"),
}
"""Operators by parts of their names, of which the first that fits counts."""


class Clock:
    """Runs everything in turn, `repeats` times over, so that ratios compare neighbours in time."""

    def __init__(self, device: str, repeats: int) -> None:
        self.device, self.repeats = device, repeats
        self.runs: dict[str, Callable[[], Any]] = {}

    def add(self, name: str, run: Callable[[], Any]) -> None:
        self.runs[name] = run

    def measure(self) -> dict[str, list[float]]:
        times: dict[str, list[float]] = {name: [] for name in self.runs}
        for turn in range(self.repeats + 1):
            for name, run in self.runs.items():
                began = self._now()
                run()
                if turn:  # the first is to warm up
                    times[name].append(self._now() - began)
        return times

    def _now(self) -> float:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter()


def seconds(run: Callable[[], Any], device: str, repeats: int) -> float:
    """The median of `repeats` runs after one to warm up."""
    clock = Clock(device, repeats)
    clock.add("", run)
    return median(clock.measure()[""])


def peak(device: str, dtype: torch.dtype, side: int = 2048) -> dict[str, float]:
    """GFLOP/s of a large matrix product and of a large convolution, the best of ten."""
    a = torch.randn(side, side, device=device, dtype=dtype)
    images = max(4, side // 512)
    x = torch.randn(images, 128, 64, 64, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    conv = nn.Conv2d(128, 128, 3, padding=1, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    clock = Clock(device, 10)
    clock.add("matmul", lambda: a @ a)
    clock.add("conv", lambda: conv(x))
    work = {"matmul": 2 * side**3, "conv": 2 * images * 128 * 128 * 9 * 64 * 64}
    return {name: work[name] / min(times) / 1e9 for name, times in clock.measure().items()}


def flops(run: Callable[[], Any]) -> float:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def shares(run: Callable[[], Any], device: str) -> dict[str, float]:
    """The shares of kinds of operators in the time of `run` on its device, by torch's profiler; largest first."""
    run()
    on_card = device.startswith("cuda")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_card else [])]
    with profile(activities=activities) as recorded:
        run()
        if on_card:
            torch.cuda.synchronize()
    found: dict[str, float] = {}
    for event in recorded.key_averages():
        if event.device_type != DeviceType.CPU:  # its time is that of the operator which launched it
            continue
        name = event.key.lower()
        kind = next((k for k, parts in KINDS.items() if any(part in name for part in parts)), "the rest")
        spent = event.self_device_time_total if on_card else event.self_cpu_time_total
        found[kind] = found.get(kind, 0.0) + spent
    total = sum(found.values()) or 1.0
    return {kind: spent / total for kind, spent in sorted(found.items(), key=lambda item: -item[1])}


def spread(values: list[float]) -> str:
    return f"{median(values):.3f} ({min(values):.3f} to {max(values):.3f})"
