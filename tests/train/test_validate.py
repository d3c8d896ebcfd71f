"""The early look at quality: what it keeps of a photo, and what it says of a model."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from fmboost_core.config import FlowConfig, ModelConfig, NetConfig
from fmboost_core.evaluate.metrics import psnr
from fmboost_core.images.files import save_photo
from fmboost_core.images.resize import enlarge
from fmboost_core.latent_spaces import latent_space
from fmboost_core.model import CFMModel, build_network
from fmboost_core.train.validate import held_out, validate

NET = NetConfig(model_channels=32, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(), num_heads=1)


class Elsewhere:
    """An autoencoder on another device than the photos: one that computes nothing."""

    space = latent_space("sd15")

    def parameters(self):
        yield torch.empty(0, device="meta")

    def encode(self, images):
        return F.avg_pool2d(images.to("meta"), 8).mean(1, keepdim=True).expand(-1, 4, -1, -1)

    def decode(self, latents):
        return torch.zeros(latents.shape[0], 3, 8 * latents.shape[2], 8 * latents.shape[3], device="meta")


@pytest.mark.parametrize(("scale", "side"), [(2, 256), (3, 240), (4, 256), (5, 240)])
def test_the_middle_of_a_photo_divides_by_the_scale_and_is_where_its_latents_are(tmp_path, scale, side):
    save_photo(torch.rand(1, 3, 320, 400), tmp_path / "a.png")
    (held,) = held_out([tmp_path / "a.png"], Elsewhere(), FlowConfig(scale=scale), None)
    assert {tensor.device.type for tensor in (held.photo, held.low, *held.images.values())} == {"meta"}
    assert {image.shape for image in held.images.values()} == {held.photo.shape}
    assert held.photo.shape[2:] == (side, side)
    assert held.low.shape[2:] == (side // 8 // scale,) * 2


def test_figures_are_those_of_the_decoded_pictures(tmp_path, vae, draw):
    """A fresh network is the identity, so that the model is nearest-neighbour enlargement."""
    photos = [draw(tmp_path / f"{i}.png", i, (144, 128)) for i in range(2)]
    config = ModelConfig(net=NET, flow=FlowConfig())
    held = held_out(photos, vae, config.flow, None)
    values = validate(CFMModel(config, build_network(config).eval()), held, vae, tmp_path / "look.png")
    with torch.inference_mode():
        for name, latents in (
            ("truth", [vae.encode(h.photo) for h in held]),
            ("psu", [vae.encode(enlarge(vae.decode(h.low), 2)) for h in held]),
            ("model", [h.low.repeat_interleave(2, 2).repeat_interleave(2, 3) for h in held]),
        ):
            found = [psnr(vae.decode(z), h.photo).item() for z, h in zip(latents, held, strict=True)]
            assert values[f"psnr_{name}"] == pytest.approx(sum(found) / 2, abs=1e-3)
    assert values["psnr_truth"] > values["psnr_model"]
    assert 0 < values["lp_psu"] < 2 and 0 < values["lp_model"] < 2
    with Image.open(tmp_path / "look.png") as picture:
        assert picture.size == (5 * 144, 2 * 128)
