"""A small autoencoder that agrees with a larger one: pictures to its latents, its latents to its pictures.

The student has the teacher's layout and fewer channels. Both of its halves learn from the teacher alone, on random
crops of photos, so its latents can be exchanged with the teacher's.
"""

from __future__ import annotations

import csv
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from ..config import check_kinds, from_one
from ..latent_spaces import latent_space
from ..photos import Photo, find_photos, load_photo
from ..storage import write_tensors
from ..vae import TinyVAE, load_vae
from .ema import EMA

STATE = "state.safetensors"


@dataclass(frozen=True)
class AutoencoderSettings:
    photos: str  # folder
    teacher: str  # TAESD file or folder
    out: str  # folder of the run
    latent_space: str = "sd15"
    width: int = 32
    short_side: int = 512  # px
    crop: int = 128  # px
    batch: int = 4
    steps: int = 4000
    decay: int = 1000  # last steps, of linear fall to 0
    learning_rate: float = 1e-3
    ema: float = 0.995
    latent_noise: float = 0.05  # so that the decoder also takes latents that are slightly off
    edge_weight: float = 1.0  # of the gradients' error beside the pixels'
    save_every: int = 250
    seed: int = 0

    def __post_init__(self) -> None:
        check_kinds(self)
        from_one(self, "width", "short_side", "crop", "batch", "steps", "save_every")
        pixels = latent_space(self.latent_space).pixels
        if self.crop % pixels:
            raise ValueError(f"crop is {self.crop}: expected a multiple of {pixels} px, a latent pixel")

    @property
    def identity(self) -> str:
        """What must stay the same for a resumed run to be the same run: not its length, nor where things lie."""
        left = ("steps", "decay", "save_every", "photos", "teacher", "out")
        return json.dumps({k: v for k, v in asdict(self).items() if k not in left}, sort_keys=True)


def train_autoencoder(settings: AutoencoderSettings, *, resume: bool = False) -> Path:
    """Train, and return the file of both halves; `resume` goes on from the last save in the same folder. Raises
    ValueError where the folder holds a run and `resume` is not asked for, or holds none or another one and it is."""
    out = Path(settings.out)
    if not resume and (out / STATE).exists():
        raise ValueError(f"{out} holds a run already: add --resume to go on, or choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    teacher = load_vae(settings.teacher, space=settings.latent_space, dtype=torch.bfloat16)
    torch.manual_seed(settings.seed)
    student = TinyVAE(teacher.space, width=settings.width)
    student.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.AdamW(student.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99), weight_decay=0)
    average = EMA(student, settings.ema)
    first = _load(out, settings, student, optimizer, average) if resume else 0
    photos = [_pixels(p, settings.short_side) for p in tqdm(find_photos(settings.photos), desc="reading photos")]
    smallest = min(min(photo.shape[1:]) for photo in photos)
    if smallest < settings.crop:
        raise ValueError(f"a photo is {smallest} px on its short side, the crop {settings.crop}: use a smaller crop")
    bar = tqdm(range(first, settings.steps), unit="step", initial=first, total=settings.steps)
    since, sums, seen = time.monotonic(), torch.zeros(2), 0
    for step in bar:
        fall = min(1.0, (settings.steps - step) / max(1, settings.decay))
        optimizer.param_groups[0]["lr"] = settings.learning_rate * min(fall, (step + 1) / 100)
        images = _crops(photos, settings, step)
        with torch.no_grad():
            latents = teacher.encode(images)
            generator = torch.Generator().manual_seed(step)
            amount = settings.latent_noise * torch.rand(len(latents), 1, 1, 1, generator=generator)
            latents_in = latents + amount * torch.randn(latents.shape, generator=generator)
            pictures = teacher.decode(latents_in)
        with torch.autocast("cpu", torch.bfloat16):
            made = student.encoder(images.contiguous(memory_format=torch.channels_last)).float()
            decoded = student.decoder(latents_in.contiguous(memory_format=torch.channels_last)).float()
        encoder_loss = (made - latents).square().mean()
        decoder_loss = (decoded - pictures).abs().mean() + settings.edge_weight * _edges(decoded, pictures)
        loss = encoder_loss + 10 * decoder_loss
        if not math.isfinite(float(loss.detach())):
            raise ValueError(
                f"the loss is {float(loss.detach())} at step {step}: lower learning_rate and resume from the save"
            )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        average.update(student)
        sums += torch.tensor([encoder_loss.item(), decoder_loss.item()])
        seen += 1
        if (step + 1) % 50 == 0:
            encoder_mean, decoder_mean = (sums / seen).tolist()
            sums.zero_()
            seen = 0
            bar.set_postfix(encoder=f"{encoder_mean:.4f}", decoder=f"{decoder_mean:.4f}")
            with (out / "log.csv").open("a", newline="", encoding="utf-8") as file:
                csv.writer(file).writerow([step + 1, encoder_mean, decoder_mean, time.monotonic() - since])
        if (step + 1) % settings.save_every == 0 or step + 1 == settings.steps:
            _save(out, settings, student, optimizer, average, step + 1)
            file = out / f"fmboost-{settings.latent_space}-vae.safetensors"
            write_tensors({k: v.half().contiguous() for k, v in average.state.items()}, file)
    return out / f"fmboost-{settings.latent_space}-vae.safetensors"


