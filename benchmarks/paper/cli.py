"""python -m benchmarks.paper EXPERIMENT... --config small --photos FOLDER --held-out FOLDER --vae TAESD

Experiments: tab1 tab2 tab3 tab4 tab6 tab7 fig1 fig8 fig9 fig10 straight, or all of them. Networks are trained once,
when an experiment first needs them, and kept in --out with the latents; run again, a command goes on where it stopped.
Tab. 5 needs Stable Diffusion in a ComfyUI server: python -m benchmarks.paper.guidance.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from fmboost_core.vae.files import shipped_vae

from . import autoencoder, paths, quality, speed
from .lab import Lab, synthetic_photos
from .presets import PRESETS
from .report import described, write

EXPERIMENTS = {
    "tab1": quality.tab1,
    "tab2": quality.tab2,
    "tab3": quality.tab3,
    "tab4": quality.tab4,
    "tab6": autoencoder.tab6,
    "tab7": quality.tab7,
    "fig1": speed.fig1,
    "fig8": paths.fig8,
    "fig9": quality.fig9,
    "fig10": quality.fig10,
    "straight": paths.straight,
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiments", nargs="+", choices=[*EXPERIMENTS, "all"], metavar="EXPERIMENT")
    parser.add_argument("--config", choices=list(PRESETS), default="small")
    parser.add_argument("--photos", type=Path, help="folder to train on (default for tiny: made-up pictures)")
    parser.add_argument("--held-out", type=Path, help="folder to evaluate on")
    parser.add_argument("--vae", type=Path, help="TAESD file or folder, or a diffusers AutoencoderKL folder")
    parser.add_argument("--fid", type=Path, help="Inception weights, for FID")
    parser.add_argument("--out", type=Path, help="folder for everything (default: runs/paper-CONFIG)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    args = parser.parse_args(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    out = args.out or Path("runs") / f"paper-{args.config}"
    preset = PRESETS[args.config]
    if args.config == "tiny" and args.photos is None:
        args.photos = args.held_out = synthetic_photos(out / "synthetic", 3, preset.short_side)
        args.vae = args.vae or shipped_vae("sd15")
    try:
        if None in (args.photos, args.held_out, args.vae):
            raise ValueError(f"config {args.config} needs --photos, --held-out and --vae: give all three")
        lab = Lab(preset, out, args.photos, args.held_out, args.vae, args.fid, args.device)
        for name in EXPERIMENTS if "all" in args.experiments else args.experiments:
            run(lab, name, args.config)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def run(lab: Lab, name: str, config: str) -> Path:
    """One experiment and its report."""
    print(f"{name}: {EXPERIMENTS[name].__doc__}", flush=True)
    lab.ran.clear()
    wall, cpu = time.perf_counter(), time.process_time()
    report = EXPERIMENTS[name](lab)
    settings = {
        "command": f"`python -m benchmarks.paper {name} --config {config}`",
        "settings": described(lab.preset),
        "networks": ", ".join(f"{net} ({examples})" for net, examples in lab.ran.items()) or "none trained",
        "autoencoder": lab.vae.fingerprint(),
        "took": f"{time.perf_counter() - wall:.0f} s, {time.process_time() - cpu:.0f} s of CPU time, training included",
    }
    path = write(report, name, lab.out, settings)
    print(f"  {path}", flush=True)
    return path
