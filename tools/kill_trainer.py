"""Kill the trainer at random moments, and check that it always resumes and ends in the same weights.

    python tools/kill_trainer.py --kills 100 [--disk 3]

A small run saves its state after every step, so most kills hit a save. After each kill the run must resume from a state
that is not older than the newest seen whole before; when all kills are done it must finish with exactly the weights of a
run that was never killed. With `--disk` (as root on Linux) everything lies on a file system of that many MB, so that
saves also fail for want of room; the trainer then has to say so in one sentence, and to resume once there is room.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # threads do not survive a fork
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from fmboost_core.train.run import train
from fmboost_core.train.settings import RunSettings, read_settings
from fmboost_core.vae.files import shipped_vae

STEPS = 400
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
steps = {STEPS}
batch = 1
crop = 16
precision = "no"
log_every = 1000
save_every = 1
"""


def prepare(folder: Path) -> RunSettings:
    (folder / "photos").mkdir()
    few = np.random.default_rng(0).integers(0, 255, (5, 6, 3), dtype=np.uint8)
    Image.fromarray(few).resize((160, 128), Image.Resampling.BICUBIC).save(folder / "photos" / "0.png")
    (folder / "tiny.toml").write_text(CONFIG, encoding="utf-8")
    return read_settings(folder / "tiny.toml")


def run_child(settings: RunSettings, out: Path, resume: bool, seconds: float | None) -> str:
    """Train in a child process and kill it after `seconds`; ``done``, ``killed``, or what the trainer said."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        status = 1
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                train(settings, out, resume=resume)
            status = 0
        except (ValueError, OSError) as error:
            os.write(writer, f"{type(error).__name__}: {error}"[:2000].encode())
        finally:
            os._exit(status)
    os.close(writer)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reader, "rb") as file:
        said = file.read().decode()
    if os.WIFSIGNALED(status):
        return "killed"
    return said or ("done" if os.WEXITSTATUS(status) == 0 else "failed without a word")


def newest(out: Path) -> int:
    """The step of the newest state that is whole, 0 for none."""
    return max((int(p.parent.name[5:]) for p in (out / "state").glob("step-*/progress.json")), default=0)


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--disk", type=int, help="MB of a file system for the run, which is nearly full")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng, outcomes = random.Random(args.seed), Counter()
    with tempfile.TemporaryDirectory() as folder:
        settings = prepare(Path(folder))
        reference = Path(folder) / "reference"
        assert run_child(settings, reference, False, None) == "done"
        with small_disk(args.disk, Path(folder)) as place:
            out, ballast, step = place / "run", place / "ballast", 0
            for _ in range(args.kills):
                if args.disk is not None:  # room for the state there is, and a part of the next
                    free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
                    ballast.write_bytes(bytes(int(free * rng.random())))
                said = run_child(settings, out, step > 0, rng.uniform(0.02, 1.5))
                ballast.unlink(missing_ok=True)
                now = newest(out)
                if now < step:
                    said = f"lost: step {step} was saved, {now} is left"
                elif "could not be written" in said or "No space" in said:
                    said = "said that the disk is full"
                outcomes[said] += 1
                step = now
            last = run_child(settings, out, step > 0, None)
            ours, theirs = (load_file(run / "tiny.safetensors") for run in (out, reference))
            same = last == "done" and all(torch.equal(ours[k], theirs[k]) for k in theirs)
    for said, count in outcomes.most_common():
        print(f"{count:4d} {said}")
    print(f"then resumed from step {step} of {STEPS}: {last}; weights equal to those never interrupted: {same}")
    return int(not same or bool(set(outcomes) - {"killed", "done", "said that the disk is full"}))


if __name__ == "__main__":
    sys.exit(main())
