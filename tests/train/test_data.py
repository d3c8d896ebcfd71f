"""The data pipeline on pictures whose latents are known in closed form."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from fmboost_core.photos import centre_square, find_photos, load_photo
from fmboost_core.train.data import LatentCrops, Variant, cache_latents, encode_example, variants_of
from fmboost_core.upsample import fold_picture


class PoolVAE:
    """An autoencoder one can do in the head: a latent pixel is the mean of 8 x 8 pixels."""

    def encode(self, images):
        return F.avg_pool2d(images, 8)

    def decode(self, latents):
        return F.interpolate(latents, scale_factor=8, mode="nearest")


def ramp(path, width=320, height=256):
    """Red is the column over the width, green the row over the height."""
    x = np.broadcast_to((np.arange(width) + 0.5) / width, (height, width))
    y = np.broadcast_to(((np.arange(height) + 0.5) / height)[:, None], (height, width))
    Image.fromarray((np.stack([x, y, 0 * x], -1) * 255).round().astype(np.uint8)).save(path)


IDENTITY = {"latent_space": "sd15", "scale": 2}


PLAIN = Variant(None)


def cached(tmp_path, variants=(PLAIN,), **kw):
    photos = find_photos(tmp_path / "photos")
    return cache_latents(
        photos, variants, tmp_path / "cache", vae=PoolVAE(), scale=2, multiple=16, identity=IDENTITY, **kw
    )


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    ramp(tmp_path / "photos" / "ramp.png")
    return tmp_path


def test_the_middle_of_a_photo():
    rows, columns = torch.arange(7.0).view(7, 1).expand(7, 10), torch.arange(10.0).expand(7, 10)
    middle = centre_square(torch.stack([rows, columns])[None], 4)
    assert middle[0, 0, :, 0].tolist() == [1, 2, 3, 4]  # of 0..6, one before and two after
    assert middle[0, 1, 0].tolist() == [3, 4, 5, 6]  # of 0..9, three before and three after


def test_low_and_high_crops_show_the_same_place(photos):
    crops = LatentCrops(cached(photos), crop=16, scale=2, seed=3)
    places = set()
    for n in range(40):
        example = crops.example(n)
        middle = {k: example[k][:2].mean(dim=(1, 2)) for k in ("low", "high", "psu")}
        one_pixel = torch.tensor([8 / 320, 8 / 256])  # a shift by one high latent pixel
        assert ((middle["low"] - middle["high"]).abs() < 0.2 * one_pixel).all()
        assert ((middle["psu"] - middle["high"]).abs() < 0.2 * one_pixel).all()
        places.add(tuple(middle["high"].tolist()))
    assert len(places) > 20


def test_the_picture_folds_onto_the_latents_it_belongs_to(photos):
    crops = LatentCrops(cached(photos), crop=16, scale=2, seed=3)
    for n in range(10):
        example = crops.example(n)
        folded = fold_picture(example["picture"][None], 4)[0].unflatten(0, (3, 16)).mean(1)  # colour of each block
        torch.testing.assert_close((folded[:2] + 1) / 2, example["high"][:2], atol=0.02, rtol=0)


def test_latents_are_in_image_coordinates(photos):
    example = LatentCrops(cached(photos), crop=32, scale=2, seed=0).examples[0]
    columns = (torch.arange(40) * 8 + 4) / 320
    torch.testing.assert_close(example["high"][0, 5].float(), columns, atol=3e-3, rtol=0)


def test_a_mirrored_variant_is_mirrored_before_encoding(photos):
    plain, mirrored = LatentCrops(
        cached(photos, (Variant(None), Variant(None, flip=True))), crop=32, scale=2, seed=0
    ).examples
    torch.testing.assert_close(mirrored["high"], plain["high"].flip(-1), atol=1e-3, rtol=0)
    assert (mirrored["high"][0, 0, 0] > mirrored["high"][0, 0, -1]).item()


def test_examples_depend_on_seed_and_index_alone(photos):
    files = cached(photos)
    first = LatentCrops(files, crop=8, scale=2, seed=1)
    again = LatentCrops(files, crop=8, scale=2, seed=1, start=5)
    for key, value in first.example(5).items():
        assert torch.equal(value, next(iter(again))[key])
    other = LatentCrops(files, crop=8, scale=2, seed=2).example(5)
    assert not torch.equal(first.example(5)["noise"], other["noise"])


def test_processes_share_out_the_same_examples(photos):
    files = cached(photos)
    whole = iter(LatentCrops(files, crop=8, scale=2, seed=1, start=6))
    ranks = [iter(LatentCrops(files, crop=8, scale=2, seed=1, start=6, rank=r, world=3)) for r in range(3)]
    for _ in range(2):
        for rank in ranks:
            assert torch.equal(next(whole)["noise"], next(rank)["noise"])


def test_times_are_evenly_spread(photos):
    crops = LatentCrops(cached(photos), crop=8, scale=2, seed=1)
    times = torch.stack([crops.example(n)["t"] for n in range(100)]).sort().values
    assert times.min() >= 0
    assert times.max() < 1
    assert times.diff().max() < 0.03  # independent draws leave gaps of about log(100) / 100


def test_the_cache_is_kept_and_bad_photos_are_named(photos, caplog):
    (photos / "photos" / "broken.jpg").write_bytes(b"not a picture")
    with caplog.at_level(logging.WARNING):
        files = cached(photos)
    assert "broken.jpg" in caplog.text
    assert len(files) == 1
    before = files[0].stat().st_mtime_ns
    assert cached(photos)[0].stat().st_mtime_ns == before


def test_a_disturbed_variant_is_one_of_the_low_latent_alone(photos):
    variants = variants_of([256], False, 0.1)
    assert [v.name for v in variants] == ["256", "256n0.1"]
    files = cached(photos, variants)
    plain, noisy = LatentCrops(files, crop=32, scale=2, seed=0).examples
    assert torch.equal(noisy["high"], plain["high"])
    added = (noisy["low"] - plain["low"]).float()
    assert 0 < added.std() < 0.1
    assert abs(added.mean()) < 4 * added.std() / added.numel() ** 0.5 + 1e-3
    # PoolVAE decodes a latent to flat blocks, so what is made of it holds the same noise.
    pooled = F.avg_pool2d(noisy["psu"].float(), 2) - F.avg_pool2d(plain["psu"].float(), 2)
    assert torch.corrcoef(torch.stack([pooled.flatten(), added.flatten()]))[0, 1] > 0.9
    files[1].unlink()
    again = LatentCrops(cached(photos, variants), crop=32, scale=2, seed=0).examples[1]
    assert torch.equal(again["low"], noisy["low"])


def test_disturbances_of_many_photos_spread_from_nothing_to_the_greatest():
    vae, photo = PoolVAE(), torch.full((1, 3, 128, 128), 0.5)
    made = [encode_example(photo, 2, vae, 0.2, np.random.default_rng(i))["low"] - 0.5 for i in range(100)]
    spread = torch.stack([m.std() for m in made]).sort().values
    torch.testing.assert_close(spread, torch.linspace(0, 0.2, 100), atol=0.04, rtol=0)


def test_a_cache_of_other_latents_is_refused(photos):
    cached(photos)
    with pytest.raises(ValueError, match="use another folder"):
        cache_latents(
            find_photos(photos / "photos"), [Variant(None)], photos / "cache",
            vae=PoolVAE(), scale=4, multiple=32, identity={"latent_space": "sd15", "scale": 4},
        )  # fmt: skip


def test_photos_are_upright_reduced_and_cropped(tmp_path):
    image = Image.new("RGB", (100, 60), (255, 0, 0))
    exif = image.getexif()
    exif[0x0112] = 6  # rotated by 90 degrees
    image.save(tmp_path / "a.jpg", exif=exif)
    assert load_photo(tmp_path / "a.jpg", None, 8).shape == (1, 3, 96, 56)
    assert load_photo(tmp_path / "a.jpg", 30, 8).shape == (1, 3, 48, 24)
    assert load_photo(tmp_path / "a.jpg", 500, 8).shape == (1, 3, 96, 56)
    with pytest.raises(ValueError, match="expected at least 64 px"):
        load_photo(tmp_path / "a.jpg", None, 64)


def test_grey_of_sixteen_bits_keeps_its_tones(tmp_path):
    tones = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(tones).save(tmp_path / "deep.png")
    photo = load_photo(tmp_path / "deep.png", None, 16)
    torch.testing.assert_close(photo[0, 1], torch.from_numpy(tones / 65535).float(), rtol=0, atol=0.5 / 255 + 1e-6)


def damage(path):
    """A flipped bit in the picture data of a PNG, which its checksum shows."""
    ramp(path)
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 5] ^= 1
    content[content.index(b"IHDR") + 20] ^= 1
    path.write_bytes(content)


def test_photos_that_pillow_refuses_are_skipped_and_named(photos, caplog, monkeypatch):
    damage(photos / "photos" / "damaged.png")
    Image.new("L", (640, 640)).save(photos / "photos" / "vast.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200_000)  # it refuses twice as many
    with caplog.at_level(logging.WARNING):
        files = cached(photos)
    assert [file.name for file in files] == ["ramp.full.safetensors"]
    assert "damaged.png" in caplog.text
    assert "vast.png" in caplog.text
    with pytest.raises(ValueError, match="too large"):
        load_photo(photos / "photos" / "vast.png", None, 16)


def test_a_folder_without_photos_is_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="no photos in"):
        find_photos(tmp_path)
