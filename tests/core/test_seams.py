"""Tiles leave no trace: what they change looks the same at the borders of windows as anywhere else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fmboost_core import solver, tiling
from fmboost_core.config import NetConfig
from fmboost_core.model import CFMModel
from fmboost_core.sampling import Sampling

SIDE, TILE, OVERLAP = 256, 64, 16
# Norms over all of a window and attention over all of it: every pixel depends on where the window is.
NET = NetConfig(model_channels=32, num_res_blocks=1, channel_mult=(1, 1, 1), attention_resolutions=(), head_channels=8)


def smooth(height: int, width: int) -> Tensor:
    """(1, 4, height, width) noise with the long waves pictures have."""
    noise = torch.randn(1, 4, 4 * height, 4 * width, generator=torch.Generator().manual_seed(1))
    return 2 * F.avg_pool2d(noise, 4)


def lines(difference: Tensor, tile: int, overlap: int) -> tuple[Tensor, Tensor]:
    """Mean |gradient| across each line between two pixels of `difference` (1, C, L, L), over rows and over columns:
    at the borders of windows, and where one window is alone; the edges of the image are left out."""
    length = difference.shape[3]
    tile, begin = tiling.windows(length, tile, overlap)
    begin = torch.tensor(begin)
    at = torch.arange(1, length)  # line k lies between pixels k - 1 and k
    borders = (at[:, None] == torch.cat([begin, begin + tile])).any(1)
    inside = ((at[:, None] > begin) & (at[:, None] < begin + tile)).sum(1)
    alone = (inside == 1) & ~borders
    alone[[0, -1]] = False
    across = [difference.diff(dim=dim).abs().mean(dim=(0, 1, 5 - dim)) for dim in (2, 3)]
    return torch.cat([g[borders] for g in across]), torch.cat([g[alone] for g in across])


@pytest.fixture(scope="module")
def lifted(random_model) -> Callable[..., Tensor]:
    """`windows`, a way to evaluate a network in windows -> the difference of its lift to that of the whole."""
    model: CFMModel = random_model(net=NET, noise_step=200)
    low = smooth(SIDE // 2, SIDE // 2)
    whole = model.upscale(low, steps=2)
    upsampled = low.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert (whole - upsampled).std() > 0.3 * low.std()

    def lift(overlap: int | None) -> Tensor:
        if overlap is None:
            return model.upscale(low, steps=2, tile=TILE) - whole
        context = model.make_context(low)
        torch.testing.assert_close(context, upsampled)

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            return tiling.blend(lambda w: model._network(w, t), torch.cat([x, context], dim=1), TILE, overlap)

        return solver.integrate(velocity, model.make_source(context, Sampling()), steps=2)[-1] - whole

    return lift


def test_no_seam_where_windows_end(lifted):
    difference = lifted(None)
    borders, elsewhere = lines(difference, TILE, OVERLAP)
    assert difference.std() > 1e-3  # there is something to see
    assert float(borders.mean() / elsewhere.mean()) == pytest.approx(1, abs=0.2)
    assert borders.max() < 1.2 * elsewhere.max()


def test_windows_without_blending_have_seams(lifted):
    """The statistic finds them, so it can fail."""
    borders, elsewhere = lines(lifted(0), TILE, 0)
    assert borders.mean() > 5 * elsewhere.mean()


@pytest.mark.parametrize("size", [(8, 8), (9, 31), (33, 31), (511, 8), (7, 100), (41, 43)])
def test_lifts_of_any_size_are_near_those_of_the_whole(size, random_model):
    model = random_model(net=NET, noise_step=200)
    low = smooth(*size)
    whole, tiled = (model.upscale(low, steps=1, tile=tile) for tile in (0, TILE))
    assert tiled.shape == (1, 4, 2 * size[0], 2 * size[1])
    if 2 * max(size) <= TILE:
        assert torch.equal(tiled, whole)
    else:
        moved = (whole - F.interpolate(low, scale_factor=2)).std()
        assert 0 < (tiled - whole).std() < 0.1 * moved


def test_the_largest_latents_are_lifted():
    """512 x 512 from a network whose windows know nothing of each other: 121 windows, each of its own mean."""
    x = smooth(512, 512)
    v = tiling.blend(lambda w: w - w.mean(dim=(2, 3), keepdim=True), x, TILE, OVERLAP)
    assert v.shape == x.shape
    assert (v - x).abs().max() < 0.2  # the mean of 64 x 64 of these values has a standard deviation of 0.008
