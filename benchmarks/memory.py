"""Peak memory of a lift, measured, beside what `CFMModel.bytes_needed` expects: with tiles it hardly grows.

    python benchmarks/memory.py --sizes 64,128,256 --tiles 0,64

Counts every allocation of torch (its profiler on the CPU, its allocator's own counter on a GPU) during one Euler step
from x0 and context that are there already; upsampling through a VAE, which makes windows of its own, is not in it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from fmboost_core import CFMModel, Sampling, load_model


def peak(run: Callable[[], object], device: torch.device) -> int:
    """The most bytes that were allocated at once by `run`, beyond those allocated before it."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    events = recorded.profiler.kineto_results.events()  # pyright: ignore
    memory = sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns())
    allocated = most = 0
    for event in memory:
        allocated += event.nbytes()
        most = max(most, allocated)
    return most


def lift_peak(model: CFMModel, height: int, width: int, tile: int) -> int:
    """Bytes at the peak of one Euler step at (1, C, height, width)."""
    x0 = torch.randn(1, model.space.channels, height, width, device=model.device)
    context = torch.randn(1, model.config.context_channels, height, width, device=model.device)
    return peak(lambda: model.integrate(x0, context, Sampling(steps=1, tile=tile)), model.device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fmboost-sd15-x2")
    parser.add_argument("--sizes", default="64,128,256", help="sides of the result, in latents")
    parser.add_argument("--tiles", default="0,64", help="sides of the tiles, 0 for none")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    model = load_model(args.model, device=args.device)
    print(f"{args.model}, {str(model.dtype).removeprefix('torch.')}, {args.device}, torch {torch.__version__}\n")
    print("| result, latents | pixels | tile | measured MiB | expected MiB | expected / measured |")
    print("| --: | --: | --: | --: | --: | --: |")
    for tile in map(int, args.tiles.split(",")):
        for side in map(int, args.sizes.split(",")):
            measured, expected = lift_peak(model, side, side, tile), model.bytes_needed(1, side, side, tile)
            mib = f"{measured / 2**20:.1f} | {expected / 2**20:.1f} | {expected / measured:.2f}"
            print(f"| {side}x{side} | {side * model.space.pixels} | {tile or 'whole'} | {mib} |", flush=True)


if __name__ == "__main__":
    main()
