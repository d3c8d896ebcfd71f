"""What each setting of the shipped models does: one changed at a time, on a small network and a short training.

    python -m benchmarks.ablations --photos photos/train --held-out photos/val --vae taesd

Every variant is configs/sd15-x2.toml with the overrides of `BASE` and its own, as `fmboost train --set` takes them, and
sees as many latent pixels as the others unless its name says so. Networks are kept in --out; run again, the command
goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from fmboost_core.checkpoint import load_model
from fmboost_core.evaluate import evaluate
from fmboost_core.model import CFMModel
from fmboost_core.photos import find_photos
from fmboost_core.train.loop import train
from fmboost_core.train.settings import RunSettings, read_settings
from fmboost_core.vae import load_vae

from .paper.lab import check_trained, reduced, spread
from .paper.report import Column, Report, write

CONFIG = Path(__file__).parents[1] / "configs" / "sd15-x2.toml"
SHORT_SIDE = 384  # px
BASE = (
    "data.validation=",
    f"data.short_sides=[{SHORT_SIDE}]",
    "net.model_channels=32",
    "train.steps=400",
    "train.batch=8",
    "train.crop=24",
    "train.warmup=40",
    "train.decay=160",
    "train.ema=0.99",
)
VARIANTS: dict[str, tuple[str, ...]] = {
    "as it is": (),
    "another seed": ("train.seed=1",),
    "twice the steps": ("train.steps=800", "train.decay=320"),
    "depth: 1 block a level": ("net.num_res_blocks=1",),
    "depth: 3 blocks a level": ("net.num_res_blocks=3",),
    "levels: 1, 2": ("net.channel_mult=[1, 2]",),
    "levels: 1, 2, 2, 2": ("net.channel_mult=[1, 2, 2, 2]",),
    "width 64": ("net.model_channels=64",),
    "attention on the lowest level": ("net.attention_resolutions=[4]",),
    "attention on two levels": ("net.attention_resolutions=[2, 4]",),
    "crops of 12, batch 32": ("train.crop=12", "train.batch=32"),
    "crops of 48, batch 2": ("train.crop=48", "train.batch=2"),
    "x0: nearest, no picture": ("flow.upsampling=nearest", "flow.picture_context=false"),
    "x0: bilinear, no picture": ("flow.upsampling=bilinear", "flow.picture_context=false"),
    "x0: psu, no picture": ("flow.picture_context=false",),
    "noise 0": ("flow.noise_step=0",),
    "noise 100": ("flow.noise_step=100",),
    "noise 400": ("flow.noise_step=400",),
    "path: from noise (FM)": ("train.objective=fm", "flow.path=gaussian", "flow.noise_step=0"),
    "regression": ("train.objective=regression",),
    "t: logit-normal": ("train.t_sampling=logit_normal",),
    "decoded loss, weight 1": ("train.decoded_weight=1", "train.decoded_window=12"),
    "decoded loss, weight 10": ("train.decoded_weight=10", "train.decoded_window=12"),
    "learning rate 3e-4": ("train.learning_rate=3e-4",),
    "learning rate 3e-3": ("train.learning_rate=3e-3",),
    "EMA 0.9": ("train.ema=0.9",),
    "EMA 0.999": ("train.ema=0.999",),
}


def trained(variants: Mapping[str, RunSettings], nets: Path) -> tuple[dict[str, CFMModel], dict[str, int]]:
    """The network of each variant, trained where it is not in `nets` yet, and the seconds of CPU time it took."""
    models, seconds = {}, {}
    for name, settings in variants.items():
        slug = "".join(c if c.isalnum() else "-" for c in name)
        folder = nets / slug
        file, took = folder / f"{settings.name}.safetensors", folder / "seconds"
        if not took.exists():
            begun = time.process_time()
            train(settings, folder, resume=(folder / "state" / "progress.json").is_file())
            took.write_text(f"{time.process_time() - begun:.0f}", encoding="utf-8")
        models[name], seconds[name] = load_model(file), int(took.read_text(encoding="utf-8"))
        check_trained(file, models[name].config, settings)
    return models, seconds


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder to train on")
    parser.add_argument("--held-out", type=Path, required=True, help="folder to evaluate on")
    parser.add_argument("--vae", type=Path, required=True, help="TAESD file or folder, of SD1.5")
    parser.add_argument("--photo-count", type=int, default=96, help="of the first folder, evenly spread")
    parser.add_argument("--held-out-count", type=int, default=8)
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 10], help="Euler")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), metavar="VARIANT", default=list(VARIANTS))
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.NAME=VALUE", help="for every variant")
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    args = parser.parse_args(arguments)
    try:
        photos = reduced(args.photos, args.out / "photos", args.photo_count, SHORT_SIDE, 16)
        folders = (f"data.photos={photos}", f"data.vae={args.vae}", f"data.cache={args.out / 'cache'}")
        variants = {name: read_settings(CONFIG, [*folders, *BASE, *VARIANTS[name], *args.set]) for name in args.only}
        models, seconds = trained(variants, args.out / "nets")
    except (ValueError, OSError) as error:
        parser.error(str(error))
    vae = load_vae(args.vae, space="sd15")
    held_out = spread(find_photos(args.held_out), args.held_out_count)
    found = evaluate(models, held_out, vae, short_side=SHORT_SIDE, steps=args.steps, pictures=0)
    rows = []
    for row in found.rows:
        name = row.method.removesuffix(", regression")
        size = sum(p.numel() for p in models[name].net.parameters()) / 1e6 if name in models else None
        rows.append({**vars(row), "method": name, "million": size, "seconds": seconds.get(name)})
    columns = (
        Column("changed", "method"),
        Column("steps", "steps"),
        Column("parameters, M", "million", ".2f"),
        Column("training, s", "seconds"),
        Column("PSNR", "psnr", ".2f"),
        Column("PSNR low", "psnr_reduced", ".2f"),
        Column("HF", "high_frequency", ".2f"),
        Column("SWD", "swd", ".4f"),
        Column("Frechet", "frechet", ".2f"),
        Column("colour", "colour", ".2f"),
        Column("grid 8", "grid8", ".2f"),
    )
    note = "Each line differs from the first model by what its name says. Training: seconds of CPU time."
    base = ", ".join([CONFIG.name, *BASE, *args.set])
    settings = {"base": base, "photos": f"{args.photo_count}, held out {len(held_out)}"}
    print(write(Report("One setting at a time", columns, rows, [note]), "ablations", args.out, settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
