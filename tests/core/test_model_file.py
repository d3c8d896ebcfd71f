"""Model files: what is written is read back, and everything else is refused in one sentence."""

from __future__ import annotations

import json
import pickle
import struct
from dataclasses import asdict, replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fmboost_core.config import FlowConfig, ModelConfig, NetConfig
from fmboost_core.files.model_file import (
    METADATA_KEY,
    load_model,
    read_model_file,
    save_model,
)
from fmboost_core.unet import UNet

NETS = [
    {},
    {"channel_mult": (1,), "attention_resolutions": ()},
    {"channel_mult": (1, 2, 1), "attention_resolutions": (1, 4), "num_heads": 1},
    {"pool_factor": 2, "linear_attention": True, "attention_layout": "fm_boosting"},
    {"conv_resample": False, "scale_shift_norm": False, "dropout": 0.1},
    {"in_channels": 32, "out_channels": 16},
]


@pytest.fixture
def written(tmp_path, tiny_net, randomise):
    """A model file in half precision, its settings and its weights."""
    config = ModelConfig(net=tiny_net, flow=FlowConfig(noise_step=200), trained_on={"steps": 3}, license="MIT")
    state = randomise(UNet(tiny_net)).state_dict()
    save_model(tmp_path / "model.safetensors", config, state)
    return tmp_path / "model.safetensors", config, state


@pytest.mark.parametrize("changes", NETS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_round_trip(changes, dtype, tmp_path, tiny_net, randomise):
    net = replace(tiny_net, **changes)
    space = "sd3" if net.out_channels == 16 else "sd15"
    config = ModelConfig(net=net, flow=FlowConfig(upsampling="bilinear", scale=4), latent_space=space, license="CC0")
    state = randomise(UNet(net)).state_dict()
    save_model(tmp_path / "m.safetensors", config, state, dtype=dtype)
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]
    found, weights = read_model_file(tmp_path / "m.safetensors")
    assert found == config
    assert weights.keys() == state.keys()
    assert all(torch.equal(weights[k], v.to(dtype)) for k, v in state.items())
    model = load_model(tmp_path / "m.safetensors")
    assert model.dtype == torch.float32 and not model.net.training
    assert not any(p.requires_grad for p in model.net.parameters())
    assert all(torch.equal(v, state[k].to(dtype).float()) for k, v in model.net.state_dict().items())


def test_the_file_is_plain_safetensors_with_json_settings(written):
    path, config, state = written
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(state)
        values = json.loads(file.metadata()["fmboost"])
    assert values["format_version"] == 2
    assert values["flow"] == {
        "noise_step": 200,
        "path": "coupling",
        "picture_context": False,
        "scale": 2,
        "sigma_min": 0.0,
        "upsampling": "nearest",
    }
    assert values["net"]["channel_mult"] == [1, 2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_load_in_the_type_asked_for(written, dtype):
    model = load_model(written[0], dtype=dtype)
    assert {p.dtype for p in model.net.parameters()} == {dtype}
    assert model.dtype == dtype


# --- writing


def test_saving_checks_the_weights(tmp_path, tiny_net, randomise):
    config, path = ModelConfig(net=tiny_net), tmp_path / "m.safetensors"
    state = randomise(UNet(tiny_net)).state_dict()
    with pytest.raises(ValueError, match=r"1 missing \(out.2.bias\)"):
        save_model(path, config, {k: v for k, v in state.items() if k != "out.2.bias"})
    with pytest.raises(ValueError, match=r"1 unknown \(extra\)"):
        save_model(path, config, state | {"extra": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"1 of another shape \(out.2.bias\)"):
        save_model(path, config, state | {"out.2.bias": torch.zeros(5)})
    with pytest.raises(ValueError, match=r"not finite in torch.float16: out.2.bias; nothing was written"):
        save_model(path, config, state | {"out.2.bias": torch.full((4,), 1e5)})
    assert list(tmp_path.iterdir()) == []


def test_saving_is_whole_or_not_at_all(written, tiny_net, tmp_path, randomise):
    """A failed write leaves the file that was there, and a good one replaces it."""
    path, config, state = written
    before = path.read_bytes()
    with pytest.raises(ValueError):
        save_model(path, config, state | {"out.2.bias": torch.full((4,), float("nan"))})
    assert path.read_bytes() == before
    (tmp_path / "folder.safetensors" / "in the way").mkdir(parents=True)
    with pytest.raises(OSError):
        save_model(tmp_path / "folder.safetensors", config, state)
    assert not [p for p in tmp_path.iterdir() if p.suffix == ".part"]
    other = randomise(UNet(tiny_net), seed=1).state_dict()
    save_model(path, config, other)
    assert torch.equal(read_model_file(path)[1]["out.2.bias"], other["out.2.bias"].half())


def test_a_file_is_readable_to_those_the_system_lets_read(tmp_path, tiny_net):
    """A server under another account finds it, too."""
    save_model(tmp_path / "model.safetensors", ModelConfig(net=tiny_net), UNet(tiny_net).state_dict())
    (tmp_path / "plain").touch()
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_folder_that_is_not_there_is_named(tmp_path, tiny_net):
    path = tmp_path / "nowhere" / "model.safetensors"
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere to write model.safetensors into"):
        save_model(path, ModelConfig(net=tiny_net), UNet(tiny_net).state_dict())


def test_weights_may_be_strided(tmp_path, tiny_net, randomise):
    state = randomise(UNet(tiny_net)).state_dict()
    state["time_embed.0.weight"] = state["time_embed.0.weight"].t().contiguous().t()
    save_model(tmp_path / "m.safetensors", ModelConfig(net=tiny_net), state, dtype=torch.float32)
    weights = read_model_file(tmp_path / "m.safetensors")[1]
    assert torch.equal(weights["time_embed.0.weight"], state["time_embed.0.weight"])


# --- reading what is not right


def rewrite(path, config=None, drop=(), add=None, metadata=None):
    """The file again with other weights or settings."""
    with safe_open(path, framework="pt") as file:
        state = {k: file.get_tensor(k) for k in file.keys() if k not in drop}  # noqa: SIM118
        metadata = file.metadata() if metadata is None else metadata
    if config is not None:
        metadata = {METADATA_KEY: json.dumps(config)}
    save_file(state | (add or {}), path, metadata=metadata)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"drop": ["out.2.bias"]}, r"do not fit its settings: 1 missing \(out.2.bias\); get the file again"),
        ({"add": {"lora": torch.zeros(1)}}, r"1 unknown \(lora\)"),
        ({"add": {"out.2.bias": torch.zeros(8)}}, r"1 of another shape \(out.2.bias\)"),
        ({"metadata": {}}, "is not an FMBoost model: it has no 'fmboost' settings.*fmboost convert"),
        ({"metadata": {"format": "pt"}}, "is not an FMBoost model"),
        ({"metadata": {"fmboost": "{"}}, "settings are not JSON"),
        (
            {"config": asdict(ModelConfig()) | {"format_version": 3}},
            "format version 3, this version of FMBoost reads 2: update",
        ),
        ({"config": asdict(ModelConfig()) | {"sampler": 1}}, r"unknown \['sampler'\]"),
        ({"config": asdict(ModelConfig())}, "do not fit its settings"),
    ],
)
def test_a_model_file_is_read_strictly(written, changes, sentence):
    path = written[0]
    rewrite(path, **changes)
    with pytest.raises(ValueError, match=sentence) as error:
        load_model(path)
    assert str(path) in str(error.value)


