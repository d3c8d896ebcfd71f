"""The state of a run on disk: written beside the one before, moved into place whole, found again after any stop."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from .settings import RunSettings

REPORTS = ("log_every", "log_with", "save_every", "validate_every", "validation_photos")
FREE = {
    "train": ("steps", "decay", "start_from", *REPORTS),
    "data": ("photos", "vae", "cache", "validation"),
}
"""Settings in which a resumed run may differ: its length, its reports, where things lie, what is done already."""
PROGRESS = "progress.json"


class RunState:
    """States lie in ``state/step-N``; the newest whole one counts. A folder that is being written has another name.

    Raises ValueError where `out` holds a run and `resume` is not asked for, or there is none to resume, or it is of
    other settings.
    """

    def __init__(self, settings: RunSettings, out: Path, resume: bool) -> None:
        self.settings, self.out, self.resume = settings, out, resume
        self.folder = out / "state"
        found = self._newest()
        if resume and found is None:
            raise ValueError(f"nothing to resume in {out}: run without --resume first")
        if not resume and found is not None:
            raise ValueError(f"{out} holds a run already: add --resume to go on, or choose another folder")
        if found is not None:
            self._check_same(found)

    @contextmanager
    def held(self, accelerator: Accelerator) -> Iterator[None]:
        """Make the folder, and keep other runs out of it meanwhile: two would overwrite each other's states.

        Raises ValueError where another process trains in it. The lock goes with the process, however it ends.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        if not accelerator.is_main_process:
            yield
            return
        try:
            with FileLock(self.out / "lock", timeout=0):
                yield
        except Timeout as error:
            raise ValueError(
                f"another process trains in {self.out}: wait for its end or stop it, or choose another folder"
            ) from error

    def load(self, accelerator: Accelerator) -> tuple[int, float]:
        """Bring the prepared modules to the state to resume from; returns its step and seconds, (0, 0) for none."""
        if not self.resume:
            return 0, 0.0
        newest = self._newest()
        assert newest is not None
        if accelerator.is_main_process:
            for left in self.out.glob(".*.part"):  # by a process that was killed as it wrote
                left.unlink(missing_ok=True)
        try:
            accelerator.load_state(str(newest))
        except Exception as error:  # damaged files raise whatever their format leads to
            raise _damaged(newest, error) from error
        progress = _progress(newest)
        return progress["step"], progress["seconds"]

    def save(self, accelerator: Accelerator, step: int, seconds: float) -> None:
        """Write the state of `step`, then remove those before it. Raises ValueError where it cannot be written."""
        partial = self.folder / "partial"
        try:
            if accelerator.is_main_process:
                shutil.rmtree(partial, ignore_errors=True)
                self.folder.mkdir(parents=True, exist_ok=True)
            accelerator.wait_for_everyone()
            accelerator.save_state(str(partial))
            accelerator.wait_for_everyone()
            if not accelerator.is_main_process:
                return
            progress = {"step": step, "seconds": seconds, "run": self._identity()}
            (partial / PROGRESS).write_text(json.dumps(progress), encoding="utf-8")
            _flush(partial)
            target = self.folder / f"step-{step}"
            if target in self._states():  # a run of as many steps, resumed with nothing left to do
                shutil.rmtree(partial)
                return
            shutil.rmtree(target, ignore_errors=True)  # one that is not whole
            os.replace(partial, target)
        except (OSError, SafetensorError, RuntimeError) as error:  # as Python, safetensors and torch.save say it
            shutil.rmtree(partial, ignore_errors=True)
            raise ValueError(
                f"the state of step {step} could not be written to {self.out} ({error}): make room and go on from the "
                "save before it with --resume"
            ) from error
        for number, old in self._folders().items():
            if number < step:
                shutil.rmtree(old, ignore_errors=True)

    def _folders(self) -> dict[int, Path]:
        """The folders of states by their steps, those too of which a removal that was killed has left a part."""
        found = self.folder.glob("step-*") if self.folder.is_dir() else []
        return {int(m[1]): p for p in found if (m := re.fullmatch(r"step-(\d+)", p.name))}

    def _states(self) -> list[Path]:
        """Whole states, oldest first."""
        return [p for _, p in sorted(self._folders().items()) if (p / PROGRESS).is_file()]

    def _newest(self) -> Path | None:
        states = self._states()
        return states[-1] if states else None

    def _identity(self) -> dict[str, Any]:
        run = json.loads(json.dumps(asdict(self.settings)))
        return {
            section: {k: v for k, v in given.items() if k not in FREE.get(section, ())}
            if isinstance(given, dict)
            else given
            for section, given in run.items()
        }

    def _check_same(self, state: Path) -> None:
        ours = self._identity()
        theirs = _progress(state)["run"]
        for section, given in ours.items():  # settings that are newer than the run
            if isinstance(given, dict) and isinstance(theirs.get(section), dict):
                kind = type(getattr(self.settings, section))
                defaults = {f.name: f.default for f in fields(kind) if f.name in given}
                theirs[section] = {**json.loads(json.dumps(defaults, default=str)), **theirs[section]}
        if theirs != ours:
            raise ValueError(f"{self.out} was trained with other settings: put them back, or choose another folder")


def _flush(folder: Path) -> None:
    """Wait until the files are on the disk: a power cut must not leave a whole folder of empty ones."""
    for path in folder.iterdir():
        with path.open("r+b") as file:
            os.fsync(file.fileno())


def _progress(state: Path) -> dict[str, Any]:
    try:
        return json.loads((state / PROGRESS).read_text(encoding="utf-8"))
    except ValueError as error:
        raise _damaged(state, error) from error


def _damaged(state: Path, error: Exception) -> ValueError:
    return ValueError(
        f"the state {state} cannot be read ({error}): delete that folder, and go on from the state before it or, where "
        "there is none, begin anew"
    )
