"""The host's precision flags, each on a server of its own.

The host refuses --lowvram, --novram, --highvram and --gpu-only together with --cpu: they, and dynamic VRAM, need a GPU.
"""

from __future__ import annotations

import os

import pytest
import torch

from fmboost_core import load_model

from . import small_models
from .conftest import Server
from .graphs import latents, lift

FLAGS = ["--force-fp16", "--bf16-unet", "--fp16-unet", "--fp32-unet"]
# Of the lift's own spread: rounding of bfloat16 (8 bits) through a network, and nothing in float32.
ALLOWED = {"--force-fp16": 0.02, "--fp16-unet": 0.02, "--bf16-unet": 0.1}


@pytest.mark.parametrize("flag", FLAGS)
def test_a_lift_under_the_flag_is_the_librarys(comfy, tmp_path, flag):
    if not os.environ.get("FMBOOST_SLOW_TESTS"):
        pytest.skip("starts a server for each flag: set FMBOOST_SLOW_TESTS=1")
    low = latents()
    server = Server(comfy, tmp_path / "comfy", flag)
    try:
        small_models.write(server.models / "random.safetensors", small_models.config(noise_step=200), gain=0.05)
        found = lift(server.start(), tmp_path, low, "random.safetensors", seed=3)["samples"].float()
        expected = load_model(server.models / "random.safetensors").upscale(low * 0.18215, steps=2, seed=3) / 0.18215
    finally:
        server.stop()
    error = (found - expected).std() / expected.std()
    assert torch.isfinite(found).all()
    assert error < ALLOWED.get(flag, 1e-3)
