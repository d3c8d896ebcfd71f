"""Windows over an image and the weights that blend them: pure geometry."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor


def windows(length: int, tile: int, overlap: int) -> tuple[int, list[int]]:
    """Size of the windows that cover 0..length, and where they begin.

    There are as few as windows of at most `tile` allow whose neighbours share at least `overlap`, they are spread
    evenly, and no larger than that needs: little is computed twice. A length of at most `tile` needs one window.
    """
    if length <= tile:
        return length, [0]
    count = -(-(length - overlap) // (tile - overlap))
    size = -(-(length + (count - 1) * overlap) // count)
    return size, [i * (length - size) // (count - 1) for i in range(count)]


def feather(size: int, overlap: int) -> Tensor:
    """(size,) weights that rise over `overlap` from the edges of a window to 1, as sin^2, and are never 0.

    A network is at its worst next to an edge, where it sees its padding. A straight ramp lets enough of that through
    to show as a line; sin^2 starts flat, and with its neighbour's cos^2 it is a partition of unity all the same.
    """
    distance = torch.arange(1, size + 1, dtype=torch.float32)
    ramp = torch.minimum(distance, distance.flip(0)).div(overlap + 1).clamp(max=1)
    return (math.pi / 2 * ramp).sin().square()


def blend(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    tile: int,
    overlap: int,
    batch: int = 1,
    unit_in: int = 1,
    unit_out: int = 1,
) -> Tensor:
    """Apply `function` to windows of x (B, C, H, W) and blend what it gives over the whole.

    `tile` and `overlap` count units; a unit is `unit_in` pixels of x and `unit_out` pixels of the result (a decoder
    makes 8 of 1, an encoder 1 of 8). `function` sees at most `batch` windows (of all B images) at once. Memory beyond
    x and the result depends on the tile alone, and the order of the windows does not matter.
    """
    if tile < 2 or not 0 <= overlap <= tile // 2:
        raise ValueError(f"tile {tile} with overlap {overlap}: expected a tile of at least 2, overlap up to half of it")
    rows, columns = x.shape[2] // unit_in, x.shape[3] // unit_in
    (height, tops), (width, lefts) = (windows(length, tile, overlap) for length in (rows, columns))
    corners = list(product(tops, lefts))
    weight = feather(height * unit_out, overlap * unit_out)[:, None] * feather(width * unit_out, overlap * unit_out)
    weight = weight.to(x.device)
    norm = torch.zeros(rows * unit_out, columns * unit_out, device=x.device)
    total: Tensor | None = None
    for first in range(0, len(corners), batch):
        group = corners[first : first + batch]
        parts = torch.cat([_window(x, i, j, height, width, unit_in) for i, j in group])
        results = function(parts).split(x.shape[0])
        for (i, j), result in zip(group, results, strict=True):
            if total is None:
                total = result.new_zeros((*result.shape[:2], *norm.shape))
            _window(total, i, j, height, width, unit_out).add_(result * weight)
            _window(norm, i, j, height, width, unit_out).add_(weight)
    assert total is not None
    return total / norm


def _window(x: Tensor, row: int, column: int, height: int, width: int, unit: int) -> Tensor:
    return x[..., row * unit : (row + height) * unit, column * unit : (column + width) * unit]
