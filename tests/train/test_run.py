"""Runs from end to end, as a user starts them: what they leave, and that it loads."""

from __future__ import annotations

import csv
import math

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fmboost_core import load_model, load_vae
from fmboost_core.cli.main import main
from fmboost_core.evaluate.methods import is_regression
from fmboost_core.train.latents import LatentSet


def rows(folder, name="log"):
    with (folder / f"{name}.csv").open() as file:
        return [{k: float(v) if v else None for k, v in row.items()} for row in csv.DictReader(file)]


def test_a_flow_with_a_learned_context_leaves_a_model_that_lifts_alone(place, kinds):
    run = place.whole("cfm")
    model = load_model(run / "tiny.safetensors")
    facts = model.config.trained_on
    assert (facts["objective"], facts["steps"], facts["examples"], facts["crop"]) == ("cfm", 6, 12, 16)
    assert model.config.sha256 == place.settings(*kinds["cfm"]).fingerprint
    assert max(model.net.out[2].weight.abs().max(), model.net.out[2].bias.abs().max()) > 0
    assert model.upscale(torch.randn(1, 4, 5, 6), steps=2, seed=0).shape == (1, 4, 10, 12)  # and no autoencoder
    log = rows(run)
    assert [row["step"] for row in log] == [2, 3, 4, 6]  # every second, and those that are saved
    assert all(math.isfinite(row["loss"]) and row["upsampled"] < row["loss"] for row in log)


def test_a_context_encoder_learns_and_the_network_stays(place):
    run = place.whole("context")
    model = load_model(run / "tiny.safetensors")
    assert model.config.trained_on["objective"] == "context" and model.net.out[2].weight.count_nonzero() == 0
    losses = [row["loss"] for row in rows(run)]
    assert losses[-1] < losses[0]


def test_the_third_stage_leaves_a_model_and_the_adversaries_column_begins_when_they_learn(place):
    run = place.whole("few_step")
    model = load_model(run / "tiny.safetensors")
    assert model.config.trained_on["objective"] == "few_step"
    assert model.upscale(torch.randn(1, 4, 5, 6), seed=0).shape == (1, 4, 10, 12)
    log = rows(run)
    assert [row["adversaries"] is not None for row in log] == [False, False, True, True]
    assert log[2]["adversaries"] == pytest.approx(6, rel=0.1)  # three that know nothing yet, hinges of 1 + 1
    assert all(row[name] > 0 for row in log for name in ("latent", "pixel", "features", "upsampled"))


def test_an_autoencoder_learns_and_its_file_loads(place, kinds):
    longer = ("train.steps=40", "train.log_every=20", "train.learning_rate=3e-3", "train.save_every=40")
    assert place.train("vae", *kinds["autoencoder"], *longer) == 0
    first, second = rows(place.folder / "vae")
    assert second["encoder"] < first["encoder"] and second["decoder"] < first["decoder"]
    assert second["loss"] == pytest.approx(second["encoder"] + 10 * second["decoder"], rel=1e-5)
    vae = load_vae(place.folder / "vae" / "fmboost-sd15-vae.safetensors")  # the name tells its latent space
    assert vae.space.name == "sd15"
    assert vae.decode(vae.encode(torch.rand(1, 3, 32, 40))).shape == (1, 3, 32, 40)


def test_validation_leaves_figures_and_a_picture(place):
    seen = ("data.validation=" + str(place.folder / "photos"), "train.validate_every=2", "train.validation_photos=1")
    assert place.train("seen", "train.steps=3", *seen) == 0
    found = rows(place.folder / "seen", "validation")
    assert [row["step"] for row in found] == [2, 3]
    assert found[0]["psnr_truth"] == found[1]["psnr_truth"] > found[0]["psnr_model"]
    with Image.open(place.folder / "seen" / "step000003.jpg") as picture:
        assert picture.size == (5 * 160, 128)


def test_a_regression_net_says_so_and_starts_clean(place):
    assert place.train("mean", "train.objective=regression", "train.steps=1") == 0
    model = load_model(place.folder / "mean" / "tiny.safetensors")
    assert is_regression(model)
    assert model.config.flow.noise_step == 0  # whatever [flow] says: it never saw a noised start


