"""Enlarge pictures: encode them, lift the latents, decode."""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .options import add_sampling, sampling_of, vae_of

if TYPE_CHECKING:
    from torch import Tensor

    from ..model import CFMModel
    from ..sampling import Sampling
    from ..vae.autoencoder import Autoencoder

log = logging.getLogger(__name__)


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("pictures", type=Path, nargs="+", metavar="PICTURE", help="files, or folders of them")
    command.add_argument("-o", "--out", type=Path, required=True, help="the picture to write, or a folder for several")
    command.add_argument("--overwrite", action="store_true", help="write over pictures that are there already")
    command.add_argument("--tile", type=int, default=0, help="latent pixels a window; 0 takes the picture whole")
    command.add_argument(
        "--scale", type=float, help="default: the model's; beyond it by several lifts, between by reducing the picture"
    )
    add_sampling(command)


def run(args: argparse.Namespace) -> int:
    import torch
    from tqdm import tqdm

    from ..files.model_file import load_model

    jobs = _jobs(args.pictures, args.out)
    model = load_model(args.model, device=args.device)
    vae = vae_of(model.space, args)
    scale = model.scale if args.scale is None else args.scale
    failed = 0
    for source, target in tqdm(jobs, unit="picture", disable=len(jobs) == 1):
        if target.exists() and not args.overwrite:
            print(f"{target} is there already and was kept: --overwrite replaces it")
            continue
        try:
            with torch.inference_mode():
                print(_upscale(source, target, model, vae, sampling_of(args), scale))
        except (ValueError, OSError) as error:
            failed += 1
            print(f"fmboost: {error}", file=sys.stderr)
    return 2 if failed else 0


def _jobs(pictures: list[Path], out: Path) -> list[tuple[Path, Path]]:
    """What to read and what to write. Raises ValueError or FileNotFoundError before any work is done."""
    from ..images.files import LARGEST, check_picture
    from ..images.folders import IMAGE_SUFFIXES

    found: list[tuple[Path, Path]] = []  # and its path below the folder that was named
    for path in pictures:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
            found += [(p, p.relative_to(path)) for p in inside]
        elif path.is_file():
            found.append((path, Path(path.name)))
        else:
            raise FileNotFoundError(f"no picture at {path}")
    if not found:
        raise ValueError(
            f"no pictures in {', '.join(map(str, pictures))}: expected {', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    single = len(found) == 1 and not pictures[0].is_dir() and not out.is_dir()
    if single:
        check_picture(out)
        return [(found[0][0], out)]
    out.mkdir(parents=True, exist_ok=True)
    jobs: dict[Path, Path] = {}  # the source of every target
    for source, below in found:
        target = out / (below if below.suffix.lower() in LARGEST else below.with_suffix(".png"))
        if target in jobs:
            raise ValueError(f"two pictures would be written to {target}: rename one, or lift them apart")
        jobs[target] = source
    return [(source, target) for target, source in jobs.items()]


def _upscale(source: Path, target: Path, model: CFMModel, vae: Autoencoder, sampling: Sampling, scale: float) -> str:
    import time

    from ..cascade import cascade, lifts
    from ..images.files import check_picture, read_picture, save_photo
    from ..images.resize import resize
    from ..memory import is_out_of_memory, within_memory

    began = time.perf_counter()
    picture = read_picture(source)
    height, width = picture.colour.shape[2:]
    size = [max(1, round(scale * side)) for side in (height, width)]
    target.parent.mkdir(parents=True, exist_ok=True)  # of a folder's inner folders
    check_picture(target, (size[0], size[1]))
    models = [model] * lifts(model.scale, scale)
    made = model.scale ** len(models)
    evaluations, whole = 0, vae.tile

    def count(*_: object) -> None:
        nonlocal evaluations
        evaluations += 1

    def lift(tile: int) -> Tensor:
        nonlocal evaluations
        evaluations = 0  # not those of an attempt that failed
        vae.tile = min(whole, tile) if tile else whole
        low = vae.encode(_padded(picture.colour, model.space.pixels))
        high = cascade(models, low, replace(sampling, tile=tile), vae=vae, callback=count)
        return vae.decode(high)[:, :, : made * height, : made * width].cpu()

    try:
        image, _ = within_memory(lift, sampling.tile, made * max(height, width) // model.space.pixels)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise ValueError(f"{source} does not fit into memory even in the smallest tiles: reduce it first") from error
    finally:
        vae.tile = whole  # a smaller picture may fit
    alpha = None if picture.alpha is None else resize(picture.alpha, size)
    save_photo(resize(image, size), target, alpha)
    seconds = time.perf_counter() - began
    return f"{target}: {width}x{height} -> {size[1]}x{size[0]} px, {evaluations} evaluations, {seconds:.1f} s"


def _padded(image: Tensor, multiple: int) -> Tensor:
    """The image extended at the right and the bottom, by its own border, to multiples of `multiple`."""
    import torch.nn.functional as F

    height, width = image.shape[2:]
    return F.pad(image, (0, -width % multiple, 0, -height % multiple), mode="replicate")
