"""What several core tests need: the authors' goldens, and small random models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from fmboost_core.config import FlowConfig, ModelConfig, NetConfig
from fmboost_core.convert import convert_checkpoint
from fmboost_core.model import CFMModel
from fmboost_core.unet import UNet

GOLDENS = Path(__file__).parent / "goldens"


class Golden:
    """One case of tests/core/goldens: the authors' tensors by name, their settings, their checkpoint."""

    def __init__(self, name: str) -> None:
        self.checkpoint = GOLDENS / f"{name}.ckpt"
        with safe_open(GOLDENS / f"{name}.golden.safetensors", framework="pt") as file:
            self.tensors: dict[str, Tensor] = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
            self.settings = json.loads(file.metadata()["config"])

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Golden]:
    return Golden


@pytest.fixture(scope="session")
def converted(tmp_path_factory) -> Callable[..., Path]:
    """(case, weights) -> the model file converted from the authors' checkpoint, made once."""
    folder = tmp_path_factory.mktemp("converted")

    def convert(case: str, weights: str = "ema") -> Path:
        path = folder / f"{case}.{weights}.safetensors"
        if not path.exists():
            convert_checkpoint(GOLDENS / f"{case}.ckpt", path, weights=weights)
        return path

    return convert


@pytest.fixture(scope="session")
def tiny_net() -> NetConfig:
    return NetConfig(
        model_channels=32,
        num_res_blocks=1,
        channel_mult=(1, 2),
        attention_resolutions=(2,),
        num_heads=2,
        head_channels=16,
    )


@pytest.fixture(scope="session")
def random_model(tiny_net) -> Callable[..., CFMModel]:
    """Settings -> a small model all of whose weights are random, the ones that start at zero too."""

    def make(dtype: torch.dtype = torch.float32, net: NetConfig = tiny_net, seed: int = 0, **flow) -> CFMModel:
        generator = torch.Generator().manual_seed(seed)
        network = UNet(net)
        for parameter in network.parameters():
            spread = 1 / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.1
            parameter.data = torch.randn(parameter.shape, generator=generator) * spread
        network = network.to(dtype).eval().requires_grad_(False)
        return CFMModel(ModelConfig(net=net, flow=FlowConfig(**flow)), network)

    return make
