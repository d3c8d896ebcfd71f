"""Every model that ships, on stored latents of its family: a broken weight file or a changed sampler shows here.

`tools/make_floors.py` writes them. No autoencoder is needed.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from fmboost_core import Sampling, load_model, shipped_models
from fmboost_core.context import interpolate, join_context

FLOORS = Path(__file__).parent / "floors"
AGREEMENT = 1e-2  # of a latent value: what is stored has half precision
# Squared error and shift of the means, of those of the start, where not 1 and 0.5. In the 32 channels of FLUX.2
# invented detail costs as much as detail that is left out, so its model is held to what it reaches.
BARS = {"fmboost-flux2-x2": (1.05, 0.75)}


def stored(name):
    """Float latents (B, C, h, w) ``low``, ``high`` and ``lifted``, with the pixel-space start where the model has one,
    and the number of steps of the lift."""
    path = FLOORS / f"{name}.safetensors"
    assert path.is_file(), f"{name} ships without a floor: run tools/make_floors.py"
    with safe_open(path, framework="pt") as file:
        batch = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        steps = int(file.metadata()["steps"])
    return {k: v.float() / 255 if k == "picture" else v.float() for k, v in batch.items()}, steps


def lift(model, batch, steps):
    sampling = Sampling(steps=steps)
    if model.config.flow.upsampling == "psu":
        context = join_context(model.config.flow, batch["psu"], batch["picture"])
    else:
        context = model.make_context(batch["low"])
    return model.integrate(model.make_source(context, sampling), context, sampling)


@pytest.mark.parametrize("name", sorted(shipped_models()))
def test_a_shipped_model_lifts_as_it_did(name):
    model = load_model(name)
    batch, steps = stored(name)
    lifted = lift(model, batch, steps)
    torch.testing.assert_close(lifted, batch["lifted"], atol=AGREEMENT, rtol=0)
    # Whatever was stored: nearer to the truth than the start of the flow, its means less than half as far away.
    error_bar, shift_bar = BARS.get(name, (1.0, 0.5))
    start = batch["psu"] if "psu" in batch else interpolate(batch["low"], model.scale, "bilinear")
    errors = [(latent - batch["high"]).square().mean() for latent in (lifted, start)]
    assert errors[0] < error_bar * errors[1]
    shifts = [(latent - batch["high"]).mean(dim=(0, 2, 3)).abs().max() for latent in (lifted, start)]
    assert shifts[0] < shift_bar * shifts[1]


def test_the_agreement_is_lost_where_sampler_or_weights_differ():
    model = load_model("fmboost-sd15-x2")
    batch, steps = stored("fmboost-sd15-x2")
    batch = {k: v[:1] for k, v in batch.items()}
    far = [(lift(model, batch, steps + 1) - batch["lifted"]).abs().max()]
    with torch.no_grad():
        model.net.input_blocks[1][0].in_layers[2].weight[0].zero_()  # one filter of one convolution
    far.append((lift(model, batch, steps) - batch["lifted"]).abs().max())
    assert min(far) > 1.5 * AGREEMENT


def test_no_floor_is_without_its_model_or_large():
    files = {path.stem: path.stat().st_size for path in FLOORS.glob("*.safetensors")}
    assert set(files) <= set(shipped_models())
    assert max(files.values()) <= 100_000
