"""Photos to cached latents, by an autoencoder one can do in the head."""

from __future__ import annotations

import tarfile
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from fmboost_core.config import FlowConfig
from fmboost_core.images.folders import find_photos
from fmboost_core.latent_spaces import latent_space
from fmboost_core.train.encode import Encoder, Variant, encode_photos
from fmboost_core.train.latents import LatentCrops, LatentSet
from fmboost_core.vae.files import load_vae, shipped_vae

PLAIN = Variant(None, False)


class PoolVAE:
    """A latent pixel is the mean of 8 x 8 pixels."""

    space = latent_space("sd15")

    def __init__(self, name="pool", dtype=torch.float32):
        self.name, self.dtype, self.encoded = name, dtype, 0

    def fingerprint(self):
        return self.name

    def encode(self, images):
        self.encoded += 1
        return F.avg_pool2d(images, 8)

    def decode(self, latents):
        return F.interpolate(latents, scale_factor=8, mode="nearest")


def encode(photos, cache, vae=None, variants=(PLAIN,), share=(0, 1)):
    encoder = Encoder(vae or PoolVAE(), FlowConfig(upsampling="psu"))
    return encode_photos(find_photos(photos), variants, cache, encoder, share)


def ramp(path, width=320, height=256):
    """Red is the column over the width, green the row over the height."""
    x = np.broadcast_to((np.arange(width) + 0.5) / width, (height, width))
    y = np.broadcast_to(((np.arange(height) + 0.5) / height)[:, None], (height, width))
    path.parent.mkdir(exist_ok=True)
    Image.fromarray((np.stack([x, y, 0 * x], -1) * 255).round().astype(np.uint8)).save(path)


@pytest.fixture
def photos(tmp_path):
    ramp(tmp_path / "photos" / "ramp.png")
    return tmp_path / "photos"


def examples(*args, **kw):
    return LatentSet.read(encode(*args, **kw), {}).kinds


