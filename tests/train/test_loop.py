"""The loop's parts in closed form, its log, and what two processes make of one batch."""

from __future__ import annotations

import csv
import math
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fmboost_core import load_model
from fmboost_core.flow import make_source, sample_path
from fmboost_core.model import build_network
from fmboost_core.train.ema import EMA
from fmboost_core.train.latents import LatentCrops
from fmboost_core.train.lift import encode_run
from fmboost_core.train.loop import append_row, learning_rate
from fmboost_core.train.settings import TrainSettings


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_learning_rate_rises_stays_and_falls():
    settings = TrainSettings(steps=10, warmup=2, decay=4, learning_rate=1.0)
    assert [learning_rate(settings, step) for step in range(10)] == [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    assert learning_rate(TrainSettings(steps=10, warmup=0, learning_rate=0.3), 0) == 0.3


def test_ema_is_the_recursion_of_its_definition():
    net = torch.nn.Linear(1, 1, bias=False)
    average = EMA(net, 0.6)
    expected = net.weight.item()
    for n in range(1, 12):
        with torch.no_grad():
            net.weight.fill_(float(n))
        average.update()
        decay = min(0.6, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * n
    assert average.state["weight"].item() == pytest.approx(expected, rel=1e-5)
    again = EMA(net, 0.6)
    again.load_state_dict(average.state_dict())
    assert (again.updates, again.state) == (11, average.state)


def test_columns_of_the_log_may_appear_later(tmp_path):
    path = tmp_path / "log.csv"
    for row in ({"step": 1, "loss": 2.5}, {"step": 2, "loss": 2.0}, {"step": 3, "loss": 1.5, "adversaries": 6.0}):
        append_row(path, row)
    append_row(path, {"step": 4, "adversaries": 5.0})
    assert path.read_text().splitlines() == ["step,loss,adversaries", "1,2.5,", "2,2.0,", "3,1.5,6.0", "4,,5.0"]


def test_what_is_not_finite_ends_the_run_before_it_is_saved(place, latents, capsys):
    """A loss, also of a step that is saved and not logged, and weights that are too large for their file."""
    often = ("train.log_every=50", "train.save_every=1")
    assert place.train("infinite", *often, "train.steps=1") == 0
    examples = latents([(8, 8)])
    examples.kinds["high"].values[0] = torch.nan
    examples.save(place.folder / "nan.safetensors")
    onward = ("train.steps=3", f"data.cache={place.folder / 'nan.safetensors'}", "data.vae=")
    assert place.train("infinite", *often, *onward, resume=True) == 2
    said = capsys.readouterr().err
    assert "loss is nan at step 2" in said and "lower train.learning_rate" in said
    assert [p.name for p in (place.folder / "infinite" / "state").iterdir()] == ["step-1"]
    assert [row["step"] for row in rows(place.folder / "infinite" / "log.csv")] == ["1"]
    assert place.train("large", *often, "train.learning_rate=1e9", "train.warmup=0") == 2
    assert "not finite in torch.float16" in capsys.readouterr().err
    assert not (place.folder / "large" / "state").exists()


def records(path):
    """TFRecord framing: length, its checksum, data, its checksum."""
    content = path.read_bytes()
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        yield content[12 : 12 + length]
        content = content[16 + length :]


def test_tensorboard_gets_the_curves_of_the_csv(place):
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    assert place.train("tracked", "train.log_with=tensorboard", "train.steps=4") == 0
    found = {}
    for file in sorted((place.folder / "tracked").rglob("*tfevents*")):
        for record in records(file):
            event = event_pb2.Event.FromString(record)
            found |= {(event.step, v.tag): v.simple_value for v in event.summary.value}
    logged = rows(place.folder / "tracked" / "log.csv")
    assert [row["step"] for row in logged] == ["2", "3", "4"]  # every second, and those that are saved
    for row in logged:
        assert found[int(row["step"]), "train/loss"] == pytest.approx(float(row["loss"]), rel=1e-6)


@pytest.mark.parametrize(("name", "sentence"), [("chalk", "expected nothing or one of"), ("aim", "is not installed")])
def test_a_tracker_that_is_not_there_is_a_sentence(place, capsys, name, sentence):
    assert place.train("untracked", f"train.log_with={name}") == 2
    assert sentence in capsys.readouterr().err
    assert not (place.folder / "untracked").exists()


def train_on_two(place, out, *overrides):
    """What the log holds of a run on two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    command += ["-m", "fmboost_core.cli.main", "train", str(place.config), "--out", str(place.folder / out)]
    command += [word for text in overrides for word in ("--set", text)]
    root = Path(__file__).parents[2]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    subprocess.run(command, check=True, env=env, timeout=900)
    return rows(place.folder / out / "log.csv")


def test_two_processes_average_the_gradients_of_their_batches(place, kinds, vae):
    """Three steps of a learned context against the same by hand: two batches, one optimizer."""
    overrides = (*kinds["learned"], "train.steps=3", "train.log_every=1", "train.decay=0", "train.batch=4")
    found = [float(row["loss"]) for row in train_on_two(place, "two", *overrides)]
    settings = place.settings(*overrides)
    examples, _ = encode_run(settings, vae, (0, 1))
    crops = LatentCrops(examples.of(["high", "low"]), crop=16, scale=2, seed=0)
    torch.manual_seed(0)
    net = build_network(settings.model_config())
    matrices, others = ([p for p in net.parameters() if (p.ndim > 1) == large] for large in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99))
    expected = []
    for step in range(3):
        losses = [_loss(net, settings.flow, crops.batch(step, 2, rank, 2)) for rank in range(2)]
        loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1, (step + 1) / 2)
        optimizer.step()
        expected.append(loss.item())
    assert found == pytest.approx(expected, rel=1e-4)


def _loss(net, flow, batch):
    upsampled, features = net.context_encoder(batch["low"]).split([4, 4], dim=1)
    x0 = make_source(flow, upsampled.detach(), batch["noise"])
    x_t, velocity = sample_path(flow, x0, batch["high"], batch["t"])
    predicted = net(x_t, batch["t"], torch.cat([upsampled.detach(), features], dim=1))
    return (predicted - velocity).square().mean() + 0.3 * (upsampled - batch["high"]).abs().mean()


def test_two_processes_train_adversaries_in_half_precision(place, kinds):
    """As the settings have it where nothing is said."""
    overrides = (*kinds["few_step"], "few_step.adversaries_from=101", "train.precision=bf16")
    log = train_on_two(place, "two-adversaries", *overrides, "train.steps=3", "train.batch=4", "train.log_every=1")
    assert [row["adversaries"] != "" for row in log] == [False, True, True]
    assert all(math.isfinite(float(value)) for row in log for value in row.values() if value)
    assert load_model(place.folder / "two-adversaries" / "tiny.safetensors").config.trained_on["examples"] == 12
