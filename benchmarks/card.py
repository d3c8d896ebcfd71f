"""What a graphics card makes of the models, in under five minutes and without a network.

    python benchmarks/card.py --device cuda --out card.json

Needs what the library needs, and tqdm; the checkout need not be installed. For each model that ships, and one with
random weights, it measures in this order: half precision against float32; how often a lift waits for the device; the
evaluations of the adaptive solver by precision; memory against `CFMModel.bytes_needed`; lifts to 4096 px in tiles;
batches; a training step against what the machine gives at best; memory formats and `torch.compile`. A part that fails
is named with its error, and parts that have not begun after `--limit` seconds are left out. On a CPU everything is
small, to see that it works. Prints Markdown, and writes the same as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))

from measure import Clock, flops, peak, seconds
from memory import lift_peak
from memory import peak as peak_bytes

from fmboost_core import CFMModel, FlowConfig, ModelConfig, NetConfig, Sampling, load_model, shipped_models
from fmboost_core.context import interpolate
from fmboost_core.model import build_network

Row = dict[str, Any]
SMALL = NetConfig(model_channels=32, num_res_blocks=1, channel_mult=(1, 2), attention_resolutions=(2,), num_heads=2)
WAITS = ("aten::_local_scalar_dense", "cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Sizes:
    """How large everything is: on a card, and where it is only to be checked."""

    side: int = 128  # latent pixels of a result
    models: int = 100
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    memory: tuple[int, ...] = (64, 128, 256)
    large: int = 512  # 4096 px
    tiles: tuple[int, ...] = (0, 64, 128, 256)
    crops: int = 64
    repeats: int = 10


CHECK = Sizes(16, 1, (1, 2), (16,), 48, (0, 32), 2, 1)


class Card:
    """The device, the models, and the parts of the benchmark, each a list of rows."""

    def __init__(self, device: str, sizes: Sizes, compiles: bool) -> None:
        self.device, self.sizes, self.compiles = device, sizes, compiles
        self.on_card = device.startswith("cuda")
        self.half = torch.bfloat16 if self.on_card else torch.float32
        self.names = [*list(shipped_models())[: sizes.models], "random"]

    def model(self, name: str, dtype: torch.dtype) -> CFMModel:
        """A model that ships; ``random`` is the paper's network of 306M, or a small one where it is to be checked."""
        if name != "random":
            return load_model(name, device=self.device, dtype=dtype)
        config = ModelConfig(net=NetConfig() if self.on_card else SMALL, flow=FlowConfig(noise_step=200))
        torch.manual_seed(0)
        net = build_network(config)
        for parameter in net.parameters():  # some begin at zero
            parameter.data.normal_(0, 0.5 / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.1)
        return CFMModel(config, net.to(self.device, dtype).eval().requires_grad_(False))

    def start(self, model: CFMModel, side: int, batch: int = 1) -> tuple[Tensor, Tensor]:
        """x0 and a context of a lift: smooth latents, and noise for the rest of the context."""
        draw = torch.Generator().manual_seed(0)
        coarse = torch.randn(batch, model.space.channels, max(2, side // 8), max(2, side // 8), generator=draw)
        upsampled = interpolate(coarse, side // coarse.shape[2], "bilinear")
        extra = model.config.context_channels - model.space.channels
        rest = 0.5 * torch.randn(batch, extra, side, side, generator=draw)
        context = torch.cat([upsampled, rest], dim=1).to(self.device)
        return model.make_source(context, Sampling()), context

    def half_precision(self, name: str) -> list[Row]:
        """How far a lift of 4 steps is from that in float32, over what the flow changes."""
        exact_model = self.model(name, torch.float32)
        x0, context = self.start(exact_model, self.sizes.side)
        exact = exact_model.integrate(x0, context, Sampling())
        rows = []
        for kind, dtype in HALVES.items():
            found = self.model(name, dtype).integrate(x0, context, Sampling())
            error = ((found - exact).std() / (exact - x0).std()).item()
            rows.append({"model": name, "precision": kind, "error": error, "finite": bool(found.isfinite().all())})
        return rows

    def waits(self, name: str) -> list[Row]:
        """Calls that make the host wait for the device, in a lift of 4 steps."""
        model = self.model(name, self.half)
        x0, context = self.start(model, self.sizes.side)
        model.integrate(x0, context, Sampling())
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.on_card else [])]
        with profile(activities=activities) as recorded:
            model.integrate(x0, context, Sampling())
        seen = Counter({e.key: e.count for e in recorded.key_averages() if e.key in WAITS})
        row: Row = {"model": name, **{key: seen[key] for key in WAITS}}
        if self.on_card:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                model.integrate(x0, context, Sampling())
                torch.cuda.set_sync_debug_mode("default")
            row["warnings of torch"] = sum("synchroniz" in str(w.message) for w in caught)
        return [row]

    def adaptive(self, name: str) -> list[Row]:
        """Evaluations that dopri5 takes."""
        row: Row = {"model": name}
        for kind, dtype in {"float32": torch.float32, **HALVES}.items():
            model, seen = self.model(name, dtype), []
            x0, context = self.start(model, self.sizes.side // 2)
            model.integrate(x0, context, Sampling(solver="dopri5"), lambda *args, seen=seen: seen.append(args[0]))
            row[kind] = len(seen)
        return [row]

    def memory(self, name: str) -> list[Row]:
        model, rows = self.model(name, self.half), []
        for side in self.sizes.memory:
            measured, expected = lift_peak(model, side, side, 0), model.bytes_needed(1, side, side)
            mib = {"measured MiB": measured / 2**20, "expected MiB": expected / 2**20}
            rows.append({"model": name, "side": side, **mib, "expected / measured": expected / measured})
        return rows

    def tiles(self, name: str) -> list[Row]:
        """One evaluation of a large picture, whole and in tiles."""
        model, rows, whole = self.model(name, self.half), [], None
        x0, context = self.start(model, self.sizes.large)
        for tile in self.sizes.tiles:
            once = Sampling(steps=1, tile=tile)
            row: Row = {"model": name, "px": self.sizes.large * model.space.pixels, "tile": tile or "whole"}
            try:
                row["s"] = seconds(lambda once=once: model.integrate(x0, context, once), self.device, 1)
                row["peak MiB"] = peak_bytes(lambda once=once: model.integrate(x0, context, once), x0.device) / 2**20
                found = model.integrate(x0, context, once)
                whole = found if not tile else whole
                row["from whole"] = ((found - whole).std() / whole.std()).item() if whole is not None else ""
            except torch.OutOfMemoryError:
                row["s"] = "out of memory"
            rows.append(row)
        return rows

    def batches(self, name: str) -> list[Row]:
        model, row = self.model(name, self.half), Row(model=name)
        for batch in self.sizes.batches:
            x0, context = self.start(model, self.sizes.side // 2, batch)
            spent = seconds(lambda x=x0, c=context: model.integrate(x, c, Sampling()), self.device, 2)
            row[f"{batch}, images/s"] = batch / spent
        return [row]

    def training(self, name: str) -> list[Row]:
        """Forward, backward and optimizer step on crops of 32 latent pixels, in bfloat16 by autocast."""
        model = self.model(name, torch.float32)
        net = model.net.requires_grad_(True).train().to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-5, fused=True)
        x, context = self.start(model, 32 if self.on_card else 16, self.sizes.crops)
        t = torch.rand(len(x), device=x.device)

        def step() -> None:
            with torch.autocast(x.device.type, torch.bfloat16):
                loss = (net(x, t, context).float() - x).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        work, spent = flops(step), seconds(step, self.device, self.sizes.repeats)
        with torch.no_grad():
            best = max(peak(self.device, torch.bfloat16, 8192 if self.on_card else 256).values())
        rate = work / spent / 1e9
        return [{"model": name, "crops/s": len(x) / spent, "GFLOP/s": rate, "peak": best, "share": rate / best}]

    def formats(self, name: str) -> list[Row]:
        """Milliseconds of an evaluation."""
        model, clock = self.model(name, self.half), Clock(self.device, self.sizes.repeats)
        x, context = (v.to(self.half) for v in self.start(model, self.sizes.side))
        t, row = torch.zeros(1, device=x.device), Row(model=name)
        nets: dict[str, Callable[..., Tensor]] = {"contiguous": model.net}
        nets["channels last"] = self.model(name, self.half).net.to(memory_format=torch.channels_last)
        if self.compiles:
            began = time.perf_counter()
            nets["compiled"] = torch.compile(nets["channels last"])
            nets["compiled"](x, t, context)
            row["s to compile"] = time.perf_counter() - began
        for kind, net in nets.items():
            clock.add(kind, lambda net=net: net(x, t, context))
        return [{**row, **{kind: 1000 * min(found) for kind, found in clock.measure().items()}}]


PARTS = ("half_precision", "waits", "adaptive", "memory", "tiles", "batches", "training", "formats")


def table(rows: list[Row]) -> str:
    """Markdown; columns in order of appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [
        [f"{row.get(c, ''):.4g}" if isinstance(row.get(c), float) else str(row.get(c, "")) for c in columns]
        for row in rows
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in [columns, ["---"] * len(columns), *cells])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("card.json"))
    parser.add_argument("--limit", type=float, default=270, help="seconds after which no part begins")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=None, help="default: on a card")
    args = parser.parse_args()
    on_card = args.device.startswith("cuda")
    torch.backends.cudnn.allow_tf32 = False  # what half precision is compared with
    sizes = Sizes() if on_card else CHECK
    card = Card(args.device, sizes, on_card if args.compile is None else args.compile)
    name = torch.cuda.get_device_name(args.device) if on_card else "CPU"
    report: dict[str, Any] = {"device": name, "torch": torch.__version__, "sizes": asdict(sizes)}
    print(f"{name}, torch {torch.__version__}, {str(card.half).removeprefix('torch.')} where nothing else is said")
    began, failed = time.perf_counter(), 0
    for part in tqdm(args.parts, unit="part", file=sys.stderr):
        rows: list[Row] = []
        for model in card.names:
            if time.perf_counter() - began > args.limit:
                rows.append({"model": model, "left out": f"after {args.limit:g} s"})
                continue
            try:
                with torch.enable_grad() if part == "training" else torch.inference_mode():
                    rows += getattr(card, part)(model)
            except Exception as error:
                failed += 1
                rows.append({"model": model, "error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"})
            if on_card:
                torch.cuda.empty_cache()
        report[part] = rows
        args.out.write_text(json.dumps(report, indent=1), encoding="utf-8")
        print(f"\n{part.replace('_', ' ')}\n\n{table(rows)}", flush=True)
    print(f"\n{time.perf_counter() - began:.0f} s")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
