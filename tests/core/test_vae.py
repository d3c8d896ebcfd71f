"""TAESD-layout autoencoders: every published arrangement of the files loads, everything else is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import fmboost_core
from fmboost_core import tiling
from fmboost_core.config import FlowConfig
from fmboost_core.context import make_context
from fmboost_core.latent_spaces import LATENT_SPACES
from fmboost_core.vae.files import load_vae

PACKAGE = Path(fmboost_core.__file__).parent
WIDTH = 8
CONV = (0, 2, 4)  # of a block
NORMED = {True: (3, 4, 5), False: (11, 12, 13)}  # blocks at the lowest resolution, in the decoder and in the encoder


def layers(channels, decoder):
    """Names and shapes as in madebyollin/taesd: block, then three times resampling and three blocks."""
    first, last = ((channels, WIDTH), (WIDTH, 3)) if decoder else ((3, WIDTH), (WIDTH, channels))
    blocks = [3, 4, 5, 8, 9, 10, 13, 14, 15, 18] if decoder else [1, 3, 4, 5, 7, 8, 9, 11, 12, 13]
    resample = [7, 12, 17] if decoder else [2, 6, 10]
    yield f"{1 if decoder else 0}", *first, True
    for n in blocks:
        yield from ((f"{n}.conv.{k}", WIDTH, WIDTH, True) for k in CONV)
    yield from ((f"{n}", WIDTH, WIDTH, False) for n in resample)
    yield f"{19 if decoder else 14}", *last, True


def weights(channels, decoder, seed=0, normed=False):
    generator = torch.Generator().manual_seed(seed + decoder)
    state = {}
    for name, c_in, c_out, bias in layers(channels, decoder):
        state[f"{name}.weight"] = torch.randn(c_out, c_in, 3, 3, generator=generator) * (1 / (9 * c_in)) ** 0.5
        if bias:
            state[f"{name}.bias"] = torch.randn(c_out, generator=generator) * 0.1
    for n in NORMED[decoder] if normed else ():
        state[f"{n}.pool.0.weight"] = torch.randn(4 * WIDTH, WIDTH, 1, 1, generator=generator)
        state[f"{n}.pool.1.weight"] = torch.rand(4 * WIDTH, generator=generator)
        state[f"{n}.pool.1.bias"] = torch.randn(4 * WIDTH, generator=generator) * 0.1
        state[f"{n}.pool.3.weight"] = torch.randn(WIDTH, 4 * WIDTH, 1, 1, generator=generator) * 0.1
    return state


def run(state, x, decoder):
    """The two nets of madebyollin/taesd, written out in float64; in FLUX.2's some blocks have a norm in front."""
    state, x = {k: v.double() for k, v in state.items()}, x.double()

    def conv(name, x, stride=1):
        return F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), padding=1, stride=stride)

    def pool(n, x):
        wide = torch.einsum("bchw,oc->bohw", x, state[f"{n}.pool.0.weight"][:, :, 0, 0])
        groups = wide.unflatten(1, (4, -1))
        variance, mean = torch.var_mean(groups, dim=(2, 3, 4), correction=0, keepdim=True)
        wide = ((groups - mean) / (variance + 1e-5).sqrt()).flatten(1, 2)
        wide = wide * state[f"{n}.pool.1.weight"][:, None, None] + state[f"{n}.pool.1.bias"][:, None, None]
        return torch.einsum("bchw,oc->bohw", F.relu(wide), state[f"{n}.pool.3.weight"][:, :, 0, 0])

    def block(n, x):
        if f"{n}.pool.0.weight" in state:
            x = x + pool(n, x)
        return F.relu(conv(f"{n}.conv.4", F.relu(conv(f"{n}.conv.2", F.relu(conv(f"{n}.conv.0", x))))) + x)

    if decoder:
        x = F.relu(conv("1", torch.tanh(x / 3) * 3))
        for first in (3, 8, 13):
            for n in range(first, first + 3):
                x = block(n, x)
            x = conv(f"{first + 4}", x.repeat_interleave(2, 2).repeat_interleave(2, 3))
        return conv("19", block(18, x)).clamp(0, 1)
    x = block(1, conv("0", x))
    for first in (2, 6, 10):
        x = conv(f"{first}", x, stride=2)
        for n in range(first + 1, first + 4):
            x = block(n, x)
    return conv("14", x)


def save(state, path):
    (save_file if path.suffix == ".safetensors" else torch.save)(state, path)


def write_pair(folder, suffix=".safetensors", stem="taesd", channels=4, normed=False):
    for name in ("encoder", "decoder"):
        save(weights(channels, name == "decoder", normed=normed), folder / f"{stem}_{name}{suffix}")
    return folder / f"{stem}_encoder{suffix}"


def check(vae, channels=4, normed=False):
    images = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(1))
    latents = torch.randn(2, channels, 2, 3, generator=torch.Generator().manual_seed(2))
    encoded, decoded = vae.encode(images).double(), vae.decode(latents).double()
    nets = [weights(channels, decoder, normed=normed) for decoder in (False, True)]
    torch.testing.assert_close(encoded, run(nets[0], images, False), rtol=0, atol=1e-5)
    torch.testing.assert_close(decoded, run(nets[1], latents, True), rtol=0, atol=1e-5)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("given", ["encoder", "decoder"])
