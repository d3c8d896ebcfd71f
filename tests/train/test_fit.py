"""The map that ends a lift, fitted to a model on pictures: what comes out has the statistics of the truth."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from fmboost_core import LATENT_SPACES, FlowConfig, ModelConfig, NetConfig, TinyVAE, load_model, load_vae, save_model
from fmboost_core.checkpoint import read_model_file
from fmboost_core.cli import main
from fmboost_core.photos import find_photos, load_photo, save_photo
from fmboost_core.train.data import encode_example
from fmboost_core.train.fit import fit_transport
from fmboost_core.transport import Moments
from fmboost_core.unet import UNet

NET = NetConfig(
    model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(), num_heads=1, head_channels=32
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Photos, an autoencoder of random weights as a file, and a fresh model, which stays at its noised start."""
    folder = tmp_path_factory.mktemp("fit")
    rng = torch.Generator().manual_seed(0)
    (folder / "photos").mkdir()
    for i in range(4):
        coarse = torch.rand(1, 3, 24, 32, generator=rng)
        photo = torch.nn.functional.interpolate(coarse, scale_factor=8, mode="bicubic").clamp(0, 1)
        save_photo(photo, folder / "photos" / f"{i}.png")
    (folder / "photos" / "2b.png").write_bytes(b"no picture")
    torch.manual_seed(1)
    vae = TinyVAE(LATENT_SPACES["sd15"], width=8)
    for part in ("encoder", "decoder"):
        save_file(getattr(vae, part).state_dict(), folder / f"taesd_{part}.safetensors")
    for rounds, name in enumerate(("model", "projecting")):
        flow = FlowConfig(upsampling="psu", noise_step=100, back_projection=rounds)
        config = ModelConfig(net=NET, flow=flow, trained_on={"photos": 3})
        save_model(folder / f"{name}.safetensors", config, UNet(NET).state_dict())
    return folder


def fit(folder, origin, out, **settings):
    return fit_transport(
        folder / origin,
        folder / out,
        folder / "photos",
        folder / "taesd_encoder.safetensors",
        short_side=None,
        **settings,
    )


@torch.inference_mode()
def moments(folder, model, **settings):
    """Of the lifts and of the latents they should be, by what `upscale` does from the low latent alone."""
    vae = load_vae(folder / "taesd_encoder.safetensors", space="sd15")
    lifted, truths = Moments(), Moments()
    for i, path in enumerate(p for p in find_photos(folder / "photos") if p.stem != "2b"):
        example = encode_example(load_photo(path, None, 16), 2, vae)
        settings["batch_index"] = [i if i < 3 else 4]  # the damaged file keeps its place
        lifted.add(load_model(folder / model).upscale(example["low"][None], steps=4, vae=vae, **settings))
        truths.add(example["high"][None])
    return lifted, truths


@pytest.mark.parametrize(("origin", "rounds"), [("model", None), ("projecting", None), ("projecting", 0)])
def test_lifts_get_the_statistics_of_the_truth(folder, caplog, origin, rounds):
    assert fit(folder, f"{origin}.safetensors", "whole.safetensors") == 4
    assert "2b.png" in caplog.text
    before, truths = moments(folder, f"{origin}.safetensors", back_projection=rounds)
    after, _ = moments(folder, "whole.safetensors", back_projection=rounds)

    def distance(a, b):
        return ((a.mean - b.mean).norm() / b.mean.norm(), (a.covariance - b.covariance).norm() / b.covariance.norm())

    for was, found in zip(distance(before, truths), distance(after, truths), strict=True):
        assert found < 0.3 * was, (was, found)
    config, weights = read_model_file(folder / "whole.safetensors")
    assert config.transport
    assert config.trained_on == {"photos": 3, "transport": "strength 1, 4 photos in 4 Euler steps"}
    _, plain = read_model_file(folder / f"{origin}.safetensors")
    assert all(torch.equal(weights[k], v) for k, v in plain.items())


@torch.inference_mode()
def test_rounds_of_back_projection_come_nearer_to_the_truth(folder):
    """Least squares: every fitted round leaves less error on the photos it was fitted on, and no mean error."""
    fit(folder, "model.safetensors", "rounds.safetensors", strength=0, corrections=2)
    model = load_model(folder / "rounds.safetensors")
    assert (model.config.flow.back_projection, len(model.corrections), len(model.transports)) == (2, 2, 2)
    vae = load_vae(folder / "taesd_encoder.safetensors", space="sd15")
    vae.coarse = False  # as narrow as it is
    errors, left = [], []
    for rounds in (0, 1, 2):
        squares = []
        for i, path in enumerate(p for p in find_photos(folder / "photos") if p.stem != "2b"):
            example = encode_example(load_photo(path, None, 16), 2, vae)
            place = [i if i < 3 else 4]
            lifted = model.upscale(example["low"][None], steps=4, vae=vae, back_projection=rounds, batch_index=place)
            squares.append((lifted - example["high"]).square().mean())
            left.append((lifted - example["high"]).mean(dim=(0, 2, 3)))
        errors.append(torch.stack(squares).mean().item())
    assert errors[0] > 1.05 * errors[1] > 1.05 * errors[2], errors
    assert torch.stack(left[-4:]).mean(dim=0).abs().max() < 2e-3  # the file is in half precision


def test_an_earlier_map_is_put_aside(folder):
    fit(folder, "model.safetensors", "once.safetensors", strength=0.5, noise_step=60)
    fit(folder, "once.safetensors", "twice.safetensors", strength=0.5)
    once, twice = (read_model_file(folder / name) for name in ("once.safetensors", "twice.safetensors"))
    assert once[0].flow.noise_step == 60
    assert once[0] == twice[0]
    assert all(torch.equal(v, twice[1][k]) for k, v in once[1].items())


def test_the_command_and_a_folder_without_pictures(folder, tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(b"nothing")
    arguments = ["transport", str(folder / "model.safetensors"), str(tmp_path / "out.safetensors")]
    arguments += ["--vae", str(folder / "taesd_encoder.safetensors"), "--short-side", "128"]
    assert main([*arguments, "--data", str(tmp_path)]) == 2
    assert "none of the 1 photos could be used" in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()
    assert main([*arguments, "--data", str(folder / "photos"), "--limit", "3"]) == 0
    assert "fitted on 3 photos" in capsys.readouterr().out
    assert len(load_model(tmp_path / "out.safetensors").transports) == 1
