"""The training loop, on accelerate: one process or many, and every objective, through the same code."""

from __future__ import annotations

import csv
import logging
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import AutocastKwargs, DataLoaderConfiguration, LoggerType
from torch import Tensor, nn
from tqdm import tqdm

from ..storage import replacing
from .ema import EMA
from .settings import TrainSettings
from .state import RunState

log = logging.getLogger(__name__)
logging.getLogger("accelerate").setLevel(logging.WARNING)  # it reports every file of every save

NETWORK, ADVERSARIES = "network", "adversaries"

Losses = Iterator[tuple[str, Tensor, dict[str, Tensor]]]
"""(what is stepped, its loss, numbers for the log), one after the other; the step is made before the next is asked."""


class Task(Protocol):
    """What the loop trains."""

    modules: dict[str, nn.Module]
    """`NETWORK`, whose average ships, and where there are any `ADVERSARIES`, each with an optimizer of its own."""
    rates: dict[str, float]
    """Learning rates, over that of the settings."""

    def batch(self, step: int) -> dict[str, Tensor]:
        """The examples of this process in this step, decided by its number alone."""
        ...

    def losses(self, modules: dict[str, nn.Module], batch: dict[str, Tensor], step: int) -> Losses: ...

    def validate(self, weights: dict[str, Tensor], picture: Path) -> dict[str, float]:
        """Figures of a network with these weights; none where there is nothing to validate on."""
        ...

    def export(self, weights: dict[str, Tensor], facts: Mapping[str, object]) -> Path:
        """Write what ships into the run's folder, and return its path."""
        ...


def learning_rate(settings: TrainSettings, step: int) -> float:
    """Linear rise over `warmup` steps, constant, linear fall over the last `decay` steps; `step` counts from 0."""
    rise = (step + 1) / settings.warmup if settings.warmup else 1.0
    fall = (settings.steps - step) / settings.decay if settings.decay else 1.0
    return settings.learning_rate * min(1.0, rise, fall)


def make_accelerator(settings: TrainSettings, out: Path) -> Accelerator:
    """Raises ValueError for a tracker that is unknown or not installed, and a batch that does not divide."""
    _check_tracker(settings.log_with)
    accelerator = Accelerator(
        mixed_precision=settings.precision,
        dataloader_config=DataLoaderConfiguration(dispatch_batches=False),
        # Older versions of torch reuse a cast made without gradient, as along a trajectory, where gradients are wanted.
        kwargs_handlers=[AutocastKwargs(cache_enabled=False)],
        log_with=settings.log_with or None,
        project_dir=str(out),
    )
    world = accelerator.num_processes
    if settings.batch % world:
        raise ValueError(f"a batch of {settings.batch} does not divide over {world} processes: change train.batch")
    return accelerator


