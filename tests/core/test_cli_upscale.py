"""``fmboost upscale``: pictures and folders in, pictures out, and what stands in the way of that."""

from __future__ import annotations

from pathlib import PurePath

import pytest
import torch
from PIL import Image
from torch import nn

from fmboost_core.cli.main import main
from fmboost_core.cli.upscale import _jobs, _upscale
from fmboost_core.images.files import load_photo, read_picture, save_photo
from fmboost_core.sampling import Sampling
from fmboost_core.vae.files import shipped_vae


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "in.png"
    Image.effect_noise((72, 56), 60).convert("RGB").save(path)
    return path


def test_a_photo_becomes_twice_its_size(tmp_path, capsys):
    """Any size: 101 x 67 px are no whole number of latent pixels."""
    Image.linear_gradient("L").rotate(30).resize((101, 67)).convert("RGB").save(tmp_path / "in.png")
    args = ["upscale", str(tmp_path / "in.png"), "-o", str(tmp_path / "out.png"), "--steps", "2"]
    assert main(args) == 0
    assert "101x67 -> 202x134 px, 2 evaluations" in capsys.readouterr().out
    with Image.open(tmp_path / "out.png") as out, Image.open(tmp_path / "in.png") as small:
        assert out.size == (202, 134)
        grey = [list(p.convert("L").resize((12, 8), Image.Resampling.BOX).tobytes()) for p in (out, small)]
    assert torch.corrcoef(torch.tensor(grey).float())[0, 1] > 0.95  # the same picture, in its place


def test_that_the_default_autoencoder_is_soft_is_said_where_it_is_used(picture, tmp_path, caplog):
    args = ["upscale", str(picture), "-o", str(tmp_path / "out.png"), "--steps", "1"]
    for given, said in (([], True), (["--vae", str(shipped_vae("sd15")), "--overwrite"], False)):
        caplog.clear()
        assert main([*args, *given]) == 0
        assert any("no --vae given" in text for text in caplog.messages) == said


@pytest.mark.parametrize(("scale", "evaluations"), [(3, 2), (1.5, 1)])
def test_a_photo_takes_any_scale(scale, evaluations, picture, tmp_path, capsys):
    """By lifts to the next power of two, then exactly."""
    args = ["upscale", str(picture), "-o", str(tmp_path / "out.png"), "--scale", str(scale), "--steps", "1"]
    assert main(args) == 0
    with Image.open(tmp_path / "out.png") as out:
        assert out.size == (72 * scale, 56 * scale)
    assert f"px, {evaluations} evaluations" in capsys.readouterr().out


def test_a_folder_becomes_a_folder_and_one_bad_picture_stops_no_other(picture, tmp_path, capsys):
    pictures, out = tmp_path / "in", tmp_path / "out"
    (pictures / "deep").mkdir(parents=True)
    for name in ("a.png", "deep/b.jpg", "c.bmp"):
        Image.open(picture).save(pictures / name)
    (pictures / "bad.png").write_text("not a picture")
    args = ["upscale", str(pictures), "-o", str(out), "--steps", "1"]
    assert main(args) == 2
    assert "bad.png is not a picture" in capsys.readouterr().err
    assert {str(p.relative_to(out)) for p in out.rglob("*.*")} == {"a.png", "deep/b.jpg", "c.png"}
    before = load_photo(out / "a.png", None, 1)
    (out / "a.png").write_bytes(b"mine")
    main(args)
    assert (out / "a.png").read_bytes() == b"mine"
    assert "a.png is there already and was kept: --overwrite replaces it" in capsys.readouterr().out
    main([*args, "--overwrite"])
    assert torch.equal(load_photo(out / "a.png", None, 1), before)
    Image.open(picture).save(pictures / "a.bmp")
    assert main(args) == 2
    assert "two pictures would be written to" in capsys.readouterr().err


def test_transparency_is_lifted_beside_the_colour(tmp_path):
    """A green disc on invisible magenta: its shape is kept, and its colour is that of a picture all green."""
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="ij")
    alpha = ((x - 48).hypot(y - 48) < 32).float()[None, None]
    green, magenta = (torch.tensor(c).view(1, 3, 1, 1).expand(1, 3, 96, 96) for c in ((0.1, 0.6, 0.2), (1.0, 0.0, 1.0)))
    save_photo(torch.where(alpha > 0, green, magenta), tmp_path / "disc.png", alpha)
    save_photo(green, tmp_path / "green.png")
    assert main(["upscale", *(str(tmp_path / f"{n}.png") for n in ("disc", "green")), "-o", str(tmp_path / "out")]) == 0
    disc, plain = (read_picture(tmp_path / "out" / f"{name}.png") for name in ("disc", "green"))
    assert disc.alpha is not None and plain.alpha is None
    assert ((disc.alpha > 0.5).float() - alpha.repeat_interleave(2, 2).repeat_interleave(2, 3)).abs().mean() < 0.01
    seen = (disc.alpha > 0).expand_as(disc.colour)
    assert ((disc.alpha > 0) & (disc.alpha < 1)).any()
    torch.testing.assert_close(disc.colour[seen], plain.colour[seen], atol=0.02, rtol=0)


def test_the_names_of_many_pictures_are_compared_in_one_pass(tmp_path, monkeypatch):
    """Two by two, 300 names would be 45,000 comparisons."""
    for number in range(300):
        (tmp_path / f"{number}.png").touch()
    compared, equal = [], PurePath.__eq__
    monkeypatch.setattr(PurePath, "__eq__", lambda a, b: compared.append(a) or equal(a, b))
    assert len(_jobs([tmp_path], tmp_path / "out")) == 300
    assert len(compared) < 1000


class Narrow(nn.Module):
    """A decoder on a device that holds `most` latent pixels on a side."""

    def __init__(self, decoder: nn.Module, most: int) -> None:
        super().__init__()
        self.decoder, self.most, self.seen = decoder, most, []

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        side = max(latents.shape[2:])
        if side > self.most:
            raise torch.OutOfMemoryError
        self.seen.append(side)
        return self.decoder(latents)


def test_want_of_memory_makes_the_tiles_of_one_picture_smaller_and_of_no_other(tmp_path, random_model, linear_vae):
    """A result of 96 latent pixels on a device that holds 32, then one of 24."""
    vae = linear_vae()
    whole = vae.tile
    vae.decoder = narrow = Narrow(vae.decoder, 32)
    for name, side in (("large", 384), ("small", 96)):
        save_photo(torch.rand(1, 3, side, side), tmp_path / f"{name}.png")
    seen = {}
    for name in ("large", "small"):
        source, target = tmp_path / f"{name}.png", tmp_path / f"{name}-2x.png"
        with torch.inference_mode():
            said = _upscale(source, target, random_model(), vae, Sampling(steps=1), 2)
        assert "px, 1 evaluations" in said
        seen[name], narrow.seen = narrow.seen, []
    assert seen["small"] == [24] and max(seen["large"]) == 16 and len(seen["large"]) > 36
    assert vae.tile == whole
    narrow.most = 8
    with pytest.raises(ValueError, match="large.png does not fit into memory even in the smallest tiles: reduce it"):
        _upscale(tmp_path / "large.png", tmp_path / "x.png", random_model(), vae, Sampling(steps=1), 2)
    assert vae.tile == whole
