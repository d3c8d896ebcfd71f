import math

import pytest
import torch

from fmboost_core import metrics


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def gauss(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


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


def test_mean_colour_error_is_in_grey_levels_and_ignores_size():
    low = torch.full((1, 3, 16, 16), 0.5)
    high = torch.full((1, 3, 64, 64), 0.5)
    high[:, 0] += 6 / 255
    assert metrics.mean_colour_error(high, low).item() == pytest.approx(2.0, abs=1e-3)


def test_pyramid_has_no_energy_on_smooth_images_and_all_of_it_on_a_checkerboard():
    ramp = torch.linspace(0, 1, 64).expand(1, 3, 64, 64)
    assert all(band[:, :, 8:-8, 8:-8].abs().max() < 1e-5 for band in metrics.laplacian_pyramid(ramp, 2))
    board = torch.ones(1, 1, 64, 64)
    board[:, :, ::2, 1::2] = board[:, :, 1::2, ::2] = -1
    fine, coarse = metrics.laplacian_pyramid(board, 2)
    assert torch.allclose(fine, board, atol=1e-5)
    assert coarse.abs().max() < 1e-5


def test_high_frequency_ratio_of_a_scaled_band():
    a = noise(2, 3, 64, 64)
    fine = metrics.laplacian_pyramid(a, 1)[0]
    grey = torch.full_like(a, 0.5)
    assert torch.allclose(metrics.high_frequency_ratio(0.5 * a + 0.5 * grey, a), torch.full((2,), 0.25), atol=1e-4)
    assert (metrics.high_frequency_ratio(a - 0.5 * fine, a) < 0.5).all()
    assert torch.allclose(metrics.high_frequency_ratio(a, a), torch.ones(2))


def test_wasserstein_1d_against_scipy():
    stats = pytest.importorskip("scipy.stats")
    a, b = gauss(50, 4), 2 * gauss(50, 4, seed=1) + 1
    expected = [stats.wasserstein_distance(a[:, k].numpy(), b[:, k].numpy()) for k in range(4)]
    assert metrics.wasserstein_1d(a, b).tolist() == pytest.approx(expected, abs=1e-5)


def test_patch_distance_of_a_shift_is_the_mean_projection_of_it():
    b = [gauss(4000, 3, 7, 7)]
    shift = 0.5
    found = metrics.patch_distances([b[0] + shift], b, projections=4000).mean
    # Unit directions in 147 dimensions: |sum of the coordinates| is on average sqrt(2 / pi).
    assert found == pytest.approx(shift * math.sqrt(2 / math.pi), rel=0.05)
    assert metrics.patch_distances([b[0] + shift], b, normalise="each").mean == pytest.approx(0, abs=1e-4)


def test_sliced_wasserstein_sees_blur_and_is_zero_and_repeatable_on_equal_images():
    a = noise(2, 3, 64, 64)
    soft = torch.nn.functional.avg_pool2d(a, 3, 1, 1)
    assert metrics.sliced_wasserstein(a, a).mean == 0
    state = torch.get_rng_state()
    first, second = metrics.sliced_wasserstein(soft, a), metrics.sliced_wasserstein(soft, a)
    assert first == second
    assert torch.equal(state, torch.get_rng_state())
    assert len(first.levels) == 3 and first.mean == pytest.approx(sum(first.levels) / 3)
    assert first.levels[0] > 0.1
    fainter = metrics.sliced_wasserstein(0.5 * a, a, normalise="each")
    assert fainter.mean == pytest.approx(0, abs=1e-4)
    assert metrics.sliced_wasserstein(0.5 * a, a).mean > 0.1


def test_laplacian_patches_are_windows_of_the_band():
    a = noise(2, 3, 32, 32)
    patches = metrics.laplacian_patches(a, levels=1, patches=5)[0]
    band = metrics.laplacian_pyramid(a, 1)[0]
    windows = band.unfold(2, 7, 1).unfold(3, 7, 1).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)
    for i, patch in enumerate(patches):
        assert (windows[i // 5] == patch).flatten(1).all(dim=1).any()


def test_frechet_distance_of_two_gaussians():
    a = gauss(200, 6).double()
    a = (a - a.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(a.T))).T  # exactly mean 0, covariance 1
    spread = torch.tensor([1.0, 2.0, 3.0, 0.5, 1.0, 0.0])
    b = a * spread + 2.0
    expected = 6 * 2.0**2 + (spread - 1).square().sum().item()
    assert metrics.frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert metrics.frechet_distance(b, a) == pytest.approx(expected, rel=1e-6)
    assert metrics.frechet_distance(b, b) == pytest.approx(0, abs=1e-8)


def test_frechet_distance_against_the_matrix_square_root():
    linalg = pytest.importorskip("scipy.linalg")
    a, b = gauss(300, 5) @ gauss(5, 5, seed=2), gauss(400, 5, seed=1) @ gauss(5, 5, seed=3) + 1
    ca, cb = torch.cov(a.T.double()).numpy(), torch.cov(b.T.double()).numpy()
    shift = (a.double().mean(0) - b.double().mean(0)).square().sum().item()
    expected = shift + (ca + cb - 2 * linalg.sqrtm(ca @ cb).real).trace()
    assert metrics.frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_patch_features_tell_orientation_and_scale():
    x = torch.arange(64.0)
    vertical = (0.5 + 0.3 * torch.cos(2 * math.pi * x / 3.5)).expand(1, 3, 64, 64)
    features = metrics.patch_features(vertical).mean(0)
    assert features.shape == (30,)
    assert features[:4].argmax() == 0
    assert metrics.patch_features(vertical.transpose(2, 3)).mean(0)[:4].argmax() == 2
    diagonal = 0.5 + 0.3 * torch.cos(2 * math.pi * (x[:, None] + x) / (3.5 * math.sqrt(2)))
    assert metrics.patch_features(diagonal.expand(1, 3, 64, 64)).mean(0)[:4].argmax() == 1
    flat = metrics.patch_features(torch.full((1, 3, 64, 64), 0.5))
    assert flat.shape == (4, 30)
    assert torch.allclose(flat[:, :4], torch.full((4, 4), math.log(metrics.NOISE_FLOOR)), atol=1e-3)


def test_patch_features_of_one_patch_do_not_depend_on_its_place_in_the_batch():
    a = noise(3, 3, 64, 96)
    together = metrics.patch_features(a)
    assert together.shape == (3 * 6, 30)
    assert torch.allclose(together[6:12], metrics.patch_features(a[1:2]), atol=1e-5)


@pytest.mark.parametrize("period", [2, 8])
def test_periodicity_finds_a_grid_and_nothing_in_noise(period):
    residual = 0.05 * gauss(4, 3, 256, 320)
    assert metrics.periodicity(residual, period) < 2.5
    grid = residual.clone()
    grid[:, :, :, ::period] += 0.02
    assert metrics.periodicity(grid, period) > 20
    rows = residual.clone()
    rows[:, :, ::period] += 0.02
    assert metrics.periodicity(rows, period) > 20


def test_periodicity_of_another_period_is_not_taken_for_it():
    x = torch.arange(320.0)
    residual = 0.05 * gauss(4, 3, 240, 320) + 0.05 * torch.cos(2 * math.pi * x / 5)
    assert metrics.periodicity(residual, 5) > 20
    assert metrics.periodicity(residual, 8) < 2.5
    assert metrics.periodicity(residual, 2) < 2.5


def test_harmonics_come_once_a_conjugate_pair():
    residual = gauss(1, 1, 200, 200)
    assert metrics.harmonic_ratios(residual, 2).shape == (1, 3)
    assert metrics.harmonic_ratios(residual, 8).shape == (1, (64 - 4) // 2 + 3)


def test_a_grid_of_2_px_is_left_out_of_8_px_where_asked():
    residual = 0.05 * gauss(4, 3, 256, 320)
    residual[:, :, :, ::2] += 0.02
    assert metrics.periodicity(residual, 8) > 20
    assert metrics.periodicity(residual, 8, besides=2) < 2.5


def test_wrong_input_is_one_sentence(tmp_path):
    a = noise(1, 3, 32, 32)
    with pytest.raises(ValueError, match="expected"):
        metrics.psnr(a, a[:, :, :16])
    with pytest.raises(ValueError, match="pyramid levels"):
        metrics.laplacian_pyramid(a, 5)
    with pytest.raises(ValueError, match="normalise"):
        metrics.sliced_wasserstein(a, a, levels=1, normalise="none")
    with pytest.raises(ValueError, match="period"):
        metrics.periodicity(a, 8)
    with pytest.raises(ValueError, match="two feature vectors"):
        metrics.frechet_distance(torch.zeros(1, 3), torch.zeros(5, 3))


def test_learned_metrics_never_download(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ValueError, match="no Inception weights"):
        metrics.open_fid(tmp_path / "inception.pth")
    with pytest.raises(ValueError, match="never downloaded"):
        metrics.open_lpips("alex")
    with pytest.raises(ValueError, match="expected one of"):
        metrics.open_lpips("resnet")
