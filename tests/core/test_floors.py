"""Every model that ships, on stored latents of its family: a broken weight file or a changed sampler shows here.

`benchmarks/make_floors.py` writes them. No autoencoder is needed.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from fmboost_core import load_model, shipped_models
from fmboost_core.train.data import from_bytes
from fmboost_core.train.objectives import context_of

FLOORS = Path(__file__).parent / "floors"
AGREEMENT = 1e-2  # of a latent value: what is stored has half precision


def stored(name):
    """Float latents (B, C, h, w) ``low``, ``high``, ``psu``, ``lifted``, the ``picture``, and the steps of the lift."""
    path = FLOORS / f"{name}.safetensors"
    assert path.is_file(), f"{name} ships without a floor: run benchmarks/make_floors.py"
    with safe_open(path, framework="pt") as file:
        batch = {key: file.get_tensor(key) for key in ("low", "high", "psu", "lifted")}
        batch = {**{k: v.float() for k, v in batch.items()}, "picture": from_bytes(file.get_tensor("picture"))}
        return batch, int(file.metadata()["steps"])


def lift(model, batch, steps):
    return model.upscale(batch["low"], steps=steps, context=context_of(model.config.flow, batch), back_projection=0)


@pytest.mark.parametrize("name", sorted(shipped_models()))
def test_a_shipped_model_lifts_as_it_did(name):
    model = load_model(name)
    batch, steps = stored(name)
    lifted = lift(model, batch, steps)
    torch.testing.assert_close(lifted, batch["lifted"], atol=AGREEMENT, rtol=0)
    # Whatever was stored: nearer to the truth than where it starts, in every channel about the truth's mean.
    errors = {k: (latent - batch["high"]).square().mean() for k, latent in (("lifted", lifted), ("psu", batch["psu"]))}
    assert errors["lifted"] < errors["psu"]
    assert (lifted - batch["high"]).mean(dim=(0, 2, 3)).abs().max() < 0.2


def test_the_agreement_is_lost_where_sampler_or_weights_differ():
    model = load_model("fmboost-sd15-x2")
    batch, steps = stored("fmboost-sd15-x2")
    batch = {k: v[:1] for k, v in batch.items()}
    far = [(lift(model, batch, steps + 1) - batch["lifted"]).abs().max()]
    with torch.no_grad():
        model.net.input_blocks[1][0].in_layers[2].weight[0].zero_()  # one filter of one convolution
    far.append((lift(model, batch, steps) - batch["lifted"]).abs().max())
    assert min(far) > 1.5 * AGREEMENT


def test_no_floor_is_without_its_model():
    assert {p.stem for p in FLOORS.glob("*.safetensors")} <= set(shipped_models())
