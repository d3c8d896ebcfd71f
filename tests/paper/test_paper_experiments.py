"""Every experiment in its smallest form, and its numbers against the tables' own definitions."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks.paper import guidance
from benchmarks.paper.cli import EXPERIMENTS, main
from benchmarks.paper.fid import open_fid
from benchmarks.paper.lab import Lab, spread, synthetic_photos
from benchmarks.paper.presets import PRESETS, RECIPES
from benchmarks.paper.report import Column, table
from fmboost_core import load_vae
from fmboost_core.evaluate.metrics import psnr
from fmboost_core.images.files import load_photo
from fmboost_core.unet import UNet
from fmboost_core.vae.files import shipped_vae

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("paper")
    assert main(["all", "--config", "tiny", "--out", str(folder), "--device", "cpu"]) == 0
    return folder


def rows(out: Path, name: str) -> list[dict[str, str]]:
    with (out / f"{name}.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_each_experiment_leaves_a_table_a_picture_and_what_was_run(out, name):
    text = (out / f"{name}.md").read_text(encoding="utf-8")
    assert f"python -m benchmarks.paper {name} --config tiny" in text
    for said in ("versions", "machine", "settings", "took"):
        assert f"- {said}: " in text
    pictures = [p for p in (out / f"{name}.png", out / f"{name}.jpg") if p.exists()]
    assert pictures
    for picture in pictures:
        assert picture.name in text
        with Image.open(picture) as image:
            assert min(image.size) > 100
    assert rows(out, name)


def test_networks_are_trained_once_and_kept_at_every_milestone(out):
    milestones = PRESETS["tiny"].milestones
    for name in RECIPES:
        kept = {p.name for p in (out / "nets" / name).glob("*.safetensors")}
        assert kept == {f"{name}.safetensors", *(f"{name}.{step:06d}.safetensors" for step in milestones)}
    before = (out / "nets" / "fm" / "fm.safetensors").stat().st_mtime_ns
    assert main(["straight", "--config", "tiny", "--out", str(out), "--device", "cpu"]) == 0
    assert (out / "nets" / "fm" / "fm.safetensors").stat().st_mtime_ns == before


def test_the_same_network_has_the_same_line_in_every_table(out):
    lines = [
        next(r for r in rows(out, name) if r["label"] == label)
        for name, label in (("tab1", "CFM-nearest"), ("tab2", "CFM"), ("tab3", "CFM-400"), ("tab7", "CFM-400, small"))
    ]
    for key in ("psnr", "ssim", "lp", "frechet8", "high_frequency", "evaluations"):
        assert len({line[key] for line in lines}) == 1, key


def test_noise_of_the_last_step_leaves_nothing_of_the_source(out):
    """Tab. 3's end of the scale is the Gaussian start: two untrained nets then differ by their weights alone."""
    last = next(r for r in rows(out, "tab3") if r["label"] == "CFM-999")
    fm = next(r for r in rows(out, "tab2") if r["label"] == "FM")
    assert float(last["psnr"]) == pytest.approx(float(fm["psnr"]), abs=0.1)


def test_tab6_is_the_autoencoder_alone(out):
    vae = load_vae(shipped_vae("sd15"), space="sd15")
    photo = load_photo(out / "synthetic" / "1.png", 128, 8)  # the middle one of the three
    with torch.inference_mode():
        expected = psnr(vae.decode(vae.encode(photo)), photo).item()
    found = next(r for r in rows(out, "tab6") if r["size"] == "128")
    assert float(found["psnr"]) == pytest.approx(expected, abs=1e-3)
    assert found["photos"] == "1"


def test_tab4_counts_what_the_solver_asked_for(out):
    found = {r["label"]: float(r["evaluations"]) for r in rows(out, "tab4")}
    assert (found["NFE 1"], found["NFE 2"]) == (1, 2)
    assert found["dopri5"] > 6


