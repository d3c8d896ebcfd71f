"""Curves in tensorboard are those of the CSV files."""

from __future__ import annotations

import csv
import json
import struct

import pytest
import torch
from safetensors.torch import save_file

from fmboost_core.cli import main

CONFIG = """
name = "tiny"
[data]
cache = "cache.safetensors"
[net]
model_channels = 32
channel_mult = [1]
num_res_blocks = 1
attention_resolutions = []
num_heads = 1
[flow]
upsampling = "psu"
[train]
steps = 4
batch = 1
crop = 8
log_every = 2
precision = "no"
"""


@pytest.fixture
def place(tmp_path):
    high = {f"000000.{k}": torch.zeros(4, 8, 8).half() for k in ("high", "psu")}
    low = {"000000.low": torch.zeros(4, 4, 4).half(), "000000.picture": torch.zeros(3, 32, 32, dtype=torch.uint8)}
    identity = json.dumps({"latent_space": "sd15", "scale": 2, "autoencoder": ""})
    save_file({**high, **low}, tmp_path / "cache.safetensors", metadata={"fmboost_cache": identity})
    (tmp_path / "tiny.toml").write_text(CONFIG)
    return tmp_path


def records(path):
    """TFRecord framing: length, its checksum, data, its checksum."""
    content = path.read_bytes()
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        yield content[12 : 12 + length]
        content = content[16 + length :]


def test_tensorboard_gets_the_curves_of_the_csv(place):
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    arguments = ["--out", str(place / "run"), "--set", "train.log_with=tensorboard"]
    assert main(["train", str(place / "tiny.toml"), *arguments]) == 0
    found = {}
    for file in sorted((place / "run").rglob("*tfevents*")):
        for record in records(file):
            event = event_pb2.Event.FromString(record)
            found |= {(event.step, v.tag): v.simple_value for v in event.summary.value}
    with (place / "run" / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    for row in rows:
        assert found[int(row["step"]), "train/loss"] == pytest.approx(float(row["loss"]), rel=1e-6)


@pytest.mark.parametrize(("name", "sentence"), [("chalk", "expected nothing or one of"), ("aim", "is not installed")])
def test_a_tracker_that_is_not_there_is_a_sentence(place, capsys, name, sentence):
    assert main(["train", str(place / "tiny.toml"), "--out", str(place / "no"), "--set", f"train.log_with={name}"]) == 2
    assert sentence in capsys.readouterr().err