def test_either_file_of_a_pair_finds_the_other(tmp_path, suffix, given):
    write_pair(tmp_path, suffix)
    vae = load_vae(tmp_path / f"taesd_{given}{suffix}")
    assert vae.space.name == "sd15"
    assert not vae.training and not any(p.requires_grad for p in vae.parameters())
    check(vae)


@pytest.mark.parametrize("space", LATENT_SPACES.values(), ids=lambda s: s.name)
def test_every_family_is_known_by_its_file_names_and_in_a_folder(tmp_path, space):
    for s in LATENT_SPACES.values():
        write_pair(tmp_path, stem=s.taesd, channels=s.channels)
    by_name = load_vae(tmp_path / f"{space.taesd}_encoder.safetensors")
    assert by_name.space == load_vae(tmp_path, space=space.name).space == space
    check(by_name, space.channels)


def test_the_norms_of_flux_2_are_known_by_the_weights(tmp_path):
    vae = load_vae(write_pair(tmp_path, stem="taef2", channels=32, normed=True))
    assert vae.space.name == "flux2"
    check(vae, 32, normed=True)
    wide = torch.rand(1, 3, 16, 2048, generator=torch.Generator().manual_seed(1))  # not in windows, which change it
    expected = run(weights(32, False, normed=True), wide, False)
    torch.testing.assert_close(vae.encode(wide).double(), expected, rtol=0, atol=1e-5)


def diffusers(name, state):
    """AutoencoderTiny of diffusers counts the decoder's layers without the clamp in front."""
    shift = 1 if name == "decoder" else 0
    return {f"{name}.layers.{int(k.split('.', 1)[0]) - shift}.{k.split('.', 1)[1]}": v for k, v in state.items()}