def test_fig1_adds_up(out):
    table = rows(out, "fig1")
    whole = float(table[0]["total"])
    each = {r["way"]: float(r["diffusion"]) for r in table}
    assert len(each) == 3
    for row in table[1:]:
        one = float(table[1]["cfm"])  # of one evaluation
        assert float(row["total"]) == pytest.approx(each[row["way"]] + int(row["nfe"]) * one)
        assert float(row["share"]) == pytest.approx(float(row["total"]) / whole)


def test_the_paper_s_networks_have_the_paper_s_sizes():
    sizes = {
        name: sum(p.numel() for p in UNet(config, device="meta").parameters()) / 1e6
        for name, config in (("net", PRESETS["paper"].net), ("big", PRESETS["paper"].big))
    }
    assert (round(sizes["net"]), round(sizes["big"])) == (113, 306)


def test_nets_of_other_settings_are_refused(tmp_path):
    photos = synthetic_photos(tmp_path / "p", 3, 160)
    lab = Lab(PRESETS["tiny"], tmp_path, photos, photos, shipped_vae("sd15"))
    with torch.inference_mode():  # as in an experiment
        lab.model("fm", 1)
    wrong = tmp_path / "nets" / "cfm-0"
    wrong.mkdir()
    (tmp_path / "nets" / "fm" / "fm.000001.safetensors").rename(wrong / "cfm-0.000001.safetensors")
    with pytest.raises(ValueError, match="other settings"):
        lab.model("cfm-0", 1)


def test_missing_folders_are_named(capsys):
    assert main(["tab1", "--config", "small", "--out", "nowhere"]) == 2
    assert "--photos, --held-out and --vae" in capsys.readouterr().err
    assert not Path("nowhere").exists()


def test_an_even_spread():
    assert spread(list(range(10)), 2) == [2, 7]
    assert spread(list(range(3)), None) == [0, 1, 2]
    assert spread(list(range(3)), 5) == [0, 1, 2]


def test_a_metric_without_weights_has_no_column():
    columns = (Column("net", "net"), Column("FID", "fid", ".1f"), Column("PSNR", "psnr", ".1f"))
    lines = table(columns, [{"net": "a", "fid": float("nan"), "psnr": 20.04}, {"net": "b", "psnr": None}])
    assert lines.splitlines() == ["| net | PSNR |", "| --- | ---: |", "| a | 20.0 |", "| b |  |"]


def test_the_guidance_sweep_changes_the_scale_and_nothing_else_between_scales():
    graph = json.loads((ROOT / "workflows/api/fmboost_txt2img_1024.json").read_text(encoding="utf-8"))
    sampler, prompt = (
        next(number for number, node in graph.items() if node["_meta"]["title"] == title)
        for title in ("KSampler", "Positive prompt")
    )
    names = {"sampler": "KSampler", "prompt": "Positive prompt"}
    jobs = list(guidance.sweep(graph, (1.0, 7.5), ("a cat", 'a "dog"'), names))
    assert [(scale, i) for scale, i, _ in jobs] == [(1.0, 0), (1.0, 1), (7.5, 0), (7.5, 1)]
    for scale, i, job in jobs:
        assert (job[sampler]["inputs"]["cfg"], job[sampler]["inputs"]["seed"]) == (scale, i)
        assert job[prompt]["inputs"]["text"] == ("a cat", 'a "dog"')[i]
        job[sampler]["inputs"].update(cfg=7.0, seed=42)
        job[prompt]["inputs"]["text"] = graph[prompt]["inputs"]["text"]
        assert job == graph


def test_guidance_measures_a_copy_of_the_reference_as_perfect(tmp_path):
    paths = sorted(synthetic_photos(tmp_path, 3, 128).glob("*.png"))
    same = guidance.measure(paths, ["x"] * 3, paths, None, None)
    other = guidance.measure(paths[:1], ["x"], paths[1:], None, None)
    assert same["frechet8"] < 1e-3 < 1 < other["frechet8"]


def test_fid_without_its_weights_is_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="no Inception weights at .*nothing is downloaded"):
        open_fid(tmp_path / "none.pth")
