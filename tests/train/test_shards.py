"""Shards of photos, written by the webdataset library itself."""

from __future__ import annotations

import tarfile

import numpy as np
import pytest
import webdataset
from PIL import Image
from safetensors.torch import load_file
from test_data import IDENTITY, PLAIN, PoolVAE

from fmboost_core.photos import find_photos, load_photo
from fmboost_core.train.data import cache_latents


def encode(photos, cache):
    return cache_latents(photos, [PLAIN], cache, vae=PoolVAE(), scale=2, multiple=16, identity=IDENTITY)


@pytest.fixture
def photos(tmp_path):
    """Five photos as files, and the same bytes in two shards."""
    folder, shards = tmp_path / "photos", tmp_path / "shards"
    folder.mkdir()
    shards.mkdir()
    rng = np.random.default_rng(0)
    for i in range(5):
        Image.fromarray(rng.integers(0, 255, (64, 48 + 16 * i, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    for n, numbers in enumerate(((0, 1, 2), (3, 4))):
        with webdataset.TarWriter(str(shards / f"{n:06d}.tar")) as sink:
            for i in numbers:
                sink.write({"__key__": f"part/{i}", "png": (folder / f"{i}.png").read_bytes(), "txt": f"photo {i}"})
    return tmp_path


def test_shards_hold_the_same_photos_as_their_files(photos):
    files, members = find_photos(photos / "photos"), find_photos(photos / "shards")
    assert [str(m) for m in members[:1]] == [f"{photos}/shards/000000.tar/part/0.png"]
    assert len(members) == len(files) == 5  # and no text
    for file, member in zip(files, members, strict=True):
        assert load_photo(member, None, 16).equal(load_photo(file, None, 16))
    assert find_photos(photos / "shards" / "000001.tar") == members[3:]


def test_shards_make_the_same_latents_as_their_files(photos):
    from_files = encode(find_photos(photos / "photos"), photos / "a")
    from_shards = encode(find_photos(photos / "shards"), photos / "b")
    assert [p.name for p in from_shards][3] == "000001.part_3.full.safetensors"
    for one, other in zip(from_files, from_shards, strict=True):
        ours, theirs = load_file(one), load_file(other)
        assert ours.keys() == theirs.keys()
        assert all(ours[key].equal(theirs[key]) for key in ours)


def test_an_unreadable_picture_in_a_shard_is_named_and_skipped(photos, caplog):
    with webdataset.TarWriter(str(photos / "shards" / "000002.tar")) as sink:
        sink.write({"__key__": "broken", "jpg": b"no picture"})
    assert len(encode(find_photos(photos / "shards"), photos / "b")) == 5
    assert "000002.tar/broken.jpg is not a picture" in caplog.text


def test_a_compressed_or_cut_shard_is_a_sentence(photos):
    shard = photos / "shards" / "000000.tar"
    with tarfile.open(photos / "packed.tar", "w:gz") as tar:
        tar.add(photos / "photos" / "0.png")
    with pytest.raises(ValueError, match=r"packed\.tar is no shard .* uncompressed"):
        find_photos(photos / "packed.tar")
    shard.write_bytes(shard.read_bytes()[:5000])  # inside the first picture
    with pytest.raises(ValueError, match=r"000000\.tar is no shard"):
        find_photos(photos / "shards")


def test_photos_of_one_name_in_two_folders_both_count(photos):
    for name, shade in (("a", 0), ("b", 255)):
        (photos / name).mkdir()
        Image.new("RGB", (64, 64), (shade,) * 3).save(photos / name / "1.png")
    both = find_photos(photos / "a") + find_photos(photos / "b")
    means = [load_file(path)["high"].float().mean().item() for path in encode(both, photos / "cache")]
    assert means == [0, 1]
    alone = encode(find_photos(photos / "photos"), photos / "other")
    assert [p.name for p in alone] == [f"{i}.full.safetensors" for i in range(5)]  # caches made before stay good
