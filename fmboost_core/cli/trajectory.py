"""Draw what the flow passes through, as a strip of pictures (paper Fig. 8)."""

from __future__ import annotations

import argparse
from pathlib import Path

from .options import add_sampling, sampling_of, vae_of


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("photo", type=Path)
    command.add_argument("-o", "--out", type=Path, required=True, help="the picture to write: states above estimates")
    command.add_argument("--frames", type=int, default=5)
    command.add_argument("--short-side", type=int, help="reduce the photo to it, px")
    add_sampling(command)


def run(args: argparse.Namespace) -> None:
    import torch

    from ..files.model_file import load_model
    from ..images.files import check_picture, load_photo, save_photo
    from ..trajectory import trajectory

    check_picture(args.out)
    model = load_model(args.model, device=args.device)
    vae = vae_of(model.space, args)
    with torch.inference_mode():
        low = vae.encode(load_photo(args.photo, args.short_side, model.space.pixels))
        path = trajectory(model, low, sampling_of(args), frames=args.frames, vae=vae)
        strips = [torch.cat([vae.decode(x) for x in row], dim=3) for row in (path.states, path.estimates)]
    save_photo(torch.cat(strips, dim=2), args.out)
    times = ", ".join(f"{t:.2f}" for t in path.times.tolist())
    print(f"{args.out}: t = {times}; above the states x_t, below the estimates of x1")
