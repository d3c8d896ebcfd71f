"""Running what may not fit into memory: again in smaller tiles, as often as that helps."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

log = logging.getLogger(__name__)

SMALLEST_TILE = 16  # latent pixels


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch raised `error` for want of memory, on any device."""
    said = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in said or "can't allocate memory" in said)
    )


def within_memory(
    run: Callable[[int], Tensor],
    tile: int,
    side: int,
    *,
    ran_out: Callable[[BaseException], bool] = is_out_of_memory,
    release: Callable[[], None] = lambda: None,
) -> tuple[Tensor, int]:
    """`run(tile)`, and where memory does not suffice again with tiles of half the side, down to 16 latent pixels.

    `side` is that of the whole result in latent pixels, `ran_out` tells such an error, `release` frees what it can.
    Returns the result and the tile that it took; raises the last error where no tile is small enough.
    """
    while True:
        try:
            return run(tile), tile
        except Exception as error:
            smaller = min(tile or side, side) // 2 // SMALLEST_TILE * SMALLEST_TILE
            if not ran_out(error) or not smaller:
                raise
        # Outside the handler, whose traceback would keep the tensors of the failed run alive.
        release()
        log.warning("out of memory: trying again in tiles of %d latent pixels", smaller)
        tile = smaller
