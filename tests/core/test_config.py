"""Settings survive JSON, and what is missing, unknown or impossible is refused by name."""

from __future__ import annotations

import json
import random
from dataclasses import FrozenInstanceError, asdict, fields

import pytest

from fmboost_core.config import ContextEncoderConfig, FlowConfig, ModelConfig, NetConfig
from fmboost_core.latent_spaces import LATENT_SPACES


def random_config(seed):
    rng = random.Random(seed)
    space = rng.choice(list(LATENT_SPACES.values()))
    path = rng.choice(["coupling", "gaussian"])
    upsampling = rng.choice(["nearest", "bilinear", "psu", "learned"])
    encoder = ContextEncoderConfig(features=rng.randint(0, 8)) if upsampling == "learned" else None
    return ModelConfig(
        net=NetConfig(
            in_channels=2 * space.channels + (encoder.features if encoder else 0),
            out_channels=space.channels,
            model_channels=32 * rng.randint(1, 4),
            num_res_blocks=rng.randint(1, 3),
            channel_mult=tuple(rng.randint(1, 4) for _ in range(rng.randint(1, 4))),
            attention_resolutions=tuple(rng.sample([1, 2, 4, 8], rng.randint(0, 3))),
            num_heads=rng.randint(1, 8),
            head_channels=8 * rng.randint(1, 8),
            linear_attention=rng.random() < 0.5,
            conv_resample=rng.random() < 0.5,
            scale_shift_norm=rng.random() < 0.5,
            dropout=rng.random() / 2,
            pool_factor=rng.randint(1, 3),
            attention_layout=rng.choice(["standard", "fm_boosting"]),
        ),
        flow=FlowConfig(
            path=path,
            sigma_min=rng.choice([0.0, 1e-8, 1e-4]),
            upsampling=upsampling,
            noise_step=0 if path == "gaussian" else rng.randint(0, 999),
            scale=rng.randint(1, 8),
        ),
        context_encoder=encoder,
        latent_space=space.name,
        trained_on={"steps": rng.randint(1, 10**6), "data": 'Zürich "photos" \n'},
        license="MIT",
        sha256="0" * 64,
    )


@pytest.mark.parametrize("seed", range(20))
def test_json_round_trip(seed):
    config = random_config(seed)
    assert ModelConfig.from_json(config.to_json()) == config


def test_settings_are_frozen():
    with pytest.raises(FrozenInstanceError):
        NetConfig().model_channels = 64


def test_size_multiple():
    assert NetConfig().size_multiple == 8
    assert NetConfig(channel_mult=(1, 2), pool_factor=3).size_multiple == 6


LEARNED = ModelConfig(
    net=NetConfig(in_channels=8 + 48), flow=FlowConfig(upsampling="learned"), context_encoder=ContextEncoderConfig()
)
SECTIONS = {"net": NetConfig, "flow": FlowConfig, "context_encoder": ContextEncoderConfig, None: ModelConfig}


@pytest.mark.parametrize(("section", "name"), [(s, f.name) for s, kind in SECTIONS.items() for f in fields(kind)])
def test_every_setting_must_be_there(section, name):
    values = asdict(LEARNED)
    del (values[section] if section else values)[name]
    said = {"net": "missing", "flow": "missing", "context_encoder": "expected both", "format_version": "version None"}
    with pytest.raises(ValueError, match=said.get(name, name)):
        ModelConfig.from_json(json.dumps(values))


@pytest.mark.parametrize("section", SECTIONS)
def test_unknown_settings_are_refused(section):
    values = asdict(LEARNED)
    (values[section] if section else values)["sharpness"] = 1
    with pytest.raises(ValueError, match=r"unknown \['sharpness'\]"):
        ModelConfig.from_json(json.dumps(values))


@pytest.mark.parametrize("text", ["", "nonsense", "[]", "3", "null", '"text"', "{}", '{"format_version": 2}', "{"])
def test_foreign_json_is_refused(text):
    with pytest.raises(ValueError, match="format version|not JSON|do not match"):
        ModelConfig.from_json(text)


