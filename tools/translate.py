"""Start a model in another latent space: put the best linear map between the two spaces into its first and last layers.

    python tools/translate.py MODEL SPACE START.safetensors --photos FOLDER --vae FOLDER

Latents of two families show the same picture, and a linear map of one pixel explains much of one by the other (printed
as R2). MODEL is a model file or the name of a shipped model, and START.safetensors what `train.start_from` can name.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fmboost_core import LATENT_SPACES, ModelConfig, load_vae
from fmboost_core.files.model_file import find_model, read_model_file, save_model
from fmboost_core.images.files import load_photo
from fmboost_core.images.folders import find_photos
from fmboost_core.latent_spaces import latent_space
from fmboost_core.train.start import end_layers

SIDE, PHOTOS = 256, 50  # px of the short side, and how many


class Linear(NamedTuple):
    """y = `matrix` x + `offset` for the channels of a latent pixel."""

    matrix: Tensor  # (C_out, C_in)
    offset: Tensor  # (C_out,)


def fit(x: Tensor, y: Tensor) -> tuple[Linear, float]:
    """The least squares map from the pixels x (N, C_in) to y (N, C_out), and the share of y's variance it explains."""
    ones = torch.ones(len(x), 1, dtype=x.dtype)
    inputs = torch.cat([x, ones], dim=1)
    solution = torch.linalg.lstsq(inputs, y).solution
    left = (inputs @ solution - y).square().sum() / (y - y.mean(0)).square().sum()
    return Linear(solution[:-1].T, solution[-1]), 1 - left.item()


def translated(
    config: ModelConfig, weights: dict[str, Tensor], space: str, inward: Linear, outward: Linear
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The model for latents of `space`: `inward` maps them to those it knows, `outward` back.

    At the border, where a convolution sees zeros instead of mapped zeros, it is not exact.
    """
    old, new = config.net.out_channels, latent_space(space).channels
    first, last = end_layers(config.net)
    kernel = weights[f"{first}.weight"].float()
    state, upsampled, rest = kernel[:, :old], kernel[:, old : 2 * old], kernel[:, 2 * old :]
    mapped = [torch.einsum("oikl,ij->ojkl", part, inward.matrix) for part in (state, upsampled)]
    shift = torch.einsum("oikl,i->o", state + upsampled, inward.offset)
    changed = {
        f"{first}.weight": torch.cat([*mapped, rest], dim=1),
        f"{first}.bias": weights[f"{first}.bias"].float() + shift,
        # Velocities are differences of latents, so the offset falls out.
        f"{last}.weight": torch.einsum("oikl,po->pikl", weights[f"{last}.weight"].float(), outward.matrix),
        f"{last}.bias": outward.matrix @ weights[f"{last}.bias"].float(),
    }
    net = replace(config.net, in_channels=2 * new + rest.shape[1], out_channels=new)
    facts = {**config.trained_on, "translated from": config.latent_space}
    return replace(config, net=net, latent_space=space, trained_on=facts), {**weights, **changed}


def pixels(space: str, vae_folder: Path, images: list[Tensor]) -> Tensor:
    """The latent pixels (N, C) of images (1, 3, H, W)."""
    vae = load_vae(vae_folder, space=space)
    latents = [vae.encode(image) for image in images]
    return torch.cat([latent[0].flatten(1).T for latent in latents]).double()


@torch.inference_mode()
def translate(model: str, space: str, out: Path, photos: Path, vae_folder: Path) -> None:
    """Raises ValueError for a network whose first layer is no plain convolution of x_t and the upsampled latent."""
    config, weights = read_model_file(find_model(model))
    if config.net.pool_factor > 1 or config.flow.upsampling != "psu":
        raise ValueError(f"{model} has no pixel-space upsampling, or a pooled first layer: choose another model")
    images = [load_photo(photo, SIDE, 16) for photo in find_photos(photos)[:PHOTOS]]
    theirs, ours = (pixels(name, vae_folder, images) for name in (config.latent_space, space))
    (inward, inward_r2), (outward, outward_r2) = fit(ours, theirs), fit(theirs, ours)
    maps = [Linear(m.matrix.float(), m.offset.float()) for m in (inward, outward)]
    save_model(out, *translated(config, weights, space, *maps))
    print(f"{out}: R2 {inward_r2:.2f} from {space} to {config.latent_space}, {outward_r2:.2f} back")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("space", metavar="SPACE", choices=LATENT_SPACES)
    parser.add_argument("out", type=Path, metavar="START.safetensors")
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True, help="folder with the TAESD pairs of both families")
    args = parser.parse_args()
    try:
        translate(args.model, args.space, args.out, args.photos, args.vae)
    except (OSError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
