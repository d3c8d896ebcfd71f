"""What users get wrong: every time one clear sentence, and the server goes on working."""

from __future__ import annotations

import shutil

import pytest
import torch

from . import small_models
from .conftest import PACK, Server, run_api
from .graphs import latents, lift, lift_graph, load


def refusal(server, graph) -> str:
    """The sentence the server refuses `graph` with. It names the node, is one line long, and no traceback follows."""
    with pytest.raises(run_api.WorkflowError) as caught:
        server.run(graph)
    sentence = str(caught.value)
    assert "Traceback" not in sentence
    assert len(sentence.splitlines()) == 1
    return sentence


@pytest.mark.parametrize(
    ("name", "found", "advice"),
    [
        ("truncated", "not a safetensors file", "get it again"),
        ("empty", "empty.safetensors", "get it again"),
        ("pickle", "not a safetensors file", "get it again"),
        ("gan-upscaler", "not an FMBoost model", "choose a CFM model file"),
        ("format-1", "written by FMBoost 0.1 (format 1)", "get the current file of this model"),
    ],
)
def test_files_that_are_no_models(server, tmp_path, name, found, advice):
    sentence = refusal(server, lift_graph(tmp_path, latents(), f"{name}.safetensors"))
    assert found in sentence
    assert advice in sentence


def test_a_model_that_is_not_in_the_list(server, tmp_path):
    sentence = refusal(server, lift_graph(tmp_path, latents(), "never-there.safetensors"))
    assert "never-there.safetensors" in sentence
    assert "model_name" in sentence


def test_a_host_without_any_model_file(comfy, tmp_path):
    """Not even those that ship, and no folder for them: the nodes are there and say what is missing."""
    pack = tmp_path / "pack"
    shutil.copytree(PACK, pack, ignore=shutil.ignore_patterns(".*", "weights", "tests", "runs"))
    empty = Server(comfy, tmp_path / "base", pack=pack)
    empty.models.rmdir()
    try:
        empty.start()
        advice = "no CFM model was found: put one into models/latent_upscale_models"
        for name in ("fmboost-sd15-x2", advice):
            assert advice in refusal(empty, lift_graph(tmp_path, latents(), name))
        empty.models.mkdir()
        small_models.write(empty.models / "first.safetensors", small_models.config())
        assert lift(empty, tmp_path, latents(), "first.safetensors")["samples"].shape == (1, 4, 16, 16)
    finally:
        empty.stop()


def test_a_path_out_of_the_folder_is_no_model(server, tmp_path):
    outside = tmp_path / "outside.safetensors"
    small_models.write(outside, small_models.config())
    assert "not in" in refusal(server, lift_graph(tmp_path, latents(), f"../../../../../../{outside}"))


def test_a_model_deleted_after_the_list_was_read_then_replaced(server, tmp_path):
    path = server.models / "short-lived.safetensors"
    small_models.write(path, small_models.config())
    low = latents()
    before = lift(server, tmp_path, low, path.name)["samples"]
    small_models.write(path, small_models.config(scale=4))
    assert lift(server, tmp_path, low, path.name)["samples"].shape[-1] == 2 * before.shape[-1]  # read anew
    path.unlink()
    assert path.name in refusal(server, lift_graph(tmp_path, low, path.name))


ODD = {
    "zeros": (torch.zeros(1, 4, 8, 8), "all zeros"),
    "not a number": (torch.full((1, 4, 8, 8), torch.nan), "not finite"),
    "infinite": (torch.full((1, 4, 8, 8), torch.inf), "not finite"),
    "three channels": (torch.ones(1, 3, 8, 8), "sd15 latents, (B, 4, h, w)"),
    "sixteen channels": (torch.ones(1, 16, 8, 8), "(1, 16, 8, 8)"),
    "frames of another family": (torch.ones(1, 16, 5, 8, 8), "sd15 latents, (B, 4, h, w)"),
    "sound": (torch.ones(1, 64, 8), "(1, 64, 8)"),
    "nested": ([torch.ones(1, 4, 1, 8, 8), torch.ones(1, 8, 9)], "several latents"),
}


def graph_of(node: str, folder, latent: dict) -> dict:
    graph = lift_graph(folder, latent)
    if node == "noise":
        augment = {"model": ["1", 0], "samples": ["2", 0], "noise_step": 100, "seed": 0}
        graph["3"] = {"class_type": "FMBoost_NoiseAugment", "inputs": augment}
    return graph


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("node", ["upscale", "noise"])
def test_latents_that_are_no_pictures(server, tmp_path, kind, node):
    samples, found = ODD[kind]
    assert found in refusal(server, graph_of(node, tmp_path, {"samples": samples}))


