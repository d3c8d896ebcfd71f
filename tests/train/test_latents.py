"""Examples in memory: crops are plain slices, draws are what they promise, and a file gives back what was packed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fmboost_core.train.latents import LatentCrops, LatentSet, Ragged

SIZES = [(8, 12), (10, 8), (14, 20)]  # of low latents


def test_crops_of_images_of_different_sizes_are_slices():
    images = [torch.arange(3 * h * w).view(3, h, w) + 10_000 * n for n, (h, w) in enumerate(((5, 9), (7, 4), (6, 6)))]
    ragged = Ragged.join(images)
    chosen, tops, lefts = torch.tensor([2, 0, 1, 0]), torch.tensor([3, 2, 4, 0]), torch.tensor([0, 6, 1, 5])
    crops = ragged.crops(chosen, tops, lefts, 3)
    for crop, n, y, x in zip(crops, chosen.tolist(), tops.tolist(), lefts.tolist(), strict=True):
        assert torch.equal(crop, images[n][:, y : y + 3, x : x + 3])
    assert all(torch.equal(ragged[n], image) for n, image in enumerate(images))


def place_of(crop, image):
    """Where the crop lies in the image: found by comparison."""
    side = crop.shape[-1]
    if min(image.shape[1:]) < side:
        return None
    windows = image.float().unfold(1, side, 1).unfold(2, side, 1)  # (C, rows, columns, side, side)
    found = (windows == crop[:, None, None]).all(dim=(0, 3, 4)).nonzero().tolist()
    assert len(found) <= 1
    return tuple(found[0]) if found else None


def test_all_kinds_of_a_crop_cover_the_same_area(latents):
    """In units of low latents: high and psu have two values a unit, lower half of one, the picture eight."""
    examples = latents(SIZES)
    crops = LatentCrops(examples, crop=8, scale=2, seed=3)
    places = set()
    for step in range(12):
        batch = crops.batch(step, 2)
        assert batch["picture"].max() <= 1
        for b in range(2):
            where = [place_of(batch["high"][b], examples.kinds["high"][n]) for n in range(3)]
            (n,) = (n for n in range(3) if where[n] is not None)
            top, left = where[n][0] / 2, where[n][1] / 2
            assert top % 2 == left % 2 == 0  # lower has a whole pixel there
            for kind, unit in (("low", 1), ("psu", 2), ("lower", 0.5)):
                assert place_of(batch[kind][b], examples.kinds[kind][n]) == (top * unit, left * unit)
            y, x = int(8 * top), int(8 * left)
            picture = examples.kinds["picture"][n][:, y : y + 32, x : x + 32]
            assert torch.equal(batch["picture"][b], picture.float() / 255)
            places.add((n, top, left))
    assert len(places) > 12


def test_a_batch_is_decided_by_seed_step_and_rank(latents):
    first, again, other = (LatentCrops(latents(SIZES), crop=8, scale=2, seed=s) for s in (1, 1, 2))
    first.batch(4, 3)
    batch = first.batch(5, 3, rank=1, world=2)
    repeated = again.batch(5, 3, rank=1, world=2)
    assert all(torch.equal(batch[kind], repeated[kind]) for kind in batch)
    for different in (other.batch(5, 3, 1, 2), again.batch(6, 3, 1, 2), again.batch(5, 3, 0, 2)):
        for kind in ("noise", "t", "high"):
            assert not torch.equal(batch[kind], different[kind])


def test_times_are_spread_evenly_over_steps_and_ranks(latents):
    crops = LatentCrops(latents(SIZES), crop=8, scale=2, seed=1)
    times = torch.cat([crops.batch(step, 5, rank, 2)["t"] for step in range(10) for rank in range(2)]).sort().values
    assert times.min() >= 0
    assert times.max() < 1
    assert times.diff().max() < 0.03  # of 100; independent draws leave gaps of about log(100) / 100


def drawn(crops, examples, count):
    """How often each example is drawn, told by its first value."""
    first = {float(examples.kinds["high"][n].reshape(-1)[0]): n for n in range(len(examples))}
    batch = crops.batch(0, count)
    return np.bincount([first[float(v)] for v in batch["high"][:, 0, 0, 0]], minlength=len(examples))


def test_examples_are_drawn_by_area_and_folders_by_share(latents):
    """Of one crop each, so that a crop tells its example; chances are 1 : 1 : 1 by area, and 0.9 to 0.1 by share."""
    examples, count = latents([(4, 4)] * 3), 4000
    examples = LatentSet({kind: examples.kinds[kind] for kind in ("low", "high")}, {})
    for shares, chances in (((), (1 / 3, 1 / 3, 1 / 3)), ((0.9, 0.1), (0.45, 0.45, 0.1))):
        crops = LatentCrops(examples, crop=8, scale=2, seed=7, groups=[0, 0, 1], shares=shares)
        for seen, chance in zip(drawn(crops, examples, count), chances, strict=True):
            assert abs(seen - count * chance) < 4 * (count * chance * (1 - chance)) ** 0.5
    larger = latents([(4, 4), (8, 12)])
    weights = LatentCrops(larger, crop=8, scale=2, seed=0).weights
    assert weights.tolist() == pytest.approx([16 / 112, 96 / 112])
    assert LatentCrops(larger, crop=16, scale=2, seed=0).weights.tolist() == [0, 1]  # the first is too small


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"crop": 64}, "no example is as large as a crop of 64"),
        ({"crop": 9}, "crop of 9 latent pixels does not divide by the scale 2"),
        ({"crop": 6}, "does not divide by 4"),  # as kind ``lower`` asks
        ({"crop": 8, "groups": [0, 0, 0], "shares": [0.5, 0.5]}, "0.5 of folder 2, which has no usable photo"),
    ],
)
def test_crops_that_cannot_be_drawn_are_a_sentence(latents, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        LatentCrops(latents(SIZES), scale=2, seed=0, **settings)


def test_what_is_packed_is_loaded(latents, tmp_path):
    examples = latents(SIZES, autoencoder="0123")
    assert examples.save(tmp_path / "all.safetensors") == 3
    loaded = LatentSet.load(tmp_path / "all.safetensors")
    assert loaded.identity == examples.identity
    assert set(loaded.kinds) == {"low", "high", "psu", "lower", "picture"}
    for kind, ragged in examples.kinds.items():
        assert all(torch.equal(loaded.kinds[kind][n], ragged[n]) for n in range(3))
        assert loaded.kinds[kind].values.dtype == ragged.values.dtype


def test_a_limit_takes_an_even_choice_that_fits(latents, tmp_path):
    examples = latents([(8 + 2 * n, 24) for n in range(12)])
    examples.save(tmp_path / "all.safetensors")
    limit = (tmp_path / "all.safetensors").stat().st_size // 2
    count = examples.save(tmp_path / "some.safetensors", limit)
    assert (tmp_path / "some.safetensors").stat().st_size <= limit
    heights = LatentSet.load(tmp_path / "some.safetensors").kinds["low"].heights
    assert len(heights) == count > 2
    assert heights.diff().min() >= 2  # none twice, in order
    assert heights.diff().max() - heights.diff().min() <= 2
    assert heights.min() < 19 < heights.max()


def test_packs_that_cannot_be_written_or_read_are_sentences(latents, tmp_path):
    examples = latents(SIZES)
    with pytest.raises(ValueError, match=r"expected a name in \.safetensors"):
        examples.save(tmp_path / "all.tar")
    with pytest.raises(ValueError, match=r"no example fits into 0\.0625 MiB"):
        examples.save(tmp_path / "all.safetensors", 2**16)
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError, match="no packed latents at .*make them with"):
        LatentSet.load(tmp_path / "none.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match=r"foreign\.safetensors is not a file of packed latents"):
        LatentSet.load(tmp_path / "foreign.safetensors")
    examples.save(tmp_path / "cut.safetensors")
    whole = (tmp_path / "cut.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.safetensors are damaged"):
        LatentSet.load(tmp_path / "cut.safetensors")
