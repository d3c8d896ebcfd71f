"""The full autoencoder through the surface of the tiny one, against diffusers itself."""

from __future__ import annotations

import pytest
import torch

diffusers = pytest.importorskip("diffusers")  # in the extra "paper", which the tests install

from fmboost_core import load_vae  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("kl")
    kl = diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        latent_channels=4,
    )
    kl.save_pretrained(path)
    return path


@torch.inference_mode()
def test_images_and_latents_have_our_ranges(folder):
    vae = load_vae(folder, space="sd15")
    kl = diffusers.AutoencoderKL.from_pretrained(folder).eval()
    image = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    raw = kl.encode(2 * image - 1).latent_dist.mean
    latent = vae.encode(image)
    torch.testing.assert_close(latent, 0.18215 * raw)
    torch.testing.assert_close(vae.decode(latent), (kl.decode(raw).sample / 2 + 0.5).clamp(0, 1), atol=1e-5, rtol=1e-4)
    assert not any(p.requires_grad for p in vae.parameters())
    assert vae.fingerprint() == load_vae(folder, space="sd15").fingerprint()


@torch.inference_mode()
def test_latents_of_flux_2_are_normalised_in_folded_blocks(tmp_path):
    torch.manual_seed(0)
    kl = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        latent_channels=32,
    ).eval()
    kl.bn.running_mean.normal_()
    kl.bn.running_var.uniform_(0.5, 2.0)
    kl.save_pretrained(tmp_path)
    vae = load_vae(tmp_path, space="flux2")
    image = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    raw = kl.encode(2 * image - 1).latent_dist.mean
    # As its pipeline does: blocks of 2x2 into channels, then the batch norm in evaluation.
    folded = kl.bn(raw.view(1, 32, 2, 2, 3, 2).permute(0, 1, 3, 5, 2, 4).reshape(1, 128, 2, 3))
    latent = vae.encode(image)
    assert latent.shape == (1, 32, 4, 6)
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        torch.testing.assert_close(latent[:, :, row::2, column::2], folded[:, 2 * row + column :: 4])
    torch.testing.assert_close(vae.decode(latent), (kl.decode(raw).sample / 2 + 0.5).clamp(0, 1), atol=1e-5, rtol=1e-4)


def test_its_latent_space_is_asked_for_and_checked(folder):
    with pytest.raises(ValueError, match="does not tell its latent space: name it with space="):
        load_vae(folder)
    with pytest.raises(ValueError, match="4 channels"):
        load_vae(folder, space="flux")
