"""Lift the latents of a few photos that ship, and compare the results with the truth."""

from __future__ import annotations

import argparse
from pathlib import Path

from .options import add_sampling, sampling_of, vae_of


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--out", type=Path, default=Path("demo-output"), help="folder for demo.png and report.json")
    add_sampling(command)


def run(args: argparse.Namespace) -> None:
    from ..demo import demo_table, run_demo
    from ..files.model_file import load_model

    model = load_model(args.model, device=args.device)
    report = run_demo(model, vae_of(model.space, args), args.out, sampling_of(args), progress=lambda n: print(f"  {n}"))
    print(
        f"{args.model}: {report['low']} -> {report['high']} latents, {args.solver} {args.steps} steps, "
        f"{report['seconds_per_image']:.2f} s per image"
    )
    print(demo_table(report))
    print(f"picture: {args.out / 'demo.png'} ({report['picture']})\nreport:  {args.out / 'report.json'}")
