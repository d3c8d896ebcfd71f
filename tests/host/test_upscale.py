"""CFM Latent Upscale and Noise Augment in a real ComfyUI, checked on numbers."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F

import fmboost_core

from .graphs import CHANNELS, TAESD, latents, lift, lift_graph, need_vae, output_of

SCALING = {
    "sd15": (0.18215, 0.0),
    "sdxl": (0.13025, 0.0),
    "sd3": (1.5305, 0.0609),
    "flux": (0.3611, 0.1159),
    "flux2": (1.0, 0.0),
}


def nearest(x: torch.Tensor, scale: int = 2) -> torch.Tensor:
    return x.repeat_interleave(scale, -1).repeat_interleave(scale, -2)


def unfolded(x: torch.Tensor, space: str) -> torch.Tensor:
    """What the library sees of latents of the host, which has FLUX.2's in blocks of 2x2."""
    if space != "flux2":
        return x
    n, _, h, w = x.shape
    return x.reshape(n, 32, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, 32, 2 * h, 2 * w)


def library_model(server, name: str) -> fmboost_core.CFMModel:
    return fmboost_core.load_model(server.models / f"{name}.safetensors")


def library_vae(server, space: str = "sd15") -> fmboost_core.Autoencoder:
    return fmboost_core.load_vae(server.base / "models" / "vae_approx" / f"{TAESD[space]}_encoder.safetensors")


@pytest.mark.parametrize("size", [(8, 8), (1, 1), (7, 13), (300, 7)])
def test_identity_flow_gives_the_upsampled_latent_at_any_size(server, tmp_path, size):
    low = latents(2, *size)
    high = lift(server, tmp_path, low)["samples"]
    assert high.dtype == torch.float32
    torch.testing.assert_close(high, nearest(low), rtol=1e-5, atol=1e-5)


def test_scale_and_upsampling_are_the_models(server, tmp_path):
    low = latents()
    high = lift(server, tmp_path, low, "identity-x4.safetensors")["samples"]
    torch.testing.assert_close(high, nearest(low, 4), rtol=1e-5, atol=1e-5)
    high = lift(server, tmp_path, low, "identity-bilinear.safetensors")["samples"]
    expected = F.interpolate(low, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(high, expected, rtol=1e-5, atol=1e-5)


def test_a_larger_scale_is_the_librarys_cascade(server, tmp_path):
    low = {"samples": latents(2), "batch_index": [3, 7]}
    found = lift(server, tmp_path, low, "random.safetensors", seed=5, scale=4, tile_size=24)["samples"]
    models, scaled = [library_model(server, "random")] * 2, low["samples"] * 0.18215
    expected = fmboost_core.cascade(models, scaled, steps=2, seed=5, batch_index=(3, 7), tile=24) / 0.18215
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-3 * float(low["samples"].std()))
    chained = lift(server, tmp_path, lift(server, tmp_path, low["samples"]), scale=2)["samples"]
    assert torch.equal(chained, lift(server, tmp_path, low["samples"], scale=4)["samples"])  # no noise, no difference


@pytest.mark.parametrize("scale", [0, 4])
def test_the_trajectory_is_the_librarys_estimates_image_after_image(server, tmp_path, scale):
    low = latents(2)
    graph = lift_graph(tmp_path, low, "random.safetensors", steps=3, trajectory=True, scale=scale)
    save = {"samples": ["3", 1], "file": str(tmp_path / "path.out")}
    graph["5"] = {"class_type": "ProbeSave", "inputs": save}
    server.run(graph)
    found, model = output_of(graph, "5"), library_model(server, "random")
    scaled, tolerance = low * 0.18215, 2e-3 * float(low.std())
    assert set(found) == {"samples"}
    if scale:  # the last lift only, from what the first one made
        assert found["samples"].shape == (8, 4, 32, 32)
    else:
        path = fmboost_core.trajectory(model, scaled, frames=4, steps=3).estimates / 0.18215
        torch.testing.assert_close(found["samples"], path.transpose(0, 1).flatten(0, 1), rtol=1e-3, atol=tolerance)
    assert torch.equal(found["samples"][3::4], output_of(graph)["samples"])


def test_without_asking_the_second_output_is_the_result(server, tmp_path):
    graph = lift_graph(tmp_path, {"samples": latents(2), "noise_mask": torch.rand(2, 1, 8, 8)})
    graph["5"] = {"class_type": "ProbeSave", "inputs": {"samples": ["3", 1], "file": str(tmp_path / "path.out")}}
    server.run(graph)
    found = output_of(graph, "5")
    assert set(found) == {"samples"}
    assert torch.equal(found["samples"], output_of(graph)["samples"])


