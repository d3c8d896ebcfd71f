"""Kill the trainer at random moments, and check that it always resumes and ends in the same weights.

    python tools/kill_trainer.py --kills 100 [--disk 12]

A small run saves its state after every step, so most kills hit a save. After each kill the newest whole state must be
at least as new as the one before; after the last the run must resume, and end in exactly the weights of one that was
never killed. With `--disk` (as root on Linux) the run lies on a file system of that many MB which is filled anew before
every start, so that saves also fail for want of room: the trainer then has to say so in one sentence.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # threads do not survive a fork
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
import torch._dynamo  # the first step of an optimizer imports it: here once instead of in every child
from PIL import Image
from safetensors.torch import load_file

from fmboost_core.train.run import train
from fmboost_core.train.settings import RunSettings, read_settings
from fmboost_core.vae.files import shipped_vae

ENDLESS = 10**6  # steps
FULL = "said that there was no room"
ALLOWED = {"killed in a save of the state", "killed in a save of the model", "killed elsewhere", FULL}
CONFIG = f"""
name = "tiny"
[data]
photos = "photos"
vae = "{shipped_vae("sd15")}"
cache = "cache"
short_sides = [128]
[net]
model_channels = 32
channel_mult = [1]
num_res_blocks = 1
attention_resolutions = []
num_heads = 1
[flow]
upsampling = "learned"
noise_step = 200
[context_encoder]
width = 16
depth = 1
features = 4
[train]
steps = 5
batch = 1
crop = 16
precision = "no"
log_every = 1
save_every = 1
"""


def prepare(folder: Path) -> RunSettings:
    (folder / "photos").mkdir()
    few = np.random.default_rng(0).integers(0, 255, (5, 6, 3), dtype=np.uint8)
    Image.fromarray(few).resize((160, 128), Image.Resampling.BICUBIC).save(folder / "photos" / "0.png")
    (folder / "tiny.toml").write_text(CONFIG, encoding="utf-8")
    return read_settings(folder / "tiny.toml")


def run_child(settings: RunSettings, out: Path, steps: int, seconds: float = 0) -> str:
    """Train to `steps` in a child process that is killed after `seconds` of processor time, if these are above 0.

    Returns ``done``, ``killed``, or what the trainer said.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        signal.setitimer(signal.ITIMER_PROF, seconds)  # its signal ends the process without a last word
        status = 1
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                run = replace(settings, train=replace(settings.train, steps=steps))
                train(run, out, resume=newest(out) > 0)
            status = 0
        except BaseException as error:
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            os.write(writer, f"{kind}{error}"[:2000].encode())
        finally:
            os._exit(status)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reader, "rb") as file:
        said = file.read().decode()
    return "killed" if os.WIFSIGNALED(status) else said or "done"


def newest(out: Path) -> int:
    """The step of the newest state that is whole, 0 for none."""
    return max((int(p.parent.name[5:]) for p in (out / "state").glob("step-*/progress.json")), default=0)


def place_of_kill(out: Path) -> str:
    """Where a process was, by what it left."""
    states = list((out / "state").glob("*"))
    if len(states) > 1 or any(p.name == "partial" for p in states):
        return "killed in a save of the state"  # as it was written, or the one before removed
    return "killed in a save of the model" if any(out.glob(".*.part")) else "killed elsewhere"


def seconds_used() -> float:
    """Processor time of all children so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextlib.contextmanager
def small_disk(megabytes: int | None, folder: Path) -> Iterator[Path]:
    if megabytes is None:
        yield folder
        return
    place = folder / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def kill(settings: RunSettings, out: Path, kills: int, rng: random.Random, disk: bool) -> Counter[str]:
    """What `kills` runs in `out` came to, of which `ALLOWED` are as they should be."""
    warm_up = out.with_name("warm-up")
    began = seconds_used()
    assert run_child(settings, warm_up, 5) == "done"
    five = seconds_used() - began
    assert run_child(settings, warm_up, 5) == "done"
    start = seconds_used() - began - five  # of resuming, with nothing to do and one save
    step_time = max(five - start, 0.1 * five) / 5
    shutil.rmtree(warm_up)
    outcomes, step = Counter[str](), 0
    for _ in range(kills):
        ballast = out.with_name("ballast")
        if disk:  # room for the states there are, and a part of the next
            system = os.statvfs(out.parent)
            ballast.write_bytes(bytes(int(system.f_bavail * system.f_frsize * rng.random())))
        seconds = start * rng.uniform(0.2, 1) if rng.random() < 0.1 else start + step_time * rng.uniform(0, 8)
        said = run_child(settings, out, ENDLESS, seconds)
        ballast.unlink(missing_ok=True)
        now = newest(out)
        if now < step:
            said = f"lost: step {step} was saved, {now} is left"
        elif said == "killed":
            said = place_of_kill(out)
        elif "\n" not in said and "make room" in said:
            said = FULL
        outcomes[said] += 1
        step = now
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--disk", type=int, help="MB of a file system for the run, which is nearly full")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        settings = prepare(Path(folder))
        with small_disk(args.disk, Path(folder)) as place:
            out = place / "run"
            outcomes = kill(settings, out, args.kills, random.Random(args.seed), args.disk is not None)
            step = newest(out)
            last = run_child(settings, out, step + 1)
            reference = Path(folder) / "reference"
            assert run_child(settings, reference, step + 1) == "done"
            same = last == "done" and all(
                torch.equal(ours[key], value)
                for name in ("tiny.safetensors", f"state/step-{step + 1}/model.safetensors")
                for ours, theirs in [[load_file(run / name) for run in (out, reference)]]
                for key, value in theirs.items()
            )
            first, second = (
                [row.split(",")[0] for row in (run / "log.csv").read_text().splitlines()] for run in (out, reference)
            )
    for said, count in outcomes.most_common():
        print(f"{count:4d} {said}")
    print(f"then it went on from step {step}: {last}")
    print(f"weights are those of a run never killed: {same}; its log has the same steps: {first == second}")
    return int(not same or first != second or bool(set(outcomes) - ALLOWED))


if __name__ == "__main__":
    sys.exit(main())
