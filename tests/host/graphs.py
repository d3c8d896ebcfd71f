"""API graphs around the nodes, and latents that go in and come out by file."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

CHANNELS = {"sd15": 4, "sdxl": 4, "sd3": 16, "flux": 16, "flux2": 128}  # of what nodes pass on
TAESD = {"sd15": "taesd", "sdxl": "taesdxl", "sd3": "taesd3", "flux": "taef1", "flux2": "taef2"}
_numbers = itertools.count()


def need_vae(server, name: str) -> None:
    """Skip a test on a host whose Load VAE does not know the TAESD `name`, as older ones do not that of FLUX.2."""
    schema = server.client().get("/object_info/VAELoader")["VAELoader"]
    if name not in schema["input"]["required"]["vae_name"][0]:
        pytest.skip(f"this ComfyUI does not load {name}")


def load(model: str) -> dict:
    return {"class_type": "FMBoost_LoadCFMModel", "inputs": {"model_name": model}}


def latents(batch: int = 1, height: int = 8, width: int = 8, channels: int = 4, seed: int = 0) -> torch.Tensor:
    return 5 * torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(seed))


def lift_graph(folder: Path, latent: dict | torch.Tensor, model: str = "identity.safetensors", **inputs) -> dict:
    """Node 1 loads the model, 2 the latent, 3 lifts, 4 saves to `output_of` the graph; `inputs` go to 3."""
    name = folder / f"latent{next(_numbers)}"
    torch.save({"samples": latent} if isinstance(latent, torch.Tensor) else latent, f"{name}.in")
    settings = {"model": ["1", 0], "samples": ["2", 0], "steps": 2, "seed": 0, **inputs}
    return {
        "1": load(model),
        "2": {"class_type": "ProbeLoad", "inputs": {"file": f"{name}.in"}},
        "3": {"class_type": "FMBoost_CFMLatentUpscale", "inputs": settings},
        "4": {"class_type": "ProbeSave", "inputs": {"samples": ["3", 0], "file": f"{name}.out"}},
    }


def output_of(graph: dict, node: str = "4") -> dict:
    return torch.load(graph[node]["inputs"]["file"], weights_only=True)


def lift(server, folder: Path, latent: dict | torch.Tensor, model: str = "identity.safetensors", **inputs) -> dict:
    """The LATENT that comes out of CFM Latent Upscale."""
    graph = lift_graph(folder, latent, model, **inputs)
    server.run(graph)
    return output_of(graph)
