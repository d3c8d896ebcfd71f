"""The authors' Lightning checkpoints, and plain state dicts, as model files that compute the same."""

from __future__ import annotations

import builtins
import json
import os
import pickle
import subprocess
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import save_file

from fmboost_core.cli.main import main
from fmboost_core.config import FlowConfig, NetConfig
from fmboost_core.context import make_context
from fmboost_core.files.authors import PREFIXES, convert_checkpoint
from fmboost_core.files.model_file import load_model
from fmboost_core.flow import make_source
from fmboost_core.sampling import Sampling

CASES = ["coupling_t400", "gaussian_linear_attn", "bilinear_pool2"]
NET = NetConfig(
    model_channels=32,
    num_res_blocks=1,
    channel_mult=(1,),
    attention_resolutions=(1,),
    num_heads=2,
    head_channels=16,
    attention_layout="fm_boosting",
)
EXPECTED = {
    "coupling_t400": (
        replace(NET, channel_mult=(1, 1), attention_resolutions=(2,)),
        FlowConfig(upsampling="nearest", noise_step=400),
    ),
    "gaussian_linear_attn": (replace(NET, linear_attention=True), FlowConfig(path="gaussian")),
    "bilinear_pool2": (replace(NET, pool_factor=2), FlowConfig(upsampling="bilinear", noise_step=200)),
}


@pytest.mark.parametrize("case", CASES)
def test_settings_are_read_from_the_checkpoint(case, converted):
    config = load_model(converted(case)).config
    assert (config.net, config.flow) == EXPECTED[case]
    assert config.latent_space == "sd15"
    assert config.trained_on["global_step"] == 3


