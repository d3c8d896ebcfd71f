"""The command line: ``fmboost COMMAND``."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .model import CFMModel
    from .vae import TinyVAE

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def main(argv: list[str] | None = None) -> int:
    """Run one command; a user's mistake is one sentence on stderr and exit status 2."""
    try:
        args = _parser().parse_args(argv)
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        args.run(args)
    except ModuleNotFoundError as error:
        print(f"fmboost: {error.name} is not installed: pip install 'fmboost[cli,train]' brings it", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"fmboost: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fmboost: stopped", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fmboost", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_upscale(commands)
    _add_trajectory(commands)
    _add_evaluate(commands)
    _add_convert(commands)
    _add_train(commands)
    _add_pack(commands)
    _add_average(commands)
    _add_transport(commands)
    _add_train_autoencoder(commands)
    return parser


DEFAULT_MODEL = "fmboost-sd15-x2"


def _device(text: str) -> str:
    """A device that is here."""
    import torch

    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"{text!r} is not to be had here ({reason}): expected such as cpu") from error
    return text


def _list_of(kind: type[int] | type[float], said: str) -> Callable[[str], list[Any]]:
    """Of numbers, with commas between them."""

    def read(text: str) -> list[Any]:
        try:
            return [kind(part) for part in text.split(",") if part.strip()]
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r}: expected {said}") from error

    return read


def _add_demo(commands: Commands) -> None:
    command = commands.add_parser("demo", help="lift the latents of a few photos that ship, and compare with the truth")
    command.add_argument("--out", type=Path, default=Path("demo-output"), help="folder for demo.png and report.json")
    _add_sampling(command)
    command.set_defaults(run=_demo)


def _demo(args: argparse.Namespace) -> None:
    from .checkpoint import load_model
    from .demo import demo_table, run_demo

    model = load_model(args.model, device=args.device)
    vae = _vae_for(model, args)
    report = run_demo(
        model,
        vae,
        args.out,
        steps=args.steps,
        solver=args.solver,
        seed=args.seed,
        progress=lambda n: print(f"  {n}"),
    )
    print(
        f"{args.model}: {report['low']} -> {report['high']} latents, {args.solver} {args.steps} steps, "
        f"{report['seconds_per_image']:.2f} s per image"
    )
    print(demo_table(report))
    print(f"picture: {args.out / 'demo.png'} ({report['picture']})\nreport:  {args.out / 'report.json'}")


def _add_upscale(commands: Commands) -> None:
    command = commands.add_parser("upscale", help="enlarge a photo: encode, lift the latent, decode")
    command.add_argument("photo", type=Path)
    command.add_argument("-o", "--out", type=Path, required=True, help="the picture to write")
    command.add_argument("--tile", type=int, default=0, help="latent pixels a window; 0 takes the picture whole")
    command.add_argument(
        "--scale", type=float, help="default: the model's; beyond it by several lifts, between by reducing the picture"
    )
    _add_sampling(command)
    command.set_defaults(run=_upscale)


def _upscale(args: argparse.Namespace) -> None:
    import time

    import torch
    from tqdm import tqdm

    from .cascade import cascade, lifts
    from .checkpoint import load_model
    from .photos import check_picture, load_photo, save_photo
    from .upsample import reduce_to

    check_picture(args.out)
    model = load_model(args.model, device=args.device)
    scale = model.scale if args.scale is None else args.scale
    models = [model] * lifts(model.scale, scale)
    vae = _vae_for(model, args)
    photo = load_photo(args.photo, None, model.space.pixels)
    began = time.perf_counter()
    with torch.inference_mode(), tqdm(unit="evaluation") as bar:

        def report(evaluation: int, total: int | None, t: float, estimate: torch.Tensor) -> None:
            bar.total = total
            bar.update()

        low = vae.encode(photo)
        high = cascade(
            models,
            low,
            steps=args.steps,
            solver=args.solver,
            seed=args.seed,
            vae=vae,
            callback=report,
            tile=args.tile,
        )
        evaluations = bar.n
        image = reduce_to(vae.decode(high), [round(scale * side) for side in photo.shape[2:]])
    save_photo(image, args.out)
    size = f"{photo.shape[3]}x{photo.shape[2]} -> {image.shape[3]}x{image.shape[2]} px"
    latents = f"{low.shape[3]}x{low.shape[2]} -> {high.shape[3]}x{high.shape[2]} latents"
    print(f"{args.out}: {size}, {latents}, {evaluations} evaluations, {time.perf_counter() - began:.1f} s")


