"""How a trained flow is followed, as one value that is checked once and passed whole."""

from __future__ import annotations

from dataclasses import dataclass

from .noise import check_noise_step
from .solver import check_solver

STEPS = 4
"""The default number of solver steps: what the shipped models are trained for."""


@dataclass(frozen=True)
class Sampling:
    """Settings of a lift. Raises ValueError for a value out of its range.

    `steps` are solver intervals of equal length, so Euler with 4 makes 4 network evaluations. Image b of a batch
    draws its noise from (`seed`, `batch_index[b]`) alone; the default index is its place in the batch. `noise_step`
    is the step of the cosine schedule to which the source is noised (paper 3.2.3), None for the one the model was
    trained with. With `tile` above 0 the network sees windows of at most that many latent pixels of the result on a
    side.
    """

    steps: int = STEPS
    solver: str = "euler"
    seed: int = 0
    noise_step: int | None = None
    batch_index: tuple[int, ...] | None = None
    tile: int = 0

    def __post_init__(self) -> None:
        check_solver(self.solver)
        if self.noise_step is not None:
            check_noise_step(self.noise_step)
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}: expected a whole number from 1")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}: expected a whole number from 0")
        if self.tile and self.tile < 2:
            raise ValueError(f"tile is {self.tile}: expected 0 (no tiles) or a whole number from 2")
        if self.batch_index is not None:
            object.__setattr__(self, "batch_index", tuple(self.batch_index))
