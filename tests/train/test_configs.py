"""The configurations that ship are read, and describe networks of the promised size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fmboost_core.checkpoint import load_model
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


def test_the_reflow_starts_from_what_the_first_configuration_makes_or_what_ships():
    first, second = (read_settings(CONFIGS[0].parent / f"{name}.toml") for name in ("sd15-x2", "sd15-x2-reflow"))
    made = CONFIGS[0].parents[1] / "runs" / first.name / f"{first.name}.safetensors"  # where train puts it
    assert second.data.reflow_model == second.train.start_from == str(made)
    assert second.name != first.name
    for flow in (first.flow, load_model("fmboost-sd15-x2").config.flow):
        assert replace(flow, back_projection=second.flow.back_projection) == second.flow
    assert second.net == first.net == load_model("fmboost-sd15-x2").config.net
