"""An autoencoder of another family is told by its colours, and one of the right family raises no alarm."""

from __future__ import annotations

import argparse

import pytest
import torch
import torch.nn.functional as F

from fmboost_core.cli.options import vae_of
from fmboost_core.latent_spaces import LATENT_SPACES, latent_space
from fmboost_core.vae.family import COLOURS, mistaken_for
from fmboost_core.vae.files import load_vae, shipped_vae

PAIRS = [(a, b) for a in LATENT_SPACES for b in LATENT_SPACES if len(COLOURS[a][0]) == len(COLOURS[b][0])]


class Flat:
    """The latents of least norm that have, in a family, the colours of a picture; shifted, rescaled and disturbed."""

    def __init__(self, family: str, gain: float) -> None:
        self.inverse, self.gain = torch.linalg.pinv(torch.tensor(COLOURS[family]) / 1000), gain

    def encode(self, images):
        latents = torch.einsum("ck,bkhw->bchw", self.inverse, F.avg_pool2d(images, 8))
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
        return self.gain * latents + 0.3 + 0.05 * latents.std() * noise


@pytest.mark.parametrize("gain", [0.9, 1.1])
@pytest.mark.parametrize(("family", "taken_for"), PAIRS)
def test_colours_tell_the_family(family, taken_for, gain):
    found = mistaken_for(Flat(family, gain), latent_space(taken_for))
    assert found == (None if family == taken_for else latent_space(family))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_autoencoder_that_ships_is_of_its_family(dtype):
    vae = load_vae(shipped_vae("sd15"), dtype=dtype)
    assert mistaken_for(vae, latent_space("sd15")) is None
    assert mistaken_for(vae, latent_space("sdxl")) == latent_space("sd15")


class Unknown:
    """Latents whose colours are those of no family."""

    def encode(self, images):
        shape = (images.shape[0], 4, images.shape[2] // 8, images.shape[3] // 8)
        return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_what_fits_no_family_is_not_called_another(family):
    assert mistaken_for(Unknown(), latent_space(family)) is None


def test_the_command_line_says_so(tmp_path, caplog):
    path = tmp_path / "vae.safetensors"  # whose name tells no family
    path.write_bytes(shipped_vae("sd15").read_bytes())
    options = argparse.Namespace(vae=path, device="cpu")
    vae_of(latent_space("sd15"), options)
    assert not caplog.text
    vae_of(latent_space("sdxl"), options)
    assert "vae.safetensors makes latents with the colours of sd15 and is used for sdxl" in caplog.text
