"""Too little memory, too little range, no autoencoder: the node helps itself, or says what is missing."""

from __future__ import annotations

import json
import subprocess

import pytest

from . import small_models
from .conftest import PACK, comfy_python


@pytest.fixture(scope="module")
def found(comfy, tmp_path_factory) -> dict:
    base = tmp_path_factory.mktemp("base")
    folder = base / "models" / "latent_upscale_models"
    folder.mkdir(parents=True)
    small_models.write(folder / "random.safetensors", small_models.config(), gain=0.05)
    small_models.write(folder / "learned.safetensors", small_models.config(upsampling="learned"), gain=0.05)
    # Its first layers exceed the 65504 of half precision, its result does not.
    small_models.write(folder / "large.safetensors", small_models.config(), gain=0.05, first=1e6)
    small_models.write(folder / "psu-sdxl.safetensors", small_models.config("sdxl", upsampling="psu"))
    script = PACK / "tests" / "host" / "small_memory.py"
    command = [comfy_python(comfy), script, comfy, base, PACK]
    done = subprocess.run(command, cwd=comfy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((base / "found.json").read_text())


def again(*tiles: int) -> list[str]:
    return [f"out of memory: trying again in tiles of {tile} latent pixels" for tile in tiles]


def test_out_of_memory_falls_back_to_tiles(found):
    as_tiled_by_hand, from_whole, lines = found["out of memory"]["once"]
    assert as_tiled_by_hand
    assert from_whole > 1e-2
    assert lines == again(16)  # the second image of the batch starts with the tiles that the first one needed


def test_out_of_memory_falls_back_to_smaller_tiles_as_long_as_there_are_any(found):
    as_tiled_by_hand, lines = found["out of memory"]["twice"]
    assert as_tiled_by_hand
    assert lines == found["out of memory"]["never enough"] == again(32, 16)


def test_out_of_memory_in_a_cascade_repeats_the_lift_that_failed_alone(found):
    (from_tiled_by_hand, from_whole), lines = found["out of memory"]["cascade"]
    assert from_tiled_by_hand < 1e-4 < 1e-2 < from_whole
    assert lines == again(48)


@pytest.mark.parametrize("model", ["random.safetensors", "learned.safetensors"])
def test_a_partly_loaded_network_answers_the_same(found, model):
    """What --lowvram does to it. The host leaves weights where they are and casts each in the layer that uses it."""
    assert found[model]["layers the host cannot cast"] == []
    partly = found[model]["partly loaded"]
    assert partly["loaded"] < 0.5
    assert partly["difference"] < 1e-5 < 0.1 < partly["moved by the patch"]


@pytest.mark.parametrize("tile", ["0", "32"])
def test_the_host_is_told_the_memory_that_is_measured(found, tile):
    """With the host's layers and its attention, for the model that ships."""
    assert 1 <= found["expected over measured"][tile] <= 1.5


def test_half_precision_that_overflows_is_repeated_in_float32(found):
    assert not found["overflow"]["half is finite"]
    assert found["overflow"]["repeated in float32"]
    assert found["overflow"]["lines"] == ["CFM Latent Upscale: torch.float16 overflowed, repeating the run in float32"]


def test_a_model_that_overflowed_once_is_run_in_float32_from_then_on(found):
    assert found["overflow"]["evaluations"] == 2 * ["torch.float16"] + 4 * ["torch.float32"]


def test_images_that_do_not_fit_together_are_lifted_in_smaller_groups(found):
    assert found["batch"]["difference"] < 1e-4
    assert found["batch"]["images"] == 2 * [3, 2, 1, 1, 1]  # in each of two evaluations


def test_without_any_autoencoder_one_sentence_says_what_to_do(found):
    assert "psu-sdxl.safetensors" in found["no vae"]
    assert "connect the VAE of your checkpoint to the vae input" in found["no vae"]
    assert "taesdxl_encoder" in found["no vae"]