def _add_trajectory(commands: Commands) -> None:
    command = commands.add_parser("trajectory", help="what the flow passes through, as a strip of pictures")
    command.add_argument("photo", type=Path)
    command.add_argument("-o", "--out", type=Path, required=True, help="the picture to write: states above estimates")
    command.add_argument("--frames", type=int, default=5)
    command.add_argument("--short-side", type=int, help="reduce the photo to it, px")
    _add_sampling(command)
    command.set_defaults(run=_trajectory)


def _trajectory(args: argparse.Namespace) -> None:
    import torch

    from .checkpoint import load_model
    from .photos import check_picture, load_photo, save_photo
    from .trajectory import trajectory

    check_picture(args.out)
    model = load_model(args.model, device=args.device)
    vae = _vae_for(model, args)
    with torch.inference_mode():
        low = vae.encode(load_photo(args.photo, args.short_side, model.space.pixels))
        path = trajectory(model, low, frames=args.frames, steps=args.steps, solver=args.solver, seed=args.seed, vae=vae)
        strips = [torch.cat([vae.decode(x) for x in row], dim=3) for row in (path.states, path.estimates)]
    save_photo(torch.cat(strips, dim=2), args.out)
    times = ", ".join(f"{t:.2f}" for t in path.times.tolist())
    print(f"{args.out}: t = {times}; above the states x_t, below the estimates of x1")


def _add_evaluate(commands: Commands) -> None:
    command = commands.add_parser("evaluate", help="one table of models and baselines on a folder of photos")
    command.add_argument("models", nargs="*", metavar="MODEL", help="model files or shipped models")
    command.add_argument("--data", required=True, help="folder of photos")
    command.add_argument("--vae", required=True, help="TAESD file or folder")
    command.add_argument(
        "--steps",
        type=_list_of(int, "whole numbers such as 4,10"),
        default="1,2,4,10",
        help="solver intervals (default: %(default)s)",
    )
    command.add_argument("--solver", default="euler", help="one or several (default: %(default)s)")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--limit", type=int, help="only the first photos")
    command.add_argument("--short-side", type=int, default=512, help="photos are brought to it, px (default: 512)")
    command.add_argument("--scale", type=int, help="needed without a model")
    command.add_argument("--space", help="latent space, needed without a model")
    command.add_argument("--device", type=_device, default="cpu")
    command.add_argument("--vae-dtype", choices=["float32", "bfloat16"], default="float32", help="bfloat16 is faster")
    command.add_argument(
        "--latent-noise",
        type=_list_of(float, "standard deviations such as 0,0.05,0.1"),
        default="",
        metavar="0,0.05,0.1",
        help="also lift low latents with noise of these standard deviations, and after a round trip through the VAE",
    )
    command.add_argument(
        "--fid", metavar="FILE", help="Inception weights you have: weights-inception-2015-12-05-6726825d.pth"
    )
    command.add_argument("--lpips", metavar="NET", help="alex, vgg or squeeze, where torchvision's weights are at hand")
    command.add_argument("--out", help="folder for results.csv, table.md, pictures.png and plots")
    command.set_defaults(run=_evaluate)