@pytest.mark.parametrize("space", SCALING)
def test_layers_and_scaling_of_the_host_agree_with_the_library(server, tmp_path, space):
    name = "random" if space == "sd15" else f"random-{space}"
    scale, shift = SCALING[space]
    low = latents(2, 9, 12, channels=CHANNELS[space])
    found = unfolded(lift(server, tmp_path, low, f"{name}.safetensors", steps=3, seed=7)["samples"], space)
    low = unfolded(low, space)
    expected = library_model(server, name).upscale((low - shift) * scale, steps=3, seed=7) / scale + shift
    assert (expected - nearest(low)).std() > 0.05 * low.std()  # the network does something
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(low.std()))


@pytest.mark.parametrize("space", ["sd15", "flux"])
def test_a_learned_context_needs_no_vae_and_is_the_librarys(server, tmp_path, space):
    scale, shift = SCALING[space]
    low = latents(2, 9, 12, channels=CHANNELS[space])
    found = lift(server, tmp_path, low, f"random-{space}-learned.safetensors", seed=7)["samples"]
    model, scaled = library_model(server, f"random-{space}-learned"), (low - shift) * scale
    expected = model.upscale(scaled, steps=2, seed=7)
    plain = F.interpolate(scaled, scale_factor=2, mode="bilinear", align_corners=False)
    assert (model.make_context(scaled)[:, : low.shape[1]] - plain).std() > 0.05 * plain.std()  # the encoder corrects
    torch.testing.assert_close((found - shift) * scale, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("settings", [{"solver": "rk4"}, {"solver": "dopri5"}, {"tile_size": 16}, {"noise_step": 0}])
def test_settings_reach_the_library(server, tmp_path, settings):
    low, rename = latents(1, 24, 20), {"tile_size": "tile"}
    found = lift(server, tmp_path, low, "random.safetensors", seed=3, **settings)["samples"]
    model = library_model(server, "random")
    library = {rename.get(name, name): value for name, value in settings.items()}
    expected = model.upscale(low * 0.18215, steps=2, seed=3, **library) / 0.18215
    plain = model.upscale(low * 0.18215, steps=2, seed=3) / 0.18215
    tolerance = 2e-3 * float(low.std())
    assert (expected - plain).abs().max() > 2 * tolerance
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=tolerance)


def test_an_image_is_the_same_alone_and_in_a_batch(server, tmp_path):
    """To rounding: images that are lifted together share their matrix products."""
    low = latents(3)
    batch = lift(server, tmp_path, low, "random.safetensors", seed=5)["samples"]
    for k in range(3):
        alone = lift(server, tmp_path, {"samples": low[k : k + 1], "batch_index": [k]}, "random.safetensors", seed=5)
        torch.testing.assert_close(alone["samples"], batch[k : k + 1], rtol=1e-4, atol=1e-4)
    sixteen = lift(server, tmp_path, latents(16, 4, 4), "random.safetensors", seed=5)["samples"]
    last = {"samples": latents(16, 4, 4)[15:], "batch_index": [15]}
    found = lift(server, tmp_path, last, "random.safetensors", seed=5)["samples"]
    torch.testing.assert_close(found, sixteen[15:], rtol=1e-4, atol=1e-4)
    same_picture = lift(server, tmp_path, low[:1].expand(2, -1, -1, -1), "random.safetensors", seed=5)["samples"]
    assert not torch.allclose(same_picture[0], same_picture[1], atol=0.1)  # each has noise of its own


def test_the_seed_is_the_noise_and_nothing_else(server, tmp_path):
    low = latents()
    first, again, other = (
        lift(server, tmp_path, low, "random.safetensors", seed=s)["samples"] for s in (1, 1, 2**64 - 1)
    )
    assert torch.equal(first, again)
    assert (first - other).std() > 0.01 * low.std()
    first, other = (lift(server, tmp_path, low, seed=s)["samples"] for s in (1, 2))
    assert torch.equal(first, other)  # trained without noise


def test_other_keys_of_the_latent_survive(server, tmp_path):
    mask = torch.rand(2, 1, 64, 64)
    latent = {
        "samples": latents(2),
        "noise_mask": mask,
        "batch_index": [4, 9],
        "something_else": {"a": [1]},
        "downscale_ratio_spacial": 8,
    }
    found = lift(server, tmp_path, latent)
    assert set(found) == set(latent) - {"downscale_ratio_spacial"}
    assert torch.equal(found["noise_mask"], mask)
    assert (found["batch_index"], found["something_else"]) == ([4, 9], {"a": [1]})


