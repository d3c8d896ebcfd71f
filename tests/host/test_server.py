"""The pack in a real ComfyUI: how it loads and what it offers."""

from __future__ import annotations

import os
import subprocess

import pytest
import torch

from .conftest import PACK, comfy_python
from .graphs import latents, lift

# Workflows in the wild depend on these names and their order: only ever append.
NODES = {
    "FMBoost_LoadCFMModel": ["model_name"],
    "FMBoost_CFMLatentUpscale": [
        "model",
        "samples",
        "steps",
        "seed",
        "solver",
        "noise_step",
        "tile_size",
        "vae",
        "source",
        "latent_space",
        "scale",
        "trajectory",
    ],
    "FMBoost_NoiseAugment": ["model", "samples", "noise_step", "seed"],
    "FMBoost_AttentionScaling": ["model", "training_size"],
}


def inputs_of(info: dict) -> dict:
    return {**info["input"]["required"], **info["input"].get("optional", {})}


def test_the_pack_imports_cleanly(server):
    assert "FMBoost" in server.log
    for complaint in ("IMPORT FAILED", "Cannot import", "Error while calling comfy_entrypoint"):
        assert complaint not in server.log


@pytest.mark.parametrize("node", NODES)
def test_every_input_and_output_explains_itself(server, node):
    info = server.client().get(f"/object_info/{node}")[node]
    inputs = inputs_of(info)
    assert list(inputs) == NODES[node]
    for name, (_, options) in inputs.items():
        assert len(options.get("tooltip", "")) > 20, f"{node}.{name} has no tooltip"
    assert all(len(tip) > 20 for tip in info["output_tooltips"])
    assert len(info["description"]) > 40


def test_nodes_lie_beside_those_of_the_host(server):
    category = {name: info["category"] for name, info in server.client().get("/object_info").items()}
    assert category["FMBoost_LoadCFMModel"] == category["VAELoader"]
    for node in list(NODES)[1:]:
        assert category[node] == f"{category['LatentUpscale']}/upscaling"


def test_only_the_first_inputs_are_required_so_that_old_api_workflows_run(server, tmp_path):
    info = server.client().get("/object_info/FMBoost_CFMLatentUpscale")["FMBoost_CFMLatentUpscale"]
    assert list(info["input"]["required"]) == ["model", "samples", "steps", "seed"]
    assert info["output"] == ["LATENT", "LATENT"]
    assert info["input"]["optional"]["tile_size"][1]["advanced"] is True
    low = latents()
    old = lift(server, tmp_path, low, upsampling="auto", back_projection=-1)["samples"]
    assert torch.equal(old, lift(server, tmp_path, low)["samples"])


def test_the_list_of_models_is_the_folders(server):
    ((options, *rest),) = (
        server.client().get("/object_info/FMBoost_LoadCFMModel")["FMBoost_LoadCFMModel"]["input"]["required"].values()
    )
    names = rest[0]["options"] if options == "COMBO" else options
    assert {"identity.safetensors", "random-flux.safetensors"} <= set(names)


@pytest.mark.parametrize("node", NODES)
def test_help_page_is_served(server, node):
    page = server.client().fetch(f"/extensions/FMBoost/docs/{node}.md").decode()
    for name in NODES[node]:
        assert f"`{name}`" in page


def test_without_torchdiffeq_one_sentence_says_what_to_do(comfy, tmp_path):
    """A stand-in that cannot be imported shadows the installed package in a host of its own."""
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "torchdiffeq.py").write_text(
        "raise ModuleNotFoundError('No module named torchdiffeq', name='torchdiffeq')"
    )
    base = tmp_path / "base"
    (base / "custom_nodes").mkdir(parents=True)
    (base / "custom_nodes" / "FMBoost").symlink_to(PACK, target_is_directory=True)
    command = [comfy_python(comfy), "main.py", "--cpu", "--quick-test-for-ci", "--base-directory", base]
    command += ["--database-url", "sqlite:///:memory:"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "hidden")}
    done = subprocess.run(command, cwd=comfy, env=environment, capture_output=True, text=True)
    (line,) = [line for line in (done.stdout + done.stderr).splitlines() if "FMBoost needs" in line]
    assert "the Python package torchdiffeq" in line
    assert "-m pip install -r" in line
    assert "Traceback" not in done.stdout + done.stderr
