"""Every shipped workflow fits the live nodes, its two forms agree, and what can run here runs."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fmboost_core import shipped_models

from .conftest import PACK, comfy_python

FOLDER = PACK / "workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
NOTES = {"MarkdownNote", "Note"}


def read(name: str) -> tuple[dict, dict]:
    return tuple(json.loads(path.read_text("utf-8")) for path in (FOLDER / f"{name}.json", FOLDER / f"api/{name}.json"))


@pytest.fixture(scope="module")
def schemas(server):
    return server.client().get("/object_info")


def inputs_of(schema: dict) -> dict:
    return {**schema["input"]["required"], **schema["input"].get("optional", {})}


def options_of(spec: list) -> dict:
    return spec[1] if len(spec) > 1 else {}


def is_widget(spec: list) -> bool:
    return isinstance(spec[0], list) or spec[0] in WIDGETS


def to_api(ui: dict, schemas: dict) -> dict:
    """The inputs the frontend sends for a UI workflow: {node id: (type, {input: value or [node id, slot]})}."""
    links = {link[0]: link for link in ui["links"]}
    graph = {}
    for node in ui["nodes"]:
        if node["type"] in NOTES:
            continue
        values, found = list(node.get("widgets_values", [])), {}
        assert list(node.get("widgets_values_named", {}).values()) in ([], values)  # newer frontends read these
        for name, spec in inputs_of(schemas[node["type"]]).items():
            if is_widget(spec):
                found[name] = values.pop(0)
                if options_of(spec).get("control_after_generate"):
                    assert values.pop(0) in ("fixed", "randomize", "increment", "decrement")
                if options_of(spec).get("image_upload"):
                    assert values.pop(0) == "image"
        assert not values, f"{node['type']} has {len(values)} widget values too many"
        for socket in node["inputs"]:
            if socket["link"] is not None:
                _, origin, slot, target, _, kind = links[socket["link"]]
                assert target == node["id"]
                assert schemas[next(n["type"] for n in ui["nodes"] if n["id"] == origin)]["output"][slot] == kind
                found[socket["name"]] = [str(origin), slot]
        graph[str(node["id"])] = (node["type"], found)
    return graph


def test_there_are_workflows():
    assert {"fmboost_photo_upscale", "fmboost_txt2img_1024"} <= set(NAMES)
    assert sorted(path.stem for path in (FOLDER / "api").glob("*.json")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_both_forms_fit_the_live_nodes_and_agree(schemas, name):
    ui, api = read(name)
    converted = to_api(ui, schemas)
    assert set(converted) == set(api)
    for node, (kind, values) in converted.items():
        assert api[node]["class_type"] == kind
        specs, sent = inputs_of(schemas[kind]), api[node]["inputs"]
        assert set(schemas[kind]["input"]["required"]) <= set(sent) <= set(specs)
        for key, value in values.items():
            assert sent.get(key, options_of(specs[key]).get("default")) == value, f"{kind}.{key}"
        for key, value in sent.items():
            if is_widget(specs[key]) and "min" in options_of(specs[key]):
                assert specs[key][1]["min"] <= value <= specs[key][1]["max"]
    assert len({link[0] for link in ui["links"]}) == len(ui["links"])


@pytest.mark.parametrize("name", NAMES)
def test_a_note_says_where_each_model_goes(name):
    ui, _ = read(name)
    (note,) = (node["widgets_values"][0] for node in ui["nodes"] if node["type"] in NOTES)
    folders = {"CheckpointLoaderSimple": "models/checkpoints", "LoraLoaderModelOnly": "models/loras"}
    folders |= {"FMBoost_LoadCFMModel": "models/latent_upscale_models", "VAELoader": "models/vae_approx"}
    for node in ui["nodes"]:
        if node["type"] in folders:
            assert folders[node["type"]] in note
        if node["type"] in ("CheckpointLoaderSimple", "LoraLoaderModelOnly", "VAELoader"):
            models = node["properties"]["models"]
            assert all(model["url"].startswith("https://huggingface.co/") for model in models)
            assert node["type"] == "VAELoader" or models[0]["name"] == node["widgets_values"][0]


def stand_in(model: str) -> str:
    """A shipped model, or a small random one of its family and scale where this checkout does not have it."""
    return model if model in shipped_models() else f"random-{model.removeprefix('fmboost-')}.safetensors"


def small(name: str, **changes) -> dict:
    """The API form at a size for the CPU, on models that are there; `changes` are inputs by node type."""
    _, graph = read(name)
    for node in graph.values():
        small = {
            "EmptyLatentImage": {"width": 128, "height": 96},
            "KSampler": {"steps": min(2, node["inputs"].get("steps", 2))},
            "FMBoost_LoadCFMModel": {"model_name": stand_in(node["inputs"].get("model_name", ""))},
            "FMBoost_CFMLatentUpscale": {"steps": 2},
            **changes,
        }
        node["inputs"].update(small.get(node["class_type"], {}))
    return graph


def size_of_result(server, graph: dict) -> tuple[int, int]:
    client = server.client()
    ((_, contents),) = client.images(client.run(graph))
    return Image.open(BytesIO(contents)).size


@pytest.mark.parametrize("name", ["fmboost_photo_upscale", "fmboost_tiled_4096", "fmboost_flux_photo"])
def test_photo_workflows_run(server, name):
    Image.new("RGB", (160, 96), (200, 60, 30)).save(server.base / "input" / "red.png")
    changes = {"FMBoost_CFMLatentUpscale": {"steps": 1, "tile_size": 16}} if "tiled" in name else {}
    graph = small(name, LoadImage={"image": "red.png"}, **changes)
    assert size_of_result(server, graph) == (320, 192)


@pytest.fixture(scope="module")
def checkpoint(server):
    """A random SD 1.5, made once and kept in the temporary folder."""
    if not os.environ.get("FMBOOST_SLOW_TESTS"):
        pytest.skip("needs a random checkpoint of 2 GB: set FMBOOST_SLOW_TESTS=1 to make it and run KSampler")
    path = Path(tempfile.gettempdir()) / "fmboost-tests" / "random-sd15.safetensors"
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        script, part = Path(__file__).with_name("random_checkpoint.py"), path.with_suffix(".part")
        subprocess.run([comfy_python(server.comfy), script, server.comfy, part], check=True, cwd=server.comfy)
        part.rename(path)
    (server.base / "models" / "checkpoints" / path.name).symlink_to(path)
    key = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"
    lora = {f"{key}.lora_up.weight": torch.ones(320, 4), f"{key}.lora_down.weight": torch.ones(4, 320)}
    (server.base / "models" / "loras").mkdir(exist_ok=True)
    save_file(lora, server.base / "models" / "loras" / "lora.safetensors")
    return path.name


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("fmboost_txt2img_1024", (256, 192)),
        ("fmboost_txt2img_lcm_1024", (256, 192)),
        ("fmboost_noise_augment", (256, 192)),
        ("fmboost_txt2img_2048", (256, 256)),
        ("fmboost_txt2img_256_1024", (256, 256)),
    ],
)
def test_sampled_workflows_run_with_a_random_checkpoint(server, checkpoint, name, size):
    models = {
        "CheckpointLoaderSimple": {"ckpt_name": checkpoint},
        "LoraLoaderModelOnly": {"lora_name": "lora.safetensors"},
    }
    if name in ("fmboost_txt2img_2048", "fmboost_txt2img_256_1024"):
        models["EmptyLatentImage"] = {"width": 64, "height": 64}
    graph = small(name, **models)
    assert size_of_result(server, graph) == size
