"""What a lift costs beside what surrounds it or would replace it, in one run.

    python benchmarks/speed.py --device cpu --family sdxl --side 512

The rows, each with its ratio to the full autoencoder's decode of the result:

- the lift of the shipped model of `--family` in `--steps` Euler steps, with a tiny VAE and with the full one where it
  needs one, and its network alone;
- decode and encode by the full autoencoder of Stable Diffusion (84M parameters; random weights, which cost the same);
- 20 evaluations of a U-Net in the shape of Stable Diffusion 1.5 at the size of the result, a second sampling pass;
- decoding the small latent, enlarging with RRDBNet (Real-ESRGAN x4plus, 16.7M) and encoding: what people use today;
- with `--authors CLONE`, a clone of CompVis/fm-boosting: its 306M network against ours with the same weights;
- what the machine gives: its best matrix product and convolution, and the share of that which the network reaches;
- with `--profile`, nothing of the above, but where the time of one evaluation goes;
- with `--sides 256,1024,4096`, nothing of the above, but the seconds per megapixel of the network and of the lift with
  a tiny VAE at these sizes: where the rows agree, time is linear in pixels.

Prints Markdown: medians of `--repeats` runs, with the spread, and ratios run by run.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from measure import Clock, flops, peak, shares, spread
from torch import Tensor, nn

from fmboost_core import CFMModel, NetConfig, Sampling, load_model, shipped_models
from fmboost_core.unet import UNet
from fmboost_core.vae.autoencoder import Autoencoder
from fmboost_core.vae.kl import _Decoder as FullDecoder
from fmboost_core.vae.kl import _Encoder as FullEncoder
from fmboost_core.vae.tiny import tiny_decoder, tiny_encoder

VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
SD15 = {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64}
SAMPLING_STEPS = 20


class DenseBlock(nn.Module):
    """Residual dense block of RRDBNet (Wang et al. 2018): 64 channels, growth 32."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(64 + 32 * i, 32 if i < 4 else 64, 3, padding=1) for i in range(5))

    def forward(self, x: Tensor) -> Tensor:
        seen = [x]
        for conv in self.convs[:-1]:
            seen.append(F.leaky_relu(conv(torch.cat(seen, dim=1)), 0.2))
        return x + 0.2 * self.convs[-1](torch.cat(seen, dim=1))


def rrdbnet() -> nn.Module:
    """Real-ESRGAN x4plus by its cost: 23 groups of three dense blocks, then x4."""
    trunk = [DenseBlock() for _ in range(23 * 3)]
    enlarge = [nn.Upsample(scale_factor=2), nn.Conv2d(64, 64, 3, padding=1), nn.LeakyReLU(0.2)] * 2
    ends = nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 3, 3, padding=1)
    return nn.Sequential(ends[0], *trunk, nn.Conv2d(64, 64, 3, padding=1), *enlarge, ends[1], ends[2])


def authors_pair(clone: Path, device: str) -> tuple[nn.Module, UNet]:
    """The authors' 306M network and ours, with the same random weights."""
    sys.path.insert(0, str(clone))
    from fmboost.models.unet.model import EfficientUNet  # pyright: ignore[reportMissingImports]

    config = NetConfig(attention_layout="fm_boosting")
    theirs = EfficientUNet(
        in_channels=8,
        model_channels=128,
        out_channels=4,
        num_res_blocks=3,
        attention_resolutions=[8, 16],
        channel_mult=[1, 2, 4, 8],
        dim_head=64,
        num_heads=4,
        use_linear_attn=False,
    )
    ours = UNet(config)
    ours.load_state_dict(theirs.state_dict())
    return theirs.to(device).eval(), ours.to(device).eval()


def tiny_vae(model: CFMModel, device: str, dtype: torch.dtype) -> Autoencoder:
    """A tiny VAE with random weights for the model's latents."""
    channels = model.space.channels
    return Autoencoder(model.space, tiny_encoder(channels), tiny_decoder(channels)).ready(device, dtype)