def test_a_file_of_the_first_version_is_refused_as_such(written):
    """With the settings that it wrote, which the present ones know nothing of."""
    path, config, _ = written
    old = asdict(config) | {"format_version": 1, "transport": True, "corrections": False}
    del old["context_encoder"]
    old["flow"] |= {"back_projection": 1, "posterior_mean": False}
    rewrite(path, old, add={"transport.weight": torch.zeros(1, 4, 4, 5, 5), "transport.bias": torch.zeros(1, 4)})
    with pytest.raises(ValueError) as error:
        load_model(path)
    assert str(error.value) == (
        f"{path}: the file was written by FMBoost 0.1 (format 1), whose back projection and transports this version "
        "does not have: get the current file of this model, or train it again"
    )


@pytest.mark.parametrize(
    "bias",
    [
        torch.tensor([0.0, float("nan"), 0.0, 0.0]),
        torch.tensor([0.0, float("inf"), 0.0, 0.0], dtype=torch.float16),
        torch.zeros(4, dtype=torch.int32),
        torch.zeros(4, dtype=torch.uint8),
        torch.zeros(4, dtype=torch.bool),
        torch.zeros(4, dtype=torch.complex64),
        torch.zeros(4, dtype=torch.float64),
        torch.zeros(4, dtype=torch.float8_e4m3fn),
    ],
    ids=lambda bias: str(bias.dtype),
)
def test_weights_that_are_no_finite_numbers_of_16_or_32_bits_are_refused(written, bias):
    path = written[0]
    rewrite(path, add={"out.2.bias": bias})
    with pytest.raises(
        ValueError, match=r"^1 weights in .* \(out.2.bias\) are not finite .* 16 or 32 bits: the file is"
    ):
        load_model(path)


def header(length, text=b"{}"):
    return struct.pack("<Q", length) + text


CONTENTS = {
    "empty": b"",
    "short": b"\0" * 7,
    "huge header": header(2**60),
    "header that is no JSON": header(4, b"{{{{"),
    "pickle": pickle.dumps({"state_dict": {}}),
    "picture": b"\x89PNG\r\n\x1a\n" + b"\0" * 64,
    "zip": b"PK\x03\x04" + b"\0" * 64,
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_other_files_named_safetensors_are_refused(content, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a safetensors file.*truncated or of another kind: get it again"):
        load_model(path)


@pytest.mark.parametrize("fraction", [0.001, 0.05, 0.5, 0.9999])
def test_truncated_files_are_refused(written, fraction):
    path = written[0]
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    with pytest.raises(ValueError, match="is not a safetensors file"):
        load_model(path)


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth"])
def test_a_pickled_checkpoint_is_refused_with_the_command_that_converts_it(tmp_path, suffix):
    path = tmp_path / f"flow{suffix}"
    torch.save({"state_dict": {}}, path)
    with pytest.raises(ValueError, match=f"fmboost convert {path} OUT.safetensors"):
        load_model(path)


def test_neither_a_file_nor_a_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a .safetensors file or a shipped model"):
        load_model(tmp_path / "nothing.safetensors")
    with pytest.raises(FileNotFoundError, match="no model"):
        load_model(tmp_path)


def test_default_settings_are_the_papers_network():
    assert NetConfig() == NetConfig(8, 4, 128, 3, (1, 2, 4, 8), (8, 16), 4, 64)
