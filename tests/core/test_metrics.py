"""Metrics without learned weights, against closed forms and second derivations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fmboost_core.evaluate import metrics


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def gauss(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fit(*portions):
    found = metrics.GaussianFit()
    for vectors in portions:
        found.add(vectors)
    return found


def test_psnr_of_a_known_offset_is_per_image():
    a = noise(2, 3, 32, 32) * 0.5
    b = a.clone()
    b[0] += 0.1
    b[1] += 0.01
    assert torch.allclose(metrics.psnr(b, a), torch.tensor([20.0, 40.0]), atol=1e-3)
    assert metrics.psnr(a, a).isinf().all()


def test_ssim_is_one_for_equal_images_and_falls_with_noise():
    pytest.importorskip("torchmetrics")
    a = noise(2, 3, 48, 48)
    assert torch.allclose(metrics.ssim(a, a), torch.ones(2), atol=1e-5)
    values = [metrics.ssim((a + s * gauss(2, 3, 48, 48)).clamp(0, 1), a).mean() for s in (0.05, 0.1, 0.3)]
    assert values == sorted(values, reverse=True)


def test_high_frequency_energy_of_waves_is_known():
    """The blur passes a share (6 + 8 cos w + 2 cos 2w) / 16 of a wave: nothing of a checkerboard, all of a constant."""
    board = torch.full((1, 3, 64, 64), 0.5)
    board[:, :, ::2, 1::2] += 0.25
    board[:, :, 1::2, ::2] += 0.25
    assert metrics.high_frequency_energy(board).item() == pytest.approx(0.125**2, rel=1e-5)
    assert metrics.high_frequency_energy(torch.full((1, 3, 64, 64), 0.7)).item() == pytest.approx(0, abs=1e-12)
    for w in (math.pi / 2, math.pi / 4):
        red = torch.zeros(1, 3, 64, 4096)
        red[:, 0] = 0.2 * torch.cos(w * torch.arange(4096.0))
        removed = 1 - (6 + 8 * math.cos(w) + 2 * math.cos(2 * w)) / 16
        expected = (0.299 * 0.2 * removed) ** 2 / 2
        assert metrics.high_frequency_energy(red).item() == pytest.approx(expected, rel=0.01)


def test_colour_error_is_in_grey_levels_and_of_blocks():
    reference, high = noise(2, 3, 64, 96) * 0.5, noise(2, 3, 64, 96, seed=1) * 0.5
    shifted = reference.clone()
    shifted[0, 0] += 6 / 255  # one channel of three
    shifted[1, :, :32, :32] += 12 / 255  # one block of six
    assert metrics.colour_error(shifted, reference).tolist() == pytest.approx([2.0, 2.0], abs=1e-3)
    texture = torch.tensor([0.1, -0.1]).repeat(48)
    assert metrics.colour_error(reference + texture, reference).max() < 1e-3
    blocks = (high - reference).double().numpy().reshape(2, 3, 2, 32, 3, 32).mean(axis=(3, 5))
    expected = 255 * np.abs(blocks).mean(axis=(1, 2, 3))
    assert metrics.colour_error(high, reference).tolist() == pytest.approx(expected.tolist(), rel=1e-4)


def test_contrast_is_that_of_checkerboards_by_the_size_of_their_fields():
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(96), indexing="ij")
    for level, size in enumerate((1, 2, 4, 8)):
        board = 0.5 + 0.2 * (1 - 2 * ((rows // size + columns // size) % 2)).float()
        picture = torch.stack([board, board / 2, torch.zeros(64, 96)])[None]
        expected = torch.zeros(4, 1, 3, 2, 3)
        expected[level, 0, 0], expected[level, 0, 1] = 0.2, 0.1
        torch.testing.assert_close(metrics.contrasts(picture), expected, atol=0.0033, rtol=0)  # the root of 1e-5 for 0


def test_contrast_is_that_of_each_square_alone():
    picture = torch.full((1, 3, 64, 64), 0.5)
    picture[..., :32, 32::2] = 1.0  # stripes of 1 px in the second square
    expected = torch.tensor([[0.0, 0.25], [0.0, 0.0]])
    torch.testing.assert_close(metrics.contrasts(picture)[0, 0, 0], expected, atol=0.0033, rtol=0)


def test_contrast_error_is_in_grey_levels_and_leaves_out_what_fills_no_block():
    """Where they have one, stripes of 1 px add a deviation of 6/255: in one level of four and two channels of three."""
    reference = torch.full((2, 3, 70, 100), 0.5)
    striped = reference.clone()
    striped[0, :2, :64, :96:2] += 12 / 255
    striped[1, :, :, 96:] += noise(3, 70, 4) / 2
    expected = [(math.sqrt(6**2 + 0.65025) - math.sqrt(0.65025)) / 6, 0]  # 1e-5 is 0.65025 in units of (1/255)^2
    assert metrics.contrast_error(striped, reference).tolist() == pytest.approx(expected, abs=1e-3)


def test_outliers_are_counted_where_the_reference_is_flat():
    """By hand on every pixel, with windows that end at the border."""
    ramp = 0.5 + 0.0005 * torch.arange(48.0)  # a slope is flat, too
    reference = ramp.expand(1, 3, 40, 48).clone()
    reference[..., 30:] = noise(1, 3, 40, 18)
    image = reference.clone()
    image[:, 1, 10, 8] += 20 / 255  # seen: one channel is enough
    image[:, :, 20, 8] += 10 / 255  # too little
    image[:, :, 30, 40] += 0.5  # where there is texture
    outliers, flat = metrics.flat_outliers(image, reference)
    grey, pixels = reference[0].double().mean(0).numpy(), image[0].double().numpy()
    for y in range(40):
        for x in range(48):
            window = np.s_[max(0, y - 8) : y + 9, max(0, x - 8) : x + 9]
            is_flat = grey[window].std() < 3 / 255
            far = max(abs(c[y, x] - c[window].mean()) for c in pixels) > 12 / 255
            assert (bool(flat[0, 0, y, x]), bool(outliers[0, 0, y, x])) == (is_flat, is_flat and far), (y, x)
    assert outliers.nonzero().tolist() == [[0, 0, 10, 8]]
    assert 40 * 20 < flat.sum() < 40 * 30


def test_equal_pictures_have_outliers_of_their_own_alone():
    """A speck that the reference has as well does not make its surroundings other than flat, and counts."""
    speck = torch.full((1, 3, 64, 64), 0.5)
    speck[:, :, 20, 20] += 15 / 255
    outliers, flat = metrics.flat_outliers(speck, speck)
    assert outliers.sum() == 1 and flat.all()


def test_a_gaussian_fit_is_the_mean_and_covariance_however_it_arrives():
    vectors = gauss(301, 7) @ gauss(7, 7, seed=1) + 3
    whole, portions = fit(vectors), fit(*vectors.split(64))
    torch.testing.assert_close(whole.covariance, torch.cov(vectors.double().T))
    torch.testing.assert_close(whole.mean, vectors.double().mean(0))
    torch.testing.assert_close(portions.covariance, whole.covariance)
    torch.testing.assert_close(portions.mean, whole.mean)
    assert portions.count == 301


def test_frechet_distance_of_two_diagonal_gaussians():
    a = gauss(200, 6).double()
    a = (a - a.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(a.T))).T  # exactly mean 0, covariance 1
    spread = torch.tensor([1.0, 2.0, 3.0, 0.5, 1.0, 0.0])
    b = a * spread + 2.0
    expected = 6 * 2.0**2 + (spread - 1).square().sum().item()
    assert metrics.frechet_distance(fit(a), fit(b)) == pytest.approx(expected, rel=1e-6)
    assert metrics.frechet_distance(fit(b), fit(a)) == pytest.approx(expected, rel=1e-6)
    assert metrics.frechet_distance(fit(b), fit(b)) == pytest.approx(0, abs=1e-8)


def test_frechet_distance_against_the_matrix_square_root():
    linalg = pytest.importorskip("scipy.linalg")
    a, b = gauss(300, 5) @ gauss(5, 5, seed=2), gauss(400, 5, seed=1) @ gauss(5, 5, seed=3) + 1
    ca, cb = torch.cov(a.T.double()).numpy(), torch.cov(b.T.double()).numpy()
    shift = (a.double().mean(0) - b.double().mean(0)).square().sum().item()
    expected = shift + (ca + cb - 2 * linalg.sqrtm(ca @ cb).real).trace()
    assert metrics.frechet_distance(fit(a), fit(b)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "metric", [metrics.psnr, metrics.ssim, metrics.colour_error, metrics.contrast_error, metrics.flat_outliers]
)
def test_images_that_do_not_match_are_refused(metric):
    a = noise(1, 3, 64, 64)
    with pytest.raises(
        ValueError, match=r"images of \(1, 3, 64, 64\) against a reference of \(1, 3, 64, 32\): expected"
    ):
        metric(a, a[..., :32])


def test_one_vector_has_no_covariance():
    with pytest.raises(ValueError, match="a covariance of 1 feature vectors: expected at least two"):
        metrics.frechet_distance(fit(torch.zeros(1, 3)), fit(torch.zeros(5, 3)))
