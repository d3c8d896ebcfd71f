"""Pictures of every kind in, and pictures out that look right."""

from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from fmboost_core.images.files import check_picture, load_photo, read_picture, save_photo


def gradient(side: int = 32, channels: int = 3) -> np.ndarray:
    y, x = np.mgrid[:side, :side]
    planes = [255 * x / side, 255 * y / side, 255 * (x + y) / 2 / side, np.full((side, side), 200)]
    return np.stack(planes[:channels], axis=-1).round().astype(np.uint8)


def read(path):
    return (read_picture(path).colour[0] * 255).round().permute(1, 2, 0).numpy()


def wide_gamut_profile() -> bytes:
    """A matrix profile with the primaries of Display P3 and gamma 2.2, written by hand (ICC.1:2010, 8.3)."""

    def tag_xyz(x, y, z):
        return b"XYZ " + bytes(4) + b"".join(int(round(v * 65536)).to_bytes(4, "big", signed=True) for v in (x, y, z))

    curve = b"curv" + bytes(4) + (1).to_bytes(4, "big") + int(2.2 * 256).to_bytes(2, "big") + bytes(2)
    text = b"desc" + bytes(4) + (3).to_bytes(4, "big") + b"P3\0" + bytes(79)
    tags = {
        b"desc": text,
        b"wtpt": tag_xyz(0.9642, 1.0, 0.8249),
        b"rXYZ": tag_xyz(0.51512, 0.24120, -0.00105),
        b"gXYZ": tag_xyz(0.29198, 0.69225, 0.04189),
        b"bXYZ": tag_xyz(0.15710, 0.06657, 0.78407),
        b"rTRC": curve,
        b"gTRC": curve,
        b"bTRC": curve,
    }
    body, table, offset = b"", b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += name + offset.to_bytes(4, "big") + len(data).to_bytes(4, "big")
        body, offset = body + data, offset + len(data)
    size = 128 + 4 + len(table) + len(body)
    header = size.to_bytes(4, "big") + b"\0\0\0\0" + b"\x02\x40\0\0" + b"mntrRGB XYZ " + bytes(12) + b"acsp"
    header += bytes(28) + b"".join(int(round(v * 65536)).to_bytes(4, "big") for v in (0.9642, 1.0, 0.8249))
    return header + bytes(128 - len(header)) + len(tags).to_bytes(4, "big") + table + body


def test_transparent_pixels_take_the_colour_around_them_and_alpha_is_kept(tmp_path):
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[...] = (255, 0, 255, 0)  # invisible magenta
    pixels[4:12, 4:12] = (10, 200, 30, 255)
    Image.fromarray(pixels).save(tmp_path / "cut.png")
    picture = read_picture(tmp_path / "cut.png")
    assert picture.alpha is not None
    assert torch.equal(picture.alpha[0, 0], torch.from_numpy(pixels[..., 3] / 255).float())
    wanted = torch.tensor([10, 200, 30]).view(1, 3, 1, 1) / 255
    torch.testing.assert_close(picture.colour, wanted.expand(1, 3, 16, 16), atol=0.01, rtol=0)
    white = load_photo(tmp_path / "cut.png", None, 8)
    assert torch.equal(white[0, :, 0, 0], torch.ones(3))
    torch.testing.assert_close(white[0, :, 8, 8], wanted.flatten())


def test_half_transparent_colours_stay_as_they_are(tmp_path):
    pixels = np.concatenate([gradient(16), np.full((16, 16, 1), 128, np.uint8)], axis=-1)
    Image.fromarray(pixels).save(tmp_path / "glass.png")
    picture = read_picture(tmp_path / "glass.png")
    assert np.array_equal((picture.colour[0] * 255).round().permute(1, 2, 0).numpy(), pixels[..., :3])


@pytest.mark.parametrize("mode", ["P", "LA", "PA", "RGBA", "1", "L", "YCbCr", "HSV"])
def test_every_mode_is_the_picture_that_pillow_shows(mode, tmp_path):
    image = Image.fromarray(gradient(32, 4)).convert("RGBA")
    image = image.convert(mode) if mode != "PA" else image.convert("LA").convert("PA")
    suffix = "tif" if mode in {"YCbCr", "HSV", "PA"} else "png"
    if mode in {"HSV", "PA"}:
        pytest.importorskip("PIL")
        image = image.convert("RGBA" if mode == "PA" else "RGB")
    image.save(tmp_path / f"x.{suffix}")
    with Image.open(tmp_path / f"x.{suffix}") as again:
        assert np.array_equal(read(tmp_path / f"x.{suffix}"), np.asarray(again.convert("RGB")))


def test_palette_with_a_transparent_entry(tmp_path):
    image = Image.new("P", (4, 4), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 1), 1)
    image.save(tmp_path / "p.png", transparency=0)
    picture = read_picture(tmp_path / "p.png")
    assert picture.alpha is not None
    assert picture.alpha.sum() == 1
    torch.testing.assert_close(picture.colour[0, :, 0, 0], torch.tensor([0.0, 0.0, 1.0]), atol=0.01, rtol=0)