@pytest.mark.parametrize("case", CASES)
def test_velocity_is_the_authors(case, converted, golden):
    g, model = golden(case), load_model(converted(case))
    v = model.velocity(g["x0"], torch.tensor([0.37]), g["upsampled_latent"])
    torch.testing.assert_close(v, g["velocity_t0.37"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("solver", "points"), [("euler", 5), ("euler", 11), ("midpoint", 4), ("heun3", 4), ("rk4", 4)])
def test_trajectories_are_the_authors(case, solver, points, converted, golden):
    g, model = golden(case), load_model(converted(case))
    x1 = model.integrate(g["x0"], g["upsampled_latent"], Sampling(points - 1, solver))
    torch.testing.assert_close(x1, g[f"x1_{solver}_numsteps{points}"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("case", CASES)
def test_online_weights_are_the_other_set(case, converted, golden):
    g, model = golden(case), load_model(converted(case, "online"))
    x1 = model.integrate(g["x0"], g["upsampled_latent"], Sampling(4))
    torch.testing.assert_close(x1, g["x1_online_euler_numsteps5"], rtol=0, atol=2e-5)
    assert (x1 - g["x1_euler_numsteps5"]).abs().max() > 0.1


@pytest.mark.parametrize("case", CASES)
def test_dopri5_is_the_authors_within_its_tolerance(case, converted, golden):
    """Theirs and ours both solve to rtol 1e-3, and rounding moves theirs by up to 6e-4 (goldens/README.md)."""
    g, model = golden(case), load_model(converted(case))
    x0, context, theirs = g["x0"][:1], g["upsampled_latent"][:1], g["x1_dopri5_numsteps2"][:1]
    exact = model.integrate(x0, context, Sampling(8, "rk4"))
    ours = model.integrate(x0, context, Sampling(solver="dopri5"))
    assert (theirs - exact).abs().max() < 5e-3
    assert (ours - exact).abs().max() < 5e-3
    assert (ours - theirs).abs().max() < 3e-3


@pytest.mark.parametrize("case", ["coupling_t400", "bilinear_pool2"])
def test_source_and_context_are_the_authors(case, converted, golden):
    g, flow = golden(case), load_model(converted(case)).config.flow
    context = make_context(flow, g["lowres_latent"])
    torch.testing.assert_close(context, g["upsampled_latent"], rtol=0, atol=1e-6)
    torch.testing.assert_close(make_source(flow, context, g["noise"]), g["x0"], rtol=0, atol=1e-6)


# --- other checkpoints of their trainer, written here with plain settings


@pytest.fixture
def write(golden, converted):
    """A Lightning-like checkpoint with the weights of coupling_t400 and changed settings; None removes a setting."""

    def save(path, *, weights=("ema",), net=None, flow=None, drop=(), add=None, **settings):
        given = golden("coupling_t400").settings
        model = given["fm_cfg"]["params"]
        model["net_cfg"]["params"] |= net or {}
        model |= flow or {}
        given = {k: v for k, v in (given | settings).items() if v is not None}
        plain = load_model(converted("coupling_t400")).net.state_dict()
        state = {PREFIXES[w] + k: v for w in weights for k, v in plain.items() if k not in drop}
        torch.save({"state_dict": state | (add or {}), "hyper_parameters": given, "epoch": 3}, path)
        return path

    return save


def test_the_rest_of_a_full_checkpoint_is_left_out(tmp_path, write):
    extra = {"first_stage.encoder.conv_in.weight": torch.zeros(3), "ema_model.step": torch.tensor(7)}
    source = write(tmp_path / "in.ckpt", add=extra)
    said = convert_checkpoint(source, tmp_path / "out.safetensors")
    assert "320,420 parameters" in said and "ema weights" in said
    assert load_model(tmp_path / "out.safetensors").config.flow.noise_step == 400


@pytest.mark.parametrize("weights", ["ema", "online"])
def test_a_checkpoint_with_one_set_of_weights(weights, tmp_path, write):
    source = write(tmp_path / "in.ckpt", weights=(weights,))
    assert f"the {weights} weights" in convert_checkpoint(source, tmp_path / "out.safetensors", weights=weights)
    other = {"ema": "online", "online": "ema"}[weights]
    with pytest.raises(ValueError, match=f"holds no {other} weights"):
        convert_checkpoint(source, tmp_path / "out.safetensors", weights=other)


@pytest.mark.parametrize(
    ("sizes", "first_stage", "scale"),
    [
        ((512, 1024), {"target": "fmboost.kl_autoencoder.AutoencoderKL"}, 2),  # the shipped config, in pixels
        ((256, 1024), {"target": "fmboost.kl_autoencoder.AutoencoderKL"}, 4),
        ((32, 1024), None, 4),  # latents made beforehand: the low size is theirs, the high one that of the images
        ((64, 128), None, 2),
    ],
)
def test_scale_follows_from_the_sizes(sizes, first_stage, scale, tmp_path, write):
    changes = {"low_res_size": sizes[0], "high_res_size": sizes[1], "first_stage_cfg": first_stage}
    convert_checkpoint(write(tmp_path / "in.ckpt", **changes), tmp_path / "out.safetensors")
    assert load_model(tmp_path / "out.safetensors").scale == scale


def test_a_given_scale_and_latent_space_win(tmp_path, write):
    source = write(tmp_path / "in.ckpt", high_res_size=None)
    convert_checkpoint(source, tmp_path / "out.safetensors", scale=4, latent_space="sdxl")
    model = load_model(tmp_path / "out.safetensors")
    assert (model.scale, model.space.name) == (4, "sdxl")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"high_res_size": None}, "^the sizes in .* give the scale"),
        ({"fm_cfg": None}, "holds no settings of the authors' trainer"),
        ({"high_res_size": 250}, "give the scale"),
        ({"weights": ("online",)}, "holds no ema weights.*choose the other"),
        ({"drop": ("out.2.bias", "out.2.weight")}, r"2 missing \(out.2.bias, out.2.weight\)"),
        ({"add": {"ema_model.ema_model.net.label_emb": torch.zeros(1)}}, r"1 unknown \(label_emb\)"),
        ({"net": {"channel_mult": [1, 4]}}, "of another shape"),
        ({"net": {"window": 8}}, r"unknown \['window'\]"),
        ({"net": {"model_channels": None}}, r"missing \['model_channels'\]"),
        ({"net": {"model_channels": "${width}"}}, "do not make a model"),
        ({"flow": {"schedule": "gvp"}}, "schedule 'gvp'"),
        ({"ca_context": True}, "cross-attention"),
        ({"concat_context": False}, "no concatenated context"),
        ({"upsampling_mode": "bicubic", "upsampling_mode_context": "bicubic"}, "upsampling is 'bicubic'"),
        ({"upsampling_mode": "psu"}, "context upsampled by 'nearest' beside a source upsampled by 'psu'"),
        ({"fm_cfg": {"params": {"net_cfg": {"params": {}}}}}, "missing"),
    ],
)
def test_refusals_name_what_was_found_and_write_nothing(changes, sentence, tmp_path, write):
    source = write(tmp_path / "in.ckpt", **changes)
    with pytest.raises(ValueError, match=sentence):
        convert_checkpoint(source, tmp_path / "out.safetensors")
    assert list(tmp_path.iterdir()) == [source]


# --- plain state dicts


