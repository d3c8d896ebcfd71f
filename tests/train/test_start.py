"""Beginning with another model's weights, across latent spaces, scales and contexts."""

from __future__ import annotations

import pytest
import torch

from fmboost_core.config import ContextEncoderConfig, FlowConfig, ModelConfig, NetConfig, context_channels
from fmboost_core.context import join_context
from fmboost_core.files.model_file import save_model
from fmboost_core.latent_spaces import latent_space
from fmboost_core.model import CFMModel, build_network
from fmboost_core.train.start import start_from


def config(space="sd15", scale=2, picture=True, net=None, encoder=None):
    """A model of pixel-space upsampling or, with the settings of an `encoder`, of a learned context."""
    found = latent_space(space)
    learned = None if encoder is None else ContextEncoderConfig(**{"width": 8, "depth": 1, "features": 48, **encoder})
    flow = FlowConfig(upsampling="learned" if learned else "psu", scale=scale, picture_context=picture and not learned)
    ends = (found.channels + context_channels(found, flow, learned), found.channels)
    sizes = {"model_channels": 32, "num_res_blocks": 1, "channel_mult": (1, 2), "attention_resolutions": ()}
    return ModelConfig(NetConfig(*ends, num_heads=1, **{**sizes, **(net or {})}), flow, learned, space)


def network(settings, seed):
    torch.manual_seed(seed)
    return build_network(settings).eval().requires_grad_(False)


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


@pytest.mark.parametrize("encoder", [None, {}])
def test_another_space_of_as_many_channels_takes_everything(tmp_path, encoder):
    first, second, said = started(tmp_path, config("sd15", encoder=encoder), config("sdxl", encoder=encoder))
    kind = "psu" if encoder is None else "learned"
    assert f"sd15 x2 {kind} into sdxl x2 {kind}: context as it was, all other weights taken" in said
    for key, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[key], value), key


def test_channels_new_in_the_context_are_ignored_at_first(tmp_path):
    origin, wanted = config(picture=False), config()
    first, second, said = started(tmp_path, origin, wanted)
    changed = "in the context that was psu and is psu with the low picture, all other weights"
    assert f"48 channels more, ignored at first, {changed}" in said
    x, upsampled, t = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8), torch.tensor([0.3])
    context = join_context(wanted.flow, upsampled, torch.rand(1, 3, 32, 32))
    narrow, wide = CFMModel(origin, first), CFMModel(wanted, second)
    torch.testing.assert_close(wide.velocity(x, t, context), narrow.velocity(x, t, upsampled))


def test_channels_no_longer_in_the_context_are_not_heard(tmp_path):
    first, second, said = started(tmp_path, config(), config(picture=False))
    assert "48 channels fewer in the context" in said
    x, upsampled, t = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8), torch.tensor([0.3])
    silent = torch.cat([upsampled, torch.zeros(1, 48, 8, 8)], dim=1)
    torch.testing.assert_close(second(x, t, upsampled), first(x, t, silent))


def test_a_context_encoder_that_the_origin_does_not_have_is_fresh(tmp_path):
    """A picture of 48 channels gives its place to 48 features."""
    wanted = config(encoder={})
    first, second, said = started(tmp_path, config(), wanted)
    fresh, taken = network(wanted, 1).state_dict(), first.state_dict()
    count = sum(key.startswith("context_encoder.") for key in fresh)
    changed = "context that was psu with the low picture and is learned with 48 features"
    assert f"into sd15 x2 learned: {changed}, fresh context encoder ({count} of its tensors)" in said
    for key, value in second.state_dict().items():
        assert torch.equal(value, taken.get(key, fresh[key])), key


def test_layers_of_another_shape_in_the_context_encoder_are_fresh(tmp_path):
    """At another scale it is the one convolution that enlarges; with other features the last one and the network's
    first inputs."""
    for change, layer in (({"scale": 4}, "up"), ({"encoder": {"features": 40}}, "head")):
        wanted = config(**{"encoder": {}, **change})
        first, second, said = started(tmp_path, config(encoder={}), wanted)
        assert "fresh context encoder (2 of its tensors)" in said
        fresh, taken = network(wanted, 1).state_dict(), first.state_dict()
        for key, value in second.state_dict().items():
            if key.startswith(f"context_encoder.{layer}."):
                assert torch.equal(value, fresh[key])
            elif key != "input_blocks.0.0.weight":
                assert torch.equal(value, taken[key])
    kept = second.input_blocks[0][0].weight
    assert torch.equal(kept, first.input_blocks[0][0].weight[:, : 4 + 4 + 40])


def test_a_context_encoder_that_is_not_wanted_is_left_behind(tmp_path):
    first, second, said = started(tmp_path, config(encoder={}), config())
    assert "context that was learned with 48 features and is psu with the low picture, all other weights taken" in said
    assert second.context_encoder is None
    assert all(torch.equal(first.state_dict()[key], value) for key, value in second.state_dict().items())


def test_a_network_that_differs_inside_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"num_res_blocks 1 \(here 2\)"):
        started(tmp_path, config(), config("flux", net={"num_res_blocks": 2}))
