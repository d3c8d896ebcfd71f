"""Objectives on networks whose loss is known without training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fmboost_core.config import ContextEncoderConfig, FlowConfig, ModelConfig, NetConfig
from fmboost_core.images.resize import enlarge
from fmboost_core.model import CFMModel, build_network
from fmboost_core.noise import alpha_bar
from fmboost_core.train.lift import LiftTask
from fmboost_core.train.loop import NETWORK, make_accelerator
from fmboost_core.train.objectives import context_loss, context_of, flow_loss

NET = NetConfig(
    in_channels=8 + 5, model_channels=32, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(), num_heads=1
)
LEARNED = ModelConfig(NET, FlowConfig(upsampling="learned"), ContextEncoderConfig(width=8, depth=1, features=5))


@pytest.fixture
def batch():
    rng = torch.Generator().manual_seed(0)
    draw = {k: torch.randn(3, 4, 16, 16, generator=rng) for k in ("high", "psu", "noise")}
    low = torch.randn(3, 4, 8, 8, generator=rng)
    return {**draw, "low": low, "picture": torch.rand(3, 3, 64, 64), "t": torch.rand(3, generator=rng)}


def loss_of(objective, net, flow, batch):
    return flow_loss(objective, net, flow, batch, context_of(None, flow, batch))


def still(x, t, context):
    return torch.zeros_like(x)


def repeated(low):
    return low.repeat_interleave(2, 2).repeat_interleave(2, 3)


@pytest.mark.parametrize("step", [0, 200])
@pytest.mark.parametrize("upsampling", ["psu", "nearest"])
def test_a_net_that_stands_still_loses_the_distance(batch, upsampling, step):
    flow = FlowConfig(upsampling=upsampling, noise_step=step)
    start = batch["psu"] if upsampling == "psu" else repeated(batch["low"])
    x0 = alpha_bar(step) ** 0.5 * start + (1 - alpha_bar(step)) ** 0.5 * batch["noise"]
    torch.testing.assert_close(loss_of("cfm", still, flow, batch), (batch["high"] - x0).square().mean())


def test_the_network_meets_the_straight_line_and_a_clean_context(batch):
    seen = {}

    def net(x, t, context):
        seen.update(x=x, t=t, context=context)
        return torch.zeros_like(x)

    loss_of("cfm", net, FlowConfig(upsampling="psu", noise_step=400, picture_context=True), batch)
    x0 = 0.653904**0.5 * batch["psu"] + (1 - 0.653904) ** 0.5 * batch["noise"]
    for b, t in enumerate(batch["t"].tolist()):
        torch.testing.assert_close(seen["x"][b], (1 - t) * x0[b] + t * batch["high"][b], atol=1e-5, rtol=1e-5)
    assert torch.equal(seen["t"], batch["t"])
    assert torch.equal(seen["context"][:, :4], batch["psu"])
    for y, x, c in ((0, 1, 0), (3, 2, 2)):  # a block of 4 x 4 pixels belongs to each latent pixel
        folded = seen["context"][:, 4 + 16 * c + 4 * y + x]
        torch.testing.assert_close(folded, 2 * batch["picture"][:, c, y::4, x::4] - 1)


def test_fm_starts_from_noise_and_keeps_the_low_latent_as_its_context(batch):
    def net(x, t, context):
        t = t.view(-1, 1, 1, 1)
        torch.testing.assert_close(x, (1 - t) * batch["noise"] + t * batch["high"])
        assert torch.equal(context, repeated(batch["low"]))
        return batch["high"] - batch["noise"]

    assert loss_of("fm", net, FlowConfig(path="gaussian"), batch) < 1e-10


def test_regression_asks_for_the_whole_way_from_a_clean_start(batch):
    flow = FlowConfig(upsampling="psu", noise_step=200)

    def net(x, t, context):
        assert torch.equal(x, context) and not t.any()
        return batch["high"] - context

    assert loss_of("regression", net, flow, batch) == 0
    expected = (batch["high"] - batch["psu"]).square().mean()
    torch.testing.assert_close(loss_of("regression", still, flow, batch), expected)


def test_sr3_shows_a_variance_preserving_mixture_and_asks_for_its_noise(batch):
    seen = {}

    def net(x, t, context):
        seen.update(x=x, t=t, context=context)
        return torch.zeros_like(x)

    torch.testing.assert_close(loss_of("sr3", net, FlowConfig(path="diffusion"), batch), batch["noise"].square().mean())
    step = (1000 * batch["t"]).floor()
    torch.testing.assert_close(seen["t"], step / 1000)
    # Nichol and Dhariwal 2021, Eq. 17: the product of the betas telescopes to this while none is clipped.
    f = torch.cos(((step + 1) / 1000 + 0.008) / 1.008 * torch.pi / 2) ** 2
    alpha = (f / torch.cos(torch.tensor(0.008 / 1.008 * torch.pi / 2)) ** 2).view(-1, 1, 1, 1)
    expected = alpha.sqrt() * batch["high"] + (1 - alpha).sqrt() * batch["noise"]
    torch.testing.assert_close(seen["x"], expected, atol=2e-4, rtol=1e-3)
    assert torch.equal(seen["context"], repeated(batch["low"]))


def test_regression_is_the_conditional_mean():
    """x1 is the context + 1 with probability 3/4, - 1 else; the best constant answer is + 1/2, with variance 3/4."""
    rng = torch.Generator().manual_seed(0)
    shift = nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([shift], lr=0.2)
    for _ in range(300):
        signs = torch.where(torch.rand(512, 1, 1, 1, generator=rng) < 0.75, 1.0, -1.0)
        low = torch.randn(512, 1, 1, 1, generator=rng)
        batch = {"low": low, "high": repeated(low + signs), "noise": torch.zeros(512, 1, 2, 2), "t": torch.rand(512)}
        loss = loss_of("regression", lambda x, t, c: shift + 0 * x, FlowConfig(), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert abs(shift.item() - 0.5) < 0.05
    assert abs(loss.item() - 0.75) < 0.1


def test_a_learned_context_is_the_model_s_own(batch):
    net = build_network(LEARNED).eval()
    context = context_of(net, LEARNED.flow, batch)
    assert context.requires_grad
    torch.testing.assert_close(context.detach(), CFMModel(LEARNED, net).make_context(batch["low"]))


@pytest.mark.parametrize("objective", ["cfm", "few_step"])
def test_the_upsampled_latent_of_a_learned_context_learns_from_its_own_error_alone(place, kinds, objective):
    """The last convolution of the context encoder makes its four channels first, then the features."""
    gradients = {}
    for weight in (0.0, 0.3):
        settings = place.settings(*kinds[objective], f"train.upsampled_weight={weight}", "train.cascaded=0")
        task = LiftTask(settings, make_accelerator(settings.train, place.folder), place.folder / "none", fresh=True)
        net, batch = task.modules[NETWORK], task.batch(0)
        torch.nn.init.normal_(net.out[2].weight, std=0.1, generator=torch.Generator().manual_seed(0))
        (_, loss, _), *_ = task.losses(task.modules, batch, 0)
        loss.backward()
        gradients[weight] = net.context_encoder.head.bias.grad
    assert not gradients[0.0][:4].any() and gradients[0.0][4:].all()
    torch.testing.assert_close(gradients[0.0][4:], gradients[0.3][4:])
    error = net.context_encoder(batch["low"])[:, :4] - batch["high"]  # a bias moves every pixel of its channel
    torch.testing.assert_close(gradients[0.3][:4], 0.3 * error.sign().mean(dim=(0, 2, 3)) / 4)


def test_a_context_is_compared_with_the_psu_latent_and_the_folded_picture(batch):
    """An upsampled latent off by 1 costs 1; every feature off by 0.5 costs twice 0.25."""
    flow = FlowConfig(upsampling="learned")
    folded = torch.zeros(3, 48, 16, 16)
    for colour in range(3):
        for row in range(4):
            for column in range(4):
                folded[:, 16 * colour + 4 * row + column] = 2 * batch["picture"][:, colour, row::4, column::4] - 1
    context = torch.cat([batch["psu"], folded], dim=1)
    assert context_loss(context, flow, batch) == pytest.approx(0, abs=1e-12)
    off = torch.cat([batch["psu"] + 1, folded - 0.5], dim=1)
    assert context_loss(off, flow, batch) == pytest.approx(1.5, rel=1e-5)


def test_the_objective_context_moves_the_context_encoder_alone(place):
    settings = place.settings("flow.upsampling=learned", "train.objective=context", "context_encoder.width=8")
    task = LiftTask(settings, make_accelerator(settings.train, place.folder), place.folder / "none", fresh=True)
    (_, loss, _), *rest = task.losses(task.modules, task.batch(0), 0)
    loss.backward()
    moved = {name.partition(".")[0] for name, p in task.modules[NETWORK].named_parameters() if p.grad is not None}
    assert moved == {"context_encoder"} and not rest


def test_the_second_lift_of_a_cascade_is_trained_on_what_the_first_one_makes(place, vae):
    """With pixel-space upsampling the result of the first lift is decoded, and all of the context is made of it."""
    psu = ("flow.upsampling=psu", "flow.picture_context=true", "flow.noise_step=0")
    settings = place.settings("train.cascaded=1", *psu)
    task = LiftTask(settings, make_accelerator(settings.train, place.folder), place.folder / "none", fresh=True)
    clean = task.crops.batch(0, settings.train.batch)
    batch = task.batch(0)
    assert torch.equal(batch["high"], clean["high"]) and not torch.equal(batch["low"], clean["low"])
    assert batch["low"].shape == clean["low"].shape
    # A net as it starts its training has no velocity, so the first lift is the smallest latent's psu.
    torch.testing.assert_close(batch["low"], vae.encode(enlarge(vae.decode(clean["lower"]), 2)), atol=1e-4, rtol=0)
    torch.testing.assert_close(batch["picture"], vae.decode(batch["low"]), atol=1e-4, rtol=0)
    torch.testing.assert_close(batch["psu"], vae.encode(enlarge(batch["picture"], 2)), atol=1e-4, rtol=0)
