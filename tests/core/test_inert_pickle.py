"""Files of torch.save read without running them: same data as torch reads, and nothing else happens."""

from __future__ import annotations

import os
import pickle
import sys
import zipfile
from collections import OrderedDict

import pytest
import torch

from fmboost_core.files.inert_pickle import LazyTensor, Record, read_checkpoint

DTYPES = ["float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]


def save(found, path, **kw):
    torch.save(found, path, **kw)
    return path


def rezip(path, changes, compression=zipfile.ZIP_STORED):
    """The archive again with other contents for some members."""
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    root = next(iter(members)).split("/")[0]
    members |= {f"{root}/{name}": data for name, data in changes.items()}
    with zipfile.ZipFile(path, "w", compression) as new:
        for name, data in members.items():
            new.writestr(name, data)
    return path


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_of_every_type(dtype, tmp_path):
    tensor = (torch.randn(3, 4, generator=torch.Generator().manual_seed(0)) * 5).to(getattr(torch, dtype))
    lazy = read_checkpoint(save({"a": tensor}, tmp_path / "x.pt"))["a"]
    assert isinstance(lazy, LazyTensor) and lazy.shape == (3, 4)
    assert lazy.load().dtype == tensor.dtype and torch.equal(lazy.load(), tensor)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x[1:, ::2],
        lambda x: x.t(),
        lambda x: x[2, 3],
        lambda x: x[:0],
        lambda x: x[0, :4].expand(6, 4),
        lambda x: torch.nn.Parameter(x),
    ],
    ids=["slice", "transposed", "scalar", "empty", "expanded", "parameter"],
)
def test_views(make, tmp_path):
    tensor = make(torch.arange(24.0).view(4, 6))
    lazy = read_checkpoint(save([tensor], tmp_path / "x.pt"))[0]
    assert lazy.shape == tensor.shape
    assert torch.equal(lazy.load(), tensor.detach())


def test_containers_and_shared_parts(tmp_path):
    shared = {"x": 1}
    found = {
        "n": None,
        "i": -3,
        "big": 2**70,
        "f": 0.1,
        "s": "ü",
        "t": (1, [2, (3,)]),
        "a": shared,
        "b": [shared, shared],
    }
    plain = read_checkpoint(save(OrderedDict(found), tmp_path / "x.pt"))
    assert plain == found
    assert plain["a"] is plain["b"][0] is plain["b"][1]


def test_a_container_may_hold_itself(tmp_path):
    ring = {"list": []}
    ring["list"].append(ring)
    plain = read_checkpoint(save(ring, tmp_path / "x.pt"))
    assert plain["list"][0] is plain


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol(protocol, tmp_path):
    tensor = torch.arange(5.0)
    lazy = read_checkpoint(save({"a": tensor}, tmp_path / "x.pt", pickle_protocol=protocol))["a"]
    assert torch.equal(lazy.load(), tensor)


@pytest.mark.parametrize("case", ["coupling_t400", "gaussian_linear_attn", "bilinear_pool2"])
def test_omegaconf_settings_become_plain_without_omegaconf(case, golden):
    """The goldens carry the settings as JSON beside the checkpoint that holds them as DictConfig objects."""
    g = golden(case)
    settings = read_checkpoint(g.checkpoint)["hyper_parameters"]
    assert settings.items() >= g.settings.items()
    assert settings["first_stage_cfg"] is None and settings["weight_decay"] == 0.0
    assert "omegaconf" not in sys.modules


def test_the_trainers_checkpoint_is_whole(golden):
    """Its tensors as torch reads them, the state of the optimizer among them; both sets share untrained layers."""
    path = golden("coupling_t400").checkpoint
    found = read_checkpoint(path)
    assert found["global_step"] == 3 and found["optimizer_states"][0]["param_groups"][0]["lr"] == 0.002
    moments = found["optimizer_states"][0]["state"]
    assert len(moments) == 6 and all(m["exp_avg"].load().isfinite().all() for m in moments.values())
    for name, tensor in found["state_dict"].items():
        if name.startswith("model.net."):
            average = found["state_dict"]["ema_model.ema_model.net." + name.removeprefix("model.net.")]
            trained = name.startswith(("model.net.input_blocks.0.", "model.net.out."))
            assert torch.equal(tensor.load(), average.load()) != trained, name


class Attributes(dict):
    """As Lightning's AttributeDict."""


class Thing:
    def __init__(self):
        self.x = 1


def test_subclasses_of_dict_are_dicts_and_other_objects_stay_opaque(tmp_path):
    plain = read_checkpoint(save({"h": Attributes(a=1), "t": Thing(), "c": Thing}, tmp_path / "x.pt"))
    assert plain["h"] == {"a": 1}
    assert isinstance(plain["t"], Record) and plain["t"].name.endswith(".Thing") and plain["t"].state == {"x": 1}
    assert isinstance(plain["c"], Record) and plain["c"].name.endswith(".Thing")


# --- hostile and damaged files


class Call:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


def test_a_call_is_recorded_not_made(tmp_path):
    target = tmp_path / "owned"
    record = read_checkpoint(save(Call(os.system, (f"touch {target}",)), tmp_path / "x.pt"))
    assert isinstance(record, Record) and record.name.endswith(".system") and record.args == (f"touch {target}",)
    assert not target.exists()


