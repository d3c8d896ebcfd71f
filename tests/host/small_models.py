"""Small model files for the tests: networks that are the identity flow, random ones, and files that are no models."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from fmboost_core import LATENT_SPACES, ContextEncoderConfig, FlowConfig, ModelConfig, NetConfig, save_model
from fmboost_core.config import context_channels
from fmboost_core.model import build_network


def config(space: str = "sd15", **settings) -> ModelConfig:
    flow, channels = FlowConfig(**settings), LATENT_SPACES[space].channels
    encoder = ContextEncoderConfig(width=16, depth=2, features=8) if flow.upsampling == "learned" else None
    net = NetConfig(
        in_channels=channels + context_channels(LATENT_SPACES[space], flow, encoder),
        out_channels=channels,
        model_channels=32,
        num_res_blocks=1,
        channel_mult=(1, 2),
        attention_resolutions=(2,),
        num_heads=2,
        head_channels=32,
    )
    return ModelConfig(net=net, flow=flow, latent_space=space, context_encoder=encoder)


def write(path: Path, config: ModelConfig, *, gain: float = 0.0, first: float = 1.0) -> None:
    """A model whose zero layers are filled with noise of standard deviation `gain`; 0 is the identity flow. The
    weights of its first layer are multiplied by `first`."""
    torch.manual_seed(0)
    net = build_network(config)
    for parameter in net.parameters():
        if gain and not parameter.any():
            parameter.data.normal_(std=gain)
    net.input_blocks[0][0].weight.data.mul_(first)
    save_model(path, config, net.state_dict(), dtype=torch.float32)


def write_all(folder: Path) -> None:
    write(folder / "identity.safetensors", config())
    write(folder / "identity-bilinear.safetensors", config(upsampling="bilinear"))
    write(folder / "identity-x4.safetensors", config(scale=4))
    write(folder / "identity-psu.safetensors", config(upsampling="psu"))
    write(folder / "identity-noise.safetensors", config(noise_step=400))
    write(folder / "random.safetensors", config(noise_step=200), gain=0.05)
    for space in ("sdxl", "sd3", "flux", "flux2"):
        write(folder / f"random-{space}.safetensors", config(space, noise_step=200), gain=0.05)
    for space in ("sd15", "flux"):
        learned = config(space, upsampling="learned", noise_step=200)
        write(folder / f"random-{space}-learned.safetensors", learned, gain=0.05)
    like_shipped = (("sd15", 2), ("sd15", 4), ("sdxl", 2), ("sd3", 2), ("flux", 2), ("flux2", 2))
    for space, scale in like_shipped:
        picture = config(space, scale=scale, upsampling="psu", picture_context=True, noise_step=200)
        write(folder / f"random-{space}-x{scale}.safetensors", picture, gain=0.05)
    write(folder / "overflowing.safetensors", config(), gain=1e30)
    whole = (folder / "random.safetensors").read_bytes()
    (folder / "truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.safetensors").write_bytes(b"")
    torch.save({"weight": torch.zeros(3)}, folder / "pickle.safetensors")
    weight = {"model.0.weight": torch.zeros(64, 3, 3, 3)}
    save_file(weight, folder / "gan-upscaler.safetensors")
    save_file(weight, folder / "format-1.safetensors", {"fmboost": '{"format_version": 1}'})