def test_frames_of_sixteen_channels_are_lifted_only_where_their_space_is_named(server, tmp_path):
    """Wan's, Qwen-Image's and HunyuanVideo's look like this, and are neither FLUX's nor SD3's."""
    clip = torch.ones(1, 16, 1, 8, 8)
    said = refusal(server, lift_graph(tmp_path, clip, "random-flux.safetensors"))
    assert "as latents of Wan, Qwen-Image and HunyuanVideo do" in said
    assert "set latent_space to flux" in said


@pytest.mark.parametrize(
    ("shape", "batch_index", "found"),
    [
        ((3, 4, 8, 8), [1], "3 images and their batch_index has 1 entry"),
        ((1, 4, 8, 8), [0, 1], "1 image and their batch_index has 2 entries"),
        ((2, 4, 3, 8, 8), [0, 1, 2], "2 images and their batch_index has 3 entries"),
    ],
)
@pytest.mark.parametrize("node", ["upscale", "noise"])
def test_a_batch_index_of_another_length_than_the_batch(server, tmp_path, node, shape, batch_index, found):
    latent = {"samples": torch.ones(shape), "batch_index": batch_index}
    sentence = refusal(server, graph_of(node, tmp_path, latent))
    assert f"the samples are {found}: expected one entry for each image" in sentence


@pytest.mark.parametrize(
    ("inputs", "found"),
    [
        ({"steps": 0}, "steps"),
        ({"solver": "magic"}, "magic"),
        ({"noise_step": 1000}, "noise_step"),
        ({"tile_size": 8}, "tile_size is 8"),
        ({"latent_space": "flux"}, "flux (16 channels)"),
        ({"scale": 3}, "lifts by 2 make 4: choose that, decode, and reduce the picture with Upscale Image By 0.75"),
        ({"scale": 1}, "scale is 1: expected more than 1"),
        ({"scale": 4, "source": ["2", 0]}, "leave source open"),
    ],
)
def test_settings_out_of_range(server, tmp_path, inputs, found):
    assert found in refusal(server, lift_graph(tmp_path, latents(), **inputs))


def test_steps_0_through_a_link_which_the_host_does_not_check(server, tmp_path):
    graph = lift_graph(tmp_path, latents(), steps=["5", 0])
    graph["5"] = {"class_type": "PrimitiveInt", "inputs": {"value": 0}}
    assert "steps is 0: expected a whole number from 1" in refusal(server, graph)


def test_a_source_of_another_size(server, tmp_path):
    sentence = refusal(server, lift_graph(tmp_path, latents(), source=["2", 0]))
    assert "(1, 4, 8, 8)" in sentence
    assert "(1, 4, 16, 16)" in sentence


def test_a_vae_of_another_family(server, tmp_path):
    graph = lift_graph(tmp_path, latents(), "identity-psu.safetensors", vae=["5", 0])
    graph["5"] = {"class_type": "VAELoader", "inputs": {"vae_name": "taef1"}}
    sentence = refusal(server, graph)
    assert "16 channels" in sentence
    assert "sd15" in sentence


def test_two_models_of_different_families_each_refuse_the_others_latents(server, tmp_path):
    graph = lift_graph(tmp_path, latents())
    graph["5"] = load("random-flux.safetensors")
    graph["6"] = {**graph["3"], "inputs": {**graph["3"]["inputs"], "model": ["5", 0], "samples": ["3", 0]}}
    graph["4"]["inputs"]["samples"] = ["6", 0]
    sentence = refusal(server, graph)
    assert "(1, 4, 16, 16)" in sentence
    assert "flux latents" in sentence
    assert "choose fmboost-sd15-x2 or fmboost-sd15-x4 or fmboost-sdxl-x2 in Load CFM Model" in sentence


def test_a_network_that_overflows(server, tmp_path):
    sentence = refusal(server, lift_graph(tmp_path, latents(), "overflowing.safetensors"))
    assert "overflowing.safetensors" in sentence
    assert "not finite" in sentence


def test_after_all_that_the_server_still_works(server, tmp_path):
    low = latents()
    assert torch.isfinite(lift(server, tmp_path, low, "random.safetensors")["samples"]).all()
