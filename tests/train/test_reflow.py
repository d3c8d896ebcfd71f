"""A reflow's examples are what the model makes of the noise they bring, and crops keep the two together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fmboost_core import LATENT_SPACES, FlowConfig, ModelConfig, NetConfig, TinyVAE, load_model, save_model
from fmboost_core.noise import augment
from fmboost_core.photos import save_photo
from fmboost_core.train.data import LatentCrops, Variant, cache_latents
from fmboost_core.train.reflow import Reflow, origin_digest, reflow_identity
from fmboost_core.train.settings import DataSettings
from fmboost_core.unet import UNet

FLOW = FlowConfig(upsampling="psu", noise_step=212, scale=2)
STEPS = 3


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    torch.manual_seed(0)
    net = NetConfig(
        model_channels=32,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(),
        num_heads=1,
        head_channels=32,
    )
    weights = {k: v + 0.02 * torch.randn_like(v) for k, v in UNet(net).state_dict().items()}
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_model(path, ModelConfig(net=net, flow=FLOW), weights)
    return path


@pytest.fixture(scope="module")
def cached(teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reflow")
    save_photo(torch.rand(1, 3, 160, 192, generator=torch.Generator().manual_seed(1)), folder / "photo.png")
    torch.manual_seed(2)
    vae = TinyVAE(LATENT_SPACES["sd15"], width=8).eval().requires_grad_(False)
    reflow = Reflow(teacher, STEPS, FLOW, "sd15", "cpu")
    return cache_latents(
        [folder / "photo.png"],
        [Variant(None)],
        folder / "cache",
        vae=vae,
        scale=2,
        multiple=16,
        identity={"reflow_steps": STEPS},
        reflow=reflow,
    )


def test_the_result_is_euler_from_the_noise_beside_it(teacher, cached):
    example = {k: v.float()[None] for k, v in load_file(cached[0]).items()}
    model = load_model(teacher)
    x = augment(example["psu"], FLOW.noise_step, example["noise"])
    start = x
    for k in range(STEPS):
        x = x + model.velocity(x, torch.tensor(k / STEPS), example["psu"]) / STEPS
    assert (x - start).abs().mean() > 0.05  # the flow goes somewhere
    # Half precision of the cache: 2^-11 of values of a few units, through a net of gain about one.
    assert (x - example["high"]).abs().max() < 0.02


def test_a_crop_keeps_its_noise(cached):
    whole = load_file(cached[0])
    crops = LatentCrops(cached, crop=8, scale=2, seed=3)
    for n in range(5):
        found = crops.example(n)
        places = [
            (y, x)
            for y in range(0, whole["high"].shape[1] - 7, 2)
            for x in range(0, whole["high"].shape[2] - 7, 2)
            if torch.equal(whole["high"][:, y : y + 8, x : x + 8].float(), found["high"])
        ]
        assert len(places) == 1
        y, x = places[0]
        assert torch.equal(whole["noise"][:, y : y + 8, x : x + 8].float(), found["noise"])


def test_back_projection_is_no_part_of_what_is_learnt(teacher):
    """A vae that may not be called: with rounds in [flow], results are the flow's alone."""

    class Silent:
        coarse = False

        def decode(self, latents):
            return torch.zeros(1, 3, 32, 32)

        def encode(self, images):
            raise AssertionError("back projection")

    psu = torch.randn(4, 8, 8)
    example = {"psu": psu, "low": torch.randn(4, 4, 4), "high": psu, "picture": torch.zeros(3, 32, 32)}
    rounds = replace(FLOW, back_projection=2)
    found = Reflow(teacher, STEPS, rounds, "sd15", "cpu")(example, Silent(), 0)
    assert torch.equal(found["high"], Reflow(teacher, STEPS, FLOW, "sd15", "cpu")(example, Silent(), 0)["high"])


def test_a_cache_knows_the_model_of_its_results(teacher):
    assert reflow_identity(DataSettings(cache="")) == {}
    found = reflow_identity(DataSettings(cache="", reflow_model=str(teacher)))
    assert found == {"reflow_model": origin_digest(teacher), "reflow_steps": 12, "back_projection": 0}


def test_noise_is_drawn_anew_for_every_photo(cached):
    noise = load_file(cached[0])["noise"].float().numpy()
    assert abs(noise.mean()) < 4 / np.sqrt(noise.size)
    assert abs(noise.std() - 1) < 4 / np.sqrt(2 * noise.size)


@pytest.mark.parametrize(
    ("flow", "sentence"),
    [
        (FlowConfig(upsampling="psu", noise_step=200), "noise_step=212"),
        (FlowConfig(upsampling="nearest", noise_step=212), "expected that of"),
    ],
)
def test_another_start_is_refused(teacher, flow, sentence):
    with pytest.raises(ValueError, match=sentence):
        Reflow(teacher, STEPS, flow, "sd15", "cpu")


def test_a_flow_from_the_mean_is_refused(teacher, tmp_path):
    model, flow = load_model(teacher), replace(FLOW, posterior_mean=True)
    save_model(tmp_path / "mean.safetensors", replace(model.config, flow=flow), model.net.state_dict())
    with pytest.raises(ValueError, match="which starts from its own mean"):
        Reflow(tmp_path / "mean.safetensors", STEPS, flow, "sd15", "cpu")


def test_a_model_of_other_latents_is_refused(teacher):
    """As many channels are not enough."""
    with pytest.raises(ValueError, match="which lifts sd15 latents: expected sdxl ones"):
        Reflow(teacher, STEPS, FLOW, "sdxl", "cpu")