def by_size(model: CFMModel, vae: Autoencoder, sides: list[int], sampling: Sampling, clock: Clock) -> None:
    """Prints the seconds per megapixel of the result, of the network alone and of the whole lift, at these sides."""
    for side in sides:
        low = torch.randn(1, model.space.channels, side // 16, side // 16, device=clock.device)
        context = model.make_context(low, vae)
        source = model.make_source(context, sampling)
        clock.add(f"{side} network", partial(model.integrate, source, context, sampling))
        clock.add(f"{side} lift", partial(model.upscale, low, sampling, vae=vae))
    measured = clock.measure()
    print("| px | network, s per megapixel | lift, s per megapixel |\n|--:|--:|--:|")
    for side in sides:
        network, lift = ([s * 1e6 / side**2 for s in measured[f"{side} {part}"]] for part in ("network", "lift"))
        print(f"| {side} | {spread(network)} | {spread(lift)} |")


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--family", default="sdxl", help="sd15, sdxl, flux ... (default: %(default)s)")
    parser.add_argument("--side", type=int, default=512, help="px of the result (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="only the shares of kinds of operators in an evaluation")
    parser.add_argument("--sides", help="only seconds per megapixel at these sides in px, such as 256,1024,4096")
    parser.add_argument("--authors", type=Path, help="a clone of CompVis/fm-boosting")
    args = parser.parse_args()
    name = f"fmboost-{args.family}-x2"
    if name not in shipped_models():
        parser.error(f"no model {name} ships: expected one of {', '.join(shipped_models())}")
    device, dtype = args.device, getattr(torch, args.dtype)
    model = load_model(name, device=device, dtype=dtype)
    channels, side = model.space.channels, args.side // 8
    on = {"device": device, "dtype": dtype}
    low = torch.randn(1, channels, side // 2, side // 2, device=device)
    high = torch.randn(1, channels, side, side, **on)
    context = torch.randn(1, model.config.context_channels, side, side, **on)
    times = torch.zeros(1, device=device)

    def evaluation() -> Tensor:
        return model.net(high, times, context)

    where = f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"{name}, {args.sides or args.side} px, {args.dtype}, {where}\n")
    if args.profile:
        print("| of an evaluation | |\n|---|--:|")
        print("\n".join(f"| {kind} | {share:.1%} |" for kind, share in shares(evaluation, device).items()))
        return
    euler = Sampling(steps=args.steps)
    tiny = tiny_vae(model, device, dtype)
    if args.sides:
        by_size(model, tiny, [int(s) for s in args.sides.split(",")], euler, Clock(device, args.repeats))
        return
    vae = AutoencoderKL(**VAE, latent_channels=channels).to(**on).eval()
    diffusion = UNet2DConditionModel(**SD15).to(**on).eval()
    enlarger = rrdbnet().to(**on).eval()
    words, noise = torch.randn(1, 77, 768, **on), torch.randn(1, 4, side, side, **on)
    small = torch.rand(1, 3, args.side // 2, args.side // 2, **on)
    picture = torch.rand(1, 3, args.side, args.side, **on)

    def today() -> Tensor:
        vae.decode(low.to(dtype))
        enlarged = enlarger(small).float()  # processors have no antialiasing in half precision
        large = F.interpolate(enlarged, scale_factor=0.5, mode="bilinear", antialias=True)
        return vae.encode(large.to(dtype)).latent_dist.mode()

    def sampling() -> None:
        for _ in range(SAMPLING_STEPS):
            diffusion(noise, 500, words)

    decode = "decode of the result, full VAE"
    clock = Clock(device, args.repeats)
    clock.add(decode, lambda: vae.decode(high))
    clock.add(f"network alone, {args.steps} evaluations", lambda: [evaluation() for _ in range(args.steps)])
    vaes: dict[str, Autoencoder | None] = {"": None}
    if model.config.flow.upsampling == "psu":
        full = Autoencoder(model.space, FullEncoder(vae, model.space), FullDecoder(vae, model.space), 128, 32)
        vaes = {", its VAE a tiny one": tiny, ", its VAE the full one": full}
    for said, its in vaes.items():
        clock.add(f"lift, {args.steps} steps{said}", partial(model.upscale, low, euler, vae=its))
    clock.add("encode of the result, full VAE", lambda: vae.encode(picture))
    clock.add("decode, RRDBNet, encode", today)
    clock.add(f"second sampling pass, {SAMPLING_STEPS} steps", sampling)
    measured = clock.measure()
    print("| | s | of the decode |\n|---|--:|--:|")
    for row, seconds in measured.items():
        ratios = [s / d for s, d in zip(seconds, measured[decode], strict=True)]
        print(f"| {row} | {spread(seconds)} | {spread(ratios)} |")
    if args.authors:
        theirs, ours = authors_pair(args.authors, device)
        x, t = torch.randn(1, 8, 64, 64, device=device), torch.zeros(1, device=device)
        half = nullcontext() if dtype == torch.float32 else torch.autocast(device, dtype)
        clock = Clock(device, args.repeats)
        clock.add("authors", lambda: theirs(x[:, :4], t, x[:, 4:]))

        def run_ours() -> Tensor:
            with half:
                return ours(x[:, :4], t, x[:, 4:])

        clock.add("ours", run_ours)
        pair = clock.measure()
        ratios = [a / o for a, o in zip(pair["authors"], pair["ours"], strict=True)]
        print(f"\nThe authors' network in float32 over ours in {args.dtype}, 306M at 64x64: {spread(ratios)}")
    best = peak(device, dtype)
    alone = median(measured[f"network alone, {args.steps} evaluations"])
    reached = flops(evaluation) * args.steps / alone / 1e9
    print(
        f"\nThe machine gives {best['matmul']:.0f} GFLOP/s in a matrix product, {best['conv']:.0f} in a convolution; "
        f"the network reaches {reached:.0f}, {reached / max(best.values()):.0%} of the better."
    )


if __name__ == "__main__":
    main()
