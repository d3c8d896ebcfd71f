"""The early look at quality: what it keeps of a photo."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fmboost_core.photos import save_photo
from fmboost_core.train.validate import held_out


class Elsewhere:
    """An autoencoder on another device than the photos: one that computes nothing."""

    coarse = False

    def encode(self, images):
        return F.avg_pool2d(images.to("meta"), 8).mean(1, keepdim=True).expand(-1, 4, -1, -1)

    def decode(self, latents):
        return torch.zeros(latents.shape[0], 3, 8 * latents.shape[2], 8 * latents.shape[3], device="meta")


def test_a_held_out_photo_is_where_its_latents_are(tmp_path):
    save_photo(torch.rand(1, 3, 160, 192), tmp_path / "a.png")
    (held,) = held_out([tmp_path / "a.png"], Elsewhere(), 2, None, size=16)
    assert {tensor.device.type for tensor in vars(held).values()} == {"meta"}


@pytest.mark.parametrize(("scale", "side"), [(2, 32), (3, 30), (4, 32), (5, 30)])
def test_the_crop_divides_by_the_scale(tmp_path, scale, side):
    save_photo(torch.rand(1, 3, 320, 400), tmp_path / "a.png")
    (held,) = held_out([tmp_path / "a.png"], Elsewhere(), scale, None, size=32)
    assert held.photo.shape[2:] == (8 * side, 8 * side)
    assert held.low.shape[2:] == (side // scale, side // scale)
