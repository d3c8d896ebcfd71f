"""Beginning with another model's weights, across latent spaces and scales."""

from __future__ import annotations

import pytest
import torch

from fmboost_core.checkpoint import save_model
from fmboost_core.config import FlowConfig, ModelConfig, NetConfig
from fmboost_core.flow import join_context
from fmboost_core.latent_spaces import latent_space
from fmboost_core.train.start import start_from
from fmboost_core.unet import UNet


def config(space="sd15", scale=2, picture=True, net=None):
    flow = FlowConfig(upsampling="psu", scale=scale, picture_context=picture)
    channels = latent_space(space).channels
    sizes = {"model_channels": 32, "num_res_blocks": 1, "channel_mult": (1, 2), "attention_resolutions": ()}
    ends = (channels + flow.context_channels(latent_space(space)), channels)
    return ModelConfig(NetConfig(*ends, num_heads=1, **{**sizes, **(net or {})}), flow, space)


def network(settings, seed):
    torch.manual_seed(seed)
    return UNet(settings.net).eval().requires_grad_(False)


def started(tmp_path, origin, wanted):
    """The network `origin`, all of its weights random, and what begins from it."""
    first, second = network(origin, 0), network(wanted, 1)
    for parameter in first.parameters():
        parameter.normal_(0, 0.1)
    save_model(tmp_path / "origin.safetensors", origin, first.state_dict(), torch.float32)
    said = start_from(second, wanted, tmp_path / "origin.safetensors")
    return first, second, said


def test_another_number_of_channels_starts_both_ends_fresh(tmp_path):
    wanted = config("flux")
    first, second, said = started(tmp_path, config("sd15"), wanted)
    assert "sd15 x2 psu into flux x2 psu: fresh first and last convolution" in said
    fresh, taken = network(wanted, 1).state_dict(), first.state_dict()
    ends = {f"{name}.{part}" for name in ("input_blocks.0.0", "out.2") for part in ("weight", "bias")}
    for key, value in second.state_dict().items():
        assert torch.equal(value, (fresh if key in ends else taken)[key]), key
    x = torch.randn(1, 16, 8, 8)
    assert not second(x, torch.tensor([0.5]), torch.randn(1, 64, 8, 8)).any()  # the identity flow


def test_pooling_has_its_ends_elsewhere(tmp_path):
    pooled = {"pool_factor": 2}
    first, second, _ = started(tmp_path, config("sd15", net=pooled), config("sd3", net=pooled))
    assert torch.equal(first.input_blocks[0][0].weight, second.input_blocks[0][0].weight)
    assert torch.equal(first.out[2].weight, second.out[2].weight)
    assert second.pool.down_conv.weight.shape[1] == 16 + 64


def test_another_space_of_as_many_channels_takes_everything(tmp_path):
    first, second, said = started(tmp_path, config("sd15"), config("sdxl"))
    assert "sd15 x2 psu into sdxl x2 psu: context as it was, all other weights taken" in said
    for key, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[key], value), key


@pytest.mark.parametrize(("before", "after"), [(2, 4), (4, 2), (2, 8)])
def test_a_picture_folded_otherwise_looks_the_same(tmp_path, before, after):
    """A picture of `8 / after` flat pixels a latent pixel, and the same one in `8 / before` of them."""
    first, second, said = started(tmp_path, config(scale=before), config(scale=after))
    assert f"sd15 x{before} psu into sd15 x{after} psu" in said
    x, upsampled = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    coarse = torch.rand(2, 3, *2 * [64 // max(before, after)])
    sides = {s: coarse.repeat_interleave(64 // s // coarse.shape[2], 2) for s in (before, after)}
    sides = {s: p.repeat_interleave(64 // s // coarse.shape[2], 3) for s, p in sides.items()}
    t = torch.tensor([0.2, 0.9])
    expected = first(x, t, join_context(upsampled, sides[before]))
    torch.testing.assert_close(second(x, t, join_context(upsampled, sides[after])), expected)


def test_a_picture_left_out_is_no_longer_heard(tmp_path):
    first, second, said = started(tmp_path, config(), config(picture=False))
    assert "no picture in the context any more" in said
    x, upsampled, t = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8), torch.tensor([0.3])
    grey = torch.full((1, 3, 32, 32), 0.5)  # folded to 0
    torch.testing.assert_close(second(x, t, upsampled), first(x, t, join_context(upsampled, grey)))


def test_a_network_that_differs_inside_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"num_res_blocks 1 \(here 2\)"):
        started(tmp_path, config(), config("flux", net={"num_res_blocks": 2}))
