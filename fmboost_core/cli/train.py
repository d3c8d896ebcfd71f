"""Train a model, or a small autoencoder, on folders of photos."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("config", metavar="CONFIG.toml", help="a run, see configs/")
    command.add_argument("--out", default=None, help="folder of the run (default: runs/NAME)")
    command.add_argument("--resume", action="store_true", help="go on exactly where the run in --out stopped")
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting, such as train.steps=5000"
    )


def run(args: argparse.Namespace) -> None:
    from ..train.run import train
    from ..train.settings import read_settings

    settings = read_settings(args.config, args.set)
    model = train(settings, Path(args.out or Path("runs") / settings.name), resume=args.resume)
    print(f"trained {model}")
