"""The network: its size and names, its attention and time embedding, and that it is built from what it is given."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from fmboost_core.config import NetConfig
from fmboost_core.unet import AttentionBlock, UNet, linear_attention, sdpa, time_embedding

PAPER = NetConfig()  # Tab. 8, 306M
KW = {"dtype": None, "device": None}


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("mult", "attention", "count"),
    [
        ((1, 2, 4, 8), (8, 16), 305_806_340),
        ((1, 2, 4, 8), (16,), 298_439_428),
        ((1, 2, 3, 4), (8, 16), 112_722_052),
        ((1, 2, 3, 4), (16,), 109_035_908),
    ],
)
def test_parameter_counts(mult, attention, count):
    net = UNet(replace(PAPER, channel_mult=mult, attention_resolutions=attention), device="meta")
    assert sum(p.numel() for p in net.parameters()) == count


@pytest.mark.parametrize(("factors", "blocks"), [((), 1), ((1,), 4), ((2,), 4), ((4,), 4), ((1, 2, 4), 10), ((8,), 1)])
def test_attention_resolutions_are_downsampling_factors(factors, blocks):
    """One block behind each of num_res_blocks on the way down and of num_res_blocks + 1 on the way up, one in the
    middle; a factor that is never reached adds none."""
    config = NetConfig(model_channels=32, num_res_blocks=1, channel_mult=(1, 1, 1), attention_resolutions=factors)
    net = UNet(config, device="meta")
    assert sum(isinstance(m, AttentionBlock) for m in net.modules()) == blocks


@pytest.mark.parametrize("layout", ["standard", "fm_boosting"])
@pytest.mark.parametrize("linear", [False, True])
def test_a_fresh_network_is_the_identity_flow(tiny_net, layout, linear):
    net = UNet(replace(tiny_net, attention_layout=layout, linear_attention=linear))
    x, context = randn(2, 4, 8, 12), randn(2, 4, 8, 12, seed=1)
    assert torch.equal(net(x, torch.tensor([0.1, 0.9]), context), torch.zeros_like(x))


def test_time_embedding_is_unscaled_and_cosines_come_first():
    t = torch.tensor([0.0, 0.37, 1.0])
    emb = time_embedding(t, 128)
    assert emb.shape == (3, 128) and emb.dtype == torch.float32
    assert emb[0].tolist() == [1.0] * 64 + [0.0] * 64
    for b, time in enumerate([0.0, 0.37, 1.0]):
        for i in (0, 1, 31, 63):
            angle = time * 10000 ** (-i / 64)
            assert emb[b, i].item() == pytest.approx(math.cos(angle), abs=1e-6)
            assert emb[b, 64 + i].item() == pytest.approx(math.sin(angle), abs=1e-6)
    assert (emb[2] - emb[0]).norm().item() == pytest.approx(1.95, abs=0.01)
    assert time_embedding(t.bfloat16(), 128).dtype == torch.float32


def test_the_state_comes_before_the_context(random_model):
    """Without the first convolution's weights for channels 4 to 7 the context has no effect, the state has."""
    net = random_model().net
    net.input_blocks[0][0].weight.data[:, 4:] = 0
    x, c, other, t = randn(1, 4, 8, 8), randn(1, 4, 8, 8, seed=1), randn(1, 4, 8, 8, seed=2), torch.tensor([0.5])
    assert torch.equal(net(x, t, c), net(x, t, other))
    assert not torch.equal(net(x, t, c), net(other, t, c))


def test_the_papers_layout_computes_what_the_authors_network_does(golden):
    """Four levels of three blocks, under the same names: numpy makes the weights again in the order of these."""
    g, theirs = golden("paper_network"), {"dim_head": "head_channels", "use_linear_attn": "linear_attention"}
    theirs["use_scale_shift_norm"] = "scale_shift_norm"
    settings = {theirs.get(k, k): v for k, v in g.settings.items()}
    net = UNet(NetConfig(**{**settings, "pool_factor": 1, "attention_layout": "fm_boosting"}))
    rng = np.random.RandomState(0)
    for name, weight in sorted(net.named_parameters()):
        mean = float(weight.ndim == 1 and name.endswith("weight"))
        spread = 1.2 * weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.3
        weight.data = torch.from_numpy((mean + spread * rng.standard_normal(tuple(weight.shape))).astype(np.float32))
    with torch.no_grad():
        velocity = net.eval()(g["x"], g["t"], g["context"])
    torch.testing.assert_close(velocity, g["velocity"], rtol=0, atol=2e-5)


# --- attention


def explicit_attention(q, k, v, heads):
    """Softmax attention in float64, head by head, token by token."""
    out = torch.empty_like(q, dtype=torch.float64)
    d = q.shape[-1] // heads
    for b in range(q.shape[0]):
        for h in range(heads):
            part = slice(h * d, (h + 1) * d)
            for i in range(q.shape[1]):
                logits = (k[b, :, part].double() @ q[b, i, part].double()) / math.sqrt(d)
                weights = logits.exp() / logits.exp().sum()
                out[b, i, part] = weights @ v[b, :, part].double()
    return out


