"""Parses the command line and turns a user's mistake into one sentence."""

from __future__ import annotations

import argparse
import logging
import sys

from . import convert, demo, evaluate, pack, train, trajectory, upscale

COMMANDS = {
    "demo": demo,
    "upscale": upscale,
    "trajectory": trajectory,
    "evaluate": evaluate,
    "convert": convert,
    "train": train,
    "pack": pack,
}


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit status: 2, and a sentence on stderr, for a user's mistake."""
    parser = argparse.ArgumentParser(prog="fmboost", description="Lift latents of diffusion models to 2x or 4x.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        summary = (module.__doc__ or "").split("\n")[0].rstrip(".")
        command = subparsers.add_parser(name, help=summary[0].lower() + summary[1:], description=module.__doc__)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    try:
        args = parser.parse_args(argv)
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        return args.run(args) or 0
    except ModuleNotFoundError as error:
        print(f"fmboost: {error.name} is not installed: pip install 'fmboost[train]' brings it", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"fmboost: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fmboost: stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
