"""The third stage on a small random network: what it walks, what it compares, and who learns from what."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fmboost_core.config import ContextEncoderConfig, FlowConfig, NetConfig
from fmboost_core.latent_spaces import latent_space
from fmboost_core.model import CFMModel, build_network
from fmboost_core.noise import draw_noise
from fmboost_core.sampling import Sampling
from fmboost_core.train.adversaries import Adversaries, Scores, Views, deceived, hinge
from fmboost_core.train.few_step import FewStep, nearly_clamped, window_corner
from fmboost_core.train.loop import ADVERSARIES, NETWORK
from fmboost_core.train.objectives import context_of
from fmboost_core.train.settings import DataSettings, FewStepSettings, RunSettings, TrainSettings
from fmboost_core.vae.autoencoder import Autoencoder

SETTINGS = RunSettings(
    "tiny",
    DataSettings("cache"),
    TrainSettings(steps=9, objective="few_step", batch=2, crop=16),
    NetConfig(
        in_channels=8 + 5, model_channels=32, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(), num_heads=1
    ),
    FlowConfig(upsampling="learned", noise_step=200),
    ContextEncoderConfig(width=8, depth=1, features=5),
    FewStepSettings(window=8, adversaries_from=0),
)


class Flat(nn.Module):
    """A decoder one can do in the head: the first channels as colours, a latent pixel in 8 x 8 px."""

    def __init__(self):
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))

    def forward(self, latents):
        return latents[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3)


class Recorder(nn.Module):
    """Adversaries that keep what they see and find it all alike."""

    def __init__(self):
        super().__init__()
        self.seen, self.score = [], nn.Parameter(torch.zeros(1))

    def forward(self, views):
        self.seen.append(views)
        return Scores([self.score], [self.score], [self.score])


@pytest.fixture(scope="module")
def stage():
    return FewStep(SETTINGS, Autoencoder(latent_space("sd15"), Flat(), Flat()))


@pytest.fixture
def net():
    torch.manual_seed(0)
    network = build_network(SETTINGS.model_config())
    for parameter in network.parameters():  # those that start at zero too
        parameter.data = torch.randn(parameter.shape) * (0.1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5)
    return network


@pytest.fixture
def batch():
    draw = torch.Generator().manual_seed(1)
    low = torch.rand(2, 4, 8, 8, generator=draw)
    high = torch.rand(2, 4, 16, 16, generator=draw)
    return {"low": low, "high": high, "noise": draw_noise(high.shape, seed=3)}


def run(stage, net, batch, step, adversaries=None):
    """What `losses` gives in turn, (name, loss, numbers)."""
    modules = {NETWORK: net, ADVERSARIES: adversaries or stage.adversaries}
    context = context_of(net, SETTINGS.flow, batch)
    return stage.losses(modules, batch, torch.cat([context[:, :4].detach(), context[:, 4:]], dim=1), step)


def drawn(step):
    """The step of the trajectory and the corner of the window, as the run's seed gives them."""
    rng = np.random.default_rng((SETTINGS.train.seed, step, 2))
    return int(rng.integers(4)), window_corner((16 - 8) // 2 + 1, 2, rng)


def test_the_outermost_pixels_are_in_every_third_window():
    """Of five places on a side the ends have 0.35 each: half of the draws, and a fifth of the other half."""
    rng = np.random.default_rng(0)
    corners = np.array([window_corner(5, 2, rng) for _ in range(4000)])
    for side in corners.T:
        share = [(side == place).mean() for place in (0, 2, 4, 6, 8)]
        np.testing.assert_allclose(share, [0.35, 0.1, 0.1, 0.1, 0.35], atol=0.03)
    assert abs(np.corrcoef(corners.T)[0, 1]) < 0.05
    assert window_corner(1, 2, rng) == (0, 0)


def test_an_estimate_is_what_the_sampler_reports_at_that_evaluation(stage, net, batch):
    reported = []
    model = CFMModel(SETTINGS.model_config(), net)
    context = model.make_context(batch["low"])
    x0 = model.make_source(context, Sampling(seed=3))
    model.integrate(x0, context, Sampling(steps=4), lambda n, total, t, estimate: reported.append(estimate))
    one_each = {drawn(step)[0]: step for step in range(30)}
    assert set(one_each) == {0, 1, 2, 3}
    for taken, step in one_each.items():
        recorder = Recorder()
        next(run(stage, net, batch, step, recorder))
        torch.testing.assert_close(recorder.seen[0].latents.detach(), reported[taken], atol=1e-5, rtol=1e-5)
        assert torch.equal(recorder.seen[0].upsampled, context[:, :4])


def test_pictures_are_of_one_window_and_each_is_shown_beside_the_small_one(stage, net, batch):
    """Where the true latent is the low one repeated, both pictures agree in the middle of each low pixel."""
    batch["high"] = batch["low"].repeat_interleave(2, 2).repeat_interleave(2, 3)
    for step in range(3):
        recorder, (_, (top, left)) = Recorder(), drawn(step)
        list(run(stage, net, batch, step, recorder))
        judged, real, made = recorder.seen
        shown = batch["high"][:, :3, top : top + 8, left : left + 8]
        assert torch.equal(real.picture, shown.repeat_interleave(8, 2).repeat_interleave(8, 3))
        torch.testing.assert_close(real.low_picture[:, :, 8::16, 8::16], shown[:, :, ::2, ::2])
        decoded = judged.latents[:, :3, top : top + 8, left : left + 8]
        assert torch.equal(judged.picture[:, :, ::8, ::8], nearly_clamped(decoded))
        assert torch.equal(judged.low_picture, real.low_picture)
        assert torch.equal(made.picture, judged.picture.detach()) and torch.equal(real.latents, batch["high"])


def test_a_small_picture_that_the_context_has_is_shown_rather_than_decoded_again(stage, net, batch):
    """A batch with another picture than its low latent's: squares of 8 px, of which the middle is what it was."""
    squares_of = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    batch["picture"] = squares_of.repeat_interleave(8, 2).repeat_interleave(8, 3)
    for step in range(3):
        recorder, (_, (top, left)) = Recorder(), drawn(step)
        list(run(stage, net, batch, step, recorder))
        shown = squares_of[:, :, top // 2 : top // 2 + 4, left // 2 : left // 2 + 4]
        for views in recorder.seen:
            torch.testing.assert_close(views.low_picture[:, :, 8::16, 8::16], shown)


def squares(picture):
    """Mean colours of the squares of 32 px of a (B, 3, 64, 64) picture: (B, 3, 2, 2)."""
    return picture.detach().reshape(-1, 3, 2, 32, 2, 32).mean((3, 5))


def test_pixels_beyond_black_and_white_still_pull_back():
    """Clamped wholly they sent no gradient, and line drawings ran into blotches blacker than black."""
    pixels = torch.tensor([-1.05, -0.05, 0.5, 1.05, 2.05], requires_grad=True)
    held = nearly_clamped(pixels)
    torch.testing.assert_close(held.detach(), torch.tensor([-0.25, -0.05, 0.5, 1.05, 1.25]))
    held.sum().backward()
    torch.testing.assert_close(pixels.grad[[0, 2, 4]], torch.tensor([0.2, 1.0, 0.2]))


def deviations(picture):
    """Of a (B, 3, 64, 64) picture in its squares of 32 px: the deviations of details of 1, 2, 4 and 8 px, by numpy."""
    found, picture = [], picture.detach().double().numpy()
    for size in (1, 2, 4, 8):
        side, cell = picture.shape[-1] // 2, 32 // size
        means = picture.reshape(-1, 3, side, 2, side, 2).mean(axis=(3, 5))
        detail = picture - np.kron(means, np.ones((2, 2)))
        found.append(np.sqrt((detail**2).reshape(-1, 3, 2, cell, 2, cell).mean(axis=(3, 5)) + 1e-5))
        picture = means
    return np.stack(found)


def test_the_loss_is_the_weighted_sum_of_its_parts(stage, net, batch):
    few, recorder = stage.weights, Recorder()
    torch.nn.init.constant_(recorder.score, 0.5)
    (name, loss, seen), (other, judgement, _) = run(stage, net, batch, 3, recorder)
    assert (name, other) == (NETWORK, ADVERSARIES)
    made, real = recorder.seen[0], recorder.seen[1]
    expected = {
        "latent": (made.latents - batch["high"]).abs().mean(),
        "pixel": (made.picture - real.picture).abs().mean(),
        "colour": (squares(made.picture) - squares(real.picture)).abs().mean(),
    }
    off = np.abs(deviations(made.picture) - deviations(real.picture)).mean()
    expected["contrast"] = torch.tensor(off, dtype=torch.float32)
    for part, value in expected.items():
        torch.testing.assert_close(seen[part], value.detach())
    cosines = [  # half the squared distance of unit vectors is 1 minus their cosine
        2 - 2 * torch.cosine_similarity(a.detach(), b, dim=1, eps=1e-12)
        for a, b in zip(made.features, real.features, strict=True)
    ]
    torch.testing.assert_close(seen["features"], torch.stack([c.mean() for c in cosines]).mean(), atol=1e-5, rtol=1e-4)
    parts = 0.5 * seen["latent"] + 2.0 * seen["pixel"] + 3.0 * seen["colour"] + 20.0 * seen["contrast"]
    parts = parts + 3.0 * seen["features"] + 1.0 * seen["structure"]
    adversaries = few.picture_adversary + few.feature_adversary + few.latent_adversary
    torch.testing.assert_close(loss.detach(), parts - 0.5 * adversaries)
    assert judgement.item() == pytest.approx(3 * (0.5 + 1.5))  # both at 0.5: hinges of 1 - 0.5 and 1 + 0.5


def gradients(module):
    """Names of the weights, without biases, that have a gradient: a hinge's may cancel in the last bias."""
    return {name for name, p in module.named_parameters() if p.grad is not None and p.grad.any() and p.ndim > 1}


def weights(module):
    return {name for name, p in module.named_parameters() if p.ndim > 1}


def test_network_and_adversaries_learn_from_their_own_loss_alone(stage, net, batch):
    losses = run(stage, net, batch, 2)
    _, loss, _ = next(losses)
    loss.backward()
    assert not gradients(stage.adversaries)
    assert gradients(net) == weights(net)  # the context encoder's too
    net.zero_grad()
    _, loss, _ = next(losses)
    loss.backward()
    assert not gradients(net)
    assert gradients(stage.adversaries) == weights(stage.adversaries)
    stage.adversaries.zero_grad()


def test_adversaries_come_later_and_have_learnt_before(stage, net, batch, monkeypatch):
    monkeypatch.setattr(stage, "weights", replace(stage.weights, adversaries_from=200))
    told = []
    for step in (99, 100, 199, 200):
        recorder = Recorder()
        told.append(([name for name, *_ in run(stage, net, batch, step, recorder)], len(recorder.seen)))
    assert told == [([NETWORK], 0), *[([NETWORK, ADVERSARIES], 2)] * 2, ([NETWORK, ADVERSARIES], 3)]


def test_losses_of_adversaries_in_closed_form():
    real, made = [torch.tensor([2.0, 0.5]), torch.tensor([-1.0])], [torch.tensor([-3.0, 0.0]), torch.tensor([1.0])]
    assert hinge(real, made).item() == pytest.approx(((0 + 0.5) / 2 + (0 + 1) / 2 + 2 + 2) / 2)
    assert deceived(made).item() == pytest.approx(-(-1.5 + 1) / 2)


def test_each_adversary_judges_its_view_beside_what_the_model_was_given():
    torch.manual_seed(0)
    adversaries = Adversaries(4, [3, 5]).eval()
    picture, latent = torch.rand(1, 3, 32, 32), torch.rand(1, 4, 8, 8)
    features = [torch.rand(1, 3, 16, 16), torch.rand(1, 5, 8, 8)]
    views = Views(picture, picture, features, features, latent, latent)
    before = adversaries(views)
    assert [len(s) for s in before] == [1, 2, 1]
    judges = {"picture": "picture", "low_picture": "picture", "features": "features", "low_features": "features"}
    judges |= {"latents": "latents", "upsampled": "latents"}
    for view, judge in judges.items():
        given = getattr(views, view)
        changed = [1 - f for f in given] if isinstance(given, list) else 1 - given
        after = adversaries(views._replace(**{view: changed}))
        for name, old, new in zip(Scores._fields, before, after, strict=True):
            assert all(torch.equal(a, b) != (name == judge) for a, b in zip(old, new, strict=True)), (view, name)
