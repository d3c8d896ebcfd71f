"""The mean of two models' weights (model soups, Wortsman et al. 2022, arXiv 2203.05482): not in the paper.

Two trainings that went on from the same weights mostly still lie in one basin: between them the network has some of
what each of them learned. Between a reflow, whose texture is right, and more steps towards the photos, whose colours
are, this came nearer to photos in ten steps than either (docs/experiments.md).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..checkpoint import read_model_file, resolve, save_model, take_maps
from ..config import ModelConfig


def average(origin: str | Path, other: str | Path, out: str | Path, share: float = 0.5) -> None:
    """Write ``(1 - share) * origin + share * other`` to `out`, with the settings of `origin`.

    Both are model files or shipped models. Linear maps that end their lifts (`transport.py`) are left out: they were
    fitted to each. Raises ValueError where `share` is not in 0..1, or the two do not have the same network, latents
    and start.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}: expected 0, all of {origin}, to 1, all of {other}")
    (config, first), (others, second) = read_model_file(resolve(origin)), read_model_file(resolve(other))
    for name, a, b in zip(("network", "latents", "start"), _nature(config), _nature(others), strict=True):
        if a != b:
            raise ValueError(
                f"{origin} and {other} differ in their {name}, {a} and {b}: expected two trainings of one model"
            )
    take_maps(first)
    take_maps(second)
    state = {k: (1 - share) * v.float() + share * second[k].float() for k, v in first.items()}
    trained_on = {k: v for k, v in config.trained_on.items() if k != "transport"}
    trained_on["average"] = f"with a share of {share:g} of another training, {dict(others.trained_on)}"
    save_model(out, replace(config, transport=False, corrections=False, trained_on=trained_on), state)


def _nature(config: ModelConfig) -> tuple[object, str, object]:
    """What two models must share to have a mean: noise, and rounds of back projection, may be chosen later."""
    return config.net, config.latent_space, replace(config.flow, noise_step=0, back_projection=0)