def described(path, **changes):
    """A hand-written description: only what differs from the defaults."""
    net = {k: v for k, v in asdict(EXPECTED["coupling_t400"][0]).items() if v != getattr(NetConfig(), k)}
    path.write_text(json.dumps({"net": net, "flow": {"noise_step": 400}} | changes))
    return path


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("prefix", ["", "net.", "module.model."])
def test_a_plain_state_dict_with_a_description(suffix, prefix, tmp_path, converted):
    model = load_model(converted("coupling_t400"))
    state = {prefix + k: v for k, v in model.net.state_dict().items()}
    source = tmp_path / f"in{suffix}"
    (torch.save if suffix == ".pt" else save_file)(state, source)
    said = convert_checkpoint(source, tmp_path / "out.safetensors", config=described(tmp_path / "in.json"))
    assert "plain weights" in said
    again = load_model(tmp_path / "out.safetensors")
    assert (again.config.net, again.config.flow) == (model.config.net, model.config.flow)
    assert all(torch.equal(v, again.net.state_dict()[k]) for k, v in model.net.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"flow": {"noise_steps": 4}}, "unknown .*noise_steps"),
        ({"nett": {}}, "unknown .*nett"),
        ({"net": []}, "expected a JSON object with the objects net and flow"),
        ({"format_version": 9}, "format version 9"),
        ({"flow": {"scale": 4}}, "scale is 2 and .* says 4"),
    ],
)
def test_a_description_is_read_strictly(changes, sentence, tmp_path, converted):
    source = tmp_path / "in.pt"
    torch.save(load_model(converted("coupling_t400")).net.state_dict(), source)
    with pytest.raises(ValueError, match=sentence):
        convert_checkpoint(
            source, tmp_path / "o.safetensors", config=described(tmp_path / "c.json", **changes), scale=2
        )


def test_a_plain_state_dict_needs_a_description(tmp_path):
    torch.save({"time_embed.0.weight": torch.zeros(2, 2)}, tmp_path / "in.pt")
    with pytest.raises(ValueError, match="describe its network in a JSON file"):
        convert_checkpoint(tmp_path / "in.pt", tmp_path / "out.safetensors")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a checkpoint", pickle.dumps({"a": 1})])
@pytest.mark.parametrize("name", ["in.ckpt", "in.safetensors"])
def test_other_files_are_refused_in_a_sentence(content, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"in\.(ckpt cannot be read as|safetensors is not)"):
        convert_checkpoint(tmp_path / name, tmp_path / "out.safetensors")


def test_wrong_arguments(tmp_path):
    ckpt = tmp_path / "in.ckpt"
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        convert_checkpoint(ckpt, tmp_path / "out.safetensors")
    ckpt.touch()
    with pytest.raises(ValueError, match="expected one of ema, online"):
        convert_checkpoint(ckpt, tmp_path / "out.safetensors", weights="raw")
    with pytest.raises(ValueError, match="ends in .safetensors"):
        convert_checkpoint(ckpt, tmp_path / "out.pt")


def test_the_command_says_what_it_did_or_why_not(tmp_path, golden, capsys):
    checkpoint, out = str(golden("bilinear_pool2").checkpoint), tmp_path / "out.safetensors"
    assert main(["convert", checkpoint, str(out), "--weights", "online"]) == 0
    assert capsys.readouterr().out == (
        f"converted the online weights of {checkpoint} to {out}: 215,140 parameters, sd15 x2, "
        "coupling from bilinear, noise_step 200\n"
    )
    assert load_model(out).config.flow.upsampling == "bilinear"
    assert main(["convert", str(out), str(tmp_path / "again.safetensors")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# --- nothing in a checkpoint runs


class Payload:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def payloads(target):
    return {
        "system": Payload(os.system, f"touch {target}"),
        "eval": Payload(builtins.eval, f"open({str(target)!r}, 'w')"),
        "popen": Payload(subprocess.Popen, ["touch", str(target)]),
        "gadget": Payload(torch.utils.collect_env.run, f"touch {target}"),
    }


@pytest.mark.parametrize("kind", ["system", "eval", "popen", "gadget"])
@pytest.mark.parametrize("place", ["setting", "weight", "key", "root", "legacy", "bare"])
def test_a_malicious_checkpoint_executes_nothing(kind, place, tmp_path, write):
    target, path = tmp_path / "owned", tmp_path / "in.ckpt"
    payload = payloads(target)[kind]
    running = pickle.loads(pickle.dumps(payload))  # noqa: S301 - the payload is live: it fires where pickle runs
    if isinstance(running, subprocess.Popen):
        running.wait()
    assert target.exists()
    target.unlink()

    found = torch.load(write(path), weights_only=True)
    if place == "setting":
        found["hyper_parameters"]["callback"] = payload
    elif place == "weight":
        found["state_dict"]["ema_model.ema_model.net.out.2.bias"] = payload
    elif place == "key":
        found["state_dict"] = [(payload, 1)]
    else:
        found = payload
    if place == "bare":
        path.write_bytes(pickle.dumps(found))
    else:
        torch.save(found, path, _use_new_zipfile_serialization=place != "legacy")

    if place == "setting":  # beside the point of the file, so it converts
        convert_checkpoint(path, tmp_path / "out.safetensors")
    else:
        with pytest.raises(ValueError, match="in.ckpt"):
            convert_checkpoint(path, tmp_path / "out.safetensors")
    assert not target.exists()
