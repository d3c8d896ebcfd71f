"""The loop as a user runs it: killed and resumed, on two processes, on bad settings."""

from __future__ import annotations

import csv
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fmboost_core import LATENT_SPACES, TinyVAE, load_model
from fmboost_core.cli import main
from fmboost_core.flow import join_context
from fmboost_core.train.ema import EMA
from fmboost_core.train.loop import learning_rate
from fmboost_core.train.settings import TrainSettings, read_settings

CONFIG = """
name = "tiny"
[data]
photos = "photos"
validation = "photos"
vae = "vae"
cache = "cache"
short_sides = [256]
[net]
model_channels = 32
channel_mult = [1, 2]
num_res_blocks = 1
attention_resolutions = []
num_heads = 1
[flow]
upsampling = "psu"
noise_step = 200
[train]
steps = 6
batch = 4
crop = 16
warmup = 2
decay = 2
precision = "no"
log_every = 2
save_every = 3
validate_every = 3
validation_photos = 1
validation_steps = 2
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    (folder / "photos").mkdir()
    (folder / "vae").mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        small = Image.fromarray(rng.integers(0, 255, (9, 11, 3), dtype=np.uint8))
        small.resize((352, 288), Image.Resampling.BICUBIC).save(folder / "photos" / f"{i}.png")
    torch.manual_seed(0)
    vae = TinyVAE(LATENT_SPACES["sd15"], width=8)
    for part in ("encoder", "decoder"):
        save_file(getattr(vae, part).state_dict(), folder / "vae" / f"taesd_{part}.safetensors")
    (folder / "tiny.toml").write_text(CONFIG, encoding="utf-8")
    return folder


def fmboost(workplace, out, *args):
    return main(["train", str(workplace / "tiny.toml"), "--out", str(workplace / out), *args])


def weights(workplace, out):
    return load_file(workplace / out / "state" / "model.safetensors")


def losses(folder):
    with (folder / "log.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def uninterrupted(workplace):
    assert fmboost(workplace, "whole") == 0
    return workplace / "whole"


def test_a_run_leaves_a_model_curves_and_a_picture(uninterrupted):
    model = load_model(uninterrupted / "tiny.safetensors")
    assert model.config.trained_on["steps"] == 6
    assert model.config.trained_on["examples"] == 24
    with (uninterrupted / "log.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [2, 4, 6]
    with (uninterrupted / "validation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [3, 6]
    assert float(rows[0]["mse_truth"]) == 0
    picture = Image.open(uninterrupted / "step000006.jpg")
    assert picture.width == 5 * picture.height
    assert max(model.net.out[2].weight.abs().max(), model.net.out[2].bias.abs().max()) > 0


def test_resumed_is_uninterrupted(workplace, uninterrupted):
    out = ["--set", "train.steps=3", "--set", "train.decay=0"]
    assert fmboost(workplace, "parts", *out) == 0
    assert load_model(workplace / "parts" / "tiny.safetensors").config.trained_on["steps"] == 3
    assert fmboost(workplace, "parts", "--resume") == 0
    ours, theirs = weights(workplace, "parts"), load_file(uninterrupted / "state" / "model.safetensors")
    for key, value in theirs.items():
        assert torch.equal(ours[key], value), key
    shipped = load_file(workplace / "parts" / "tiny.safetensors")
    for key, value in load_file(uninterrupted / "tiny.safetensors").items():
        assert torch.equal(shipped[key], value), key


def test_two_processes_are_one_with_the_same_batch(workplace, uninterrupted):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    command += ["-m", "fmboost_core.cli", "train", str(workplace / "tiny.toml"), "--out", str(workplace / "two")]
    root = Path(__file__).parents[2]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    subprocess.run(command, check=True, env=env, timeout=600)
    # Adam divides by the size of the gradient, so where that is rounding noise single weights may go either way;
    # the losses, each of which depends on all updates before it, may not.
    assert losses(workplace / "two") == pytest.approx(losses(uninterrupted), rel=1e-3)
    two, one = weights(workplace, "two"), load_file(uninterrupted / "state" / "model.safetensors")
    difference = torch.cat([(two[k] - one[k]).abs().flatten() for k in one])
    assert difference.mean() < 0.02 * 6 * 1e-3  # of what six steps at this learning rate can move a weight


def test_start_from_begins_with_those_weights(workplace, uninterrupted):
    origin = uninterrupted / "tiny.safetensors"
    still = ["--set", "train.steps=1", "--set", "train.learning_rate=0", "--set", f"train.start_from={origin}"]
    assert fmboost(workplace, "tuned", *still) == 0
    tuned = load_file(workplace / "tuned" / "tiny.safetensors")
    for key, value in load_file(origin).items():
        assert torch.equal(tuned[key], value), key


def test_a_wider_context_begins_unheard(workplace, uninterrupted):
    origin = uninterrupted / "tiny.safetensors"
    still = ["--set", "train.steps=1", "--set", "train.learning_rate=0", "--set", f"train.start_from={origin}"]
    assert fmboost(workplace, "wider", *still, "--set", "flow.picture_context=true") == 0
    narrow, wide = load_model(origin), load_model(workplace / "wider" / "tiny.safetensors")
    x, upsampled, picture = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8), torch.rand(1, 3, 32, 32)
    t = torch.tensor([0.3])
    context = join_context(upsampled, picture)
    assert context.shape == (1, 4 + 48, 8, 8)
    torch.testing.assert_close(wide.velocity(x, t, context), narrow.velocity(x, t, upsampled))


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--set", "train.learning_rate=1e9", "--set", "train.grad_clip=1e9"], "the loss is"),
        (["--set", "train.speed=2"], "unknown setting speed"),
        (["--set", "train.objective=gan"], "expected one of cfm"),
        (["--set", "data.photos=nowhere"], "no photos in"),
        (["--set", "train.crop=512"], "use a smaller crop"),
        (["--set", "train.steps"], "expected SECTION.NAME=VALUE"),
        (["--resume"], "nothing to resume"),
        (["--set", "train.noise_from=300"], "noise_from is 300: expected 0 to flow.noise_step, 200, or -1"),
        (["--set", "train.mean_decoded_weight=1"], "mean_decoded_weight is for flow.posterior_mean"),
        (["--set", "train.steps=5k"], "steps is '5k': expected a whole number"),
        (["--set", "train.learning_rate=fast"], "learning_rate is 'fast': expected a number"),
        (["--set", "train.save_every=0"], "save_every is 0: expected a whole number from 1"),
        (["--set", "train=5"], "[train] is 5: expected a section of settings"),
        (["--set", "data.short_sides=wide"], "short_sides is 'wide': expected a list of whole numbers"),
        (["--set", "data.short_sides=[]"], "short_sides is []: expected pixels"),
        (["--set", "train.objective=regression", "--set", "flow.posterior_mean=true"], "a start for objective cfm"),
    ],
)
def test_bad_settings_are_a_sentence(workplace, capsys, args, sentence):
    assert fmboost(workplace, f"bad{hash(sentence)}", *args) == 2
    assert sentence in capsys.readouterr().err


def test_a_run_is_not_overwritten_nor_changed_on_resume(workplace, uninterrupted, capsys):
    assert fmboost(workplace, "whole") == 2
    assert "add --resume" in capsys.readouterr().err
    assert fmboost(workplace, "whole", "--resume", "--set", "train.batch=8") == 2
    assert "other settings" in capsys.readouterr().err


def test_a_run_older_than_a_setting_is_resumed_with_its_default(workplace, uninterrupted, capsys):
    shutil.copytree(uninterrupted, workplace / "old")
    record = workplace / "old" / "state" / "progress.json"
    progress = json.loads(record.read_text())
    del progress["run"]["data"]["latent_noise"]
    del progress["run"]["flow"]["posterior_mean"]
    del progress["run"]["net"]["pool_factor"]
    progress["run"]["train"]["start_from"] = "elsewhere.safetensors"  # where it lay on another machine
    record.write_text(json.dumps(progress))
    assert fmboost(workplace, "old", "--resume", "--set", "data.latent_noise=0.1") == 2
    assert "other settings" in capsys.readouterr().err
    assert fmboost(workplace, "old", "--resume") == 0


def test_a_regression_net_says_so_and_starts_clean(workplace):
    out = ["--set", "train.objective=regression", "--set", "train.steps=3"]
    assert fmboost(workplace, "mean", *out) == 0
    config = load_model(workplace / "mean" / "tiny.safetensors").config
    assert config.trained_on["objective"] == "regression"
    assert config.flow.noise_step == 0  # whatever [flow] says: it never saw a noised start


def test_a_flow_from_the_mean_is_trained_and_lifts(workplace):
    sets = ["flow.posterior_mean=true", "train.noise_from=20", "train.mean_decoded_weight=40", "train.steps=3"]
    assert fmboost(workplace, "from-mean", *[word for s in sets for word in ("--set", s)]) == 0
    model = load_model(workplace / "from-mean" / "tiny.safetensors")
    assert model.config.flow.posterior_mean
    assert all(np.isfinite(losses(workplace / "from-mean")))


def test_learning_rate_rises_stays_and_falls():
    settings = TrainSettings(steps=10, warmup=2, decay=4, learning_rate=1.0)
    rates = [learning_rate(settings, step) for step in range(10)]
    assert rates == [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]


def test_ema_is_the_recursion_of_its_definition():
    net = torch.nn.Linear(1, 1, bias=False)
    average = EMA(net, 0.6)
    expected = net.weight.item()
    for n in range(1, 12):
        with torch.no_grad():
            net.weight.fill_(float(n))
        average.update(net)
        decay = min(0.6, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * n
    assert average.state["weight"].item() == pytest.approx(expected, rel=1e-5)


def test_paths_are_relative_to_the_file_and_overrides_to_here(workplace, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    text = (workplace / "tiny.toml").read_text().replace("[train]", '[train]\nstart_from = "first.safetensors"')
    (workplace / "paths.toml").write_text(text)
    own = ["data.vae=here", "data.reflow_model=fmboost-sd15-x2", "data.short_sides=96"]
    settings = read_settings(workplace / "paths.toml", own)
    assert settings.train.start_from == str((workplace / "first.safetensors").resolve())
    assert settings.data.reflow_model == "fmboost-sd15-x2"  # one that ships
    assert settings.data.short_sides == (96,)
    assert settings.data.photos == str((workplace / "photos").resolve())
    assert settings.data.vae == str((tmp_path / "here").resolve())
