"""Upsampling against its definition written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fmboost_core.upsample import back_project, reduce_pixels, reduce_to, resize_pixels, upsample


class BlockVAE:
    """An autoencoder of 8 x 8 blocks: a latent pixel is the mean colour of its block, plus a constant channel."""

    def encode(self, images):
        mean = F.avg_pool2d(images, 8)
        return torch.cat([mean, torch.ones_like(mean[:, :1])], dim=1).float()

    def decode(self, latents):
        return latents[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3)


def latent(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(8, 8), (5, 7), (1, 3)])
@pytest.mark.parametrize("kind", ["nearest", "bilinear", "psu"])
def test_shapes(kind, size, scale):
    assert upsample(latent(2, 4, *size), scale, kind, BlockVAE()).shape == (2, 4, scale * size[0], scale * size[1])


def test_nearest_repeats_every_pixel():
    low = latent(2, 4, 5, 6)
    expected = low.repeat_interleave(3, 2).repeat_interleave(3, 3)
    assert torch.equal(upsample(low, 3, "nearest"), expected)


def test_bilinear_doubling_mixes_three_to_one_and_holds_the_edges():
    low = torch.tensor([0.0, 4.0, 8.0]).view(1, 1, 1, 3)
    assert upsample(low, 2, "bilinear")[0, 0, 0].tolist() == [0, 1, 3, 5, 7, 8]


def test_psu_is_decode_bilinear_encode():
    """Blocks 0 and 8 decoded, doubled and averaged again: by hand, 16 of the 32 pixels are in the two inner blocks,
    where the ramp between the colours takes up one pixel in 16, symmetric about the edge."""
    low = torch.zeros(1, 4, 1, 2)
    low[:, :3, :, 1] = 8
    row = upsample(low, 2, "psu", BlockVAE())[0, :, 0]
    # the ramp pixels at the edge are 2 and 6: the block before it is (7 * 0 + 2) / 8, the one behind (6 + 7 * 8) / 8
    assert row[0].tolist() == [0, 0.25, 7.75, 8]
    assert row[3].tolist() == [1, 1, 1, 1]


def test_psu_keeps_the_type_of_the_latent():
    low = latent(1, 4, 4, 4).double()
    assert upsample(low, 2, "psu", BlockVAE()).dtype == torch.float64


def test_pixels_are_enlarged_by_linear_interpolation_of_their_centres():
    """A linear ramp stays one away from its ends."""
    ramp = torch.arange(8.0).expand(1, 3, 8, 8)
    expected = (torch.arange(32) + 0.5) / 4 - 0.5
    torch.testing.assert_close(resize_pixels(ramp, 4)[0, 0, 5, 2:-2], expected[2:-2])


def test_reduction_reaches_any_size_and_keeps_the_mean():
    image = torch.rand(1, 3, 64, 48, generator=torch.Generator().manual_seed(0))
    assert reduce_to(image, (64, 48)) is image
    small = reduce_to(image, (43, 31))
    assert small.shape == (1, 3, 43, 31)
    torch.testing.assert_close(small.mean(dim=(2, 3)), image.mean(dim=(2, 3)), rtol=0, atol=0.01)
    assert small.std() < 0.8 * image.std()  # antialiased


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match=r"starts from pixel-space upsampling \(psu\) and no vae was given: pass"):
        upsample(latent(1, 4, 4, 4), 2, "psu")
    with pytest.raises(ValueError, match="unknown upsampling 'lanczos': expected one of nearest, bilinear, psu"):
        upsample(latent(1, 4, 4, 4), 2, "lanczos")


class PixelVAE:
    """Latents that are the pixels themselves, folded."""

    def encode(self, images):
        return F.pixel_unshuffle(images, 8)

    def decode(self, latents):
        return F.pixel_shuffle(latents, 8)


def test_back_projection_makes_the_reduced_picture_agree_and_keeps_finer_detail():
    vae, rng = PixelVAE(), torch.Generator().manual_seed(0)
    picture = F.interpolate(torch.rand(1, 3, 6, 6, generator=rng), (32, 32), mode="bicubic").clamp(0.3, 0.7)
    checkers = 0.1 * torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(32, 32)  # gone when reduced by 2
    lifted = vae.encode(resize_pixels(picture, 2) + checkers - 0.15)  # and too dark everywhere
    result = back_project(lifted, picture, 2, vae)
    before, after = ((reduce_pixels(vae.decode(x), 2) - picture)[..., 2:-2, 2:-2].abs().max() for x in (lifted, result))
    assert before > 0.14
    assert after < 0.02  # enlarging is not quite the inverse of reducing
    moved = vae.decode(result - lifted)
    assert moved.mean() == pytest.approx(0.15, abs=0.005)
    assert (moved * checkers.sign()).mean().abs() < 0.002
    assert torch.equal(back_project(lifted, picture, 2, vae, rounds=0), lifted)
