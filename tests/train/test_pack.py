"""A packed cache is its folder, in one file."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fmboost_core import LATENT_SPACES, TinyVAE, load_model
from fmboost_core.cli import main
from fmboost_core.photos import find_photos
from fmboost_core.train.data import LatentCrops, cache_latents, variants_of
from fmboost_core.train.pack import pack, read_packed
from fmboost_core.train.settings import read_settings

CONFIG = """
name = "tiny"
[data]
cache = "cache.safetensors"
validation = "photos"
[net]
model_channels = 32
channel_mult = [1]
num_res_blocks = 1
attention_resolutions = []
num_heads = 1
[flow]
upsampling = "psu"
scale = 2
[train]
steps = 2
batch = 2
crop = 8
precision = "no"
"""


@pytest.fixture
def place(tmp_path):
    """A cache of six examples of different sizes, as training leaves it, and a run that has nothing but its pack."""
    (tmp_path / "cache").mkdir()
    draw = torch.Generator().manual_seed(0)
    for n in range(6):
        height, width = 8 + 2 * n, 12
        files = {
            "high": torch.randn(4, height, width, generator=draw).half(),
            "psu": torch.randn(4, height, width, generator=draw).half(),
            "low": torch.randn(4, height // 2, width // 2, generator=draw).half(),
            "picture": torch.randint(256, (3, 4 * height, 4 * width), generator=draw, dtype=torch.uint8),
        }
        save_file(files, tmp_path / "cache" / f"photo.{n}.512.safetensors")
    vae = TinyVAE(LATENT_SPACES["sd15"], width=8)
    identity = {"latent_space": "sd15", "scale": 2, "autoencoder": vae.fingerprint()}
    (tmp_path / "cache" / "cache.json").write_text(json.dumps(identity))
    (tmp_path / "vae").mkdir()
    for part in ("encoder", "decoder"):
        save_file(getattr(vae, part).state_dict(), tmp_path / "vae" / f"taesd_{part}.safetensors")
    (tmp_path / "tiny.toml").write_text(CONFIG)
    return tmp_path


def packed(place, *args):
    assert main(["pack", str(place / "cache"), str(place / "cache.safetensors"), *args]) == 0


def train(place, *args):
    return main(["train", str(place / "tiny.toml"), "--out", str(place / "run"), *args])


def test_crops_are_those_of_the_folder(place, capsys):
    packed(place)
    assert "6 examples" in capsys.readouterr().out
    settings = {"crop": 8, "scale": 2, "seed": 5}
    examples = read_packed(place / "cache.safetensors", read_settings(place / "tiny.toml"), None)
    ours = LatentCrops(examples, **settings)
    theirs = LatentCrops(sorted((place / "cache").glob("*.safetensors")), **settings)
    for n in range(20):
        for key, value in theirs.example(n).items():
            assert torch.equal(ours.example(n)[key], value)


def test_examples_are_in_the_order_in_which_a_run_lists_them(tmp_path):
    """Which is not that of their names: sizes as asked for, mirrored after, disturbed last."""
    (tmp_path / "photos").mkdir()
    for n, name in enumerate(("a", "a-b", "c.d")):
        Image.new("RGB", (160 + 16 * n, 160), (90, 120, 150)).save(tmp_path / "photos" / f"{name}.png")
    vae = TinyVAE(LATENT_SPACES["sd15"], width=8).eval().requires_grad_(False)
    files = cache_latents(
        find_photos(tmp_path / "photos"),
        variants_of((128, 96), True, 0.1),
        tmp_path / "cache",
        vae=vae,
        scale=2,
        multiple=16,
        identity={"latent_space": "sd15", "scale": 2},
    )
    assert pack(tmp_path / "cache", tmp_path / "all.safetensors") == len(files) == 24
    stored = load_file(tmp_path / "all.safetensors")
    for n, file in enumerate(files):
        assert torch.equal(stored[f"{n:06d}.low"], load_file(file)["low"]), file.name


def test_it_trains_without_photos_and_autoencoder_and_another_run_goes_on(place, caplog):
    packed(place)
    with caplog.at_level("INFO"):
        assert train(place) == 0
    assert "no validation" in caplog.text
    model = place / "run" / "tiny.safetensors"
    assert load_model(model).config.trained_on["steps"] == 2
    onward = ["--set", f"train.start_from={model}", "--set", "train.learning_rate=1e-9"]
    assert main(["train", str(place / "tiny.toml"), "--out", str(place / "on"), *onward]) == 0
    before, after = load_file(model), load_file(place / "on" / "tiny.safetensors")
    assert all((before[k].float() - after[k].float()).abs().max() < 1e-6 for k in before)


def test_a_limit_takes_an_even_choice_that_fits(place):
    files = sorted((place / "cache").glob("*.safetensors"))
    limit = sum(f.stat().st_size for f in files) // 2
    count = pack(place / "cache", place / "cache.safetensors", limit)
    assert 2 <= count < 6
    assert (place / "cache.safetensors").stat().st_size <= limit
    examples = read_packed(place / "cache.safetensors", read_settings(place / "tiny.toml"), None)
    heights = torch.tensor([e["high"].shape[1] for e in examples])
    assert len(examples) == count
    assert heights.diff().min() >= 2  # none twice, in their order
    assert heights.diff().max() - heights.diff().min() <= 2
    assert heights.min() < 13 < heights.max()  # of both halves


def test_the_autoencoder_of_the_pack_is_accepted(place):
    packed(place)
    assert train(place, "--set", f"data.vae={place / 'vae'}", "--set", "data.validation=") == 0


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--set", "flow.scale=4"], "this run has {'latent_space': 'sd15', 'scale': 4"),
        (["--set", "data.latent_space=sdxl"], "this run has {'latent_space': 'sdxl'"),
        (["--set", "train.decoded_weight=1"], "needs an autoencoder"),
        (["--set", "data.cache=other.safetensors"], "no packed cache at"),
        (["--set", "data.cache=folder"], "missing photos, vae"),
    ],
)
def test_what_does_not_fit_is_a_sentence(place, capsys, args, sentence):
    packed(place)
    assert train(place, *args) == 2
    assert sentence in capsys.readouterr().err


def test_another_autoencoder_is_refused(place, capsys):
    packed(place)
    other = TinyVAE(LATENT_SPACES["sd15"], width=8)
    save_file(other.encoder.state_dict(), place / "vae" / "taesd_encoder.safetensors")
    assert train(place, "--set", f"data.vae={place / 'vae'}") == 2
    assert "pack another cache" in capsys.readouterr().err


def test_reflow_latents_are_not_taken_for_photos(place, capsys):
    record = place / "cache" / "cache.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "reflow_model": "0123", "reflow_steps": 12}))
    packed(place)
    assert train(place) == 2
    assert "'reflow_model': '0123'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("cache", "out", "limit", "sentence"),
    [
        ("nowhere", "a.safetensors", "1", "is no latent cache"),
        ("cache", "a.tar", "1", "ends in .safetensors"),
        ("cache", "a.safetensors", "0.0009765625", "no example fits into 0.000976562 MiB"),
    ],
)
def test_a_pack_that_cannot_be_is_a_sentence(place, capsys, cache, out, limit, sentence):
    assert main(["pack", str(place / cache), str(place / out), "--limit-mib", limit]) == 2
    assert sentence in capsys.readouterr().err
