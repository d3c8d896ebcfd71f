"""A run that is stopped, killed, damaged or out of room, and what going on from it gives."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

NAMES = {"cfm": "tiny.safetensors", "few_step": "tiny.safetensors", "autoencoder": "fmboost-sd15-vae.safetensors"}


def half(kinds, kind):
    """The overrides of a run's first three steps: its rate has not begun to fall by then."""
    return (*kinds[kind], "train.steps=3", "train.decay=0")


def assert_same(ours, theirs, name):
    """Networks, adversaries, averages, and the log without its times."""
    networks = [f"state/step-6/{p.name}" for p in (theirs / "state" / "step-6").glob("*.safetensors")]
    assert len(networks) == (2 if "few_step" in theirs.name else 1)
    for file in (*networks, name):
        found, expected = load_file(ours / file), load_file(theirs / file)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], value) for key, value in expected.items()), file
    logs = []
    for folder in (ours, theirs):
        with (folder / "log.csv").open() as file:
            logs.append(
                [{k: v for k, v in r.items() if k not in {"seconds", "images_per_s"}} for r in csv.DictReader(file)]
            )
    assert logs[0] == logs[1]


@pytest.fixture
def stopped(place, kinds, tmp_path):
    """A run of the second kind after three steps, in a folder of its own."""
    origin = place.folder / "half"
    if not origin.exists():
        assert place.train("half", *half(kinds, "few_step")) == 0
    return shutil.copytree(origin, tmp_path / "run")


@pytest.mark.parametrize("kind", list(NAMES))
def test_resumed_is_uninterrupted_to_the_bit(place, kinds, kind):
    parts = place.folder / f"parts-{kind}"
    assert place.train(parts.name, *half(kinds, kind)) == 0
    assert [p.name for p in (parts / "state").iterdir()] == ["step-3"]
    assert place.train(parts.name, *kinds[kind], resume=True) == 0
    assert [p.name for p in (parts / "state").iterdir()] == ["step-6"]
    assert_same(parts, place.whole(kind), NAMES[kind])
    before = (parts / "log.csv").read_bytes()
    assert place.train(parts.name, *kinds[kind], resume=True) == 0  # with nothing left to do
    assert (parts / "log.csv").read_bytes() == before


def test_killed_in_a_save_it_goes_on_from_the_one_before(place, kinds, stopped):
    """What a save leaves when it is killed: a folder that is not whole, under another name."""
    shutil.copytree(stopped / "state" / "step-3", stopped / "state" / "partial")
    (stopped / "state" / "partial" / "progress.json").unlink()
    (stopped / "state" / "partial" / "model.safetensors").write_bytes(b"half of a")
    for step in (1, 6):  # what is left of a state whose removal was killed, or of a copy
        (stopped / "state" / f"step-{step}").mkdir()
        (stopped / "state" / f"step-{step}" / "model.safetensors").write_bytes(b"half of a")
    (stopped / ".12-345.part").write_bytes(b"half of a")
    log = (stopped / "log.csv").read_bytes()
    (stopped / "log.csv").write_bytes(log + log.splitlines(keepends=True)[-1].replace(b"3,", b"5,", 1) + b"6,1")
    assert place.train(str(stopped), *kinds["few_step"], resume=True) == 0
    assert [p.name for p in (stopped / "state").iterdir()] == ["step-6"]
    assert not list(stopped.glob(".*"))
    assert_same(stopped, place.whole("few_step"), NAMES["few_step"])