def _evaluate(args: argparse.Namespace) -> None:
    import torch
    from tqdm import tqdm

    from .evaluate import evaluate_files
    from .rows import table

    with tqdm(unit="method") as bar:

        def progress(done: int, total: int, name: str) -> None:
            bar.total = total
            bar.set_postfix_str(name)
            bar.update(done - bar.n)

        result = evaluate_files(
            args.models,
            args.data,
            args.vae,
            scale=args.scale,
            space=args.space,
            limit=args.limit,
            out=args.out,
            device=args.device,
            vae_dtype=getattr(torch, args.vae_dtype),
            short_side=args.short_side,
            steps=args.steps,
            solvers=args.solver.split(","),
            seed=args.seed,
            latent_noise=args.latent_noise,
            fid=args.fid,
            lpips=args.lpips,
            progress=progress,
        )
    print(table(result.printed))


def _add_convert(commands: Commands) -> None:
    command = commands.add_parser("convert", help="turn a checkpoint of the paper's authors into a model file")
    command.add_argument("checkpoint", metavar="IN.ckpt")
    command.add_argument("out", metavar="OUT.safetensors")
    command.add_argument("--weights", choices=["ema", "online"], default="ema")
    command.add_argument("--config", help="JSON settings, for a plain state dict")
    command.add_argument("--latent-space", help="where the checkpoint does not say (default: sd15)")
    command.add_argument("--scale", type=int, help="where the checkpoint does not say")
    command.set_defaults(run=_convert)


def _convert(args: argparse.Namespace) -> None:
    from .convert import convert_checkpoint

    print(
        convert_checkpoint(
            args.checkpoint,
            args.out,
            weights=args.weights,
            config=args.config,
            latent_space=args.latent_space,
            scale=args.scale,
        )
    )


def _add_sampling(command: argparse.ArgumentParser) -> None:
    from .solver import SOLVERS, STEPS

    command.add_argument(
        "--model", default=DEFAULT_MODEL, help="a model file or a shipped model (default: %(default)s)"
    )
    command.add_argument("--vae", type=Path, help="TAESD file or folder (default: the small autoencoder that ships)")
    command.add_argument("--steps", type=int, default=STEPS, help="solver intervals (default: %(default)s)")
    command.add_argument("--solver", choices=list(SOLVERS), default="euler")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--device", type=_device, default="cpu", help="such as cpu, cuda, mps (default: %(default)s)")


def _vae_for(model: CFMModel, args: argparse.Namespace) -> TinyVAE:
    from .checkpoint import shipped_vae
    from .vae import load_vae

    path = args.vae or shipped_vae(model.space.name)
    if path is None:
        raise ValueError(f"no autoencoder for {model.space.name} latents ships: give a TAESD file or folder as --vae")
    return load_vae(path, space=model.space.name, device=args.device)


def _add_train(commands: Commands) -> None:
    command = commands.add_parser("train", help="train a model on a folder of photos")
    command.add_argument("config", metavar="CONFIG.toml", help="a run, see configs/")
    command.add_argument("--out", default=None, help="folder of the run (default: runs/NAME)")
    command.add_argument("--resume", action="store_true", help="go on exactly where the run in --out stopped")
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting, such as train.steps=5000"
    )
    command.set_defaults(run=_train)


def _train(args: argparse.Namespace) -> None:
    from .train.loop import train
    from .train.settings import read_settings

    settings = read_settings(args.config, args.set)
    model = train(settings, Path(args.out or Path("runs") / settings.name), resume=args.resume)
    print(f"trained {model}")


def _add_pack(commands: Commands) -> None:
    command = commands.add_parser("pack", help="put a latent cache into one file, to train from on another machine")
    command.add_argument("cache", metavar="CACHE", help="the folder data.cache of a run")
    command.add_argument("out", metavar="OUT.safetensors", help="what data.cache is to name there")
    command.add_argument("--limit-mib", type=float, help="take as many examples as fit, evenly spread (default: all)")
    command.set_defaults(run=_pack)