class Loop:
    """One run in its folder: steps, log, validation and state.

    The folder receives ``log.csv``, ``validation.csv``, a picture per validation, ``state/`` and what the task
    exports. Raises ValueError where the loss stops being finite; nothing that was saved is lost then.
    """

    def __init__(self, accelerator: Accelerator, task: Task, settings: TrainSettings, state: RunState) -> None:
        self.accelerator, self.task, self.settings, self.state = accelerator, task, settings, state
        self.out, self.main = state.out, accelerator.is_main_process
        self.modules, self.optimizers = {}, {}
        for name, module in task.modules.items():
            module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
            betas = (0.9, settings.beta2) if name == NETWORK else (0.5, settings.beta2)
            decay = settings.weight_decay if name == NETWORK else 0.0
            optimizer = torch.optim.AdamW(_groups(module, decay), settings.learning_rate, betas, fused=True)
            self.modules[name], self.optimizers[name] = accelerator.prepare(module, optimizer)
        self.ema = EMA(self._plain(NETWORK), settings.ema)
        accelerator.register_for_checkpointing(self.ema)
        self.step, self.seconds = state.load(accelerator)
        if self.main:
            for name in ("log", "validation"):
                drop_rows(self.out / f"{name}.csv", self.step)

    def run(self) -> Path:
        settings = self.settings
        self.accelerator.init_trackers(settings.log_with)  # pyright: ignore[reportArgumentType]  # no trackers, no effect
        bar = tqdm(total=settings.steps, initial=self.step, disable=not self.main, unit="step", mininterval=1)
        recent: list[dict[str, Tensor]] = []
        path = self._save() if self.step >= settings.steps else self.out
        since = time.monotonic()
        while self.step < settings.steps:
            recent.append(self._train_step())
            self.step += 1
            bar.update()
            last = self.step == settings.steps
            saves = self.step % settings.save_every == 0 or last
            if self.step % settings.log_every == 0 or saves:  # what is saved was looked at
                now = time.monotonic()
                self._log(bar, recent, now - since)
                since = now
                recent.clear()
            if saves:
                path = self._save()
            if self.main and (self.step % settings.validate_every == 0 or last):
                self._validate()
                since = time.monotonic()
        bar.close()
        for tracker in self.accelerator.trackers:
            tracker.finish()
        return path

    def _train_step(self) -> dict[str, Tensor]:
        rate = learning_rate(self.settings, self.step)
        batch, numbers = self.task.batch(self.step), {}
        with self.accelerator.autocast():
            for name, loss, seen in self.task.losses(self.modules, batch, self.step):
                for group in self.optimizers[name].param_groups:
                    group["lr"] = rate * self.task.rates[name]
                self.accelerator.backward(loss)
                self.accelerator.clip_grad_norm_(self.modules[name].parameters(), self.settings.grad_clip)
                self.optimizers[name].step()
                self.optimizers[name].zero_grad()
                numbers |= {"loss" if name == NETWORK else name: loss.detach(), **seen}
        self.ema.update()
        return numbers

    def _plain(self, name: str) -> nn.Module:
        return self.accelerator.unwrap_model(self.modules[name])

    def _log(self, bar: tqdm, recent: list[dict[str, Tensor]], seconds: float) -> None:
        means = {k: torch.stack([r[k].float() for r in recent if k in r]).mean() for k in recent[-1]}
        numbers = {k: float(self.accelerator.reduce(v, "mean")) for k, v in means.items()}  # pyright: ignore
        bad = [f"{k} is {v}" for k, v in numbers.items() if not math.isfinite(v)]
        if bad:
            raise ValueError(
                f'{bad[0]} at step {self.step}: lower train.learning_rate or set precision = "no", and go on from the '
                "last save with --resume"
            )
        self.seconds += seconds
        rate = len(recent) * self.settings.batch / seconds
        bar.set_postfix(loss=f"{numbers['loss']:.4f}", images_s=f"{rate:.1f}")
        self._append("log", {"step": self.step, "images_per_s": rate, "seconds": self.seconds, **numbers})

    def _validate(self) -> None:
        picture = self.out / f"step{self.step:06d}.jpg"
        values = self.task.validate(self.ema.state, picture)
        if values:
            self._append("validation", {"step": self.step, **values})
            tqdm.write(f"step {self.step}: " + ", ".join(f"{k} {v:.4g}" for k, v in values.items()) + f"; {picture}")

    def _append(self, name: str, row: dict[str, float]) -> None:
        if self.main:
            append_row(self.out / f"{name}.csv", row)
            topic = "train" if name == "log" else name
            self.accelerator.log({f"{topic}/{k}": v for k, v in row.items() if k != "step"}, step=self.step)

    def _save(self) -> Path:
        path = self.out
        if self.main:
            facts = {
                "crop": self.settings.crop,
                "steps": self.step,
                "examples": self.step * self.settings.batch,
                "seconds": round(self.seconds),
            }
            path = self.task.export(self.ema.state, facts)  # first: it refuses weights that no state should keep
        self.state.save(self.accelerator, self.step, self.seconds)
        return path


def append_row(path: Path, row: dict[str, float]) -> None:
    """Append `row` to a CSV file; columns that are new begin there, with the rows before left empty in them."""
    rows: list[Mapping[str, object]] = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            header = next(csv.reader(file), [])
        if set(row) <= set(header):
            with path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, header).writerow(row)
            return
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    columns = list(dict.fromkeys([*(rows[0] if rows else {}), *row]))
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows([*rows, row])


def drop_rows(path: Path, step: int) -> None:
    """Drop the rows of steps after `step`, which a run that was stopped makes again, and a row that was cut off."""
    rows = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    numbers = [row.split(b",")[0] for row in rows]
    kept = [
        row
        for row, number in zip(rows, numbers, strict=True)
        if row.endswith(b"\n") and not (number.isdigit() and int(number) > step)
    ]
    if kept != rows:
        with replacing(path) as partial:
            partial.write_bytes(b"".join(kept))


def _groups(module: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weights decay, biases and norms do not."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _check_tracker(name: str) -> None:
    known = [t.value for t in LoggerType if t is not LoggerType.ALL]
    if name and name not in known:
        raise ValueError(f"log_with is {name!r}: expected nothing or one of {', '.join(known)}")
    if name and LoggerType(name) not in get_available_trackers():  # accelerate goes on without a word
        raise ValueError(f"log_with is {name!r}, which is not installed: pip install {name}, or leave it out")
