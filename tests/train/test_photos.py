"""Photos as training finds and reads them: folders, shards, and files that need care."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from fmboost_core.images.files import load_photo
from fmboost_core.images.folders import find_photos
from fmboost_core.images.resize import centre_square


def test_the_middle_of_a_photo():
    rows, columns = torch.arange(7.0).view(7, 1).expand(7, 10), torch.arange(10.0).expand(7, 10)
    middle = centre_square(torch.stack([rows, columns])[None], 4)
    assert middle[0, 0, :, 0].tolist() == [1, 2, 3, 4]  # of 0..6, one before and two after
    assert middle[0, 1, 0].tolist() == [3, 4, 5, 6]  # of 0..9, three before and three after


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


def test_a_folder_without_photos_is_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="no photos in"):
        find_photos(tmp_path)


@pytest.fixture
def shards(tmp_path, draw):
    """Five photos as files, and the same bytes in two shards as webdataset has them: members by key, with captions."""
    folder = tmp_path / "shards"
    folder.mkdir()
    files = [draw(tmp_path / "photos" / f"{i}.png", i, (48 + 16 * i, 64)) for i in range(5)]
    for n, some in enumerate((files[:3], files[3:])):
        with tarfile.open(folder / f"{n:06d}.tar", "w") as tar:
            for file in some:
                tar.add(file, f"part/{file.name}")
                caption = tarfile.TarInfo(f"part/{file.stem}.txt")
                caption.size = 7
                tar.addfile(caption, io.BytesIO(b"a photo"))
    return folder


def test_shards_hold_the_same_photos_as_their_files(shards):
    files, members = find_photos(shards.parent / "photos"), find_photos(shards)
    assert str(members[0]) == f"{shards}/000000.tar/part/0.png"
    assert len(members) == len(files) == 5  # and no text
    for file, member in zip(files, members, strict=True):
        assert load_photo(member, None, 16).equal(load_photo(file, None, 16))
    assert find_photos(shards / "000001.tar") == members[3:]


def test_a_compressed_or_cut_shard_is_a_sentence(shards):
    with tarfile.open(shards.parent / "packed.tar", "w:gz") as tar:
        tar.add(shards.parent / "photos" / "0.png")
    with pytest.raises(ValueError, match=r"packed\.tar is no shard .* uncompressed"):
        find_photos(shards.parent / "packed.tar")
    shard = shards / "000000.tar"
    shard.write_bytes(shard.read_bytes()[:5000])  # inside the first picture
    with pytest.raises(ValueError, match=r"000000\.tar is no shard"):
        find_photos(shards)
