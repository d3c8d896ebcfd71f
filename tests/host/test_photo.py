"""The main job in a real ComfyUI: a photo lifted by the model that ships, against the photo at that size."""

from __future__ import annotations

import json
from io import BytesIO

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import fmboost_core
from fmboost_core.demo import read_examples

from .conftest import PACK

METHODS = ["nearest-exact", "bilinear", "area", "bicubic", "bislerp"]


@pytest.fixture(scope="module")
def photos(server):
    """(name, large picture (1, 3, H, W)) of two demo photos; their halves lie in the server's input folder."""
    if "fmboost-sd15-x2" not in fmboost_core.shipped_models():
        pytest.skip("no model fmboost-sd15-x2 in this checkout to lift a photo with")
    vae = fmboost_core.load_vae(server.base / "models" / "vae_approx" / "taesd_encoder.safetensors")
    found = []
    for example in read_examples()[:2]:  # a CPU takes its time
        large = vae.decode(example["high"])
        small = F.interpolate(large, scale_factor=0.5, mode="bicubic", antialias=True).clamp(0, 1)
        pixels = (255 * small[0].permute(1, 2, 0)).round().byte().numpy()
        Image.fromarray(pixels).save(server.base / "input" / f"{example['name']}.png")
        found.append((example["name"], large))
    return found


def result(server, graph: dict) -> torch.Tensor:
    client = server.client()
    ((_, contents),) = client.images(client.run(graph))
    return torch.from_numpy(np.array(Image.open(BytesIO(contents)))).permute(2, 0, 1)[None] / 255


def error(picture: torch.Tensor, truth: torch.Tensor) -> float:
    return float((picture - truth).square().mean())


def test_the_photo_workflow_beats_every_latent_upscale_of_comfyui(server, photos):
    graph = json.loads((PACK / "workflows" / "api" / "fmboost_photo_upscale.json").read_text("utf-8"))
    kinds = {node["class_type"]: name for name, node in graph.items()}
    ours, theirs = [], {method: [] for method in METHODS}
    for name, truth in photos:
        graph[kinds["LoadImage"]]["inputs"]["image"] = f"{name}.png"
        lifted = result(server, graph)
        assert lifted.shape == truth.shape
        ours.append(error(lifted, truth))
        for method in METHODS:
            samples = graph[kinds["FMBoost_CFMLatentUpscale"]]["inputs"]["samples"]
            by = {"samples": samples, "upscale_method": method, "scale_by": 2.0}
            plain = {**graph, kinds["FMBoost_CFMLatentUpscale"]: {"class_type": "LatentUpscaleBy", "inputs": by}}
            del plain[kinds["FMBoost_LoadCFMModel"]]
            theirs[method].append(error(result(server, plain), truth))
    for method, errors in theirs.items():
        assert sum(ours) < sum(errors), method
