"""Attention Scaling against the formula written out: softmax(s q k^T / sqrt(d)) v with s = sqrt(log N / log T)."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from .conftest import run_api


def attention(saved: dict, factor: float) -> torch.Tensor:
    """The block's output by hand: x + attention of its two heads of 16 channels."""
    x, w = saved["x"], saved["weights"]
    n = F.layer_norm(x, (32,), w["norm1.weight"], w["norm1.bias"])
    q, k, v = (F.linear(n, w[f"attn1.to_{name}.weight"]).unflatten(-1, (2, 16)).transpose(1, 2) for name in "qkv")
    weights = (factor * (q @ k.transpose(-1, -2)) / math.sqrt(16)).softmax(-1)
    out = (weights @ v).transpose(1, 2).flatten(2)
    return x + F.linear(out, w["attn1.to_out.0.weight"], w["attn1.to_out.0.bias"])


def run(server, tmp_path, size: tuple[int, int], training_size: int, unet: bool = True) -> dict:
    graph = {
        "1": {"class_type": "ProbeModel", "inputs": {"unet": unet}},
        "2": {"class_type": "FMBoost_AttentionScaling", "inputs": {"model": ["1", 0], "training_size": training_size}},
        "3": {
            "class_type": "ProbeAttention",
            "inputs": {"model": ["2", 0], "height": size[0], "width": size[1], "file": str(tmp_path / "attention")},
        },
    }
    server.run(graph)
    return torch.load(tmp_path / "attention", weights_only=True)


@pytest.mark.parametrize(("size", "training_size"), [((32, 24), 64), ((6, 5), 512), ((16, 16), 128)])
def test_logits_are_scaled_as_in_the_paper(server, tmp_path, size, training_size):
    saved = run(server, tmp_path, size, training_size)
    factor = math.sqrt(math.log(size[0] * size[1]) / math.log((training_size / 8) ** 2))
    assert (saved["y"] - attention(saved, factor)).abs().max() < 1e-5
    if factor == 1:
        assert size == (16, 16)
    else:
        assert (saved["y"] - attention(saved, 1)).abs().max() > 1e-4  # it makes a difference


def test_a_model_without_a_unet_is_refused(server, tmp_path):
    with pytest.raises(run_api.WorkflowError, match="this model is a Linear: leave the node out"):
        run(server, tmp_path, (4, 4), 512, unet=False)
