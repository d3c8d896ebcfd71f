"""Enlarge a photo: encode it, lift the latent, decode."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from .options import add_sampling, sampling_of, vae_of


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("photo", type=Path)
    command.add_argument("-o", "--out", type=Path, required=True, help="the picture to write")
    command.add_argument("--tile", type=int, default=0, help="latent pixels a window; 0 takes the picture whole")
    command.add_argument(
        "--scale", type=float, help="default: the model's; beyond it by several lifts, between by reducing the picture"
    )
    add_sampling(command)


def run(args: argparse.Namespace) -> None:
    import torch
    from tqdm import tqdm

    from ..cascade import cascade, lifts
    from ..files.model_file import load_model
    from ..images.files import check_picture, load_photo, save_photo
    from ..images.resize import resize

    check_picture(args.out)
    model = load_model(args.model, device=args.device)
    scale = model.scale if args.scale is None else args.scale
    models = [model] * lifts(model.scale, scale)
    vae = vae_of(model.space, args)
    photo = load_photo(args.photo, None, model.space.pixels)
    began = time.perf_counter()
    with torch.inference_mode(), tqdm(unit="evaluation") as bar:

        def report(evaluation: int, total: int | None, t: float, estimate: torch.Tensor) -> None:
            bar.total = total
            bar.update()

        low = vae.encode(photo)
        high = cascade(models, low, sampling_of(args), vae=vae, callback=report)
        evaluations = bar.n
        image = resize(vae.decode(high), [round(scale * side) for side in photo.shape[2:]])
    save_photo(image, args.out)
    size = f"{photo.shape[3]}x{photo.shape[2]} -> {image.shape[3]}x{image.shape[2]} px"
    latents = f"{low.shape[3]}x{low.shape[2]} -> {high.shape[3]}x{high.shape[2]} latents"
    print(f"{args.out}: {size}, {latents}, {evaluations} evaluations, {time.perf_counter() - began:.1f} s")
