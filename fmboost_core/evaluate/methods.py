"""The ways from a low latent to a high one that an evaluation compares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ..context import interpolate
from ..images.resize import enlarge
from ..model import CFMModel
from ..noise import draw_noise
from ..sampling import Sampling
from ..solver import SOLVERS
from ..vae.autoencoder import Autoencoder
from .realesrgan import RealESRGAN
from .table import Row

BASELINES = ("nearest", "bilinear", "psu", "realesrgan")
DISTURBED = 2**32
"""Added to the index of a photo, so that its disturbance is independent of the noise of the model's source."""


@dataclass(frozen=True)
class Method:
    """A way from the low latent of photo number `index` to a high one, with the network evaluations it took."""

    row: Row
    lift: Callable[[Tensor, int], tuple[Tensor, int]]
    disturb: Callable[[Tensor, int], Tensor] = lambda low, index: low
    """Applied to the low latent first, outside the measured time."""


def is_regression(model: CFMModel) -> bool:
    """Whether the file says that the model was trained to answer in one step from a clean source."""
    return model.config.trained_on.get("objective") == "regression"


def baseline(name: str, scale: int, vae: Autoencoder) -> Method:
    """A method without a network of ours.

    ``nearest`` and ``bilinear`` interpolate the latent; ``psu`` decodes, enlarges bilinearly and encodes;
    ``realesrgan`` decodes, enlarges with Real-ESRGAN x4plus, reduces to the size and encodes. Raises ValueError for
    another name.
    """
    if name not in BASELINES:
        raise ValueError(f"unknown baseline {name!r}: expected one of {', '.join(BASELINES)}")
    if name in {"nearest", "bilinear"}:
        return Method(Row(name), lambda low, index: (interpolate(low, scale, name), 0))
    if name == "psu":
        return Method(Row(name), lambda low, index: (vae.encode(enlarge(vae.decode(low), scale)), 0))
    upscaler = RealESRGAN()
    return Method(Row(name), lambda low, index: (vae.encode(upscaler(vae.decode(low), scale)), 0))


def model_runs(
    name: str, model: CFMModel, vae: Autoencoder, steps: Sequence[int], solvers: Sequence[str], sampling: Sampling
) -> list[Method]:
    """The model with each solver and number of steps; an adaptive solver and a regression model have one run."""
    if is_regression(model):
        return [_run(name, model, vae, replace(sampling, steps=1, solver="euler", noise_step=0))]
    runs = []
    for solver in solvers:
        for n in steps if SOLVERS[solver].nodes else steps[:1]:
            runs.append(_run(name, model, vae, replace(sampling, steps=n, solver=solver)))
    return runs


def _run(name: str, model: CFMModel, vae: Autoencoder, sampling: Sampling) -> Method:
    def lift(low: Tensor, index: int) -> tuple[Tensor, int]:
        calls = 0

        def count(evaluation: int, *_: object) -> None:
            nonlocal calls
            calls = evaluation

        high = model.upscale(low, replace(sampling, batch_index=(index,)), vae=vae, callback=count)
        return high, calls

    fixed = bool(SOLVERS[sampling.solver].nodes)
    return Method(Row(name, sampling.solver, sampling.steps if fixed else None), lift)


def disturbed(methods: Sequence[Method], vae: Autoencoder, deviations: Sequence[float], seed: int) -> list[Method]:
    """The same methods on low latents with noise of each standard deviation, and after a round trip through the VAE."""
    if deviations and min(deviations) <= 0:
        raise ValueError(f"latent noise of {min(deviations)}: expected standard deviations above 0")

    def noise(deviation: float) -> Callable[[Tensor, int], Tensor]:
        return lambda low, index: low + deviation * draw_noise(low.shape, seed, [DISTURBED + index]).to(low)

    ways: Mapping[str, Callable[[Tensor, int], Tensor]] = {
        **{f"noise {deviation:g}": noise(deviation) for deviation in deviations},
        **({"round trip": lambda low, index: vae.encode(vae.decode(low))} if deviations else {}),
    }
    return [
        Method(replace(method.row, disturbance=how), method.lift, disturb)
        for how, disturb in ways.items()
        for method in methods
    ]