@pytest.mark.parametrize("version", [0, 3, "2", None, 2.5])
def test_other_format_versions_are_refused(version):
    text = json.dumps(asdict(ModelConfig()) | {"format_version": version})
    with pytest.raises(ValueError, match=f"has format version {version!r}, this version of FMBoost reads 2: update"):
        ModelConfig.from_json(text)


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("net", "model_channels", 48),
        ("net", "model_channels", 0),
        ("net", "model_channels", -32),
        ("net", "model_channels", "128"),
        ("net", "model_channels", 32.0),
        ("net", "model_channels", True),
        ("net", "model_channels", None),
        ("net", "num_res_blocks", 0),
        ("net", "num_heads", 0),
        ("net", "head_channels", -1),
        ("net", "pool_factor", 0),
        ("net", "channel_mult", []),
        ("net", "channel_mult", [1, 0]),
        ("net", "channel_mult", 2),
        ("net", "channel_mult", "12"),
        ("net", "channel_mult", [1, "2"]),
        ("net", "attention_resolutions", [2.5]),
        ("net", "linear_attention", "no"),
        ("net", "num_heads", True),
        ("net", "dropout", "0.1"),
        ("net", "dropout", 1.0),
        ("net", "attention_layout", "spatial"),
        ("net", "in_channels", 4),
        ("net", "out_channels", 8),
        ("flow", "path", "ot"),
        ("flow", "upsampling", "lanczos"),
        ("flow", "noise_step", -1),
        ("flow", "noise_step", 1000),
        ("flow", "noise_step", 200.5),
        ("flow", "sigma_min", -1e-4),
        ("flow", "sigma_min", "small"),
        ("flow", "scale", 0),
        ("flow", "scale", 2.0),
        ("flow", "picture_context", 1),
        ("flow", "picture_context", True),  # beside upsampling nearest
        ("flow", "upsampling", "learned"),  # without a context encoder
        (None, "latent_space", "pixels"),
        (None, "latent_space", 4),
        (None, "trained_on", []),
        (None, "license", None),
    ],
)
def test_impossible_values_are_refused_by_name(section, name, value):
    values = asdict(ModelConfig())
    (values[section] if section else values)[name] = value
    said = {"in_channels": "input", "out_channels": "output", "latent_space": "latent.space"}.get(name, name)
    with pytest.raises(ValueError, match=said):
        ModelConfig.from_json(json.dumps(values))


@pytest.mark.parametrize(
    ("name", "value"), [("width", 4), ("width", 96.0), ("depth", -1), ("depth", 65), ("features", -1), ("features", 47)]
)
def test_impossible_context_encoders_are_refused_by_name(name, value):
    values = asdict(LEARNED)
    values["context_encoder"][name] = value
    with pytest.raises(ValueError, match=name if value != 47 else "56 input .* expected 55"):
        ModelConfig.from_json(json.dumps(values))


def test_a_context_encoder_goes_with_learned_upsampling():
    with pytest.raises(ValueError, match="goes with upsampling 'learned': expected both or neither"):
        ModelConfig(context_encoder=ContextEncoderConfig())


@pytest.mark.parametrize(("scale", "channels"), [(2, 4 + 3 * 16), (4, 4 + 3 * 4), (8, 4 + 3)])
def test_a_picture_context_has_three_channels_for_each_pixel(scale, channels):
    """Below a latent pixel of the result lie 8 / scale pixels of the low picture on a side."""
    flow = FlowConfig(upsampling="psu", picture_context=True, scale=scale)
    assert ModelConfig(net=NetConfig(in_channels=4 + channels), flow=flow).context_channels == channels
    with pytest.raises(ValueError, match="cannot be folded at scale 3"):
        ModelConfig(flow=FlowConfig(upsampling="psu", picture_context=True, scale=3))


@pytest.mark.parametrize("path", ["gaussian", "diffusion"])
def test_a_start_from_noise_has_no_noise_step(path):
    with pytest.raises(ValueError, match=f"path {path} starts from pure noise: noise_step is 5, expected 0"):
        FlowConfig(path=path, noise_step=5)


def test_latent_spaces_are_those_of_their_families():
    """Scale and shift as published with the autoencoders of Stable Diffusion 1.x, XL, 3 and of FLUX.1; the latents of
    FLUX.2 are normalised by its autoencoder, and ComfyUI's Flux2 has 128 channels of 16 pixels."""
    table = {s.name: (s.channels, s.scale, s.shift, s.pixels) for s in LATENT_SPACES.values()}
    assert table == {
        "sd15": (4, 0.18215, 0.0, 8),
        "sdxl": (4, 0.13025, 0.0, 8),
        "sd3": (16, 1.5305, 0.0609, 8),
        "flux": (16, 0.3611, 0.1159, 8),
        "flux2": (32, 1.0, 0.0, 8),
    }
    folded = {s.name: (s.folded_channels, s.folded_pixels) for s in LATENT_SPACES.values() if s.fold > 1}
    assert folded == {"flux2": (128, 16)}
