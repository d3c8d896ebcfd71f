"""Small model files for the tests: networks that are the identity flow, random ones, and files that are no models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from fmboost_core import FlowConfig, ModelConfig, NetConfig, save_model
from fmboost_core.unet import UNet

CHANNELS = {"sd15": 4, "sdxl": 4, "sd3": 16, "flux": 16}


def config(space: str = "sd15", **flow) -> ModelConfig:
    channels = CHANNELS[space]
    picture = 3 * (8 // flow.get("scale", 2)) ** 2 if flow.get("picture_context") else 0  # 8 pixels a latent
    net = NetConfig(
        in_channels=2 * channels + picture,
        out_channels=channels,
        model_channels=32,
        num_res_blocks=1,
        channel_mult=(1, 2),
        attention_resolutions=(2,),
        num_heads=2,
        head_channels=32,
    )
    return ModelConfig(net=net, flow=FlowConfig(**flow), latent_space=space)


def write(path: Path, config: ModelConfig, *, gain: float = 0.0, first: float = 1.0) -> None:
    """A model whose zero layers are filled with noise of standard deviation `gain`; 0 is the identity flow. The
    weights of its first layer are multiplied by `first`."""
    torch.manual_seed(0)
    net = UNet(config.net)
    for parameter in net.parameters():
        if gain and not parameter.any():
            parameter.data.normal_(std=gain)
    net.input_blocks[0][0].weight.data.mul_(first)
    save_model(path, config, net.state_dict(), dtype=torch.float32)


def write_maps(path: Path) -> None:
    """The identity flow, one fitted round of back projection and a transport for lifts with it and without."""
    settings = replace(config(upsampling="psu", back_projection=1), transport=True, corrections=True)
    rng = torch.Generator().manual_seed(0)
    maps = {
        "transport.weight": 0.05 * torch.randn(2, 4, 4, 5, 5, generator=rng),
        "transport.bias": torch.randn(2, 4, generator=rng),
        "correction.weight": 0.1 * torch.randn(1, 4, 48, 3, 3, generator=rng),
        "correction.bias": torch.randn(1, 4, generator=rng),
    }
    save_model(path, settings, {**UNet(settings.net).state_dict(), **maps}, dtype=torch.float32)


def write_all(folder: Path) -> None:
    write(folder / "identity.safetensors", config())
    write(folder / "identity-x4.safetensors", config(scale=4))
    write(folder / "identity-psu.safetensors", config(upsampling="psu"))
    write(folder / "identity-back.safetensors", config(upsampling="psu", back_projection=1))
    write_maps(folder / "identity-maps.safetensors")
    write(folder / "identity-noise.safetensors", config(noise_step=400))
    write(folder / "random.safetensors", config(noise_step=200), gain=0.05)
    write(folder / "random-mean.safetensors", config(noise_step=60, posterior_mean=True), gain=0.05)
    write(folder / "random-sdxl.safetensors", config("sdxl", noise_step=200), gain=0.05)
    write(folder / "random-sd3.safetensors", config("sd3", noise_step=200), gain=0.05)
    write(folder / "random-flux.safetensors", config("flux", noise_step=200), gain=0.05)
    write(folder / "random-picture.safetensors", config(upsampling="psu", picture_context=True), gain=0.05)
    for space, scale in (("sd15", 2), ("sd15", 4), ("sdxl", 2), ("flux", 2)):  # as the models that ship
        settings = config(space, scale=scale, upsampling="psu", picture_context=True, noise_step=200)
        write(folder / f"random-{space}-x{scale}.safetensors", settings, gain=0.05)
    write(folder / "overflowing.safetensors", config(), gain=1e30)
    whole = (folder / "random.safetensors").read_bytes()
    (folder / "truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.safetensors").write_bytes(b"")
    torch.save({"weight": torch.zeros(3)}, folder / "pickle.safetensors")
    save_file({"model.0.weight": torch.zeros(64, 3, 3, 3)}, folder / "gan-upscaler.safetensors")
