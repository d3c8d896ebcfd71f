"""Time a lift beside the decode that follows it, in one run: by TAESD and by the full SD autoencoder.

    python benchmarks/speed.py --vae taesd --side 512 --steps 4,10

The full autoencoder (diffusers' AutoencoderKL in its SD1.5 shape, 84M parameters) has random weights: its time does not
depend on them. The lift uses TAESD for its pixel-space start. Prints Markdown; medians of `--repeats` runs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from diffusers import AutoencoderKL

from fmboost_core import load_model, load_vae

SD15 = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
    "layers_per_block": 2,
}


def milliseconds(run: Callable[[], Any], repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - start))
    return median(times[1:])


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae", required=True, help="TAESD file or folder")
    parser.add_argument("--model", default="fmboost-sd15-x2")
    parser.add_argument("--side", type=int, default=512, help="px of the result")
    parser.add_argument("--steps", type=lambda text: [int(s) for s in text.split(",")], default=[4, 10])
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    model = load_model(args.model)
    taesd = load_vae(args.vae, space=model.space.name)
    full = AutoencoderKL(**SD15).eval()
    low = torch.randn(1, model.space.channels, *(args.side // 8 // model.scale,) * 2)
    high = torch.randn(1, model.space.channels, args.side // 8, args.side // 8)
    latent = high[:, :4]  # of the full autoencoder, which is that of SD1.5 in size
    rows = [
        ("decode, full autoencoder", milliseconds(lambda: full.decode(latent), args.repeats)),
        ("decode, TAESD", milliseconds(lambda: taesd.decode(high), args.repeats)),
    ]
    for steps in args.steps:
        for rounds in sorted({0, model.config.flow.back_projection}):

            def lift(steps: int = steps, rounds: int = rounds) -> torch.Tensor:
                return model.upscale(low, steps=steps, vae=taesd, back_projection=rounds)

            rows.append((f"lift, {steps} steps, back projection {rounds}", milliseconds(lift, args.repeats)))
    print(f"{args.model}, {args.side} px, {torch.get_num_threads()} threads\n\n| | ms |\n|---|--:|")
    for name, value in rows:
        print(f"| {name} | {value:.0f} |")


if __name__ == "__main__":
    main()
