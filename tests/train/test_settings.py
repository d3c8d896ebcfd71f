"""A run's configuration: read strictly, its paths where they belong, and those that ship."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmboost_core.model import build_network
from fmboost_core.train.settings import DataSettings, FewStepSettings, RunSettings, TrainSettings, read_settings

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_shipped_configuration(path):
    settings = read_settings(path)
    assert settings.name.startswith("fmboost-")
    assert settings.train.decay < settings.train.steps
    if settings.train.objective != "autoencoder":
        net = build_network(settings.model_config(), device="meta")
        assert sum(p.numel() for p in net.parameters()) <= 8_000_000


def test_the_third_stage_starts_from_what_the_flow_training_makes():
    first, second = (read_settings(CONFIGS[0].parent / f"sdxl-x2{stage}.toml") for stage in ("", "-few-step"))
    made = CONFIGS[0].parents[1] / "runs" / first.name / f"{first.name}.safetensors"  # where train puts it
    assert second.train.start_from == str(made)
    assert second.name != first.name
    assert (second.net, second.flow, second.context_encoder) == (first.net, first.flow, first.context_encoder)


def test_paths_are_relative_to_the_file_and_overrides_to_here(place, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    text = place.config.read_text().replace("[train]", '[train]\nstart_from = "first.safetensors"')
    (place.folder / "paths.toml").write_text(text.replace('"photos"', '["photos", "../more"]'))
    own = ["data.vae=here", "data.short_sides=96", "train.learning_rate=2e-4", "name=other"]
    settings = read_settings(place.folder / "paths.toml", own)
    assert settings.train.start_from == str((place.folder / "first.safetensors").resolve())
    assert settings.data.photos == tuple(str((place.folder / p).resolve()) for p in ("photos", "../more"))
    assert settings.data.vae == str((tmp_path / "here").resolve())
    assert (settings.data.short_sides, settings.train.learning_rate, settings.name) == ((96,), 2e-4, "other")
    assert settings.data.validation == ""
    named = read_settings(place.config, ["train.start_from=fmboost-sd15-x2"])
    assert named.train.start_from == "fmboost-sd15-x2"  # one that ships


def test_a_byte_order_mark_is_no_part_of_the_file(place, tmp_path):
    text = place.config.read_text()
    (tmp_path / "tiny.toml").write_text(text, encoding="utf-8-sig")
    assert read_settings(tmp_path / "tiny.toml").train == read_settings(place.config).train
    for encoding in ("utf-16", "utf-16-le"):  # with and without a mark
        (tmp_path / "tiny.toml").write_text(text, encoding=encoding)
        with pytest.raises(ValueError, match=r"tiny\.toml is not (in UTF-8 .*: save it as UTF-8|TOML: .*)$"):
            read_settings(tmp_path / "tiny.toml")
    with pytest.raises(FileNotFoundError, match="no training configuration at"):
        read_settings(tmp_path / "none.toml")


def test_the_network_s_ends_follow_from_the_context(place):
    assert place.settings().net.in_channels == 4 + 4
    assert place.settings("flow.upsampling=psu", "flow.picture_context=true").net.in_channels == 4 + 4 + 3 * 4**2
    learned = place.settings("flow.upsampling=learned", "context_encoder.features=5")
    assert (learned.net.in_channels, learned.context_encoder.width) == (4 + 4 + 5, 96)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train.speed=2", r"\[train\]: unknown setting speed; expected some of steps, objective"),
        ("speed=2", "unknown setting speed"),
        ("train.objective=gan", "objective is 'gan': expected one of cfm"),
        ("train.steps", r"expected SECTION\.NAME=VALUE"),
        ("train.steps=5k", "steps is '5k': expected a whole number"),
        ("train.learning_rate=fast", "learning_rate is 'fast': expected a number"),
        ("train.save_every=0", "save_every is 0: expected a whole number from 1"),
        ("train.disturbed=1.5", "disturbed is 1.5: expected a share of the crops"),
        ("train=5", r"\[train\] is 5: expected a section of settings"),
        ("data.short_sides=wide", r"short_sides is \('wide',\): expected a list of whole numbers"),
        ("data.short_sides=[]", r"short_sides is \[\]: expected pixels"),
        ("data.cache=", "missing cache"),
        ("data.photos=", "missing photos: only a run on packed latents"),
        ("data.latent_space=sd9", "unknown latent space 'sd9'"),
        ("context_encoder.width=32", "goes with upsampling 'learned'"),
        ("net.out_channels=3", "does not fit sd15 latents"),
        ("train.objective=fm", "objective fm goes with flow.path 'gaussian'"),
        ("few_step.window=9", "window is 9: expected an even number"),
        ("data.shares=[0.5, 0.5]", "2 shares for 1 folders"),
        ("data.shares=-1.0", r"shares are \[-1.0\]: expected numbers above 0"),
    ],
)
def test_settings_that_are_wrong_are_named(place, override, sentence):
    with pytest.raises(ValueError, match=sentence):
        place.settings(override)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (("train.objective=few_step", "few_step.window=18"), "window is 18: expected .* at most train.crop, 16"),
        (("train.objective=few_step", "few_step.window=10", "flow.scale=4"), "expected a multiple of the scale 4"),
        (("train.cascaded=0.5", "flow.scale=4"), "cascaded crops are for models of scale 2"),
        (("train.objective=sr3", "flow.path=diffusion", "flow.noise_step=0", "data.validation=photos"), "leave data"),
        (("train.objective=context",), "objective context trains a context encoder"),
        (("train.objective=context", "flow.upsampling=learned", "context_encoder.features=4"), "48 features for sd15"),
        (("train.objective=autoencoder", "data.cache=a.safetensors", "data.photos="), "missing photos: a small auto"),
    ],
)
def test_settings_that_do_not_go_together_are_named(place, overrides, sentence):
    with pytest.raises(ValueError, match=sentence):
        place.settings(*overrides)


def test_what_is_missing_is_named_and_what_is_not_needed_is_not(place, tmp_path):
    (tmp_path / "none.toml").write_text('name = "a"\n[data]\ncache = "a.safetensors"\n')
    with pytest.raises(ValueError, match=r"\[train\]: missing steps"):
        read_settings(tmp_path / "none.toml")
    settings = read_settings(tmp_path / "none.toml", ["train.steps=5"])
    assert settings.data.photos == () and settings.data.vae == ""
    assert place.settings("train.objective=autoencoder", "data.cache=").data.cache == ""


def test_the_fingerprint_tells_settings_apart():
    def run(**train):
        return RunSettings("a", DataSettings("c"), TrainSettings(5, **train), few_step=FewStepSettings())

    assert run().fingerprint == run().fingerprint != run(seed=1).fingerprint
    assert run().model_config({"steps": 5}).sha256 == run().fingerprint
