"""Several models in a row are `upscale` after `upscale`, each with noise of its own."""

from __future__ import annotations

import pytest
import torch

from fmboost_core.cascade import cascade, lifts
from fmboost_core.config import FlowConfig, ModelConfig
from fmboost_core.model import CFMModel, build_network


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_two_doublings_make_four(random_model):
    models = [random_model(noise_step=200), random_model(seed=1, upsampling="bilinear")]
    low = randn(2, 4, 5, 8)
    high = cascade(models, low, steps=3, solver="heun", seed=7)
    middle = models[0].upscale(low, steps=3, solver="heun", seed=7)
    assert middle.shape == (2, 4, 10, 16) and high.shape == (2, 4, 20, 32)
    torch.testing.assert_close(high, models[1].upscale(middle, steps=3, solver="heun"))  # no noise in this stage


def test_one_model_is_upscale(random_model):
    model, low = random_model(noise_step=200), randn(1, 4, 8, 8)
    assert torch.equal(cascade([model], low, steps=2, seed=3), model.upscale(low, steps=2, seed=3))


def test_stages_draw_different_noise(tiny_net):
    """Fresh networks return their sources, so the noise of each stage can be read off the result."""
    config = ModelConfig(net=tiny_net, flow=FlowConfig(scale=1, noise_step=999))
    model = CFMModel(config, build_network(config))
    low = randn(2, 4, 32, 32)
    noises = [cascade([model] * n, low, steps=1, seed=5) for n in (1, 2, 3)]  # step 999 leaves only the last noise
    noises.append(cascade([model], low, steps=1, seed=6))
    flat = torch.cat([n.flatten(1) for n in noises])
    assert torch.corrcoef(flat).fill_diagonal_(0).abs().max() < 0.06


def test_a_noise_step_is_that_of_every_stage(random_model):
    model, low = random_model(noise_step=300), randn(1, 4, 4, 4)
    middle = model.upscale(low, steps=2, noise_step=0)
    expected = model.upscale(middle, steps=2, noise_step=0)
    assert torch.equal(cascade([model, model], low, steps=2, noise_step=0), expected)
    assert not torch.allclose(cascade([model, model], low, steps=2), expected, atol=0.1)


def test_an_image_is_the_same_alone_and_in_a_batch(random_model):
    models, low = [random_model(noise_step=200)] * 2, randn(2, 4, 4, 4)
    alone = cascade(models, low[1:], steps=2, batch_index=[1])
    torch.testing.assert_close(alone[0], cascade(models, low, steps=2)[1], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("solver", "total"), [("midpoint", 8), ("dopri5", None)])
def test_the_callback_counts_over_all_stages(solver, total, random_model):
    seen = []
    cascade(
        [random_model()] * 2,
        randn(1, 4, 4, 4),
        steps=2,
        solver=solver,
        callback=lambda k, n, t, estimate: seen.append((k, n, estimate.shape[-1])),
    )
    assert [k for k, _, _ in seen] == list(range(1, len(seen) + 1))
    assert {n for _, n, _ in seen} == {total}
    widths = [w for _, _, w in seen]
    assert set(widths) == {8, 16} and widths == sorted(widths)
    if total:
        assert len(seen) == total


def test_lifts_reach_a_scale_or_the_next_above():
    assert [lifts(2, s) for s in (1.5, 2, 3, 4, 4.01, 8, 16)] == [1, 1, 2, 2, 3, 3, 4]
    assert [lifts(4, s) for s in (2, 4, 5, 16)] == [1, 1, 2, 2]
    with pytest.raises(ValueError, match="scale is 1: expected more than 1, such as the model's own, 4"):
        lifts(4, 1)
    with pytest.raises(ValueError, match="a model of scale 1 does not enlarge"):
        lifts(1, 2)


def test_impossible_cascades_are_named(random_model, tiny_net):
    config = ModelConfig(net=tiny_net, latent_space="sdxl")
    other = CFMModel(config, build_network(config))
    with pytest.raises(ValueError, match="a cascade of no models"):
        cascade([], randn(1, 4, 4, 4))
    with pytest.raises(ValueError, match="from sd15 to sdxl latents: expected models of one family"):
        cascade([random_model(), other], randn(1, 4, 4, 4))