@pytest.mark.parametrize("space", ["sd15", "flux"])
@pytest.mark.parametrize("frames", [1, 3])
def test_each_frame_is_lifted_as_if_alone_with_the_noise_of_its_image(server, tmp_path, space, frames):
    model = "random.safetensors" if space == "sd15" else f"random-{space}.safetensors"
    low = latents(2 * frames, 7, 6, channels=CHANNELS[space]).unflatten(0, (2, frames)).movedim(1, 2)
    clip = {"samples": low, "batch_index": [4, 9], "noise_mask": torch.rand(2, 1, frames, 56, 48)}
    found = lift(server, tmp_path, clip, model, seed=5, latent_space=space)
    assert found["samples"].shape == (2, low.shape[1], frames, 14, 12)
    assert torch.equal(found["noise_mask"], clip["noise_mask"])
    assert found["batch_index"] == [4, 9]
    for k in range(frames):
        alone = lift(server, tmp_path, {"samples": low[:, :, k], "batch_index": [4, 9]}, model, seed=5)
        torch.testing.assert_close(alone["samples"], found["samples"][:, :, k], rtol=1e-4, atol=1e-4)


def test_a_clip_keeps_its_shape_on_every_way_through_the_node(server, tmp_path):
    low = latents(6).unflatten(0, (2, 3)).movedim(1, 2)
    graph = noised_graph(tmp_path, low, "random.safetensors", 300, 8)
    graph["3"]["inputs"]["trajectory"] = True
    graph["8"] = {"class_type": "ProbeSave", "inputs": {"samples": ["3", 1], "file": str(tmp_path / "path.out")}}
    server.run(graph)
    expected = lift(server, tmp_path, low, "random.safetensors", seed=8, noise_step=300)["samples"]
    torch.testing.assert_close(output_of(graph)["samples"], expected, rtol=1e-4, atol=1e-4)
    assert output_of(graph, "6")["samples"].shape == low.shape
    path = output_of(graph, "8")["samples"]  # of 2 images of 3 frames, each with 2 evaluations and the result
    assert path.shape == (18, 4, 1, 16, 16)
    assert torch.equal(path[2::3, :, 0].unflatten(0, (2, 3)).movedim(1, 2), output_of(graph)["samples"])
    graph = with_source(tmp_path, low, expected)
    server.run(graph)
    torch.testing.assert_close(output_of(graph)["samples"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tile", [0, 16])
def test_pixel_space_upsampling_through_the_hosts_taesd(server, tmp_path, tile):
    """The identity flow from psu is decode, bilinear, encode: here by the library's own autoencoder."""
    vae = library_vae(server)
    height, width = (12, 36) if tile else (10, 12)  # in latents; the VAE has tiles of 64 at the least
    colours = torch.rand(1, 3, height // 2, width // 2, generator=torch.Generator().manual_seed(1))
    low = vae.encode(nearest(colours, 16))
    pixels = F.interpolate(vae.decode(low), scale_factor=2, mode="bilinear", align_corners=False)
    expected = vae.encode(pixels)
    found = lift(server, tmp_path, low / 0.18215, "identity-psu.safetensors", tile_size=tile)["samples"] * 0.18215
    error = (found - expected).abs()
    if tile:  # the host blends its tiles, each of which knows less of its surroundings than the whole
        assert error.mean() < 0.03 * expected.std()
    else:
        assert error.max() < 1e-3


@pytest.mark.parametrize(("space", "tile"), [*((space, 0) for space in TAESD), ("flux2", 64)])
def test_a_model_that_sees_the_picture_agrees_with_the_library(server, tmp_path, space, tile):
    """Without a VAE connected, the host's TAESD of the family shows it to the network; FLUX.2's never in tiles, which
    the host cannot cut for it."""
    scale, shift = SCALING[space]
    need_vae(server, TAESD[space])
    low = latents(2, 8, 36 if tile else 10, channels=CHANNELS[space])
    model = library_model(server, f"random-{space}-x2")
    found = lift(server, tmp_path, low, f"random-{space}-x2.safetensors", tile_size=tile)["samples"]
    found, low = unfolded(found, space), unfolded(low, space)
    vae = library_vae(server, space)
    expected = model.upscale((low - shift) * scale, steps=2, tile=tile, vae=vae) / scale + shift
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-3 * float(low.std()))


def test_a_connected_vae_is_used_and_equals_the_default(server, tmp_path):
    low = latents(1, 8, 8)
    graph = lift_graph(tmp_path, low, "identity-psu.safetensors", vae=["5", 0])
    graph["5"] = {"class_type": "VAELoader", "inputs": {"vae_name": "taesd"}}
    server.run(graph)
    default = lift(server, tmp_path, low, "identity-psu.safetensors")["samples"]
    assert torch.equal(output_of(graph)["samples"], default)


def with_source(tmp_path, low, source, **inputs):
    graph = lift_graph(tmp_path, low, source=["5", 0], **inputs)
    torch.save({"samples": source}, tmp_path / "source.in")
    graph["5"] = {"class_type": "ProbeLoad", "inputs": {"file": str(tmp_path / "source.in")}}
    return graph


def test_a_source_takes_the_place_of_the_upsampled_latent(server, tmp_path):
    source = latents(1, 16, 16, seed=9)
    graph = with_source(tmp_path, latents(2), source)
    server.run(graph)
    torch.testing.assert_close(output_of(graph)["samples"], source.expand(2, -1, -1, -1), rtol=1e-5, atol=1e-5)


def noised_graph(tmp_path, low, model, step, seed, **between):
    """Noise Augment (5) in front of the lifting, what it gives saved by 6; `between` is a node (7) after it."""
    graph = lift_graph(tmp_path, low, model, seed=1)
    graph["5"] = {
        "class_type": "FMBoost_NoiseAugment",
        "inputs": {"model": ["1", 0], "samples": ["2", 0], "noise_step": step, "seed": seed},
    }
    graph["6"] = {"class_type": "ProbeSave", "inputs": {"samples": ["5", 0], "file": str(tmp_path / "noised.out")}}
    graph["3"]["inputs"]["samples"] = ["5", 0]
    if between:
        between["inputs"]["samples"] = ["5", 0]
        graph["7"] = between
        graph["3"]["inputs"]["samples"] = ["7", 0]
    return graph


def test_noise_augment_follows_the_schedule(server, tmp_path):
    low = latents(2, 32, 32)
    graph = noised_graph(tmp_path, low, "identity-noise.safetensors", -1, 8)
    server.run(graph)
    noised = output_of(graph, "6")["samples"]
    signal = 0.653904  # of step 400, the model's own
    noise = (noised * 0.18215 - math.sqrt(signal) * low * 0.18215) / math.sqrt(1 - signal)
    assert abs(noise.mean()) < 0.05
    assert abs(noise.std() - 1) < 0.05
    assert abs((noise[0] * noise[1]).mean()) < 0.05


PICK = {"class_type": "LatentFromBatch", "inputs": {"batch_index": 2, "length": 1}}
REPEAT = {"class_type": "RepeatLatentBatch", "inputs": {"amount": 2}}


@pytest.mark.parametrize(
    ("between", "images", "batch_index"),
    [({}, [0, 1, 2], [0, 1, 2]), (PICK, [2], [2]), (REPEAT, [0, 1, 2, 0, 1, 2], [0, 1, 2, 3, 4, 5])],
)
def test_noise_augment_in_front_is_the_upscales_own_noise(server, tmp_path, between, images, batch_index):
    """Also of images that a node in between chose or repeated."""
    low = latents(3)
    graph = noised_graph(tmp_path, low, "random.safetensors", 300, 8, **copy.deepcopy(between))
    saved = server.run(graph)["outputs"]
    clean = {"samples": low[images], "batch_index": batch_index}
    expected = lift(server, tmp_path, clean, "random.safetensors", seed=8, noise_step=300)["samples"]
    torch.testing.assert_close(output_of(graph)["samples"], expected, rtol=1e-4, atol=1e-4)
    assert "fmboost_noise" in saved["6"]["keys"]
    assert "fmboost_noise" not in saved["4"]["keys"]


def test_images_that_share_their_noise_keep_their_own_latents(server, tmp_path):
    """As Latent Batch Seed Behavior, fixed, numbers them."""
    low = {"samples": latents(2), "batch_index": [0, 0]}
    graph = noised_graph(tmp_path, low, "random.safetensors", 300, 8)
    server.run(graph)
    expected = lift(server, tmp_path, low, "random.safetensors", seed=8, noise_step=300)["samples"]
    torch.testing.assert_close(output_of(graph)["samples"], expected, rtol=1e-4, atol=1e-4)
    assert (expected[0] - expected[1]).abs().max() > 0.1


def test_samples_changed_after_noise_augment_are_taken_as_they_are(server, tmp_path):
    double = {"class_type": "LatentMultiply", "inputs": {"multiplier": 2.0}}
    graph = noised_graph(tmp_path, latents(), "identity.safetensors", 300, 8, **double)
    server.run(graph)
    noised = output_of(graph, "6")["samples"]
    torch.testing.assert_close(output_of(graph)["samples"], nearest(2 * noised), rtol=1e-5, atol=1e-4)
