"""tools/translate.py: a network behind a linear map of its latents, and the map between two families."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

from fmboost_core.config import FlowConfig, ModelConfig, NetConfig
from fmboost_core.files.model_file import find_model, read_model_file
from fmboost_core.model import CFMModel, build_network
from fmboost_core.vae.files import shipped_vae

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from tools.translate import Linear, fit, translated  # noqa: E402


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def model_of_flux():
    net = NetConfig(in_channels=80, out_channels=16, model_channels=32, num_res_blocks=1, channel_mult=(1, 2),
                    attention_resolutions=(), num_heads=1)  # fmt: skip
    flow = FlowConfig(upsampling="psu", picture_context=True)
    config = ModelConfig(net=net, flow=flow, latent_space="flux")
    torch.manual_seed(0)
    network = build_network(config).eval()
    for parameter in network.parameters():
        if not parameter.any():
            parameter.data.normal_(std=0.1)
    return config, network


def mapped(linear, latents):
    return torch.einsum("oc,bchw->bohw", linear.matrix, latents) + linear.offset[:, None, None]


@torch.inference_mode()
def test_the_velocity_is_that_of_the_mapped_latents_mapped_back():
    config, network = model_of_flux()
    inward = Linear(random(16, 32, seed=1) / 4, torch.zeros(16))  # no offset: exact to the border
    outward = Linear(random(32, 16, seed=2) / 4, random(32, seed=3))
    new, weights = translated(config, dict(network.state_dict()), "flux2", inward, outward)
    assert (new.latent_space, new.net.in_channels, new.net.out_channels) == ("flux2", 112, 32)
    assert new.trained_on == {"translated from": "flux"}
    other = build_network(new)
    other.load_state_dict(weights)
    x, upsampled, picture = random(1, 32, 8, 6, seed=4), random(1, 32, 8, 6, seed=5), random(1, 48, 8, 6, seed=6)
    t = torch.tensor([0.3])
    found = CFMModel(new, other.eval()).velocity(x, t, torch.cat([upsampled, picture], dim=1))
    context = torch.cat([mapped(inward, upsampled), picture], dim=1)
    velocity = CFMModel(config, network).velocity(mapped(inward, x), t, context)
    expected = torch.einsum("oc,bchw->bohw", outward.matrix, velocity)
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_an_offset_reaches_the_first_layer_of_the_state_and_of_the_upsampled_latent():
    config, network = model_of_flux()
    inward, outward = Linear(random(16, 16, seed=1) / 4, random(16, seed=2)), Linear(torch.eye(16), torch.zeros(16))
    _, weights = translated(config, dict(network.state_dict()), "sd3", inward, outward)
    x, upsampled, picture = random(1, 16, 5, 5, seed=3), random(1, 16, 5, 5, seed=4), random(1, 48, 5, 5, seed=5)
    first = "input_blocks.0.0"
    found = F.conv2d(torch.cat([x, upsampled, picture], 1), weights[f"{first}.weight"], weights[f"{first}.bias"])
    known = torch.cat([mapped(inward, x), mapped(inward, upsampled), picture], 1)
    state = network.state_dict()
    expected = F.conv2d(known, state[f"{first}.weight"], state[f"{first}.bias"])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_map_is_found():
    x, matrix, offset = random(200, 4).double(), random(3, 4, seed=1).double(), random(3, seed=2).double()
    linear, share = fit(x, x @ matrix.T + offset)
    torch.testing.assert_close(linear.matrix, matrix)
    torch.testing.assert_close(linear.offset, offset)
    assert abs(share - 1) < 1e-12
    _, share = fit(x, random(200, 3, seed=3).double())
    assert share < 0.1


def run(*arguments):
    command = [sys.executable, ROOT / "tools" / "translate.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_between_two_names_of_one_autoencoder_nothing_changes(tmp_path):
    nets = load_file(shipped_vae("sd15"))
    for stem in ("taesd", "taesdxl"):
        for part in ("encoder", "decoder"):
            half = {k.removeprefix(f"{part}."): v for k, v in nets.items() if k.startswith(f"{part}.")}
            save_file(half, tmp_path / f"{stem}_{part}.safetensors")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for n in range(3):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((64, 64), Image.Resampling.BICUBIC).save(pictures / f"{n}.png")
    out = tmp_path / "start.safetensors"
    done = run("fmboost-sd15-x2", "sdxl", out, "--photos", pictures, "--vae", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "R2 1.00 from sdxl to sd15, 1.00 back" in done.stdout
    (config, weights), (_, before) = read_model_file(out), read_model_file(find_model("fmboost-sd15-x2"))
    assert config.latent_space == "sdxl"
    for name, weight in weights.items():
        torch.testing.assert_close(weight.float(), before[name].float(), rtol=1e-2, atol=2e-3)


def test_a_model_without_pixel_space_upsampling_is_refused(tmp_path, converted):
    done = run(converted("coupling_t400"), "sdxl", tmp_path / "start.safetensors", "--photos", tmp_path, "--vae", "x")
    assert done.returncode == 1
    assert "has no pixel-space upsampling" in done.stderr
    assert not (tmp_path / "start.safetensors").exists()
