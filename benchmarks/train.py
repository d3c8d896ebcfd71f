"""The trainer's rate beside that of bare forward, backward and optimizer steps of the same network, in one run.

    python benchmarks/train.py configs/sdxl-x2.toml --set train.batch=8
    python benchmarks/train.py configs/sdxl-x2-few-step.toml --vae taesd --profile

Latents are random, so that no photo is needed, and an autoencoder only by the third stage; the device is the one that
accelerate finds. The bare step has one batch for all time, no average of the weights and no bound on the gradients.
Prints Markdown: medians of `--repeats` steps of each in turn, with the spread, and how long the trainer takes over what
the bare step leaves out.
"""

from __future__ import annotations

import argparse
import tempfile
from copy import deepcopy
from pathlib import Path
from statistics import median

import torch
from measure import Clock, shares, spread

from fmboost_core import load_vae
from fmboost_core.latent_spaces import latent_space
from fmboost_core.train.latents import LatentSet, Ragged
from fmboost_core.train.lift import LiftTask
from fmboost_core.train.loop import Loop, make_accelerator
from fmboost_core.train.settings import RunSettings, read_settings
from fmboost_core.train.state import RunState

IMAGES, SIDE = 24, 48
"""Of the random examples: their number, and latent pixels on a side at the low resolution."""


def write_examples(settings: RunSettings, path: Path) -> None:
    """Random latents of every kind that a run of these settings can ask for."""
    space, scale = latent_space(settings.data.latent_space), settings.flow.scale
    sides = {"low": SIDE, "high": SIDE * scale, "psu": SIDE * scale, "lower": SIDE // scale}
    kinds = {
        kind: Ragged.join([torch.randn(space.channels, side, side).half() for _ in range(IMAGES)])
        for kind, side in sides.items()
    }
    pixels = SIDE * space.pixels
    pictures = [torch.randint(256, (3, pixels, pixels), dtype=torch.uint8) for _ in range(IMAGES)]
    kinds["picture"] = Ragged.join(pictures)
    identity: dict[str, str | int] = {"latent_space": space.name, "scale": scale, "psu": 1}
    if settings.data.vae:
        identity["autoencoder"] = load_vae(settings.data.vae, space=space.name).fingerprint()
    LatentSet(kinds, identity).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="a run, see configs/")
    parser.add_argument("--vae", default="", help="TAESD file or folder, for objectives that need an autoencoder")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for fmboost train")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--profile", action="store_true", help="where the time of the trainer's step goes, too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "examples.safetensors"
        alone = [f"data.cache={cache}", "data.photos=", "data.shares=[]", f"data.vae={args.vae}", "data.validation="]
        whole = ["train.start_from=", "few_step.adversaries_from=0"]
        settings = read_settings(args.config, [*args.set, *alone, *whole])
        write_examples(settings, cache)
        out = Path(folder) / "run"
        accelerator = make_accelerator(settings.train, out)
        task = LiftTask(settings, accelerator, out, fresh=True)
        loop = Loop(accelerator, task, settings.train, RunState(settings, out, resume=False))
    device, precision = accelerator.device, settings.train.precision
    nets = {name: deepcopy(module) for name, module in task.modules.items()}
    optimizers = {
        name: torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], fused=True)
        for name, net in nets.items()
    }
    batch = task.batch(0)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)

    def bare() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            for name, loss, _ in task.losses(nets, batch, 0):
                loss.backward()
                optimizers[name].step()
                optimizers[name].zero_grad()

    clock = Clock(str(device), args.repeats)
    bare_row, own_row = "bare step", "trainer's step"
    clock.add(bare_row, bare)
    clock.add(own_row, loop._train_step)
    clock.add("of it: the batch", lambda: task.batch(1))
    clock.add("of it: the average of the weights", loop.ema.update)
    measured = clock.measure()
    where = f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"{settings.name}, crops of {settings.train.crop}, batch {settings.train.batch}, {precision}, {where}\n")
    print("| | s | crops/s |\n|---|--:|--:|")
    for name, found in measured.items():
        rate = f"{settings.train.batch / median(found):.1f}" if name in (bare_row, own_row) else ""
        print(f"| {name} | {spread(found)} | {rate} |")
    ratios = [b / t for b, t in zip(measured[bare_row], measured[own_row], strict=True)]
    print(f"\nThe trainer's rate over the bare one: {spread(ratios)}")
    if args.profile:
        print("\n| of the trainer's step | |\n|---|--:|")
        for kind, share in shares(loop._train_step, str(device)).items():
            print(f"| {kind} | {share:.1%} |")


if __name__ == "__main__":
    main()