@pytest.mark.parametrize("layout", ["encoder.", "taesd_encoder.", "diffusers"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_one_file_with_both_nets(tmp_path, layout, suffix):
    both = {}
    for name in ("encoder", "decoder"):
        state = weights(4, name == "decoder")
        prefix = layout.replace("encoder", name)
        both |= diffusers(name, state) if layout == "diffusers" else {prefix + k: v for k, v in state.items()}
    save(both, tmp_path / f"any{suffix}")
    check(load_vae(tmp_path / f"any{suffix}", space="sdxl"))


def test_half_precision_answers_in_float32(tmp_path):
    vae = load_vae(write_pair(tmp_path), dtype=torch.bfloat16)
    latents = vae.encode(torch.rand(1, 3, 16, 16))
    assert latents.dtype == vae.decode(latents).dtype == torch.float32


def test_a_fingerprint_is_the_same_in_every_precision_and_no_other_autoencoders(tmp_path):
    path = write_pair(tmp_path)
    found = {load_vae(path, dtype=dtype).fingerprint() for dtype in (torch.float32, torch.bfloat16)}
    (tmp_path / "other").mkdir()
    save(weights(4, False, seed=5), tmp_path / "other" / "taesd_encoder.safetensors")
    save(weights(4, True), tmp_path / "other" / "taesd_decoder.safetensors")
    assert len(found) == 1
    assert load_vae(tmp_path / "other", space="sd15").fingerprint() not in found


def test_images_are_clamped(tmp_path):
    image = load_vae(write_pair(tmp_path)).decode(20 * torch.randn(1, 4, 4, 4))
    assert image.min() == 0 and image.max() == 1


def test_large_pictures_in_windows_agree_away_from_the_seams(tmp_path):
    vae = load_vae(write_pair(tmp_path))
    latents = torch.randn(1, 4, 70, 30, generator=torch.Generator().manual_seed(3))
    whole = vae.decode(latents)
    vae.tile = 64
    windows = vae.decode(latents)
    assert whole.shape == windows.shape == (1, 3, 560, 240)
    torch.testing.assert_close(windows[:, :, :24], whole[:, :, :24], rtol=0, atol=1e-4)  # the first window alone
    assert (windows - whole).abs().mean() < 0.01


def test_windows_of_a_photograph_leave_no_line():
    """In the shipped autoencoder. Where windows share nothing its seams are 100/255 high."""
    vae = load_vae(PACKAGE / "weights" / "fmboost-sd15-vae.safetensors")
    latents = load_file(PACKAGE / "demo" / "bison.safetensors")["high"].float()[None]
    with torch.inference_mode():
        whole = vae.decode(latents)
        vae.tile = 48
        assert tiling.windows(64, vae.tile, vae.overlap) == (38, [0, 26])
        apart = (vae.decode(latents) - whole).abs().max()
    assert apart < 2 / 255


def test_it_serves_as_the_vae_of_pixel_space_upsampling(tmp_path):
    vae = load_vae(write_pair(tmp_path))
    low = torch.randn(1, 4, 3, 4, generator=torch.Generator().manual_seed(4))
    pixels = F.interpolate(vae.decode(low), scale_factor=2, mode="bilinear")
    torch.testing.assert_close(make_context(FlowConfig(upsampling="psu"), low, vae=vae), vae.encode(pixels))


# --- refusals


def test_a_missing_sibling_is_named(tmp_path):
    write_pair(tmp_path)
    (tmp_path / "taesd_decoder.safetensors").unlink()
    with pytest.raises(
        FileNotFoundError, match="holds only the encoder: expected its decoder beside it, as taesd_decoder"
    ):
        load_vae(tmp_path / "taesd_encoder.safetensors")


def test_a_single_file_of_another_name_has_no_sibling(tmp_path):
    save(weights(4, True), tmp_path / "mine.safetensors")
    with pytest.raises(FileNotFoundError, match="holds only the decoder"):
        load_vae(tmp_path / "mine.safetensors", space="sd15")


def test_a_wrong_sibling_is_named(tmp_path):
    path = write_pair(tmp_path)
    save(weights(4, False), tmp_path / "taesd_decoder.safetensors")
    with pytest.raises(ValueError, match="taesd_decoder.safetensors is not a TAESD decoder"):
        load_vae(path)


def test_a_pair_of_two_families_does_not_fit(tmp_path):
    path = write_pair(tmp_path)
    save(weights(16, True), tmp_path / "taesd_decoder.safetensors")
    with pytest.raises(ValueError, match="is not a TAESD autoencoder: .*size mismatch"):
        load_vae(path)


def test_the_wrong_family_is_named(tmp_path):
    path = write_pair(tmp_path, stem="mine")
    with pytest.raises(ValueError, match="makes latents of 4 channels: flux latents have 16; choose"):
        load_vae(path, space="flux")


def test_a_name_and_a_family_that_disagree_are_named(tmp_path):
    path = write_pair(tmp_path)
    with pytest.raises(ValueError, match="named as the autoencoder of sd15 latents: expected one of sdxl"):
        load_vae(path, space="sdxl")


def test_an_unknown_family_must_be_said(tmp_path):
    path = write_pair(tmp_path, stem="tiny")
    with pytest.raises(ValueError, match=r"does not tell its latent space \(sd15 or sdxl fit\): name it with space="):
        load_vae(path)
    check(load_vae(path, space="sdxl"))
    with pytest.raises(ValueError, match="unknown latent space 'sd2'"):
        load_vae(path, space="sd2")


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="no autoencoder at .*nothing.pth: expected a TAESD file"):
        load_vae(tmp_path / "nothing.pth")
    with pytest.raises(ValueError, match="is a folder: give the encoder file in it, or the latent space wanted"):
        load_vae(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no taesd_encoder.safetensors or .pth for sd15 latents"):
        load_vae(tmp_path, space="sd15")


FOREIGN = {
    "full autoencoder": {
        "encoder.conv_in.weight": torch.zeros(8, 3, 3, 3),
        "decoder.conv_in.weight": torch.zeros(8, 4, 3, 3),
    },
    "diffusion model": {"model.diffusion_model.out.2.weight": torch.zeros(4, 8, 3, 3)},
    "another sequence": {"0.weight": torch.zeros(8, 3, 3, 3), "1.weight": torch.zeros(8, 8)},
    "nothing": {},
}


@pytest.mark.parametrize("state", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("space", [None, "sd15"])
def test_foreign_weights_are_refused_as_such(tmp_path, state, suffix, space):
    save(state, tmp_path / f"taesd_encoder{suffix}")
    with pytest.raises(ValueError, match="is not a TAESD"):
        load_vae(tmp_path / f"taesd_encoder{suffix}", space=space)


@pytest.mark.parametrize("content", [b"", b"junk", b"\x80\x02K\x01."])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_unreadable_files_are_refused(tmp_path, content, suffix):
    path = tmp_path / f"taesd_encoder{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read as weights|is not a TAESD"):
        load_vae(path)


@pytest.mark.parametrize("content", [[1, 2], {"0.weight": 3}, {0: torch.zeros(1)}, None])
def test_pth_files_with_something_else(tmp_path, content):
    torch.save(content, tmp_path / "taesd_encoder.pth")
    with pytest.raises(ValueError, match="is not a TAESD|cannot be read"):
        load_vae(tmp_path / "taesd_encoder.pth")


def test_shapes_are_checked(tmp_path):
    vae = load_vae(write_pair(tmp_path))
    for shape in [(1, 3, 12, 16), (1, 4, 16, 16), (3, 16, 16)]:
        with pytest.raises(ValueError, match=r"images of shape .* expected \(B, 3, H, W\) with H and W multiples of 8"):
            vae.encode(torch.zeros(shape))
    for shape in [(1, 16, 4, 4), (4, 4, 4)]:
        with pytest.raises(ValueError, match=r"latents of shape .* sd15 autoencoder expects \(B, 4, h, w\)"):
            vae.decode(torch.zeros(shape))
