"""The training loop, on accelerate: one process or many, the same file."""

from __future__ import annotations

import csv
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DataLoaderConfiguration, LoggerType
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..checkpoint import save_model
from ..config import FlowConfig, NetConfig
from ..latent_spaces import latent_space
from ..model import CFMModel
from ..photos import find_photos
from ..unet import UNet
from ..vae import TinyVAE, load_vae
from .data import LatentCrops, cache_latents, variants_of
from .ema import EMA
from .objectives import COLOUR_BLOCK, DecodedLoss, objective_loss
from .pack import is_packed, read_packed
from .reflow import Reflow, reflow_identity
from .settings import DataSettings, RunSettings, TrainSettings
from .start import start_from
from .validate import held_out, validate

log = logging.getLogger(__name__)
logging.getLogger("accelerate").setLevel(logging.WARNING)  # it reports every file of every save


def learning_rate(settings: TrainSettings, step: int) -> float:
    """Linear rise over `warmup` steps, constant, linear fall over the last `decay` steps; `step` counts from 0."""
    rise = (step + 1) / settings.warmup if settings.warmup else 1.0
    fall = (settings.steps - step) / settings.decay if settings.decay else 1.0
    return settings.learning_rate * min(1.0, rise, fall)


def check_tracker(name: str) -> None:
    """Raise ValueError where `name` is no tracker of accelerate's, or its package is missing: accelerate goes on
    without a word then."""
    known = [t.value for t in LoggerType if t is not LoggerType.ALL]
    if name and name not in known:
        raise ValueError(f"log_with is {name!r}: expected nothing or one of {', '.join(known)}")
    if name and LoggerType(name) not in get_available_trackers():
        raise ValueError(f"log_with is {name!r}, which is not installed: pip install {name}, or leave it out")


def train(settings: RunSettings, out: str | Path, *, resume: bool = False) -> Path:
    """Run `settings` in the folder `out`; returns the model file.

    `out` receives ``NAME.safetensors`` (EMA weights, at every save and at the end), ``log.csv``, a picture per
    validation, and ``state/`` from which `resume` continues exactly. Raises ValueError where the loss stops being
    finite or `out` holds another run; nothing that was saved is lost then.
    """
    return _Run(settings, Path(out), resume).run()


REPORTS = ("log_every", "log_with", "save_every", "validate_every", "validation_photos")
FREE = {
    "train": ("steps", "decay", "start_from", *REPORTS),
    "data": ("photos", "vae", "cache", "validation", "reflow_model"),
}
"""Settings a resumed run may have otherwise. What `start_from` did is done; the cache knows its `reflow_model`."""


