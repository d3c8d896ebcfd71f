"""tools/mean.py: the average of models of one kind, and a sentence for others."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch

from fmboost_core.config import FlowConfig, ModelConfig
from fmboost_core.files.model_file import read_model_file, save_model
from fmboost_core.unet import UNet

MEAN = Path(__file__).parents[2] / "tools" / "mean.py"


def _run(*paths: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, MEAN, *paths], capture_output=True, text=True, timeout=300)


def test_every_weight_is_the_average_and_the_facts_are_those_of_the_last(tmp_path, tiny_net):
    state = {name: torch.zeros_like(weight) for name, weight in UNet(tiny_net).state_dict().items()}
    config = ModelConfig(net=tiny_net)
    for number, value in enumerate((1.0, 2.0, 6.0)):
        facts = replace(config, trained_on={"steps": number})
        save_model(tmp_path / f"{number}.safetensors", facts, {k: w + value for k, w in state.items()})
    done = _run(tmp_path / "out.safetensors", *(tmp_path / f"{number}.safetensors" for number in range(3)))
    assert done.returncode == 0, done.stderr
    config, weights = read_model_file(tmp_path / "out.safetensors")
    assert config.trained_on == {"steps": 2}
    assert set(weights) == set(state) and all((w == 3).all() for w in weights.values())


def test_models_of_two_kinds_are_refused_and_nothing_is_written(tmp_path, tiny_net):
    state = UNet(tiny_net).state_dict()
    save_model(tmp_path / "one.safetensors", ModelConfig(net=tiny_net, flow=FlowConfig(noise_step=100)), state)
    save_model(tmp_path / "two.safetensors", ModelConfig(net=tiny_net, flow=FlowConfig(noise_step=200)), state)
    done = _run(tmp_path / "out.safetensors", tmp_path / "one.safetensors", tmp_path / "two.safetensors")
    assert done.returncode != 0
    assert "one.safetensors is of another kind than" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out.safetensors").exists()