def test_latents_are_in_image_coordinates(photos, tmp_path):
    kinds = examples(photos, tmp_path / "cache")
    stairs = 8 / 320 / 2  # psu is made of decoded pixels, which are flat
    for kind, pixels, tolerance in (("high", 8, 3e-3), ("low", 16, 3e-3), ("lower", 32, 3e-3), ("psu", 8, stairs)):
        columns = (torch.arange(320 // pixels) + 0.5) * pixels / 320
        middle = kinds[kind][0][0, 256 // pixels // 2].float()
        # Reducing bends the ramp at its ends.
        torch.testing.assert_close(middle[1:-1], columns[1:-1], atol=tolerance, rtol=0)
    assert kinds["picture"].values.dtype == torch.uint8
    assert kinds["picture"][0].shape == (3, 128, 160)


def test_crops_of_all_kinds_show_the_same_place(photos, tmp_path):
    batch = LatentCrops(LatentSet(examples(photos, tmp_path / "cache"), {}), crop=16, scale=2, seed=3).batch(0, 40)
    middle = {kind: batch[kind][:, :2].mean(dim=(2, 3)) for kind in ("low", "high", "psu", "lower", "picture")}
    one_pixel = torch.tensor([8 / 320, 8 / 256])  # a shift by one high latent pixel
    for kind in ("low", "psu", "lower", "picture"):
        assert ((middle[kind] - middle["high"]).abs() < 0.2 * one_pixel).all(), kind
    assert len(middle["high"].unique(dim=0)) > 20


def test_a_mirrored_variant_is_mirrored_before_encoding(photos, tmp_path):
    high = examples(photos, tmp_path / "cache", variants=(PLAIN, Variant(None, True)))["high"]
    torch.testing.assert_close(high[1], high[0].flip(-1), atol=1e-3, rtol=0)
    assert high[1][0, 0, 0] > high[1][0, 0, -1]


def test_what_is_there_is_kept_and_another_autoencoder_makes_its_own(photos, tmp_path):
    """As does the same one in bfloat16, whose fingerprint is the same."""
    first, again, others = PoolVAE(), PoolVAE(), [PoolVAE("another"), PoolVAE(dtype=torch.bfloat16)]
    before = encode(photos, tmp_path / "cache", first)
    assert first.encoded == 4
    assert encode(photos, tmp_path / "cache", again) == before
    assert again.encoded == 0
    for other in others:
        after = encode(photos, tmp_path / "cache", other)
        assert other.encoded == 4
        assert not set(before) & set(after) and before[0].exists()


def test_an_autoencoder_says_its_precision(vae):
    """What identifies the latents of two precisions differs in that alone."""
    half = load_vae(shipped_vae("sd15"), space="sd15", dtype=torch.bfloat16)
    exact, rounded = (Encoder(v, FlowConfig()).identity for v in (vae, half))
    assert (exact["dtype"], rounded["dtype"]) == ("float32", "bfloat16")
    assert {**rounded, "dtype": "float32"} == exact


def test_photos_of_one_name_are_never_taken_for_each_other(tmp_path):
    for folder, shade in (("a", 0), ("b", 255)):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (64, 64), (shade,) * 3).save(tmp_path / folder / "1.png")
    means = [examples(tmp_path / f, tmp_path / "cache")["high"][0].float().mean().item() for f in ("a", "b")]
    assert means == [0, 1]
    Image.new("RGB", (64, 64), (51,) * 3).save(tmp_path / "a" / "1.png")  # the same file with new contents
    assert examples(tmp_path / "a", tmp_path / "cache")["high"][0].float().mean().item() == pytest.approx(0.2, abs=1e-3)


def test_a_photo_s_name_may_be_as_long_as_the_file_system_allows(tmp_path):
    ramp(tmp_path / "photos" / f"{'n' * 228}.png", 64, 64)
    (file,) = encode(tmp_path / "photos", tmp_path / "cache")
    assert file.exists() and len(file.name) < 60


def damaged(path):
    """A flipped bit in the picture data of a PNG, which its checksum shows."""
    ramp(path)
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 5] ^= 1
    content[content.index(b"IHDR") + 20] ^= 1
    path.write_bytes(content)


def test_photos_that_cannot_be_used_are_named_and_remembered(photos, tmp_path, caplog, monkeypatch):
    (photos / "text.jpg").write_bytes(b"not a picture")
    (photos / "gone.png").symlink_to(photos / "nowhere.png")
    damaged(photos / "damaged.png")
    Image.new("L", (16, 640)).save(photos / "narrow.png")
    Image.new("L", (640, 640)).save(photos / "vast.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200_000)  # it refuses twice as many
    for _ in range(2):
        caplog.clear()
        assert len(encode(photos, tmp_path / "cache")) == 1
        for name in ("text.jpg", "gone.png", "damaged.png", "narrow.png", "vast.png"):
            assert f"{name}: " in caplog.text
    assert len(list((tmp_path / "cache").glob("*.unusable"))) == 4
    (photos / "ramp.png").unlink()
    with pytest.raises(ValueError, match="none of the 5 photos could be used"):
        encode(photos, tmp_path / "cache")


def test_a_cache_that_cannot_be_written_is_not_the_photo_s_fault(photos, tmp_path):
    class FullDisk(PoolVAE):
        def encode(self, images):
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        encode(photos, tmp_path / "cache", FullDisk())
    assert len(encode(photos, tmp_path / "cache")) == 1


def test_processes_share_the_work_and_wait_for_each_other(photos, tmp_path):
    for n in range(4):
        ramp(photos / f"{n}.png", 64 + 32 * n, 64)
    (photos / "a.jpg").write_bytes(b"not a picture")
    vaes, found = [PoolVAE(), PoolVAE()], {}

    def work(number):
        found[number] = encode(photos, tmp_path / "cache", vaes[number], share=(number, 2))

    threads = [threading.Thread(target=work, args=(number,)) for number in (1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found[0] == found[1] == encode(photos, tmp_path / "cache")
    assert len(found[0]) == 5
    assert sorted(vae.encoded for vae in vaes) == [8, 12]  # of 6 photos, one of which is none


def test_shards_make_the_latents_of_their_photos(photos, tmp_path):
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "000000.tar", "w") as tar:
        tar.add(photos / "ramp.png", "part/other-name.png")
    assert encode(tmp_path / "shards", tmp_path / "cache") == encode(photos, tmp_path / "cache")


def test_latents_that_are_damaged_are_named(photos, tmp_path):
    (file,) = encode(photos, tmp_path / "cache")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=f"the cached latents .*{file.name} are damaged .*: delete that file"):
        LatentSet.read([file], {})
