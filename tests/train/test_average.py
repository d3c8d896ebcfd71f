"""The mean of two models' weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fmboost_core import FlowConfig, ModelConfig, NetConfig, load_model, save_model
from fmboost_core.checkpoint import read_model_file
from fmboost_core.cli import main
from fmboost_core.train.average import average
from fmboost_core.unet import UNet

NET = NetConfig(
    model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(), num_heads=1, head_channels=32
)
FLOW = FlowConfig(upsampling="psu", noise_step=100)


@pytest.fixture
def pair(tmp_path):
    """Two networks of constant weights, 1 and 5, the second with a map at its end and another noise step."""
    names = UNet(NET, device="meta").state_dict()
    config = ModelConfig(net=NET, flow=FLOW, trained_on={"photos": 3, "transport": "none"})
    save_model(tmp_path / "a.safetensors", config, {k: torch.ones(v.shape) for k, v in names.items()})
    maps = {"transport.weight": torch.zeros(1, 4, 4, 5, 5), "transport.bias": torch.zeros(1, 4)}
    config = replace(config, flow=replace(FLOW, noise_step=150), transport=True, trained_on={"photos": 9})
    save_model(tmp_path / "b.safetensors", config, {k: torch.full(v.shape, 5.0) for k, v in names.items()} | maps)
    return tmp_path / "a.safetensors", tmp_path / "b.safetensors"


def test_weights_lie_between(pair, tmp_path):
    out = tmp_path / "mean.safetensors"
    average(*pair, out, 0.25)
    config, state = read_model_file(out)
    assert all((v == 2).all() for v in state.values())
    assert config.flow == FLOW and not config.transport
    assert config.trained_on["photos"] == 3 and "transport" not in config.trained_on
    assert "0.25" in config.trained_on["average"] and "'photos': 9" in config.trained_on["average"]
    assert not load_model(out).transports


def test_either_end_is_one_of_the_two(pair, tmp_path, capsys):
    for share, value in ((0, 1.0), (1, 5.0)):
        assert main(["average", *map(str, pair), str(tmp_path / "end.safetensors"), "--share", str(share)]) == 0
        assert all((v == value).all() for v in read_model_file(tmp_path / "end.safetensors")[1].values())
    assert "end.safetensors" in capsys.readouterr().out


def test_models_without_a_mean_are_refused(pair, tmp_path):
    wider = replace(NET, model_channels=64)
    config = ModelConfig(net=wider, flow=FLOW)
    save_model(tmp_path / "wider.safetensors", config, UNet(wider).state_dict())
    nearest = ModelConfig(net=NET, flow=replace(FLOW, upsampling="nearest"))
    save_model(tmp_path / "nearest.safetensors", nearest, UNet(NET).state_dict())
    out = tmp_path / "none.safetensors"
    for other, said in (("wider", "network"), ("nearest", "start")):
        with pytest.raises(ValueError, match=f"differ in their {said}"):
            average(pair[0], tmp_path / f"{other}.safetensors", out)
    sdxl = ModelConfig(net=NET, flow=FLOW, latent_space="sdxl")
    save_model(tmp_path / "sdxl.safetensors", sdxl, UNet(NET).state_dict())
    with pytest.raises(ValueError, match=r"latents, sd15 and sdxl"):
        average(pair[0], tmp_path / "sdxl.safetensors", out)
    with pytest.raises(ValueError, match=r"share is 1\.5"):
        average(*pair, out, 1.5)
    assert not out.exists()
