"""Too little memory, too little range, no autoencoder: the node helps itself once and says so."""

from __future__ import annotations

import json
import subprocess

import pytest
import small_models
from conftest import PACK, comfy_python


@pytest.fixture(scope="module")
def found(comfy, tmp_path_factory) -> dict:
    base = tmp_path_factory.mktemp("base")
    folder = base / "models" / "latent_upscale_models"
    folder.mkdir(parents=True)
    small_models.write(folder / "random.safetensors", small_models.config(), gain=0.05)
    # Its first layers exceed the 65504 of half precision, its result does not.
    small_models.write(folder / "large.safetensors", small_models.config(), gain=0.05, first=1e6)
    small_models.write(folder / "psu.safetensors", small_models.config(upsampling="psu"))
    small_models.write(folder / "psu-sdxl.safetensors", small_models.config("sdxl", upsampling="psu"))
    script = PACK / "tests" / "host" / "small_memory.py"
    command = [comfy_python(comfy), script, comfy, base, PACK]
    done = subprocess.run(command, cwd=comfy, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((base / "found.json").read_text())


def test_out_of_memory_falls_back_to_tiles_once(found):
    assert found["tiled is another"]
    assert found["fallback"]
    assert found["second time"] == "raised"
    first, _, second = found["out of memory"]  # one line for each of the runs that failed
    assert first == second == "CFM Latent Upscale: out of memory, trying once more with tile_size 16"


def test_out_of_memory_in_a_cascade_repeats_the_lift_that_failed_alone(found):
    tiled_by_hand, whole = found["cascade"]
    assert tiled_by_hand < 1e-4 < 1e-2 < whole
    assert found["out of memory"][1] == "CFM Latent Upscale: out of memory, trying once more with tile_size 48"


def test_a_partly_loaded_network_answers_the_same(found):
    """What --lowvram does to it. The host leaves weights where they are and casts each in the layer that uses it."""
    assert found["layers the host cannot cast"] == []
    assert found["partly loaded"]["loaded"] < 0.5
    assert found["partly loaded"]["difference"] < 1e-5 < 0.1 < found["partly loaded"]["moved by the patch"]


@pytest.mark.parametrize("tile", ["0", "32"])
def test_the_host_is_told_the_memory_that_is_measured(found, tile):
    """With the host's layers and its attention, for the model that ships."""
    assert 1 <= found["expected"][tile] / found["measured"][tile] <= 1.5


def test_half_precision_that_overflows_is_repeated_in_float32(found):
    assert not found["half is finite"]
    assert found["repeated in float32"]
    assert found["overflow"] == ["CFM Latent Upscale: torch.float16 overflowed, repeating the run in float32"]


def test_without_a_taesd_the_autoencoder_that_ships_is_used(found):
    if "shipped vae" not in found:
        pytest.skip("no autoencoder ships yet")
    assert found["shipped vae"] < 1e-4


def test_without_any_autoencoder_one_sentence_says_what_to_do(found):
    assert "psu-sdxl.safetensors" in found["no vae"]
    assert "connect the VAE of your checkpoint to the vae input" in found["no vae"]
    assert "taesdxl_encoder" in found["no vae"]
