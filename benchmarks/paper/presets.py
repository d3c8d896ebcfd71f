"""How large an experiment is, as data; and which networks the experiments share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fmboost_core import FlowConfig, NetConfig


@dataclass(frozen=True)
class Recipe:
    """One network: what it learns, from which start, at which of the preset's two sizes."""

    objective: str = "cfm"
    noise_step: int = 0
    upsampling: str = "nearest"
    big: bool = False

    def flow(self, scale: int) -> FlowConfig:
        path = {"fm": "gaussian", "sr3": "diffusion"}.get(self.objective, "coupling")
        return FlowConfig(path=path, upsampling=self.upsampling, noise_step=self.noise_step, scale=scale)


NOISE_STEPS = (0, 100, 200, 400, 600, 999)  # Tab. 3, and none
RECIPES: Mapping[str, Recipe] = {
    "cfm-400": Recipe(noise_step=400),
    "fm": Recipe("fm"),
    "regression": Recipe("regression"),
    "sr3": Recipe("sr3"),
    "cfm-200": Recipe(noise_step=200),
    "cfm-0": Recipe(),
    "cfm-100": Recipe(noise_step=100),
    "cfm-600": Recipe(noise_step=600),
    "cfm-999": Recipe(noise_step=999),
    "cfm-400-bilinear": Recipe(noise_step=400, upsampling="bilinear"),
    "fm-bilinear": Recipe("fm", upsampling="bilinear"),
    "big-fm": Recipe("fm", big=True),
    "big-cfm-400": Recipe(noise_step=400, big=True),
    "big-cfm-200": Recipe(noise_step=200, big=True),
}


SMALL, BIG = NetConfig(channel_mult=(1, 2, 3, 4)), NetConfig()
"""The networks of Tab. 8."""


@dataclass(frozen=True)
class Preset:
    short_side: int  # px, of every photo
    photos: int | None  # to train on, evenly spread over the folder; None is all
    held_out: int | None  # to evaluate on
    net: NetConfig
    big: NetConfig
    train: Mapping[str, Any]  # TrainSettings that differ from their defaults
    milestones: tuple[int, ...]  # training steps at which Fig. 9 looks; the last is the length of training
    scale: int = 4
    steps: int = 50  # Euler, where an experiment does not vary them
    evaluations: tuple[int, ...] = (1, 2, 4, 10, 50, 100)
    curve: tuple[int, ...] = (1, 2, 4, 10, 50)  # of Fig. 10
    sizes: tuple[int, ...] = (256, 512, 1024, 2048)  # px, Tab. 6
    trajectory_steps: int = 100
    straight_photos: int = 4
    pictures: int = 2
    speed: Mapping[str, Any] = field(default_factory=dict)  # of the diffusion UNet, over Stable Diffusion 1.5's
    speed_nets: Mapping[str, NetConfig] = field(default_factory=lambda: {"113M": SMALL, "306M": BIG})
    latents: tuple[int, ...] = (32, 64, 128)  # sides, Fig. 1


def _small_net(channels: int, levels: tuple[int, ...] = (1, 2, 2)) -> NetConfig:
    return NetConfig(
        model_channels=channels, channel_mult=levels, num_res_blocks=1, attention_resolutions=(), num_heads=1
    )


PRESETS: Mapping[str, Preset] = {
    # Seconds, for tests; the numbers mean nothing.
    "tiny": Preset(
        short_side=160,
        photos=3,
        held_out=1,
        net=_small_net(32, (1,)),
        big=_small_net(32, (1, 1)),
        train={"batch": 2, "crop": 16, "precision": "no", "warmup": 1},
        milestones=(1, 2),
        steps=2,
        evaluations=(1, 2),
        curve=(1, 2),
        sizes=(64, 128),
        trajectory_steps=4,
        straight_photos=1,
        pictures=1,
        speed={
            "block_out_channels": (32, 32, 32, 32),
            "attention_head_dim": 4,
            "cross_attention_dim": 16,
            "layers_per_block": 1,
        },
        speed_nets={"tiny": _small_net(32, (1,))},
        latents=(16, 32, 64),
    ),
    # Two CPU cores, well under an hour for all experiments together.
    "small": Preset(
        short_side=256,
        photos=96,
        held_out=8,
        net=_small_net(32),
        big=_small_net(64),
        train={"batch": 16, "crop": 16, "learning_rate": 1e-3, "warmup": 40, "ema": 0.99, "precision": "bf16"},
        milestones=(40, 80, 160, 320),
        steps=10,
        sizes=(64, 128, 256, 512),
    ),
    # Tab. 8: FacesHQ for Tab. 1 to 4, LHQ for Tab. 7; short side 1024, latents 32 to 128, trained on 64x64 crops.
    "paper": Preset(
        short_side=1024,
        photos=None,
        held_out=5000,
        net=SMALL,
        big=BIG,
        train={"batch": 96, "crop": 64, "learning_rate": 1e-4, "warmup": 0, "weight_decay": 0.0, "ema": 0.9999},
        milestones=(10_000, 20_000, 40_000, 60_000, 80_000, 100_000),
        evaluations=(1, 2, 4, 10, 50, 100, 1000),
    ),
}