def _pixels(path: Photo, short_side: int) -> Tensor:
    """(3, H, W) uint8."""
    return (load_photo(path, short_side, 8)[0] * 255).round().to(torch.uint8)


def _crops(photos: list[Tensor], settings: AutoencoderSettings, step: int) -> Tensor:
    """(B, 3, crop, crop) in [0, 1], mirrored at random; decided by (seed, step) alone."""
    rng = np.random.default_rng((settings.seed, step))
    size, crops = settings.crop, []
    for _ in range(settings.batch):
        photo = photos[int(rng.integers(len(photos)))]
        top, left = (int(rng.integers(side - size + 1)) for side in photo.shape[1:])
        crop = photo[:, top : top + size, left : left + size].float() / 255
        crops.append(crop.flip(-1) if rng.random() < 0.5 else crop)
    return torch.stack(crops)


def _edges(a: Tensor, b: Tensor) -> Tensor:
    """Error of the differences between neighbouring pixels: it keeps edges sharp where a mean would blur them."""
    return F.l1_loss(a.diff(dim=2), b.diff(dim=2)) + F.l1_loss(a.diff(dim=3), b.diff(dim=3))


def _save(
    out: Path,
    settings: AutoencoderSettings,
    student: TinyVAE,
    optimizer: torch.optim.Optimizer,
    average: EMA,
    step: int,
) -> None:
    state = {f"student.{k}": v for k, v in student.state_dict().items()}
    state |= {f"average.{k}": v for k, v in average.state_dict().items()}
    for i, values in optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{i}.{k}": torch.as_tensor(v) for k, v in values.items()}
    state["step"] = torch.tensor(step)
    write_tensors({k: v.contiguous() for k, v in state.items()}, out / STATE, {"settings": settings.identity})


def _load(
    out: Path, settings: AutoencoderSettings, student: TinyVAE, optimizer: torch.optim.Optimizer, average: EMA
) -> int:
    path = out / STATE
    if not path.is_file():
        raise ValueError(f"nothing to resume in {out}: run without --resume first")
    try:
        with safe_open(path, framework="pt") as file:
            found = (file.metadata() or {}).get("settings")
            names = list(file.keys())
            state = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise ValueError(f"the state {path} is damaged ({error}): begin anew in another folder") from error
    if found != settings.identity:
        raise ValueError(f"{out} was trained with {found}, this run has {settings.identity}: choose another folder")
    student.load_state_dict({k[8:]: v for k, v in state.items() if k.startswith("student.")})
    average.load_state_dict({k[8:]: v for k, v in state.items() if k.startswith("average.")})
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        if key.startswith("optimizer."):
            _, i, name = key.split(".")
            slots.setdefault(int(i), {})[name] = value
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(state["step"])
