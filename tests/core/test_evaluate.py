import csv
import logging
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from fmboost_core.checkpoint import save_model
from fmboost_core.config import FlowConfig, ModelConfig, NetConfig
from fmboost_core.evaluate import PATCHES, Perceptual, evaluate, evaluate_files, gain_kept
from fmboost_core.figures import Picture, picture_grid, plots
from fmboost_core.latent_spaces import LATENT_SPACES
from fmboost_core.metrics import laplacian_patches, patch_distances
from fmboost_core.model import CFMModel
from fmboost_core.photos import load_photo
from fmboost_core.rows import BASELINES, CEILING, SMALL, Row, table, write_csv
from fmboost_core.unet import UNet
from fmboost_core.upsample import reduce_pixels
from fmboost_core.vae import TinyVAE

pytest.importorskip("torchmetrics")

QUALITIES = ("psnr", "ssim", "psnr_reduced", "latent_mse", "high_frequency", "swd", "swd_each", "frechet", "colour")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two small photos of smooth shapes with noise, and a text that calls itself a photo."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i, (height, width) in enumerate([(160, 192), (224, 160)]):
        y, x = np.mgrid[:height, :width]
        base = 128 + 90 * np.sin(x[..., None] / (7 + np.arange(3)) + y[..., None] / 11 + i)
        pixels = (base + rng.normal(0, 12, base.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"photo{i}.png")
    return folder


@pytest.fixture(scope="module")
def photos(folder):
    return sorted(folder.glob("*.png"))


def autoencoder(space="sd15"):
    torch.manual_seed(0)
    return TinyVAE(LATENT_SPACES[space], width=8).eval().requires_grad_(False)


def fresh(upsampling="nearest", space="sd15", scale=2, **flow):
    """A net as it starts its training: velocity 0, so the lift is its x0."""
    torch.manual_seed(0)
    channels = LATENT_SPACES[space].channels
    net = NetConfig(2 * channels, channels, 32, 1, (1,), ())
    config = ModelConfig(net, FlowConfig(upsampling=upsampling, scale=scale, **flow), space)
    return CFMModel(config, UNet(net).eval().requires_grad_(False))


def by_label(rows):
    return {row.label: row for row in rows}


@pytest.mark.parametrize(("space", "scale", "side"), [("sd15", 2, 160), ("flux", 4, 160)])
def test_an_identity_flow_scores_as_the_baseline_it_starts_from(photos, space, scale, side):
    models = {"from-nearest": fresh("nearest", space, scale), "from-psu": fresh("psu", space, scale)}
    found = evaluate(models, photos, autoencoder(space), short_side=side, steps=(1, 3), pictures=1)
    rows = by_label(found.rows)
    assert list(rows) == [CEILING, *BASELINES, *(f"from-{b} euler {n}" for b in ("nearest", "psu") for n in (1, 3))]
    for label, baseline in (("from-nearest euler 3", "nearest"), ("from-psu euler 1", "psu")):
        for quality in QUALITIES:
            expected = getattr(rows[baseline], quality)
            assert getattr(rows[label], quality) == pytest.approx(expected, rel=1e-3, abs=1e-6), quality
    assert [rows[f"from-nearest euler {n}"].evaluations for n in (1, 3)] == [1, 3]
    assert all(row.photos == 2 and row.decode_ms > 0 for row in found.rows)


def test_disturbed_low_latents_have_rows_of_their_own(photos):
    vae, model = autoencoder(), fresh("nearest")
    found = evaluate(
        {"m": model}, photos[:1], vae, short_side=160, steps=(1, 2), baselines=("psu",), latent_noise=(0, 0.05, 0.1)
    )
    rows = by_label(found.rows)
    hows = ("noise 0.05", "noise 0.1", "round trip")
    disturbed = [f"{name}, {how}" for how in hows for name in ("psu", "m euler 2")]
    assert list(rows) == [CEILING, "psu", "m euler 1", "m euler 2", *disturbed]
    # The identity flow from nearest passes the noise on, which is independent of its error.
    clean = rows["m euler 2"].latent_mse
    for deviation in (0.05, 0.1):
        added = rows[f"m euler 2, noise {deviation}"].latent_mse - clean
        assert added == pytest.approx(deviation**2, rel=0.5)
    assert all("," not in label for label in found.pictures[0].panels)


def test_a_regression_net_has_one_row_of_one_step(photos):
    regression = fresh("nearest", noise_step=300)
    regression.config = replace(regression.config, trained_on={"objective": "regression"})
    models = {"mean": regression, "flow": fresh("nearest", noise_step=300)}
    rows = by_label(evaluate(models, photos[:1], autoencoder(), short_side=160, steps=(2, 4), pictures=0).rows)
    assert [label for label in rows if label not in (CEILING, *BASELINES)] == [
        "mean, regression euler 1", "flow euler 2", "flow euler 4",
    ]  # fmt: skip
    assert rows["mean, regression euler 1"].latent_mse == pytest.approx(rows["nearest"].latent_mse)  # a clean start


def test_the_gain_kept_is_a_share_of_the_gain_of_the_most_steps():
    rows = [Row("psu", swd=5.0), *(Row("m", "euler", n, swd=s) for n, s in ((1, 6.0), (4, 1.4), (50, 1.0)))]
    assert [gain_kept(row, rows, 5.0) for row in rows[1:]] == pytest.approx([-0.25, 0.9, 1.0])
    assert math.isnan(gain_kept(rows[0], rows, 5.0))
    assert math.isnan(gain_kept(rows[1], rows[:2], 5.0))


def test_learned_metrics_are_those_of_their_definition(photos):
    """Features that are the mean of the red channel: FID is then (difference of means)^2 + (of deviations)^2."""
    seen = {}

    def features(images):
        return images[:, :1].mean(dim=(2, 3))

    def distance(image, photo):
        seen.setdefault("pairs", []).append((image, photo))
        return (image - photo).abs().mean()

    given = Perceptual(features, distance)
    row = evaluate(
        {}, photos, autoencoder(), scale=2, short_side=160, baselines=("nearest",), pictures=0, perceptual=given
    ).rows[-1]
    ours, theirs = (torch.tensor([float(features(p[i])) for p in seen["pairs"][1::2]]).double() for i in (0, 1))
    expected = (ours.mean() - theirs.mean()) ** 2 + (ours.std() - theirs.std()) ** 2
    assert row.fid == pytest.approx(float(expected), rel=1e-3, abs=1e-9)
    assert row.lpips == pytest.approx(float(torch.stack([(a - b).abs().mean() for a, b in seen["pairs"][1::2]]).mean()))


def test_the_reconstruction_is_the_ceiling(photos):
    row, *others = evaluate({}, photos, autoencoder(), scale=2, short_side=160, pictures=0).rows
    assert (row.method, row.latent_mse, row.swd, row.high_frequency) == (CEILING, 0, 0, 1)
    assert row.frechet == pytest.approx(0, abs=1e-6)
    assert min(r.swd_of_best for r in others) == 1
    assert all(r.latent_mse > 0 and r.swd > 0 for r in others)


def test_the_low_latent_has_only_its_own_picture_s_distance(photos):
    vae = autoencoder()
    found = evaluate({}, photos[:1], vae, scale=2, short_side=160, baselines=("psu",), pictures=0)
    small = reduce_pixels(load_photo(photos[0], 160, 16), 2)
    mse = float((vae.decode(vae.encode(small)) - small).double().square().mean())
    assert (found.low.method, math.isnan(found.low.psnr)) == (SMALL, True)
    assert found.low.psnr_reduced == pytest.approx(-10 * math.log10(mse), abs=1e-4)
    assert [row.method for row in found.printed] == [CEILING, SMALL, "psu"]


def test_noise_depends_on_the_seed_alone(photos):
    def score(seed):
        rows = evaluate(
            {"m": fresh(noise_step=400)}, photos[:1], autoencoder(), short_side=160, steps=(1,), baselines=(), seed=seed
        ).rows
        return rows[-1].latent_mse

    assert score(1) == score(1)
    assert score(1) != score(2)


def test_an_adaptive_solver_has_one_row_and_its_evaluations_are_counted(photos):
    found = evaluate(
        {"m": fresh()}, photos[:1], autoencoder(), short_side=160, steps=(1, 2), solvers=("midpoint", "dopri5")
    )
    rows = by_label(found.rows[5:])
    assert list(rows) == ["m midpoint 1", "m midpoint 2", "m dopri5"]
    assert rows["m midpoint 2"].evaluations == 4
    assert rows["m dopri5"].evaluations > 2


def test_files_in_files_out(folder, photos, tmp_path, caplog):
    (tmp_path / "in").mkdir()
    for path in photos:
        (tmp_path / "in" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "in" / "broken.jpg").write_text("not a picture")
    model, vae = fresh(), autoencoder()
    save_model(tmp_path / "mine.safetensors", model.config, model.net.state_dict())
    for part in ("encoder", "decoder"):
        torch.save(getattr(vae, part).state_dict(), tmp_path / f"taesd_{part}.pth")
    calls = []
    with caplog.at_level(logging.WARNING):
        found = evaluate_files(
            [tmp_path / "mine.safetensors"],
            tmp_path / "in",
            tmp_path,
            out=tmp_path / "out",
            short_side=160,
            steps=(2,),
            progress=lambda done, total, what: calls.append((done, total, what)),
        )
    assert "broken.jpg" in caplog.text
    assert [row.label for row in found.rows][-1] == "mine euler 2"
    assert calls[-1] == (12, 12, "mine euler 2")
    with open(tmp_path / "out" / "results.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert lines.pop(1)["method"] == SMALL
    assert [float(line["psnr"]) for line in lines] == [row.psnr for row in found.rows]
    assert (tmp_path / "out" / "table.md").read_text(encoding="utf-8").count("\n") == len(found.printed) + 2
    labels = ["low", CEILING, "photo", "nearest", "psu", "mine euler 2"]
    assert all(sorted(p.panels) == sorted(labels) for p in found.pictures)
    with Image.open(tmp_path / "out" / "pictures.png") as grid:
        assert grid.width > 6 * 320


def test_models_with_the_same_file_name_are_told_apart_by_their_paths(folder, tmp_path):
    model, vae, files = fresh(), autoencoder(), []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        files.append(tmp_path / name / "mine.safetensors")
        save_model(files[-1], model.config, model.net.state_dict())
    for part in ("encoder", "decoder"):
        torch.save(getattr(vae, part).state_dict(), tmp_path / f"taesd_{part}.pth")
    found = evaluate_files(files, folder, tmp_path, short_side=160, steps=(1,), limit=1)
    assert [row.method for row in found.rows][-2:] == [str(file) for file in files]
    with pytest.raises(ValueError, match="given twice"):
        evaluate_files([files[0], files[0]], folder, tmp_path, short_side=160)


def test_table_is_aligned_and_markdown():
    rows = [Row(CEILING, photos=1, psnr=25.0), Row("model", "euler", 10, psnr=24.123)]
    lines = table(rows).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[2].startswith("model euler 10") and "24.12" in lines[2]
    marked = table(rows, markdown=True).splitlines()
    assert len(marked) == 4 and len({line.count("|") for line in marked}) == 1


def test_csv_keeps_every_field(tmp_path):
    write_csv([Row("nearest", psnr=1 / 3)], tmp_path / "r.csv")
    head, line = (tmp_path / "r.csv").read_text(encoding="utf-8").splitlines()
    assert head.startswith("method,solver,steps") and str(1 / 3) in line


def test_the_crop_is_where_the_detail_is(tmp_path):
    photo = torch.full((256, 320, 3), 128, dtype=torch.uint8)
    photo[128:, 192:] = torch.randint(0, 256, (128, 128, 3), generator=torch.Generator().manual_seed(0))
    picture_grid([Picture("a", {"low": photo[::2, ::2], "photo": photo})], tmp_path / "grid.png", crop=64)
    with Image.open(tmp_path / "grid.png") as grid:
        pixels = np.asarray(grid)
    bottom = pixels[-320 - 16 : -24]
    assert bottom[:, 340:640].std() > 60  # of the photo's crop: noise, enlarged


def test_plots_need_matplotlib_and_say_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with caplog.at_level(logging.WARNING):
        assert plots([Row("nearest")], tmp_path) == []
    assert "matplotlib" in caplog.text


def test_plots_are_written(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [Row("nearest", psnr=20.0, lift_ms=1.0), *(Row("m", "euler", n, n, lift_ms=n, psnr=n) for n in (1, 4))]
    assert [path.is_file() for path in plots(rows, tmp_path)] == [True, True]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": {}}, "no model and no scale"),
        ({"models": {"a": fresh(), "b": fresh(scale=4)}}, "2x, 4x"),
        ({"models": {"a": fresh(space="sdxl")}}, "sdxl latents"),
        ({"models": {"psu": fresh()}}, "cannot be called psu"),
        ({"solvers": ("euler", "rk5")}, "rk5"),
        ({"steps": (4, 0)}, "steps are .*expected whole numbers from 1"),
        ({"steps": ()}, "steps are .*expected whole numbers from 1"),
        ({"baselines": ("lanczos",)}, "lanczos"),
        ({"short_side": 64}, "too small"),
        ({"photos": []}, "none of the 0 photos"),
    ],
)
def test_mistakes_are_one_sentence(photos, change, message):
    given = {"models": {"a": fresh()}, "photos": photos, "vae": autoencoder(), "short_side": 160, **change}
    with pytest.raises(ValueError, match=message) as error:
        evaluate(given.pop("models"), given.pop("photos"), given.pop("vae"), **given)
    assert "\n" not in str(error.value)


def test_distances_are_of_enough_patches_that_chance_does_not_rule_them():
    """Two draws of windows from the same images are apart by chance alone, as one over the root of their number."""
    images = torch.rand(2, 3, 256, 256, generator=torch.Generator().manual_seed(0))

    def by_chance(patches):
        draws = [laplacian_patches(images, levels=1, patches=patches, seed=seed) for seed in (0, 1)]
        return patch_distances(*draws, projections=64).mean

    assert by_chance(128) / by_chance(128 * 16) == pytest.approx(4, rel=0.3)
    assert by_chance(PATCHES) < 0.03  # a good model is 0.02 to 0.04 from the truth
