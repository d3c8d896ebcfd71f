"""Options that several commands share."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..sampling import STEPS, Sampling
from ..solver import SOLVERS

if TYPE_CHECKING:
    from ..latent_spaces import LatentSpace
    from ..vae.autoencoder import Autoencoder

log = logging.getLogger(__name__)

DEFAULT_MODEL = "fmboost-sd15-x2"


def add_sampling(command: argparse.ArgumentParser) -> None:
    """A model, its autoencoder and how its flow is followed."""
    command.add_argument(
        "--model", default=DEFAULT_MODEL, help="a model file or a shipped model (default: %(default)s)"
    )
    command.add_argument("--vae", type=Path, help="TAESD file or folder (default: the small autoencoder that ships)")
    command.add_argument("--steps", type=int, default=STEPS, help="solver intervals (default: %(default)s)")
    command.add_argument("--solver", choices=list(SOLVERS), default="euler")
    command.add_argument("--seed", type=int, default=0)
    add_device(command)


def add_device(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", type=device, default="cpu", help="such as cpu, cuda, mps (default: %(default)s)")


def sampling_of(args: argparse.Namespace) -> Sampling:
    return Sampling(steps=args.steps, solver=args.solver, seed=args.seed, tile=getattr(args, "tile", 0))


def vae_of(space: LatentSpace, args: argparse.Namespace) -> Autoencoder:
    """The autoencoder of --vae, or the one that ships. Raises ValueError where there is neither."""
    from ..vae.family import mistaken_for
    from ..vae.files import load_vae, shipped_vae

    path = args.vae or shipped_vae(space.name)
    if path is None:
        raise ValueError(f"no autoencoder for {space.name} latents ships: give a TAESD file or folder as --vae")
    vae = load_vae(path, space=space.name, device=args.device)
    if not args.vae:
        log.warning(
            "no --vae given: the small autoencoder that ships makes soft pictures; for results to keep, give the TAESD "
            "of %s latents as --vae (github.com/madebyollin/taesd)",
            space.name,
        )
    if args.vae and (other := mistaken_for(vae, space)) is not None:
        log.warning(
            "%s makes latents with the colours of %s and is used for %s: if the result has wrong colours, give an "
            "autoencoder of %s as --vae",
            *(path, other.name, space.name, space.name),
        )
    return vae


def device(text: str) -> str:
    """A device of this machine."""
    import torch

    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(
            f"{text!r} is not available on this machine ({reason}): expected one that is, such as cpu"
        ) from error
    return text


def list_of(kind: type[int] | type[float], expected: str) -> Callable[[str], tuple[Any, ...]]:
    """Numbers separated by commas."""

    def read(text: str) -> tuple[Any, ...]:
        try:
            return tuple(kind(part) for part in text.split(",") if part.strip())
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r}: expected {expected}") from error

    return read
