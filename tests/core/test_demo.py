"""The model that a user meets first, on the latents that ship."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from PIL import Image

from fmboost_core import load_model
from fmboost_core.checkpoint import save_model, shipped_vae
from fmboost_core.cli import main
from fmboost_core.config import ModelConfig, NetConfig
from fmboost_core.demo import read_examples
from fmboost_core.train.objectives import context_of
from fmboost_core.unet import UNet
from fmboost_core.upsample import upsample


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    assert main(["demo", "--out", str(out)]) == 0
    return out, json.loads((out / "report.json").read_text())


def test_examples_are_aligned_pairs_with_an_origin():
    examples = read_examples()
    assert len(examples) >= 4
    for example in examples:
        assert "; " in example["origin"]  # source and licence
        assert example["high"].shape == example["psu"].shape
        # A latent channel is a smooth enough picture that the enlarged low one correlates with the high one where
        # they lie, and less where they are shifted.
        enlarged = upsample(example["low"], 2, "bilinear")
        here = torch.corrcoef(torch.stack([enlarged.flatten(), example["high"].flatten()]))[0, 1]
        moved = torch.corrcoef(torch.stack([enlarged.roll(6, 3).flatten(), example["high"].flatten()]))[0, 1]
        assert here > moved + 0.05


def test_the_demo_shows_a_lift_nearer_to_the_truth_than_interpolation(report):
    out, figures = report
    cfm, nearest, bilinear = (figures["methods"][name] for name in ("CFM", "nearest", "bilinear"))
    assert cfm["latent_mse"] < nearest["latent_mse"]
    assert cfm["psnr_db"] > max(nearest["psnr_db"], bilinear["psnr_db"]) + 0.5
    assert cfm["patch_distance"] < min(nearest["patch_distance"], bilinear["patch_distance"])
    assert 0.7 < cfm["high_frequency"] < 1.15
    assert figures["methods"]["truth"]["patch_distance"] == 0
    picture = Image.open(out / "demo.png")
    assert picture.size == (4 * 512, len(figures["photos"]) * 512)


def test_the_demo_keeps_its_floors(report):
    lifted = report[1]["methods"]["CFM"]
    assert lifted["latent_mse"] < 0.40
    assert lifted["psnr_db"] > 22.0


def test_the_lift_keeps_the_colours_of_the_small_picture(report):
    """No farther from them than the truth is, plus half a grey level: bilinear latents are."""
    colour = {name: row["colour"] for name, row in report[1]["methods"].items()}
    assert colour["CFM"] < colour["truth"] + 0.5
    assert colour["bilinear"] > colour["truth"] + 0.5


@pytest.mark.parametrize("grid", ["grid_2px", "grid_8px"])
def test_the_lift_has_no_grid_the_truth_does_not_have(report, grid):
    """The small autoencoder leaves one of its own in every picture it decodes."""
    methods = report[1]["methods"]
    assert methods["CFM"][grid] < 1.5 * methods["truth"][grid]


def test_a_model_of_another_family_is_told_what_the_demo_holds(tmp_path, capsys):
    net = NetConfig(in_channels=8, out_channels=4, model_channels=32, channel_mult=(1,), attention_resolutions=())
    config = ModelConfig(net=net, latent_space="sdxl")
    save_model(tmp_path / "other.safetensors", config, UNet(net).state_dict())
    vae = tmp_path / "vae.safetensors"  # whose name tells no family
    vae.write_bytes(shipped_vae("sd15").read_bytes())
    args = ["demo", "--model", str(tmp_path / "other.safetensors"), "--vae", str(vae), "--out", str(tmp_path)]
    assert main(args) == 2
    assert "lifts sdxl latents x2 and the demo's are sd15 x2" in capsys.readouterr().err


def test_half_precision_weights_give_the_same_lift():
    exact, half = (load_model("fmboost-sd15-x2", dtype=d) for d in (torch.float32, torch.bfloat16))
    example = read_examples()[0]
    low = example["low"][..., :16, :16]
    context = context_of(exact.config.flow, example)[..., :32, :32]
    exact, half = (model.upscale(low, context=context, back_projection=0) for model in (exact, half))
    assert half.dtype == torch.float32
    assert (half - exact).std() < 0.05 * exact.std()


def test_a_photo_becomes_twice_its_size(tmp_path, capsys):
    Image.effect_noise((136, 104), 60).convert("RGB").save(tmp_path / "in.png")
    assert main(["upscale", str(tmp_path / "in.png"), "-o", str(tmp_path / "out.png"), "--steps", "2"]) == 0
    assert Image.open(tmp_path / "out.png").size == (272, 208)
    assert "17x13 -> 34x26 latents, 2 evaluations" in capsys.readouterr().out


@pytest.mark.parametrize(("scale", "latents"), [(3, "36x28"), (1.5, "18x14")])
def test_a_photo_takes_any_scale(scale, latents, tmp_path, capsys):
    """By lifts to the next power of two, then exactly."""
    Image.new("RGB", (72, 56), (200, 60, 30)).save(tmp_path / "in.png")
    args = ["upscale", str(tmp_path / "in.png"), "-o", str(tmp_path / "out.png"), "--scale", str(scale), "--steps", "1"]
    assert main(args) == 0
    out = Image.open(tmp_path / "out.png")
    assert out.size == (72 * scale, 56 * scale)
    assert f"-> {latents} latents" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["upscale", "nowhere.jpg", "-o", "x.png"], "nowhere.jpg"),
        (["upscale", __file__, "-o", "x.png"], "not a picture"),
        (["upscale", __file__, "-o", "x.png", "--model", "none"], "no model none"),
        (["upscale", __file__, "-o", "x.png", "--vae", "nowhere"], "no autoencoder at nowhere"),
        (["upscale", __file__, "-o", "x.png", "--scale", "1"], "scale is 1: expected more than 1"),
        (["upscale", __file__, "-o", "x.xyz"], "x.xyz names no kind of picture"),
        (["upscale", __file__, "-o", "no/x.png"], "no folder no to write x.png into"),
        (["trajectory", __file__, "-o", "x"], "x names no kind of picture"),
        (["demo", "--steps", "0", "--out", "never"], "steps is 0"),
    ],
)
def test_a_mistake_is_a_sentence(capsys, args, sentence, tmp_path, monkeypatch):
    """And leaves nothing behind."""
    monkeypatch.chdir(tmp_path)
    assert main(args) == 2
    assert not list(tmp_path.iterdir())
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["demo", "--device", "toaster"], "'toaster' is not to be had here"),
        (["demo", "--device", "meta:x"], "'meta:x' is not to be had here"),
        (["evaluate", "--data", "x", "--vae", "y", "--steps", "4,x"], "'4,x': expected whole numbers"),
        (["evaluate", "--data", "x", "--vae", "y", "--latent-noise", "much"], "'much': expected standard deviations"),
    ],
)
def test_a_value_that_cannot_be_is_named_with_its_option(capsys, args, sentence):
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert f"argument {args[-2]}" in error


def test_a_package_that_is_missing_is_named(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    for name in [n for n in sys.modules if n.startswith("fmboost_core.train.loop")]:
        monkeypatch.delitem(sys.modules, name)
    assert main(["train", "configs/sd15-x2.toml", "--out", str(tmp_path)]) == 2
    assert "accelerate is not installed: pip install 'fmboost[cli,train]'" in capsys.readouterr().err


def test_a_trajectory_is_a_strip_of_states_above_estimates(tmp_path, capsys):
    Image.effect_noise((64, 48), 60).convert("RGB").save(tmp_path / "in.png")
    args = ["trajectory", str(tmp_path / "in.png"), "-o", str(tmp_path / "out.png"), "--frames", "3", "--steps", "2"]
    assert main(args) == 0
    strip = Image.open(tmp_path / "out.png")
    assert strip.size == (3 * 128, 2 * 96)
    ends = [strip.crop((256, top, 384, top + 96)).tobytes() for top in (0, 96)]
    assert ends[0] == ends[1]  # at t = 1 the state is its own estimate
    assert "0.00, 0.50, 1.00" in capsys.readouterr().out