def _without(run: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run, as JSON has them, but for those in `FREE`."""

    def kept(section: str, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if name not in FREE.get(section, ())}

    return {section: kept(section, given) for section, given in run.items()}


class _Run:
    def __init__(self, settings: RunSettings, out: Path, resume: bool) -> None:
        self.settings, self.out = settings, out
        hp = settings.train
        check_tracker(hp.log_with)
        self.accelerator = Accelerator(
            mixed_precision=hp.precision,
            dataloader_config=DataLoaderConfiguration(dispatch_batches=False),
            log_with=hp.log_with or None,
            project_dir=str(out),
        )
        world = self.accelerator.num_processes
        if hp.batch % world:
            raise ValueError(f"a batch of {hp.batch} does not divide over {world} processes: change train.batch")
        self.state = out / "state"
        if resume and not (self.state / "progress.json").is_file():
            raise ValueError(f"nothing to resume in {out}: run without --resume first")
        if not resume and self.state.exists():
            raise ValueError(f"{out} holds a run already: add --resume to go on, or choose another folder")
        torch.manual_seed(hp.seed)  # decides the first weights; every later draw has its own generator
        net = UNet(settings.net)
        net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        if hp.start_from and not resume:
            said = start_from(net, settings.model_config(), hp.start_from)
            if self.accelerator.is_main_process:
                log.info(said)
        out.mkdir(parents=True, exist_ok=True)
        decayed = [p for p in net.parameters() if p.ndim > 1]
        rest = [p for p in net.parameters() if p.ndim <= 1]
        optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": hp.weight_decay}, {"params": rest, "weight_decay": 0.0}],
            lr=hp.learning_rate,
            betas=(0.9, hp.beta2),
            fused=True,
        )
        self.net, self.optimizer = self.accelerator.prepare(net, optimizer)
        self.ema = EMA(self._plain_net(), hp.ema)
        self.accelerator.register_for_checkpointing(self.ema)
        self.step, self.seconds = 0, 0.0
        self.vae: TinyVAE | None = None
        if resume:
            self._resume()

    def run(self) -> Path:
        hp = self.settings.train
        self.accelerator.init_trackers(hp.log_with)  # pyright: ignore[reportArgumentType]  # no trackers, no effect
        batches = self._batches()
        held = self._held_out()
        bar = tqdm(
            total=hp.steps, initial=self.step, disable=not self.accelerator.is_main_process, unit="step", mininterval=1
        )
        losses: list[Tensor] = []
        since = time.monotonic()
        while self.step < hp.steps:
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(hp, self.step)
            batch = {k: v.to(self.accelerator.device) for k, v in next(batches).items()}
            with self.accelerator.autocast():
                loss = objective_loss(
                    hp.objective,
                    self.net,
                    self.settings.flow,
                    batch,
                    hp.t_sampling,
                    self._decoded_loss(),
                    hp.noise_from,
                )
            self.accelerator.backward(loss)
            self.accelerator.clip_grad_norm_(self.net.parameters(), hp.grad_clip)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.ema.update(self._plain_net())
            losses.append(loss.detach())
            self.step += 1
            bar.update()
            if self.step % hp.log_every == 0 or self.step == hp.steps:
                now = time.monotonic()
                self._log(bar, losses, now - since)
                since = now
                losses.clear()
            if self.step % hp.save_every == 0 or self.step == hp.steps:
                self._save()
            if held and (self.step % hp.validate_every == 0 or self.step == hp.steps):
                self._validate(held)
                since = time.monotonic()
        bar.close()
        for tracker in self.accelerator.trackers:
            tracker.finish()
        return self.out / f"{self.settings.name}.safetensors"

    def _cached(self) -> list[Path]:
        data, flow = self.settings.data, self.settings.flow
        multiple = latent_space(data.latent_space).pixels * flow.scale
        variants = variants_of(data.short_sides, data.flips, data.latent_noise)
        photos = find_photos(data.photos)
        with self.accelerator.main_process_first():
            vae = self._load_vae()
            identity: dict[str, str | int] = {
                "latent_space": data.latent_space,
                "scale": flow.scale,
                "autoencoder": vae.fingerprint(),
            }
            reflow = None
            if data.reflow_model:
                reflow = Reflow(data.reflow_model, data.reflow_steps, flow, data.latent_space, self.accelerator.device)
                identity |= reflow_identity(data)
            jobs = range(len(photos) * len(variants))
            files = cache_latents(
                photos,
                variants,
                data.cache,
                vae=vae,
                scale=flow.scale,
                multiple=multiple,
                identity=identity,
                reflow=reflow,
                progress=tqdm(jobs, desc="encoding photos", unit="photo", disable=not self.accelerator.is_main_process),
            )
        return files

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        data, hp = self.settings.data, self.settings.train
        if is_packed(data.cache):
            examples = read_packed(data.cache, self.settings, self._load_vae() if data.vae else None)
        else:
            examples = self._cached()
        crops = LatentCrops(
            examples,
            crop=hp.crop,
            scale=self.settings.flow.scale,
            seed=hp.seed,
            start=self.step * hp.batch,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
        )
        return iter(DataLoader(crops, batch_size=hp.batch // self.accelerator.num_processes))

    def _decoded_loss(self) -> DecodedLoss | None:
        hp = self.settings.train
        if not hp.decodes:
            return None
        free = (hp.crop - hp.decoded_window) // COLOUR_BLOCK
        top, left = COLOUR_BLOCK * np.random.default_rng((hp.seed, self.step)).integers(free + 1, size=2)
        return DecodedLoss(
            self._load_vae(),
            hp.decoded_weight,
            hp.decoded_window,
            int(top),
            int(left),
            hp.colour_weight,
            hp.mean_decoded_weight,
        )

    def _held_out(self) -> list[Any]:
        data = self.settings.data
        if not data.validation or not self.accelerator.is_main_process:
            return []
        if not data.vae:
            log.info("no validation: it needs an autoencoder, and data.vae is empty")
            return []
        photos = find_photos(data.validation)[: self.settings.train.validation_photos]
        return held_out(photos, self._load_vae(), self.settings.flow.scale, data.short_sides[0], size=32)

    def _load_vae(self) -> TinyVAE:
        if self.vae is None:
            data = self.settings.data
            if not data.vae:
                raise ValueError(
                    "a loss on decoded pictures needs an autoencoder: set data.vae, or train.decoded_weight, "
                    "train.mean_decoded_weight and train.colour_weight to 0"
                )
            dtype = torch.bfloat16 if self.settings.train.precision == "bf16" else torch.float32
            self.vae = load_vae(data.vae, space=data.latent_space, device=self.accelerator.device, dtype=dtype)
        return self.vae

    def _plain_net(self) -> UNet:
        return self.accelerator.unwrap_model(self.net)

    def _log(self, bar: Any, losses: list[Tensor], seconds: float) -> None:
        loss = float(self.accelerator.reduce(torch.stack(losses).mean(), "mean"))  # pyright: ignore[reportArgumentType]
        if not math.isfinite(loss):
            raise ValueError(
                f'the loss is {loss} at step {self.step}: lower train.learning_rate or set precision = "no", and go '
                f"on from the last save with --resume"
            )
        self.seconds += seconds
        rate = len(losses) * self.settings.train.batch / seconds
        bar.set_postfix(loss=f"{loss:.4f}", images_s=f"{rate:.1f}")
        self._append("log.csv", {"step": self.step, "loss": loss, "images_per_s": rate, "seconds": self.seconds})

    def _validate(self, held: list[Any]) -> None:
        config = self.settings.model_config()
        net = UNet(config.net, device=self.accelerator.device)
        net.load_state_dict(self.ema.state)
        model = CFMModel(config, net.eval())
        picture = self.out / f"step{self.step:06d}.jpg"
        steps = self.settings.train.validation_steps
        if self.settings.train.objective == "regression":
            steps = 1
        values = validate(model, held, self._load_vae(), steps=steps, picture=picture)
        self._append("validation.csv", {"step": self.step, **values})
        short = ", ".join(f"{n} {values[f'psnr_{n}']:.2f} dB" for n in ("nearest", "bilinear", "psu", "model", "truth"))
        tqdm.write(f"step {self.step}: {short}; latent mse {values['mse_model']:.4f}; {picture}")

    def _append(self, name: str, row: dict[str, float]) -> None:
        if not self.accelerator.is_main_process:
            return
        path = self.out / name
        new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, row)
            if new:
                writer.writeheader()
            writer.writerow(row)
        topic = "train" if name == "log.csv" else "validation"
        self.accelerator.log({f"{topic}/{k}": v for k, v in row.items() if k != "step"}, step=self.step)

    def _save(self) -> None:
        """Write the state beside the old one and only then put it in its place, so that a kill loses nothing."""
        try:
            self._write_state(self.out / "state.part")
        except (OSError, SafetensorError, RuntimeError) as error:  # as Python, safetensors and torch.save say it
            raise ValueError(
                f"the state of step {self.step} could not be written to {self.out} ({error}): make room and go on from "
                f"the save before it with --resume"
            ) from error

    def _write_state(self, fresh: Path) -> None:
        if self.accelerator.is_main_process and fresh.exists():
            shutil.rmtree(fresh)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(fresh))
        if not self.accelerator.is_main_process:
            return
        progress = {"step": self.step, "seconds": self.seconds, "run": self._identity()}
        (fresh / "progress.json").write_text(json.dumps(progress), encoding="utf-8")
        old = self.out / "state.old"
        shutil.rmtree(old, ignore_errors=True)
        if self.state.exists():
            os.replace(self.state, old)
        os.replace(fresh, self.state)
        shutil.rmtree(old, ignore_errors=True)
        save_model(self.out / f"{self.settings.name}.safetensors", self._config(), self.ema.state)

    def _config(self) -> Any:
        data, hp = self.settings.data, self.settings.train
        return self.settings.model_config(
            {
                "crop": hp.crop,
                "steps": self.step,
                "examples": self.step * hp.batch,
                "seconds": round(self.seconds),
                "short_sides": list(data.short_sides),
                "data_license": data.license,
            }
        )

    def _identity(self) -> dict[str, Any]:
        """What must stay the same for a resumed run to be the same run: not its length, its reports, nor where things
        lie, so that it may go on on another machine."""
        return _without(json.loads(json.dumps(asdict(self.settings))))

    def _resume(self) -> None:
        progress = json.loads((self.state / "progress.json").read_text(encoding="utf-8"))
        ours, theirs = self._identity(), _without(progress["run"])
        kinds = {"data": DataSettings, "train": TrainSettings, "net": NetConfig, "flow": FlowConfig}
        for section, kind in kinds.items():  # settings newer than the run
            defaults = {f.name: f.default for f in fields(kind) if f.name in ours[section]}
            theirs[section] = {**json.loads(json.dumps(defaults)), **theirs[section]}
        if theirs != ours:
            raise ValueError(f"{self.out} was trained with other settings: put them back, or choose another folder")
        self.accelerator.load_state(str(self.state))
        self.step, self.seconds = progress["step"], progress["seconds"]
