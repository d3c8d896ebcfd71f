"""How nodes describe themselves, on old and new hosts alike."""

from __future__ import annotations

import dataclasses
from typing import Any

from comfy_api.latest import io

import nodes as comfy_nodes

# Beside the host's own nodes, which newer hosts have moved.
LATENT_CATEGORY = f"{comfy_nodes.LatentUpscale.CATEGORY}/upscaling"
LOADER_CATEGORY = comfy_nodes.VAELoader.CATEGORY
CFMType = io.Custom("CFM_MODEL")
ADVANCED = {"advanced": True}  # the keyword `advanced=` of inputs is younger than the oldest host


def schema(**settings: Any) -> io.Schema:
    """io.Schema without the settings this host does not know yet: one of them would hide the whole pack."""
    known = {field.name for field in dataclasses.fields(io.Schema)}
    return io.Schema(**{name: value for name, value in settings.items() if name in known})


def seed_input() -> io.Int.Input:
    """The seed of a node that draws noise."""
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=0xFFFFFFFFFFFFFFFF,
        control_after_generate=True,
        tooltip=(
            "Chooses the noise. An image with the same seed gets the same noise alone, in a batch, and on any device."
        ),
    )
