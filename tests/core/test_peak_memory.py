"""The memory a lift is expected to need is the memory it is measured to need, and tiles keep it from growing."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from fmboost_core.config import NetConfig
from fmboost_core.memory import within_memory

_spec = importlib.util.spec_from_file_location("memory", Path(__file__).parents[2] / "benchmarks" / "memory.py")
assert _spec is not None and _spec.loader is not None
memory = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(memory)

SETTINGS = {"num_res_blocks": 1, "attention_resolutions": (), "num_heads": 2, "head_channels": 16}


@pytest.mark.parametrize(
    ("channels", "mult", "size", "tile"),
    [(32, (1, 2), (48, 40), 0), (32, (1, 2), (48, 40), 32), (64, (1, 1, 2), (32, 64), 0)],
)
def test_expected_memory_is_that_measured(random_model, channels, mult, size, tile):
    model = random_model(net=NetConfig(model_channels=channels, channel_mult=mult, **SETTINGS))
    measured = memory.lift_peak(model, *size, tile)
    assert 1 <= model.bytes_needed(1, *size, tile) / measured <= 1.5


def test_with_tiles_only_the_state_grows_with_the_image(random_model):
    """Four times the image, in tiles of the same size: beside that, some numbers of each of its own pixels."""
    model = random_model(net=NetConfig(model_channels=32, channel_mult=(1, 2), **SETTINGS))
    small, large = (memory.lift_peak(model, side, side, 32) for side in (48, 96))
    numbers = (large - small) / (96**2 - 48**2) / 4
    assert numbers < model.config.net.in_channels + 4 * model.config.net.out_channels
    assert large < 0.5 * memory.lift_peak(model, 96, 96, 0)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError, lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_where_memory_does_not_suffice_tiles_halve_in_steps_of_16(error):
    tried, released = [], []

    def run(tile):
        tried.append(tile)
        if not 0 < tile <= fits:
            raise error()
        return torch.tensor(tile)

    fits = 20
    result, tile = within_memory(run, 0, 200, release=lambda: released.append(len(tried)))
    assert tried == [0, 96, 48, 16] and (int(result), tile) == (16, 16) and released == [1, 2, 3]
    tried.clear()
    fits = 0
    with pytest.raises((torch.OutOfMemoryError, RuntimeError)):
        within_memory(run, 64, 200)
    assert tried == [64, 32, 16]


def test_other_errors_are_not_tried_again():
    tried = []

    def run(tile):
        tried.append(tile)
        raise RuntimeError("no kernel image")

    with pytest.raises(RuntimeError, match="no kernel image"):
        within_memory(run, 64, 200)
    assert tried == [64]
