"""Windows cover everything, weights sum to one, and blending changes nothing but memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fmboost_core.tiling import blend, feather, windows

TILINGS = [(8, 0), (8, 2), (16, 4), (33, 8), (64, 16), (64, 32), (128, 32)]


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("tile", "overlap"), TILINGS)
def test_windows_cover_every_length(tile, overlap):
    for length in range(1, 513):
        size, begin = windows(length, tile, overlap)
        if length <= tile:
            assert (size, begin) == (length, [0])
            continue
        assert begin[0] == 0 and begin[-1] == length - size
        steps = [b - a for a, b in zip(begin, begin[1:], strict=False)]
        assert min(steps) > 0
        assert max(steps) <= size - overlap  # neighbours share at least the overlap
        assert max(steps) - min(steps) <= 1  # evenly
        assert len(begin) == -(-(length - overlap) // (tile - overlap))  # no window too many
        assert size <= tile
        assert len(begin) * (size - 1) < length + (len(begin) - 1) * overlap  # a pixel less would not cover it


@pytest.mark.parametrize(("size", "overlap"), [(1, 0), (2, 1), (7, 3), (16, 4), (64, 32)])
def test_feather_is_symmetric_positive_and_full_inside(size, overlap):
    weight = feather(size, overlap)
    assert weight.min() > 0 and weight.max() <= 1
    assert torch.equal(weight, weight.flip(0))
    inside = weight[overlap : size - overlap]
    assert torch.equal(inside, torch.ones_like(inside))


@pytest.mark.parametrize(("tile", "overlap"), TILINGS)
def test_blending_is_a_partition_of_unity_at_every_size(tile, overlap):
    """What does not depend on the window comes back as it is, at all lengths from 8 to 512, odd ones too."""
    whole = noise(1, 2, 9, 512)
    for length in range(8, 513):
        x = whole[..., :length]
        torch.testing.assert_close(blend(lambda w: w, x, tile, overlap, batch=64), x, rtol=0, atol=2e-6)


@pytest.mark.parametrize("size", [(65, 64), (100, 37), (129, 131), (200, 64)])
def test_blending_a_pointwise_function_in_two_dimensions(size):
    x = noise(2, 3, *size)
    blended = blend(lambda w: torch.stack([w[:, 0] * w[:, 1], w[:, 2].sin()], dim=1), x, 64, 16)
    expected = torch.stack([x[:, 0] * x[:, 1], x[:, 2].sin()], dim=1)
    torch.testing.assert_close(blended, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("size", [(80, 80), (97, 131), (64, 150)])
def test_a_local_function_is_unchanged_away_from_window_borders(size):
    """A 5 x 5 convolution padded with zeros is only wrong within 2 of an inner border of a window."""
    tile, overlap, reach = 48, 12, 2
    x, kernel = noise(1, 3, *size), noise(3, 3, 5, 5)
    whole = F.conv2d(x, kernel, padding=reach)
    blended = blend(lambda w: F.conv2d(w, kernel, padding=reach), x, tile, overlap)
    sound = torch.ones(size, dtype=torch.bool)
    for axis, length in enumerate(size):
        size_here, begin = windows(length, tile, overlap)
        for start in begin:
            for border in (start, start + size_here):
                if 0 < border < length:
                    sound.narrow(axis, border - reach, 2 * reach).fill_(False)
    assert 0.3 < sound.float().mean() < 1
    torch.testing.assert_close(blended[..., sound], whole[..., sound], rtol=0, atol=2e-5)
    assert (blended - whole).abs().max() < (whole.abs().max() * 2)


def test_order_and_batching_of_windows_do_not_matter():
    x = noise(2, 3, 80, 56)  # windows begin at 0, 24, 48: the same from both ends
    kernel = noise(3, 3, 3, 3)
    results = [blend(lambda w: F.conv2d(w, kernel, padding=1), x, 32, 8, batch=n) for n in (1, 2, 7, 100)]
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=1e-5)
    mirrored = blend(lambda w: F.conv2d(w, kernel.flip(2, 3), padding=1), x.flip(2, 3), 32, 8).flip(2, 3)
    torch.testing.assert_close(mirrored, results[0], rtol=0, atol=1e-5)


def test_no_window_is_larger_than_asked():
    seen = []
    blend(lambda w: seen.append(tuple(w.shape)) or w, noise(2, 3, 100, 20), 32, 8, batch=3)
    size, begin = windows(100, 32, 8)
    assert {shape[1:] for shape in seen} == {(3, size, 20)}
    assert max(shape[0] for shape in seen) == 2 * 3
    assert sum(shape[0] for shape in seen) == 2 * len(begin)


@pytest.mark.parametrize("rows", [7, 8, 13, 30])
def test_units_scale_the_geometry_of_decoders_and_encoders(rows):
    """A function that makes 4 pixels of 1, or 1 of 4, gives the same in windows as on the whole."""
    latent = noise(1, 2, rows, 19)
    images = latent.repeat_interleave(4, 2).repeat_interleave(4, 3)
    up = blend(lambda w: w.repeat_interleave(4, 2).repeat_interleave(4, 3), latent, 8, 2, unit_out=4)
    down = blend(lambda w: F.avg_pool2d(w, 4), images, 8, 2, unit_in=4)
    torch.testing.assert_close(up, images, rtol=0, atol=2e-6)
    torch.testing.assert_close(down, latent, rtol=0, atol=2e-6)


@pytest.mark.parametrize("unit", [1, 4])
def test_windows_cross_fade_over_all_they_share(unit):
    """Windows 0..8 and 6..14 of values 0 and 1: sin^2 rises over the two units both cover."""
    values = iter([0.0, 1.0])
    x = torch.zeros(1, 1, 1, 14)
    row = blend(lambda w: torch.full((1, 1, unit, 8 * unit), next(values)), x, 8, 2, unit_out=unit)[0, 0, 0]
    assert row[: 6 * unit].eq(0).all() and row[8 * unit :].eq(1).all()
    ramp = row[6 * unit - 1 : 8 * unit + 1]
    expected = (1 - torch.cos(torch.linspace(0, torch.pi, 2 * unit + 2))) / 2
    torch.testing.assert_close(ramp, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("tile", "overlap"), [(1, 0), (8, 5), (8, -1)])
def test_impossible_tilings_are_refused(tile, overlap):
    with pytest.raises(ValueError, match=f"tile {tile} with overlap {overlap}: expected"):
        blend(lambda w: w, noise(1, 1, 20, 20), tile, overlap)
