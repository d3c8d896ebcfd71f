"""Put the latents of a run into one file, to train from on another machine."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("config", metavar="CONFIG.toml", help="a run, see configs/; its photos are encoded if needed")
    command.add_argument("out", metavar="OUT.safetensors", help="the file that data.cache is to name there")
    command.add_argument("--limit-mib", type=float, help="take as many examples as fit, evenly spread (default: all)")
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting")


def run(args: argparse.Namespace) -> None:
    from ..train.lift import encode_run, run_vae
    from ..train.settings import read_settings

    settings = read_settings(args.config, args.set)
    examples, _ = encode_run(settings, run_vae(settings), (0, 1))
    count = examples.save(args.out, None if args.limit_mib is None else int(args.limit_mib * 2**20))
    print(f"{args.out}: {count} of {len(examples)} examples, {Path(args.out).stat().st_size / 2**20:.1f} MiB")
