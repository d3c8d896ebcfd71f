"""The configurations that ship are read, and describe networks of the promised size."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmboost_core.train.settings import read_settings
from fmboost_core.unet import UNet

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_shipped_configuration(path):
    settings = read_settings(path)
    assert settings.name.startswith("fmboost-")
    net = UNet(settings.net, device="meta")
    assert sum(p.numel() for p in net.parameters()) <= 8_000_000
    assert settings.train.decay < settings.train.steps