def _pack(args: argparse.Namespace) -> None:
    from .train.pack import pack

    count = pack(args.cache, args.out, None if args.limit_mib is None else int(args.limit_mib * 2**20))
    print(f"{args.out}: {count} examples, {Path(args.out).stat().st_size / 2**20:.1f} MiB")


def _add_average(commands: Commands) -> None:
    command = commands.add_parser("average", help="write the mean of two models' weights")
    command.add_argument("model", metavar="MODEL", help="a model file or a shipped model; its settings are kept")
    command.add_argument("other", metavar="OTHER", help="another training of the same model")
    command.add_argument("out", metavar="OUT.safetensors")
    command.add_argument("--share", type=float, default=0.5, help="of OTHER, 0 to 1 (default: %(default)s)")
    command.set_defaults(run=_average)


def _average(args: argparse.Namespace) -> None:
    from .train.average import average

    average(args.model, args.other, args.out, args.share)
    print(f"wrote {args.out}: fit its last touch with 'fmboost transport'")


def _add_transport(commands: Commands) -> None:
    from .solver import STEPS

    command = commands.add_parser(
        "transport", help="fit the linear maps that end a lift: its back projection, and the statistics of photos"
    )
    command.add_argument("model", metavar="MODEL", help="a model file or a shipped model")
    command.add_argument("out", metavar="OUT.safetensors")
    command.add_argument("--data", required=True, help="folder of photos")
    command.add_argument("--vae", required=True, help="TAESD file or folder")
    command.add_argument("--strength", type=float, default=1.0, help="0 changes nothing (default: %(default)s)")
    command.add_argument("--steps", type=int, default=STEPS, help="of Euler (default: %(default)s)")
    command.add_argument("--noise-step", type=int, help="for the new file, 0 to 999 (default: the model's)")
    command.add_argument(
        "--corrections",
        type=int,
        default=0,
        help="rounds of back projection to fit, in the encoder's place (default: 0)",
    )
    command.add_argument("--limit", type=int, default=60, help="photos, evenly spread (default: %(default)s)")
    command.add_argument("--short-side", type=int, default=512, help="photos are brought to it, px (default: 512)")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--device", type=_device, default="cpu")
    command.add_argument("--vae-dtype", choices=["float32", "bfloat16"], default="float32", help="bfloat16 is faster")
    command.set_defaults(run=_transport)


def _transport(args: argparse.Namespace) -> None:
    import torch
    from tqdm import tqdm

    from .train.fit import fit_transport

    with tqdm(unit="photo") as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        names = ("strength", "steps", "noise_step", "corrections", "limit", "short_side", "seed", "device")
        used = fit_transport(
            args.model,
            args.out,
            args.data,
            args.vae,
            **{name: getattr(args, name) for name in names},
            vae_dtype=getattr(torch, args.vae_dtype),
            progress=progress,
        )
    print(f"{args.out}: fitted on {used} photos")


def _add_train_autoencoder(commands: Commands) -> None:
    command = commands.add_parser("train-autoencoder", help="train a small autoencoder to agree with a larger one")
    command.add_argument("photos", help="folder")
    command.add_argument("--teacher", required=True, help="TAESD file or folder")
    command.add_argument("--out", required=True, help="folder of the run")
    command.add_argument("--resume", action="store_true")
    command.add_argument("--latent-space", default="sd15")
    for name, default in (("width", 32), ("steps", 4000), ("batch", 4), ("crop", 128), ("short-side", 512)):
        command.add_argument(f"--{name}", type=int, default=default)
    command.set_defaults(run=_train_autoencoder)


def _train_autoencoder(args: argparse.Namespace) -> None:
    from .train.autoencoder import AutoencoderSettings, train_autoencoder

    names = ("photos", "teacher", "out", "latent_space", "width", "steps", "batch", "crop", "short_side")
    settings = AutoencoderSettings(**{n: getattr(args, n) for n in names})
    print(f"trained {train_autoencoder(settings, resume=args.resume)}")


if __name__ == "__main__":
    sys.exit(main())
