"""The whole method, on random networks and on velocities with closed solutions."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fmboost_core.checkpoint import load_model
from fmboost_core.config import FlowConfig, ModelConfig, NetConfig
from fmboost_core.flow import make_context
from fmboost_core.model import CFMModel
from fmboost_core.noise import draw_noise
from fmboost_core.solver import SOLVERS
from fmboost_core.unet import UNet
from fmboost_core.upsample import back_project


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Pull(nn.Module):
    """dx/dt = context - x, pixel by pixel: x(1) = context + (x0 - context) / e. Keeps the sizes it has seen."""

    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.ones(1))
        self.sizes = set()

    def forward(self, x, t, context):
        assert t.shape == (x.shape[0],)
        self.sizes.add(tuple(x.shape[2:]))
        return self.rate * (context - x)


class Clock(nn.Module):
    """v = t of the image, everywhere."""

    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.ones(1))

    def forward(self, x, t, context):
        return self.one * t.view(-1, 1, 1, 1).expand_as(x)


class Toward(nn.Module):
    """dx/dt = 3 context - x: from a clean start the mean is 3 times that, and without context x(1) = x0 / e."""

    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.ones(1))

    def forward(self, x, t, context):
        return self.one * (3 * context - x)


def around(net, **flow):
    return CFMModel(ModelConfig(flow=FlowConfig(**flow)), net)


class BlockVAE:
    """A latent pixel is the mean of its 8 x 8 block."""

    coarse = False

    def encode(self, images):
        mean = F.avg_pool2d(images, 8)
        return torch.cat([mean, mean[:, :1]], dim=1)

    def decode(self, latents):
        return latents[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3)


class CountingVAE(BlockVAE):
    """Remembers the heights of what it decoded."""

    def __init__(self):
        self.decoded = []

    def decode(self, latents):
        self.decoded.append(latents.shape[2])
        return super().decode(latents)


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


def test_time_may_be_one_number(random_model):
    model, x = random_model(), randn(2, 4, 8, 8)
    one = model.velocity(x, torch.tensor(0.3), x)
    torch.testing.assert_close(one, model.velocity(x, torch.tensor([0.3, 0.3]), x))


@pytest.mark.parametrize("size", [(40, 40), (33, 70), (16, 90)])
def test_tiles_meet_their_own_times_and_contexts(size):
    """A function of a pixel, its context and the time of its image is the same in tiles as whole."""
    x, context, t = randn(3, 4, *size), randn(3, 4, *size, seed=1), torch.tensor([0.1, 0.5, 0.9])
    pull, clock = around(Pull()), around(Clock())
    torch.testing.assert_close(pull.velocity(x, t, context, tile=16), context - x, rtol=0, atol=1e-5)
    assert max(max(s) for s in pull.net.sizes) == 16
    torch.testing.assert_close(clock.velocity(x, t, context, tile=16), t.view(3, 1, 1, 1).expand_as(x))


def test_a_tile_as_large_as_the_latent_changes_nothing(random_model):
    model, x, c = random_model(), randn(1, 4, 16, 24), randn(1, 4, 16, 24, seed=1)
    t = torch.tensor([0.5])
    assert torch.equal(model.velocity(x, t, c, tile=24), model.velocity(x, t, c))
    assert not torch.allclose(model.velocity(x, t, c, tile=16), model.velocity(x, t, c))


# --- upscale


def test_a_fresh_network_returns_the_source(tiny_net):
    low = randn(2, 4, 5, 6)
    model = CFMModel(ModelConfig(net=tiny_net, flow=FlowConfig(noise_step=400)), UNet(tiny_net))
    noise = torch.stack([draw_noise((1, 4, 10, 12), 3, [i])[0] for i in (0, 1)])
    expected = 0.808643 * low.repeat_interleave(2, 2).repeat_interleave(2, 3) + 0.588299 * noise
    torch.testing.assert_close(model.upscale(low, seed=3), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("upsampling", ["nearest", "bilinear", "psu"])
def test_upscale_solves_the_flow_from_the_noised_source(solver, upsampling):
    """With v = context - x the result is known: context + noise part of x0 / e."""
    low = randn(2, 4, 6, 4)
    model = around(Pull(), upsampling=upsampling, noise_step=200, scale=2)
    up = {
        "nearest": low.repeat_interleave(2, 2).repeat_interleave(2, 3),
        "bilinear": F.interpolate(low, scale_factor=2, mode="bilinear"),
        "psu": BlockVAE().encode(F.interpolate(BlockVAE().decode(low), scale_factor=2, mode="bilinear")),
    }[upsampling]
    x0 = 0.950957 * up + 0.309325 * draw_noise((2, 4, 12, 8), 11)
    high = model.upscale(low, steps=400 if solver == "euler" else 20, solver=solver, seed=11, vae=BlockVAE())
    torch.testing.assert_close(high, up + (x0 - up) * math.exp(-1), rtol=0, atol=1e-3)


def test_a_gaussian_start_is_noise_conditioned_on_the_latent():
    low = randn(1, 4, 6, 4)
    high = around(Pull(), path="gaussian").upscale(low, steps=20, solver="rk4", seed=5)
    up = low.repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = up + (draw_noise((1, 4, 12, 8), 5) - up) * math.exp(-1)
    torch.testing.assert_close(high, expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="starts from pure noise"):
        around(Pull(), path="gaussian").upscale(low, noise_step=100)


def test_a_flow_from_the_mean_starts_there_and_sees_no_context():
    low, own = randn(1, 4, 6, 4), randn(1, 4, 12, 8, seed=9)
    model = around(Toward(), noise_step=200, posterior_mean=True)
    up = low.repeat_interleave(2, 2).repeat_interleave(2, 3)
    x0 = 0.950957 * 3 * up + 0.309325 * draw_noise((1, 4, 12, 8), 5)
    start, context = model.start(low, seed=5)
    torch.testing.assert_close(start, x0, rtol=0, atol=1e-5)
    assert context.shape == up.shape and not context.any()
    for tile in (0, 8):
        high = model.upscale(low, steps=20, solver="rk4", seed=5, tile=tile)
        torch.testing.assert_close(high, x0 / math.e, rtol=0, atol=1e-5)
    high = model.upscale(low, x0=own, steps=20, solver="rk4")
    torch.testing.assert_close(high, own / math.e, rtol=0, atol=1e-5)


def test_a_source_of_ones_own_replaces_the_upsampled_latent():
    low, own = randn(1, 4, 6, 4), randn(1, 4, 12, 8, seed=9)
    model = around(Pull(), noise_step=400)
    up = low.repeat_interleave(2, 2).repeat_interleave(2, 3)
    clean = model.upscale(low, x0=own, steps=20, solver="rk4")
    torch.testing.assert_close(clean, up + (own - up) * math.exp(-1), rtol=0, atol=1e-5)
    x0 = 0.950957 * own + 0.309325 * draw_noise((1, 4, 12, 8), 2)
    noised = model.upscale(low, x0=own, noise_step=200, seed=2, steps=20, solver="rk4")
    torch.testing.assert_close(noised, up + (x0 - up) * math.exp(-1), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"a source of shape \(1, 4, 6, 4\): expected the target's, \(1, 4, 12, 8\)"):
        model.upscale(low, x0=low)


def test_an_upsampled_latent_at_hand_is_used():
    low, up = randn(1, 4, 6, 4), randn(1, 4, 12, 8, seed=9)
    high = around(Pull(), upsampling="psu").upscale(low, context=up, steps=3)
    torch.testing.assert_close(high, up)
    with pytest.raises(ValueError, match=r"a context of shape \(1, 4, 6, 4\): expected \(1, 4, 12, 8\)"):
        around(Pull(), upsampling="psu").upscale(low, context=low)


class Ramp:
    """Pictures whose pixels differ; a latent is the mean of its block."""

    encode = BlockVAE.encode

    def decode(self, latents):
        b, _, h, w = latents.shape
        return torch.linspace(0, 1, b * 3 * 64 * h * w).view(b, 3, 8 * h, 8 * w)


def test_a_picture_context_holds_every_pixel_of_the_low_picture():
    """At x2, 4 x 4 pixels lie below a latent one: channel 4 + 16 c + 4 i + j at (y, x) is colour c of the pixel
    (4 y + i, 4 x + j), from -1 to 1."""
    flow = FlowConfig(upsampling="psu", picture_context=True)
    model = CFMModel(ModelConfig(net=NetConfig(in_channels=56), flow=flow), Pull())
    low, vae = randn(2, 4, 3, 5), Ramp()
    x0, context = model.start(low, vae=vae)
    picture = vae.decode(low)
    assert x0.shape == (2, 4, 6, 10) and context.shape == (2, 52, 6, 10)
    torch.testing.assert_close(context[:, :4], vae.encode(F.interpolate(picture, scale_factor=2, mode="bilinear")))
    for c, i, j, y, x in [(0, 0, 0, 0, 0), (1, 2, 3, 4, 7), (2, 3, 1, 5, 9), (0, 1, 0, 2, 3)]:
        expected = 2 * picture[:, c, 4 * y + i, 4 * x + j] - 1
        torch.testing.assert_close(context[:, 4 + 16 * c + 4 * i + j, y, x], expected)
    with pytest.raises(ValueError, match="no vae was given"):
        model.start(low)


@pytest.mark.parametrize("solver", SOLVERS)
def test_an_image_is_the_same_alone_and_in_a_batch(solver, random_model):
    model, low = random_model(noise_step=300), randn(3, 4, 4, 6)
    low[1] *= 5  # one that needs other steps than its neighbours
    together = model.upscale(low, steps=3, solver=solver, seed=4)
    for i in range(3):
        alone = model.upscale(low[i : i + 1], steps=3, solver=solver, seed=4, batch_index=[i])
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-4)


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
    low, model = randn(2, 4, 30, 21), around(Pull(), noise_step=400)
    whole = model.upscale(low, steps=4)
    model.net.sizes.clear()
    tiled = model.upscale(low, steps=4, tile=16)
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-5)
    assert model.net.sizes == {(16, 16)}


def test_nothing_is_differentiated_and_inputs_are_left_alone(random_model):
    low = randn(1, 4, 8, 8)
    model = random_model(noise_step=100)
    for parameter in model.net.parameters():
        parameter.requires_grad_(True)
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
    g, model = golden("coupling_t400"), load_model(converted("coupling_t400"))
    high, context = g["x1_rk4_numsteps4"][:1], g["upsampled_latent"][:1]
    x0 = model.integrate(high, context, steps=steps, solver=solver, reverse=True)
    assert (x0 - high).abs().max() > 3
    torch.testing.assert_close(x0, g["x0"][:1], rtol=0, atol=0.02)
    again = model.integrate(x0, context, steps=steps, solver=solver)
    torch.testing.assert_close(again, high, rtol=0, atol=0.01)


def test_reverse_is_the_exact_inverse_of_a_known_flow():
    model, high, context = around(Pull()), randn(1, 4, 8, 8), randn(1, 4, 8, 8, seed=1)
    x0 = model.integrate(high, context, steps=30, solver="rk4", reverse=True)
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
        random_model().integrate(other, x0)
    with pytest.raises(ValueError, match=r"a context of shape \(1, 16, 6, 6\): expected \(1, 4, 6, 6\)"):
        random_model().integrate(x0, other)


def test_pixel_space_upsampling_asks_for_its_vae(random_model):
    with pytest.raises(ValueError, match="no vae was given: pass the autoencoder of its latents as vae="):
        random_model(upsampling="psu").upscale(randn(1, 4, 8, 8))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"solver": "ddim"}, "unknown solver 'ddim'"),
        ({"noise_step": 1000}, "noise_step is 1000"),
        ({"seed": -2}, "seed is -2"),
        ({"batch_index": [0, 1]}, "batch_index has 2 entries for 1 images"),
        ({"tile": 1}, "tile 1"),
    ],
)
def test_wrong_settings_are_named(settings, sentence, random_model):
    with pytest.raises(ValueError, match=sentence):
        random_model().upscale(randn(1, 4, 8, 8), **settings)


def test_a_model_knows_its_scale_and_space():
    config = ModelConfig(net=NetConfig(in_channels=32, out_channels=16), flow=FlowConfig(scale=4), latent_space="flux")
    model = CFMModel(config, Pull())
    assert (model.scale, model.space.name, model.space.channels) == (4, "flux", 16)


def test_back_projection_is_a_setting_and_needs_the_vae():
    low, up = randn(1, 4, 4, 4), randn(1, 4, 8, 8)
    model = around(Pull(), upsampling="psu", back_projection=1)
    with pytest.raises(ValueError, match="1 rounds of back projection need the vae"):
        model.upscale(low, context=up)
    with pytest.raises(ValueError, match="2 rounds of back projection need the vae"):
        around(Pull()).upscale(low, back_projection=2)
    plain = model.upscale(low, context=up, back_projection=0, steps=3)
    torch.testing.assert_close(plain, around(Pull(), upsampling="psu").upscale(low, context=up, steps=3))
    vae = BlockVAE()
    corrected = model.upscale(low, context=up, vae=vae, steps=3)
    torch.testing.assert_close(corrected, back_project(plain, vae.decode(low), 2, vae))
    counting = CountingVAE()
    whole = model.upscale(low, vae=counting, steps=3)
    assert counting.decoded == [4, 8]  # the low latent once, for both ends of the flow, and the result
    context = make_context(model.config.flow, low, vae)
    torch.testing.assert_close(whole, model.upscale(low, context=context, vae=vae, steps=3))
    vae.coarse = True  # as the small autoencoder that ships
    torch.testing.assert_close(model.upscale(low, context=up, vae=vae, steps=3), plain)
    with pytest.raises(ValueError, match="back_projection needs upsampling psu"):
        FlowConfig(upsampling="nearest", back_projection=1)
    with pytest.raises(ValueError, match="back_projection is -1"):
        FlowConfig(upsampling="psu", back_projection=-1)
