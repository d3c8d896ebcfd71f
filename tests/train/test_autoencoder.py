"""The small autoencoder's training: it learns, goes on where it stopped, and leaves a file that loads."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fmboost_core import LATENT_SPACES, TinyVAE, load_vae
from fmboost_core.train.autoencoder import AutoencoderSettings, train_autoencoder


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("autoencoder")
    (folder / "photos").mkdir()
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
    small.resize((96, 72), Image.Resampling.BICUBIC).save(folder / "photos" / "a.png")
    torch.manual_seed(1)
    teacher = TinyVAE(LATENT_SPACES["sd15"], width=8)
    for part in ("encoder", "decoder"):
        save_file(getattr(teacher, part).state_dict(), folder / f"taesd_{part}.safetensors")
    return AutoencoderSettings(
        str(folder / "photos"), str(folder), str(folder / "whole"), width=8, short_side=72, crop=32, batch=2, steps=100,
        decay=20, save_every=20,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(settings):
    return train_autoencoder(settings)


def test_it_learns_and_its_file_loads(settings, whole):
    with (whole.parent / "log.csv").open() as file:
        (_, encoder, decoder, _), (_, later_encoder, later_decoder, _) = (map(float, row) for row in csv.reader(file))
    assert later_encoder < encoder
    assert later_decoder < decoder
    vae = load_vae(whole)  # the name tells its latent space
    assert vae.space.name == "sd15"
    assert vae.encode(torch.rand(1, 3, 32, 40)).shape == (1, 4, 4, 5)


def test_resumed_is_uninterrupted(settings, whole):
    parts = replace(settings, out=settings.out.replace("whole", "parts"))
    cut = replace(parts, steps=80, decay=1)  # no fall before the 81st step, as in the whole run
    train_autoencoder(cut)
    resumed = train_autoencoder(parts, resume=True)
    ours = load_file(resumed)
    for key, value in load_file(whole).items():
        assert torch.equal(ours[key], value), key


def test_a_run_is_not_overwritten_nor_changed_on_resume(settings, whole):
    before = whole.read_bytes()
    with pytest.raises(ValueError, match="holds a run already: add --resume"):
        train_autoencoder(replace(settings, steps=1))
    with pytest.raises(ValueError, match="was trained with .*choose another folder"):
        train_autoencoder(replace(settings, width=16), resume=True)
    assert whole.read_bytes() == before


def test_a_damaged_state_is_a_sentence(settings, whole):
    other = replace(settings, out=settings.out.replace("whole", "damaged"))
    shutil.copytree(settings.out, other.out)
    state = next(Path(other.out).glob("state.*"))
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(ValueError, match="is damaged"):
        train_autoencoder(other, resume=True)


@pytest.mark.parametrize(("name", "value"), [("batch", 0), ("width", 0), ("steps", 0), ("crop", 100), ("ema", "x")])
def test_bad_settings_are_refused(settings, name, value):
    with pytest.raises(ValueError, match=f"{name} is '?{value}'?: expected"):
        replace(settings, **{name: value})


def test_a_resumed_curve_is_a_mean_over_the_steps_it_saw(settings, whole):
    """Rows stand for the steps since the row before, or since the resume."""
    with (whole.parent.parent / "parts" / "log.csv").open() as file:
        resumed = [list(map(float, row)) for row in csv.reader(file)]
    with (whole.parent / "log.csv").open() as file:
        plain = [list(map(float, row)) for row in csv.reader(file)]
    assert resumed[0][:3] == plain[0][:3]
    # The loss falls, so the mean of the last 20 steps is below that of 50; their sum over 50 is under 0.4 of it.
    assert 0.4 * plain[1][1] < resumed[1][1] < plain[1][1]


def test_a_crop_larger_than_a_photo_is_a_sentence(settings, tmp_path):
    with pytest.raises(ValueError, match="use a smaller crop"):
        train_autoencoder(replace(settings, out=str(tmp_path), crop=128))


def test_nothing_to_resume_is_a_sentence(settings, tmp_path):
    with pytest.raises(ValueError, match="nothing to resume"):
        train_autoencoder(replace(settings, out=str(tmp_path)), resume=True)