def test_cmyk_is_seen_as_pillow_sees_it(tmp_path):
    Image.fromarray(gradient()).convert("CMYK").save(tmp_path / "print.tif")
    with Image.open(tmp_path / "print.tif") as again:
        assert np.array_equal(read(tmp_path / "print.tif"), np.asarray(again.convert("RGB")))


def test_sixteen_bit_grey_and_floating_point_grey_keep_their_tones(tmp_path):
    grey = np.linspace(0, 1, 64).reshape(8, 8)
    Image.fromarray((grey * 65535).round().astype(np.uint16)).save(tmp_path / "16.png")
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "f.tif")
    for name in ("16.png", "f.tif"):
        assert np.abs(read(tmp_path / name)[..., 1] - 255 * grey).max() <= 1, name


def test_sixteen_bit_colour_keeps_its_tones(tmp_path):
    """A PNG written by hand, which Pillow does not write: 16 bits a channel, no filter (PNG 1.2)."""
    tones = np.linspace(0, 65535, 3 * 8 * 8).reshape(8, 8, 3).round().astype(">u2")

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    lines = b"".join(b"\0" + row.tobytes() for row in tones)
    header = (8).to_bytes(4, "big") * 2 + bytes([16, 2, 0, 0, 0])
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")]
    (tmp_path / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    assert np.abs(read(tmp_path / "deep.png") - tones.astype(float) / 257).max() <= 1


@pytest.mark.parametrize(
    ("values", "said"),
    [(300000, "grey values from 0 to 300000: expected 0 to 65535"), (2.5, "from 0 to 2.5: expected")],
)
def test_grey_of_unknown_range_is_one_sentence(values, said, tmp_path):
    pixels = np.zeros((8, 8), np.int32 if isinstance(values, int) else np.float32)
    pixels[3, 3] = values
    Image.fromarray(pixels).save(tmp_path / "x.tif")
    with pytest.raises(ValueError, match=said):
        read_picture(tmp_path / "x.tif")


def test_animations_are_refused(tmp_path):
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match="a.gif has 2 frames: save the one you want"):
        read_picture(tmp_path / "a.gif")


def test_wide_gamut_colours_become_srgb_and_come_back_looking_the_same(tmp_path):
    """The right sRGB values from the matrices themselves: P3 (gamma 2.2) -> XYZ (D50) -> sRGB."""
    profile = wide_gamut_profile()
    p3 = np.array([[0.6, 0.4, 0.35], [0.3, 0.5, 0.45], [0.5, 0.5, 0.5]])
    pixels = np.repeat((p3 * 255).round().astype(np.uint8)[None], 3, axis=0)
    Image.fromarray(pixels).save(tmp_path / "p3.png", icc_profile=profile)
    to_xyz = np.array([[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])
    srgb = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
    linear = (pixels[0] / 255) ** 2.2 @ to_xyz.T @ np.linalg.inv(srgb).T
    wanted = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055) * 255
    assert np.abs(read(tmp_path / "p3.png")[0] - wanted).max() <= 2
    assert np.abs(pixels[0] - wanted).max() > 5  # the profile matters
    save_photo(read_picture(tmp_path / "p3.png").colour, tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as out:
        said = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(out.info["icc_profile"])))
    assert "sRGB" in said
    assert np.abs(read(tmp_path / "out.png")[0] - wanted).max() <= 2


def test_a_broken_profile_is_named_and_the_colours_stay(tmp_path, caplog):
    Image.fromarray(gradient()).save(tmp_path / "x.png", icc_profile=b"no profile")
    assert np.array_equal(read(tmp_path / "x.png"), gradient())
    assert "x.png: its colour profile is not usable" in caplog.text


def test_transparency_is_written_where_the_file_has_it(tmp_path, caplog):
    colour, alpha = torch.rand(1, 3, 16, 16), torch.rand(1, 1, 16, 16)
    save_photo(colour, tmp_path / "a.png", alpha)
    picture = read_picture(tmp_path / "a.png")
    torch.testing.assert_close(picture.alpha, alpha, atol=0.003, rtol=0)
    save_photo(colour, tmp_path / "a.jpg", torch.zeros(1, 1, 16, 16))
    assert read(tmp_path / "a.jpg").min() > 250  # white
    assert "a.jpg: .jpg files have no transparency" in caplog.text


@pytest.mark.parametrize("name", ["x.psd", "x.cur", "x.fits", "x.xpm", "x.gif", "x", "x.ico"])
def test_kinds_that_are_not_written_are_known_before_the_work(name, tmp_path):
    with pytest.raises(ValueError, match="names no kind of picture that is written: expected one of .png, .jpg"):
        check_picture(tmp_path / name)


def test_sizes_that_do_not_fit_are_known_before_the_work(tmp_path):
    with pytest.raises(ValueError, match="would be 20000 x 10 px, and .webp files end at 16383 px: choose .png"):
        check_picture(tmp_path / "x.webp", (10, 20000))


def test_a_failed_save_leaves_the_earlier_file(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    save_photo(torch.zeros(1, 3, 8, 8), path)
    before = path.read_bytes()

    def fail(self, *args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="No space left"):
        save_photo(torch.ones(1, 3, 8, 8), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]