DAMAGES = {"empty": lambda b: b"", "cut": lambda b: b[: len(b) // 2], "zeros": lambda b: bytes(len(b))}


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_a_damaged_state_is_a_sentence(place, kinds, stopped, capsys, damage):
    state = stopped / "state" / "step-3"
    names = {p.name for p in state.iterdir()} - {"random_states_0.pkl"}  # no draw of a run depends on it
    assert len(names) == 6  # two networks, two optimizers, the average, the progress
    for name in names:
        content = (state / name).read_bytes()
        (state / name).write_bytes(DAMAGES[damage](content))
        assert place.train(str(stopped), *kinds["few_step"], resume=True) == 2
        said = capsys.readouterr().err
        assert f"the state {state} cannot be read (" in said and "delete that folder" in said, name
        (state / name).write_bytes(content)


def test_a_full_disk_is_a_sentence_and_the_state_before_is_kept(place, kinds, stopped, capsys):
    """Here a limit on the size of a file takes the place of the disk's: of the state's, of the model's."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    largest = max(p.stat().st_size for p in (stopped / "state" / "step-3").iterdir())
    for limit, sentence in (
        (largest // 2, "the state of step 6 could not be written to"),
        ((stopped / "tiny.safetensors").stat().st_size // 2, "could not be written to .*tiny.safetensors"),
    ):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            status = place.train(str(stopped), *kinds["few_step"], resume=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        said = capsys.readouterr().err
        assert status == 2
        assert re.search(f"{sentence}.*make room and go on from the .*save.* with --resume", said), said
        assert [p.name for p in (stopped / "state").iterdir()] == ["step-3"]
    assert place.train(str(stopped), *kinds["few_step"], resume=True) == 0
    assert [p.name for p in (stopped / "state").iterdir()] == ["step-6"]


def test_a_run_is_not_overwritten_nor_changed_on_resume(place, kinds, stopped, capsys):
    before = {p: p.read_bytes() for p in stopped.rglob("*") if p.is_file()}
    for overrides, resume, sentence in (
        ((), False, "holds a run already: add --resume"),
        (("train.batch=4",), True, "was trained with other settings"),
        (("few_step.latent=0.7",), True, "was trained with other settings"),
        (("context_encoder.features=5",), True, "was trained with other settings"),
    ):
        assert place.train(str(stopped), *kinds["few_step"], *overrides, resume=resume) == 2
        assert sentence in capsys.readouterr().err
    assert {p: p.read_bytes() for p in stopped.rglob("*") if p.is_file()} == before


def test_two_processes_do_not_train_in_one_folder(place, kinds, stopped, capsys):
    """Two runs that go on from one state would overwrite each other's, and nobody would know whose weights are left."""
    words = [w for text in (*kinds["few_step"], "train.steps=1000000") for w in ("--set", text)]
    command = [sys.executable, "-m", "fmboost_core.cli.main", "train", str(place.config), "--out", str(stopped)]
    first = subprocess.Popen([*command, "--resume", *words], cwd=place.folder, stderr=subprocess.DEVNULL)
    try:
        while not (stopped / "state" / "step-6").exists():
            assert first.poll() is None, "the first run has ended"
            time.sleep(0.05)
        assert place.train(str(stopped), *kinds["few_step"], resume=True) == 2
        assert "another process trains in" in capsys.readouterr().err
        assert first.poll() is None
    finally:
        first.kill()
        first.wait()
    # The lock goes with the process.
    last = max(int(p.name[5:]) for p in (stopped / "state").glob("step-*") if (p / "progress.json").exists())
    assert place.train(str(stopped), *kinds["few_step"], f"train.steps={last + 1}", resume=True) == 0


def test_a_run_that_is_refused_leaves_no_folder(place, capsys):
    for overrides, resume, sentence in (
        ((), True, "nothing to resume in"),
        (("data.photos=nowhere",), False, "no photos in"),
        (("data.validation=nowhere",), False, "no photos in"),
        (("train.crop=512",), False, "no example is as large as a crop of 512"),
        (("train.objective=autoencoder", "train.crop=300"), False, "train.crop is 300 px: expected a multiple of 8"),
        (("train.objective=autoencoder", "train.crop=256"), False, "a photo is 128 px on its short side"),
    ):
        assert place.train("refused", *overrides, resume=resume) == 2
        assert sentence in capsys.readouterr().err
        assert not (place.folder / "refused").exists()


def test_a_run_is_resumed_by_a_newer_version_and_wherever_its_files_lie(place, kinds, stopped, capsys):
    """Settings that the version before did not have count as their defaults."""
    record = stopped / "state" / "step-3" / "progress.json"
    progress = json.loads(record.read_text())
    del progress["run"]["train"]["disturbed"]
    del progress["run"]["data"]["flips"]
    del progress["run"]["net"]["pool_factor"]
    record.write_text(json.dumps(progress))
    assert place.train(str(stopped), *kinds["few_step"], "train.disturbed=0.1", resume=True) == 2
    assert "other settings" in capsys.readouterr().err
    shutil.copytree(place.folder / "photos", stopped.parent / "moved")
    moved = (f"data.photos={stopped.parent / 'moved'}", f"data.cache={stopped.parent / 'cache'}")
    moved += ("train.start_from=elsewhere.safetensors", "train.steps=4")
    assert place.train(str(stopped), *kinds["few_step"], *moved, resume=True) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="it forks")
def test_killed_at_random_it_ends_in_the_weights_of_a_run_that_was_not(tmp_path):
    """A short run of tools/kill_trainer.py, which says how many kills hit what."""
    tool = Path(__file__).parents[2] / "tools" / "kill_trainer.py"
    command = [sys.executable, str(tool), "--kills", "4", "--seed", "3"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sum(map(int, re.findall(r"^ *(\d+) killed ", done.stdout, re.MULTILINE))) == 4
