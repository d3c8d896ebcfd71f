"""Turn a checkpoint of the paper's authors into a model file."""

from __future__ import annotations

import argparse


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("checkpoint", metavar="IN.ckpt")
    command.add_argument("out", metavar="OUT.safetensors")
    command.add_argument("--weights", choices=["ema", "online"], default="ema")
    command.add_argument("--config", help="JSON settings, for a plain state dict")
    command.add_argument("--latent-space", help="where the checkpoint does not say (default: sd15)")
    command.add_argument("--scale", type=int, help="where the checkpoint does not say")


def run(args: argparse.Namespace) -> None:
    from ..files.authors import convert_checkpoint

    options = {name: getattr(args, name) for name in ("weights", "config", "latent_space", "scale")}
    print(convert_checkpoint(args.checkpoint, args.out, **options))
