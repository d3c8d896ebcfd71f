"""The whole method, on random networks and on velocities with closed solutions."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fmboost_core.config import FlowConfig, ModelConfig, NetConfig
from fmboost_core.files.model_file import load_model
from fmboost_core.model import CFMModel, build_network
from fmboost_core.noise import draw_noise
from fmboost_core.sampling import Sampling
from fmboost_core.solver import SOLVERS


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def doubled(low):
    return low.repeat_interleave(2, 2).repeat_interleave(2, 3)


class Velocity(nn.Module):
    """A velocity in closed form, which keeps the sizes it has seen."""

    def __init__(self, formula):
        super().__init__()
        self.one = nn.Parameter(torch.ones(1))
        self.formula, self.sizes = formula, set()

    def forward(self, x, t, context):
        assert t.shape == (x.shape[0],)
        self.sizes.add(tuple(x.shape[2:]))
        return self.one * self.formula(x, t.view(-1, 1, 1, 1), context)


def around(formula, **flow):
    return CFMModel(ModelConfig(flow=FlowConfig(**flow)), Velocity(formula))


def pull(x, t, context):
    """x(1) = context + (x0 - context) / e."""
    return context - x


# --- velocity


@pytest.mark.parametrize("size", [(8, 8), (16, 24), (1, 1), (5, 7), (9, 16), (30, 2)])
@pytest.mark.parametrize("net", [{}, {"pool_factor": 2}, {"channel_mult": (1, 1, 1, 1), "attention_resolutions": ()}])
def test_any_size_is_the_padded_network_cropped(size, net, random_model, tiny_net):
    model = random_model(net=replace(tiny_net, **net))
    x, context, t = randn(2, 4, *size), randn(2, 4, *size, seed=1), torch.tensor([0.2, 0.9])
    v = model.velocity(x, t, context)
    assert v.shape == x.shape and v.isfinite().all()
    m = model.config.net.size_multiple
    pad = [(0, 0), (0, 0)] + [(0, max(-(-s // m), 2) * m - s) for s in size]
    padded = [torch.from_numpy(np.pad(z.numpy(), pad, mode="edge")) for z in (x, context)]
    expected = model.net(padded[0], t, padded[1])[:, :, : size[0], : size[1]]
    torch.testing.assert_close(v, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(40, 40), (33, 70), (16, 90)])
def test_tiles_meet_their_own_times_and_contexts(size):
    """A function of a pixel, its context and the time of its image is the same in tiles as whole."""
    x, context, t = randn(3, 4, *size), randn(3, 4, *size, seed=1), torch.tensor([0.1, 0.5, 0.9])
    towards, clock = around(pull), around(lambda x, t, context: t.expand_as(x))
    torch.testing.assert_close(towards.velocity(x, t, context, tile=16), context - x, rtol=0, atol=1e-5)
    assert max(max(s) for s in towards.net.sizes) == 16
    torch.testing.assert_close(clock.velocity(x, t, context, tile=16), t.view(3, 1, 1, 1).expand_as(x))


def test_a_tile_as_large_as_the_latent_changes_nothing(random_model):
    model, x, c = random_model(), randn(1, 4, 16, 24), randn(1, 4, 16, 24, seed=1)
    t = torch.tensor([0.5])
    assert torch.equal(model.velocity(x, t, c, tile=24), model.velocity(x, t, c))
    assert not torch.allclose(model.velocity(x, t, c, tile=16), model.velocity(x, t, c))


# --- upscale


def test_a_fresh_network_returns_the_source(tiny_net):
    low = randn(2, 4, 5, 6)
    config = ModelConfig(net=tiny_net, flow=FlowConfig(noise_step=400))
    noise = torch.stack([draw_noise((1, 4, 10, 12), 3, [i])[0] for i in (0, 1)])
    found = CFMModel(config, build_network(config)).upscale(low, seed=3)
    torch.testing.assert_close(found, 0.808643 * doubled(low) + 0.588299 * noise, rtol=0, atol=1e-5)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("upsampling", ["nearest", "bilinear", "psu"])
def test_upscale_solves_the_flow_from_the_noised_source(solver, upsampling, block_vae):
    """With v = context - x the result is known: context + noise part of x0 / e."""
    low = randn(2, 4, 6, 4)
    model = around(pull, upsampling=upsampling, noise_step=200, scale=2)
    up = {
        "nearest": doubled(low),
        "bilinear": F.interpolate(low, scale_factor=2, mode="bilinear"),
        "psu": block_vae.encode(F.interpolate(block_vae.decode(low), scale_factor=2, mode="bilinear")),
    }[upsampling]
    x0 = 0.950957 * up + 0.309325 * draw_noise((2, 4, 12, 8), 11)
    steps = 400 if solver == "euler" else 20
    high = model.upscale(low, Sampling(steps=3, solver=solver), steps=steps, seed=11, vae=block_vae)
    torch.testing.assert_close(high, up + (x0 - up) * math.exp(-1), rtol=0, atol=1e-3)


def test_a_gaussian_start_is_noise_conditioned_on_the_latent():
    low = randn(1, 4, 6, 4)
    high = around(pull, path="gaussian").upscale(low, steps=20, solver="rk4", seed=5)
    up = doubled(low)
    expected = up + (draw_noise((1, 4, 12, 8), 5) - up) * math.exp(-1)
    torch.testing.assert_close(high, expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="starts from pure noise"):
        around(pull, path="gaussian").upscale(low, noise_step=100)


def test_a_diffusion_model_is_refused():
    with pytest.raises(ValueError, match=r"this is a diffusion model \(SR3\).* not a CFM model: choose a model with"):
        around(pull, path="diffusion").upscale(randn(1, 4, 6, 4))


def test_a_source_of_ones_own_replaces_the_upsampled_latent():
    low, own = randn(1, 4, 6, 4), randn(1, 4, 12, 8, seed=9)
    model, up = around(pull, noise_step=400), doubled(low)
    clean = model.upscale(low, source=own, steps=20, solver="rk4")
    torch.testing.assert_close(clean, up + (own - up) * math.exp(-1), rtol=0, atol=1e-5)
    x0 = 0.950957 * own + 0.309325 * draw_noise((1, 4, 12, 8), 2)
    noised = model.upscale(low, source=own, noise_step=200, seed=2, steps=20, solver="rk4")
    torch.testing.assert_close(noised, up + (x0 - up) * math.exp(-1), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"a source of shape \(1, 4, 6, 4\): expected .* the result, \(1, 4, 12, 8\)"):
        model.upscale(low, source=low)


@pytest.mark.parametrize("solver", SOLVERS)
def test_an_image_is_the_same_alone_and_in_a_batch(solver, random_model):
    model, low = random_model(noise_step=300), randn(3, 4, 4, 6)
    low[1] *= 5  # one that needs other steps than its neighbours
    together = model.upscale(low, steps=3, solver=solver, seed=4)
    for i in range(3):
        alone = model.upscale(low[i : i + 1], steps=3, solver=solver, seed=4, batch_index=[i])
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-4)


def test_an_adaptive_solver_gives_every_image_steps_of_its_own():
    """dx/dt = r cos(r t) x with the rate r as context: x(1) = x0 exp(sin r), and a fast image takes more steps."""
    model = around(lambda x, t, rate: torch.cos(rate * t) * rate * x)
    x0 = torch.tensor([0.5, 1.0, 2.0]).view(3, 1, 1, 1).expand(3, 4, 2, 2)
    rate = torch.tensor([0.1, 40.0, 3.0]).view(3, 1, 1, 1).expand_as(x0)

    def solve(images):
        seen = []
        sampling = Sampling(solver="dopri5")
        return model.integrate(x0[images], rate[images], sampling, lambda *a: seen.append(a)), len(seen)

    together, evaluations = solve(slice(0, 3))
    alone = [solve(slice(i, i + 1)) for i in range(3)]
    assert torch.equal(together, torch.cat([x1 for x1, _ in alone]))
    assert evaluations == sum(n for _, n in alone)
    assert alone[1][1] > 2 * alone[0][1]
    torch.testing.assert_close(together, x0 * torch.sin(rate).exp(), rtol=2e-2, atol=0)


def test_the_seed_decides_and_the_global_state_is_left_alone(random_model):
    model, low = random_model(noise_step=300), randn(1, 4, 8, 8)
    before = torch.get_rng_state()
    first, again, other = (model.upscale(low, steps=2, seed=s) for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.allclose(first, other, atol=0.1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("solver", ["euler", "heun3", "dopri5"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_keep_a_float32_state(solver, dtype, random_model):
    low, seen = randn(1, 4, 4, 4), []
    high = random_model(dtype, noise_step=200).upscale(
        low.to(dtype), steps=3, solver=solver, callback=lambda k, n, t, estimate: seen.append(estimate.dtype)
    )
    exact = random_model(noise_step=200).upscale(low, steps=3, solver=solver)
    assert high.dtype == torch.float32 and set(seen) == {torch.float32}
    assert random_model(dtype).velocity(high, torch.zeros(1), high).dtype == torch.float32
    assert (high - exact).norm() / exact.norm() < 0.02


def test_odd_and_tiny_latents_are_lifted(random_model):
    for size in [(1, 1), (3, 5), (7, 2)]:
        assert random_model().upscale(randn(1, 4, *size), steps=2).shape == (1, 4, 2 * size[0], 2 * size[1])
        assert random_model(scale=3).upscale(randn(1, 4, *size), steps=1).shape == (1, 4, 3 * size[0], 3 * size[1])


def test_tiles_stay_within_their_size_and_do_not_change_a_local_flow():
    low, model = randn(2, 4, 30, 21), around(pull, noise_step=400)
    whole = model.upscale(low, steps=4)
    model.net.sizes.clear()
    tiled = model.upscale(low, steps=4, tile=16)
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-5)
    assert model.net.sizes == {(16, 16)}


def test_nothing_is_differentiated_and_inputs_are_left_alone(random_model):
    low = randn(1, 4, 8, 8)
    model = random_model(noise_step=100)
    model.net.requires_grad_(True)
    kept = low.clone()
    assert not model.upscale(low, steps=2).requires_grad
    assert torch.equal(low, kept)


def test_callback_counts_and_cancels(random_model):
    seen = []
    random_model().upscale(randn(1, 4, 8, 8), steps=3, solver="heun", callback=lambda *a: seen.append(a))
    assert [(k, n) for k, n, _, _ in seen] == [(k, 6) for k in range(1, 7)]
    assert all(e.shape == (1, 4, 16, 16) for _, _, _, e in seen)
    with pytest.raises(InterruptedError):
        random_model().upscale(randn(1, 4, 8, 8), callback=lambda *a: (_ for _ in ()).throw(InterruptedError))


# --- there and back


@pytest.mark.parametrize(("solver", "steps"), [("rk4", 6), ("dopri5", 1)])
def test_encoding_high_to_low_and_lifting_again(solver, steps, converted, golden):
    """The authors' result, carried back, is the x0 they began with; lifting that gives it again."""
    g, model, sampling = golden("coupling_t400"), load_model(converted("coupling_t400")), Sampling(steps, solver)
    high, context = g["x1_rk4_numsteps4"][:1], g["upsampled_latent"][:1]
    x0 = model.integrate(high, context, sampling, reverse=True)
    assert (x0 - high).abs().max() > 3
    torch.testing.assert_close(x0, g["x0"][:1], rtol=0, atol=0.02)
    again = model.integrate(x0, context, sampling)
    torch.testing.assert_close(again, high, rtol=0, atol=0.01)


