"""What several core tests need: the authors' goldens, small random models, and an autoencoder in closed form."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from fmboost_core.config import ContextEncoderConfig, FlowConfig, ModelConfig, NetConfig
from fmboost_core.files.authors import convert_checkpoint
from fmboost_core.latent_spaces import LATENT_SPACES
from fmboost_core.model import CFMModel, build_network
from fmboost_core.vae.autoencoder import Autoencoder

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
def randomise() -> Callable[..., nn.Module]:
    """Fills all the weights of a network at random, the ones that start at zero too."""

    def fill(network: nn.Module, seed: int = 0) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        for parameter in network.parameters():
            spread = 1 / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.1
            parameter.data = torch.randn(parameter.shape, generator=generator) * spread
        return network.eval().requires_grad_(False)

    return fill


@pytest.fixture(scope="session")
def random_model(tiny_net, randomise) -> Callable[..., CFMModel]:
    """Settings -> a small model all of whose weights are random."""

    def make(
        dtype: torch.dtype = torch.float32,
        net: NetConfig = tiny_net,
        seed: int = 0,
        encoder: ContextEncoderConfig | None = None,
        **flow,
    ) -> CFMModel:
        config = ModelConfig(net=net, flow=FlowConfig(**flow), context_encoder=encoder)
        return CFMModel(config, randomise(build_network(config), seed).to(dtype))

    return make


class BlockVAE:
    """A latent pixel is the mean colour of its 8 x 8 block, with a fourth channel of ones."""

    def encode(self, images: Tensor) -> Tensor:
        mean = F.avg_pool2d(images, 8)
        return torch.cat([mean, torch.ones_like(mean[:, :1])], dim=1).float()

    def decode(self, latents: Tensor) -> Tensor:
        return latents[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3)


@pytest.fixture(scope="session")
def block_vae() -> BlockVAE:
    return BlockVAE()


@pytest.fixture(scope="session")
def linear_vae() -> Callable[..., Autoencoder]:
    """Latent space -> an autoencoder that keeps of every 8 x 8 block its mean colour and the longest waves of its grey.

    Encoding what was decoded gives the same latent, as long as no pixel leaves [0, 1].
    """

    def make(space: str = "sd15") -> Autoencoder:
        found = LATENT_SPACES[space]
        x = (torch.arange(8) + 0.5) * torch.pi / 8
        waves = [torch.outer((u * x).cos(), (v * x).cos()) for u, v in sorted(product(range(4), repeat=2), key=sum)]
        atoms = [colour.view(3, 1, 1).expand(3, 8, 8) for colour in torch.eye(3)]
        atoms += [wave.expand(3, 8, 8) for wave in waves[1 : found.channels - 2]]
        weight = torch.stack(atoms)
        encoder = nn.Conv2d(3, found.channels, 8, stride=8, bias=False)
        decoder = nn.ConvTranspose2d(found.channels, 3, 8, stride=8, bias=False)
        encoder.weight.data = weight / weight.square().sum(dim=(1, 2, 3), keepdim=True)
        decoder.weight.data = weight.clone()
        return Autoencoder(found, encoder, decoder).ready("cpu", torch.float32)

    return make
