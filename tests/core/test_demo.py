"""The commands that a user meets first, on the latents that ship and on small pictures."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from PIL import Image

from fmboost_core import ModelConfig, NetConfig, load_model, save_model
from fmboost_core.cli.main import main
from fmboost_core.context import interpolate
from fmboost_core.demo import read_examples
from fmboost_core.unet import UNet
from fmboost_core.vae.files import load_vae, shipped_vae


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    assert main(["demo", "--out", str(out)]) == 0
    return out, json.loads((out / "report.json").read_text())


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "in.png"
    Image.effect_noise((72, 56), 60).convert("RGB").save(path)
    return path


def test_examples_are_aligned_pairs_with_an_origin():
    examples = read_examples()
    assert len(examples) >= 4
    for example in examples:
        assert "; " in example["origin"]  # source and licence
        assert [2 * side for side in example["low"].shape[2:]] == list(example["high"].shape[2:])
        # A latent channel is a smooth enough picture that the enlarged low one correlates with the high one where
        # they lie, and less where they are shifted.
        enlarged = interpolate(example["low"], 2, "bilinear")
        here = torch.corrcoef(torch.stack([enlarged.flatten(), example["high"].flatten()]))[0, 1]
        moved = torch.corrcoef(torch.stack([enlarged.roll(6, 3).flatten(), example["high"].flatten()]))[0, 1]
        assert here > moved + 0.05


def test_the_demo_shows_a_lift_nearer_to_the_truth_than_interpolation(report):
    """In a picture of five columns, and with about as much detail as the truth has.

    The small autoencoder draws detail of a lift more strongly than that of photographs: the share is 1.33, and with
    TAESD (`fmboost demo --vae`) 0.87.
    """
    out, figures = report
    methods = figures["methods"]
    assert methods["CFM"]["psnr_db"] > methods["latent, nearest"]["psnr_db"] + 0.5
    assert methods["CFM"]["psnr_db"] > 22.0
    assert 0.7 < methods["CFM"]["detail"] < 1.5
    assert methods["picture, bilinear"]["detail"] < 0.3
    assert methods["truth"] == {"psnr_db": None, "detail": 1}
    with Image.open(out / "demo.png") as picture:
        assert picture.size == (5 * 512, len(figures["photos"]) * 512)


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
    low, vae = read_examples()[0]["low"][..., :8, :8], load_vae(shipped_vae("sd15"))
    exact, half = (
        load_model("fmboost-sd15-x2", dtype=dtype).upscale(low, vae=vae) for dtype in (torch.float32, torch.bfloat16)
    )
    assert half.dtype == torch.float32
    assert (half - exact).std() < 0.05 * exact.std()


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["upscale", "nowhere.jpg", "-o", "x.png"], "no picture at nowhere.jpg"),
        (["upscale", __file__, "-o", "x.png"], "not a picture"),
        (["upscale", __file__, "-o", "x.png", "--model", "none"], "no model none"),
        (["upscale", __file__, "-o", "x.png", "--vae", "nowhere"], "no autoencoder at nowhere"),
        (["upscale", "PICTURE", "-o", "x.png", "--scale", "1"], "scale is 1: expected more than 1"),
        (["upscale", "PICTURE", "-o", "x.png", "--steps", "0"], "steps is 0"),
        (["upscale", __file__, "-o", "x.xyz"], "x.xyz names no kind of picture"),
        (["upscale", __file__, "-o", "no/x.png"], "no folder no to write x.png into"),
        (["trajectory", __file__, "-o", "x"], "x names no kind of picture"),
        (["demo", "--steps", "0", "--out", "never"], "steps is 0"),
    ],
)
def test_a_mistake_is_a_sentence(args, sentence, picture, capsys, tmp_path, monkeypatch):
    """And leaves nothing behind."""
    monkeypatch.chdir(tmp_path)
    assert main([str(picture) if arg == "PICTURE" else arg for arg in args]) == 2
    assert not list(tmp_path.iterdir())
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["demo", "--device", "toaster"], "'toaster' is not available on this machine"),
        (["demo", "--device", "meta:x"], "'meta:x' is not available on this machine"),
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
    for name in [n for n in sys.modules if n.startswith(("fmboost_core.train.loop", "fmboost_core.train.run"))]:
        monkeypatch.delitem(sys.modules, name)
    assert main(["train", "run.toml", "--out", str(tmp_path)]) == 2
    assert "accelerate is not installed: pip install 'fmboost[train]' brings it" in capsys.readouterr().err


def test_a_trajectory_is_a_strip_of_states_above_estimates(tmp_path, capsys):
    Image.effect_noise((64, 48), 60).convert("RGB").save(tmp_path / "in.png")
    args = ["trajectory", str(tmp_path / "in.png"), "-o", str(tmp_path / "out.png"), "--frames", "3", "--steps", "2"]
    assert main(args) == 0
    with Image.open(tmp_path / "out.png") as strip:
        assert strip.size == (3 * 128, 2 * 96)
        ends = [strip.crop((256, top, 384, top + 96)).tobytes() for top in (0, 96)]
    assert ends[0] == ends[1]  # at t = 1 the state is its own estimate
    assert "0.00, 0.50, 1.00" in capsys.readouterr().out