def test_start_from_begins_with_those_weights(place, kinds):
    origin = place.whole("cfm") / "tiny.safetensors"
    still = ("train.steps=1", "train.learning_rate=0", f"train.start_from={origin}")
    assert place.train("tuned", *kinds["cfm"], *still) == 0
    tuned, before = load_file(place.folder / "tuned" / "tiny.safetensors"), load_file(origin)
    assert tuned.keys() == before.keys() and all(torch.equal(tuned[key], value) for key, value in before.items())


def pack(place, out, *args):
    return main(["pack", str(place.config), str(place.folder / out), *args])


def test_packed_latents_train_as_their_photos_do(place, kinds, capsys):
    assert pack(place, "all.safetensors") == 0
    assert "3 of 3 examples" in capsys.readouterr().out
    alone = (f"data.cache={place.folder / 'all.safetensors'}", "data.photos=", "data.vae=")
    assert place.train("packed", *kinds["cfm"], *alone) == 0
    found, expected = (load_file(f / "tiny.safetensors") for f in (place.folder / "packed", place.whole("cfm")))
    assert all(torch.equal(found[key], value) for key, value in expected.items())


@pytest.mark.parametrize(("precision", "dtype"), [("no", "float32"), ("bf16", "bfloat16")])
def test_latents_are_packed_in_the_precision_of_the_run(place, precision, dtype):
    """They were always packed in float32, so a run in bf16 that was then packed had its photos encoded again."""
    assert pack(place, f"{precision}.safetensors", "--set", f"train.precision={precision}") == 0
    assert LatentSet.load(place.folder / f"{precision}.safetensors").identity["dtype"] == dtype


def test_packed_latents_that_do_not_fit_are_a_sentence(place, vae, capsys, tmp_path):
    assert pack(place, "all.safetensors") == 0
    changed = {**vae.state_dict(), "encoder.0.bias": vae.encoder[0].bias + 1}
    save_file({key: value.contiguous() for key, value in changed.items()}, tmp_path / "fmboost-sd15-vae.safetensors")
    cache = f"data.cache={place.folder / 'all.safetensors'}"
    for overrides, sentence in (
        (("flow.scale=4",), "this run has {'latent_space': 'sd15', 'scale': 4"),
        (("data.latent_space=sdxl", "data.vae="), "this run has {'latent_space': 'sdxl'"),
        (("flow.upsampling=psu", "data.vae="), "'psu': 1}: pack others"),
        ((f"data.vae={tmp_path / 'fmboost-sd15-vae.safetensors'}",), "pack others with 'fmboost pack'"),
        (("train.objective=few_step", "few_step.window=8", "data.vae="), "objective few_step and validation decode"),
    ):
        assert place.train("unfit", cache, *overrides) == 2
        assert sentence in capsys.readouterr().err
    assert pack(place, "all.tar") == 2
    assert "expected a name in .safetensors" in capsys.readouterr().err


def test_shares_are_those_of_the_folders_whose_photos_can_be_used(place, draw, capsys):
    (place.folder / "bad").mkdir(exist_ok=True)
    (place.folder / "bad" / "a.png").write_bytes(b"no picture")
    draw(place.folder / "narrow" / "a.png", 9, (96, 64))
    two = "data.photos=" + str([str(place.folder / name) for name in ("photos", "narrow")])
    assert place.train("shared", two, "data.shares=[0.7, 0.3]", "train.crop=8", "train.steps=1") == 0
    assert place.train("small", two, "data.shares=[0.7, 0.3]") == 2  # narrow is 64 px, a crop of 16 takes 128
    assert "data.shares asks for 0.3 of folder 2, which has no usable photo" in capsys.readouterr().err
    bad = two.replace("narrow", "bad")
    assert place.train("unread", bad, "data.shares=[0.7, 0.3]") == 2
    assert "none of the 1 photos could be used" in capsys.readouterr().err