def test_sdpa_is_softmax_attention():
    q, k, v = (randn(2, 12, 24, seed=s) for s in range(3))
    torch.testing.assert_close(sdpa(q, k, v, 3).double(), explicit_attention(q, k, v, 3), rtol=0, atol=1e-6)


def test_linear_attention_is_its_definition():
    """out_i = sum_j (q_i . k_j) v_j with q a softmax over channels times d^-1/2 and k one over tokens."""
    q, k, v = (randn(1, 7, 8, seed=s).double() for s in range(3))
    for h in range(2):
        part = slice(4 * h, 4 * h + 4)
        q_h = q[0, :, part].exp() / q[0, :, part].exp().sum(1, keepdim=True) / 2
        k_h = k[0, :, part].exp() / k[0, :, part].exp().sum(0, keepdim=True)
        expected = torch.stack([sum((q_h[i] @ k_h[j]) * v[0, j, part] for j in range(7)) for i in range(7)])
        torch.testing.assert_close(linear_attention(q, k, v, 2)[0, :, part], expected)


def test_standard_layout_attends_over_pixels():
    """q, k and v lie behind each other in the channels; permuting the pixels permutes the result."""
    config = NetConfig(model_channels=32, num_heads=2, head_channels=8)
    block = AttentionBlock(32, config, sdpa, nn, KW)
    for parameter in block.parameters():
        parameter.data = randn(*parameter.shape, seed=5) * 0.3
    x = randn(2, 32, 4, 6)
    with torch.no_grad():
        out = block(x)
        qkv = torch.einsum("oc,bcl->blo", block.qkv.weight[..., 0], block.norm(x).flatten(2)) + block.qkv.bias
        mixed = explicit_attention(*qkv.split(16, dim=-1), 2).float()
        expected = torch.einsum("oc,blc->bol", block.proj_out.weight[..., 0], mixed) + block.proj_out.bias[:, None]
        torch.testing.assert_close(out, x + expected.view_as(x), rtol=0, atol=1e-5)
        order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
        shuffled = block(x.flatten(2)[..., order].view_as(x))
        torch.testing.assert_close(shuffled.flatten(2), out.flatten(2)[..., order], rtol=0, atol=1e-5)


def test_attention_function_is_used_everywhere_but_where_attention_is_linear(tiny_net):
    calls = []

    def attention(q, k, v, heads):
        calls.append((tuple(q.shape), heads))
        return v

    x, t = randn(1, 4, 8, 8), torch.zeros(1)
    UNet(tiny_net, attention=attention)(x, t, x)
    assert calls == [((1, 16, 32), 2)] * 4
    calls.clear()
    UNet(replace(tiny_net, linear_attention=True), attention=attention)(x, t, x)
    assert calls == [((1, 16, 32), 2)]  # the middle


# --- construction


VARIANTS = [
    {},
    {"pool_factor": 2},
    {"pool_factor": 4, "channel_mult": (1, 2, 2)},
    {"conv_resample": False},
    {"scale_shift_norm": False},
    {"linear_attention": True, "attention_layout": "fm_boosting"},
    {"channel_mult": (2, 3), "num_res_blocks": 2, "attention_resolutions": (1, 2)},
    {"channel_mult": (3,), "attention_resolutions": ()},
    {"in_channels": 32, "out_channels": 16, "dropout": 0.5},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_every_variant_runs_at_its_size_multiple(tiny_net, changes):
    config = replace(tiny_net, **changes)
    net, m = UNet(config).eval(), config.size_multiple
    for parameter in net.parameters():
        parameter.data = randn(*parameter.shape) * 0.05
    x = randn(2, config.out_channels, 2 * m, 3 * m)
    with torch.no_grad():
        v = net(x, torch.tensor([0.2, 0.7]), x)
    assert v.shape == x.shape and v.isfinite().all() and v.std() > 0


def test_layers_come_from_the_operations(tiny_net):
    """Every parameter lies in a layer of the namespace given: this lets a host move weights layer by layer."""
    made = {name: type(name, (getattr(nn, name),), {}) for name in ("Linear", "Conv1d", "Conv2d", "GroupNorm")}
    made["ConvTranspose2d"] = type("ConvTranspose2d", (nn.ConvTranspose2d,), {})
    net = UNet(replace(tiny_net, pool_factor=2), operations=SimpleNamespace(**made), dtype=torch.float16, device="meta")
    owners = [m for m in net.modules() if m._parameters or m._buffers]
    assert {type(m) for m in owners} == set(made.values())
    assert {p.dtype for p in net.parameters()} == {torch.float16}
    assert not list(net.buffers())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(random_model, dtype):
    x, t, c = randn(1, 4, 16, 16), torch.tensor([0.4]), randn(1, 4, 16, 16, seed=1)
    exact = random_model().net(x, t, c)
    half = random_model(dtype).net(x.to(dtype), t, c.to(dtype))
    assert half.dtype == dtype
    assert (half.float() - exact).norm() / exact.norm() < (0.05 if dtype == torch.bfloat16 else 0.01)