def test_nothing_named_is_imported(tmp_path):
    """`import` alone can run code; antigravity, as it happens, opens a browser."""
    for call in (b")R", b"}b", b")R}b"):  # called, given a state, both
        rezip(save({}, tmp_path / "x.pt"), {"data.pkl": b"\x80\x02cantigravity\nfly_geo\n" + call + b"."})
        assert read_checkpoint(tmp_path / "x.pt").name == "antigravity.fly_geo"
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    "program",
    [
        b"",
        b"\x80\x02",
        b"not a pickle",
        b"\x80\x02}b.",  # BUILD without a state
        b"\x80\x02ccollections\nOrderedDict\n}U\x08__init__U\x01xs\x86b.",  # set an attribute of a shared class
        b"\x80\x02U\x03abcQ.",  # a persistent id that is no storage
        b"\x80\x02(U\x07storagectorch\nQuantStorage\nU\x010U\x03cpuK\x01tQ.",  # a storage of unknown type
        b"\x80\x02" + b"(" * 100,
        b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",  # deeply nested
    ],
)
def test_malformed_programs_are_refused_in_a_sentence(program, tmp_path):
    rezip(save({}, tmp_path / "x.pt"), {"data.pkl": program})
    with pytest.raises(ValueError, match="x.pt cannot be read as a checkpoint of torch.save"):
        read_checkpoint(tmp_path / "x.pt")
    assert OrderedDict(a=1) == {"a": 1}


@pytest.mark.parametrize(
    ("program", "sentence"),
    [
        (b"]" * 120_001, "more than 120000 opcodes"),
        (b"]" * 202 + b"a" * 201, "nested more than 200 deep"),
        (b"X\x00\x00\x00\x01" + b"x" * 2**24, "has 167772.. bytes: expected at most 16777216"),
    ],
)
def test_programs_beyond_their_bounds_are_refused(program, sentence, tmp_path):
    rezip(save({}, tmp_path / "x.pt"), {"data.pkl": b"\x80\x02" + program + b"."})
    with pytest.raises(ValueError, match=f"x.pt cannot be read .*{sentence}"):
        read_checkpoint(tmp_path / "x.pt")


def test_a_key_that_doubles_sixty_times_is_refused(tmp_path):
    """Python walks through a tuple to hash it: ((1,), (1,)) and so on would take it 2^60 steps."""
    program = b"\x80\x02}K\x01\x85" + b"2\x86" * 60 + b"K\x01s."
    rezip(save({}, tmp_path / "x.pt"), {"data.pkl": program})
    with pytest.raises(ValueError, match="x.pt cannot be read .*a key is neither a plain value nor a short tuple"):
        read_checkpoint(tmp_path / "x.pt")
    found = {"a": 1, 2: 3, ("b", 4): 5, None: 6}
    assert read_checkpoint(save(found, tmp_path / "y.pt")) == found


@pytest.mark.parametrize("kind", [list, tuple])
def test_nesting_that_doubles_forty_times_is_kept_as_it_is(tmp_path, kind):
    """Written out it would have 2^40 parts."""
    found = kind([1])
    for _ in range(40):
        found = kind([found, found])
    plain = read_checkpoint(save(found, tmp_path / "x.pt"))
    for _ in range(40):
        assert plain[0] is plain[1]
        plain = plain[0]
    assert plain == kind([1])


def test_compressed_archives_are_refused(tmp_path):
    path = rezip(save({"a": torch.zeros(9)}, tmp_path / "x.pt"), {}, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="is compressed, which torch never does"):
        read_checkpoint(path)


def test_big_endian_numbers_are_refused(tmp_path):
    path = rezip(save({"a": torch.zeros(9)}, tmp_path / "x.pt"), {"byteorder": b"big"})
    with pytest.raises(ValueError, match="big-endian"):
        read_checkpoint(path)


def test_tensors_that_lie_about_their_storage_are_refused(tmp_path):
    path = rezip(save({"a": torch.zeros(9)}, tmp_path / "x.pt"), {"data/0": b"\0" * 8})
    with pytest.raises(ValueError, match="a tensor in .*x.pt is damaged .*2 numbers, expected 9"):
        read_checkpoint(path)["a"].load()


@pytest.mark.parametrize(
    ("shape", "stride"),
    [
        (b"K\x63\x85", b"K\x01\x85"),  # 99 numbers
        (b"K\x09\x85", b"K\x02\x85"),  # every second one up to the seventeenth
        (b"\x8a\x06\x00\x00\x00\x00\x00\x10\x85", b"K\x00\x85"),  # 2^44 numbers, all of them the first
    ],
)
def test_tensors_beyond_their_storage_are_refused(shape, stride, tmp_path):
    path = save({"a": torch.zeros(9)}, tmp_path / "x.pt")
    with zipfile.ZipFile(path) as archive:
        program = archive.read("x/data.pkl")
    size, step = b"K\x09\x85", b"K\x01\x85"
    assert program.count(size) == program.count(step) == 1
    rezip(path, {"data.pkl": program.replace(step, stride).replace(size, shape)})
    with pytest.raises(ValueError, match="a tensor in .*x.pt is damaged"):
        read_checkpoint(path)["a"].load()


def test_old_and_other_formats_are_refused(tmp_path):
    save({"a": torch.zeros(9)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "bare.pt").write_bytes(pickle.dumps({"a": 1}))
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    for name in ("old.pt", "bare.pt", "other.pt"):
        with pytest.raises(ValueError, match=f"{name} cannot be read .* save it again with a current torch"):
            read_checkpoint(tmp_path / name)
