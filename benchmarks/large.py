"""Size, time and peak memory of whole lifts on the command line, from a picture of 512 px: the README's table.

    python benchmarks/large.py --scales 2,4,8 --tile 64

Each row is one `fmboost upscale` in a process of its own, start included, with the autoencoder that ships. The memory
is the most that the process ever had. Linux and macOS.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from fmboost_core.images.files import save_photo
from fmboost_core.images.resize import enlarge

SIDE = 512
UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes in a unit of `ru_maxrss`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fmboost-sd15-x2")
    parser.add_argument("--scales", default="2,4,8", help="powers of the model's scale (default: %(default)s)")
    parser.add_argument("--tile", type=int, default=64, help="latent pixels, 0 for none (default: %(default)s)")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    print("| pixels | seconds | peak memory, GB |\n|---|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "picture.png"
        colours = torch.rand(1, 3, SIDE // 16, SIDE // 16, generator=torch.Generator().manual_seed(0))
        save_photo(enlarge(colours, 16), picture)
        for scale in map(int, args.scales.split(",")):
            seconds, memory = measure(
                *("upscale", picture, "-o", Path(folder) / f"{scale}.png", "--model", args.model),
                *("--scale", scale, "--tile", args.tile, "--device", args.device),
            )
            print(f"| {SIDE} to {SIDE * scale} | {seconds:.0f} | {memory / 1e9:.1f} |", flush=True)


def measure(*arguments: object) -> tuple[float, int]:
    """Seconds and the most bytes in memory of one `fmboost` command."""
    command = [sys.executable, "-c", "import sys; from fmboost_core.cli.main import main; sys.exit(main())"]
    began = time.perf_counter()
    process = subprocess.Popen([*command, *map(str, arguments)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"fmboost {' '.join(map(str, arguments))} failed")
    return time.perf_counter() - began, usage.ru_maxrss * UNIT


if __name__ == "__main__":
    main()