def test_reverse_is_the_exact_inverse_of_a_known_flow():
    model, high, context = around(pull), randn(1, 4, 8, 8), randn(1, 4, 8, 8, seed=1)
    x0 = model.integrate(high, context, Sampling(steps=30, solver="rk4"), reverse=True)
    torch.testing.assert_close(x0, context + (high - context) * math.e, rtol=0, atol=1e-4)


# --- refusals


def test_latents_of_another_family_are_refused(random_model):
    for shape in [(1, 16, 8, 8), (4, 8, 8), (1, 1, 4, 8, 8)]:
        with pytest.raises(
            ValueError, match=r"do not fit this model: it was trained on sd15 latents, \(B, 4, h, w\); use"
        ):
            random_model().upscale(torch.zeros(shape))


def test_a_flow_between_latents_that_do_not_fit_is_refused(random_model):
    x0, other = torch.zeros(1, 4, 6, 6), torch.zeros(1, 16, 6, 6)
    with pytest.raises(ValueError, match=r"latents of shape \(1, 16, 6, 6\) do not fit this model"):
        random_model().integrate(other, x0, Sampling())
    with pytest.raises(ValueError, match=r"a context of shape \(1, 16, 6, 6\): expected \(1, 4, 6, 6\)"):
        random_model().integrate(x0, other, Sampling())


def test_pixel_space_upsampling_asks_for_its_vae(random_model):
    with pytest.raises(ValueError, match="no vae was given: pass the autoencoder of its latents as vae="):
        random_model(upsampling="psu").upscale(randn(1, 4, 8, 8))


def test_wrong_settings_are_named(random_model):
    for settings, sentence in (
        ({"steps": 0}, "steps is 0"),
        ({"batch_index": [0, 1]}, "batch_index has 2 entries for 1 images"),
    ):
        with pytest.raises(ValueError, match=sentence):
            random_model().upscale(randn(1, 4, 8, 8), **settings)


def test_a_model_knows_its_scale_and_space():
    config = ModelConfig(net=NetConfig(in_channels=32, out_channels=16), flow=FlowConfig(scale=4), latent_space="flux")
    model = CFMModel(config, Velocity(pull))
    assert (model.scale, model.space.name, model.space.channels) == (4, "flux", 16)
