"""Every template and block fits the live nodes, the two forms of a template agree, and all of them run."""

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

from .conftest import PACK, comfy_python, run_api
from .graphs import CHANNELS, TAESD, latents, lift, need_vae, output_of

FOLDER = PACK / "workflows"
TEMPLATES = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(FOLDER.glob("*.json"))}
BLOCKS = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted((PACK / "subgraphs").glob("*.json"))}
FAMILIES = {"SD1.5": "sd15", "SDXL": "sdxl", "SD3": "sd3", "FLUX": "flux", "FLUX.2": "flux2"}
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
NOTES = {"MarkdownNote", "Note"}
LOADER = "FMBoost_LoadCFMModel"
SAMPLERS = {"KSampler", "SamplerCustomAdvanced"}


def api_of(name: str) -> dict:
    """The API form of a template, or of the one whose API form has that name."""
    file = TEMPLATES[name]["extra"]["fmboost_api"] if name in TEMPLATES else f"{name}.json"
    return json.loads((FOLDER / "api" / file).read_text("utf-8"))


@pytest.fixture(scope="module")
def schemas(server):
    return server.client().get("/object_info")


def inputs_of(schema: dict) -> dict:
    return {**schema["input"]["required"], **schema["input"].get("optional", {})}


def options_of(spec: list) -> dict:
    return spec[1] if len(spec) > 1 else {}


def is_widget(spec: list) -> bool:
    return isinstance(spec[0], list) or spec[0] in WIDGETS


def default_of(spec: list):
    choices = spec[0] if isinstance(spec[0], list) else options_of(spec).get("options", [None])
    return options_of(spec).get("default", next(iter(choices), None))


def to_api(ui: dict, schemas: dict, wires: list | None = None) -> dict:
    """The inputs the frontend sends for a UI workflow: {node id: (type, {input: value or [node id, slot]})}. `wires`
    are what is connected to the inputs of a subgraph."""
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
        for number, socket in enumerate(node["inputs"]):
            if socket["link"] is not None:
                _, origin, slot, target, end, kind = links[socket["link"]]
                assert (target, end, socket["type"]) == (node["id"], number, kind)
                if origin == -10:
                    found[socket["name"]] = wires[slot]
                    continue
                source = next(n for n in ui["nodes"] if n["id"] == origin)
                assert schemas[source["type"]]["output"][slot] == kind
                assert socket["link"] in source["outputs"][slot]["links"]
                found[socket["name"]] = [str(origin), slot]
        graph[str(node["id"])] = (node["type"], found)
    return graph


def test_there_are_templates_for_what_people_search():
    assert {"Photo upscale 2x - SD1.5", "Hires fix 2x - SDXL 1024 to 2048"} <= set(TEMPLATES)
    assert any("4x" in name for name in TEMPLATES)
    assert any("Z-Image" in name for name in TEMPLATES)
    files = [ui["extra"]["fmboost_api"] for ui in TEMPLATES.values()]
    assert sorted(files) == sorted(path.name for path in (FOLDER / "api").glob("*.json"))


@pytest.mark.parametrize("name", TEMPLATES)
def test_both_forms_fit_the_live_nodes_and_agree(schemas, name):
    ui, api = TEMPLATES[name], api_of(name)
    converted = to_api(ui, schemas)
    assert set(converted) == set(api)
    for node, (kind, values) in converted.items():
        assert api[node]["class_type"] == kind
        specs, sent = inputs_of(schemas[kind]), api[node]["inputs"]
        if kind == "FMBoost_CFMLatentUpscale":  # the VAE of the checkpoint, or of Load VAE
            assert api[sent["vae"][0]]["class_type"] in ("CheckpointLoaderSimple", "VAELoader")
        assert set(schemas[kind]["input"]["required"]) <= set(sent) <= set(specs)
        for key, value in values.items():
            assert sent.get(key, default_of(specs[key])) == value, f"{kind}.{key}"
        for key, value in sent.items():
            if is_widget(specs[key]) and "min" in options_of(specs[key]):
                assert specs[key][1]["min"] <= value <= specs[key][1]["max"]
    assert len({link[0] for link in ui["links"]}) == len(ui["links"])


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_fits_a_window_of_1280_by_800_without_overlap(name):
    """A frontend shows about 1200 x 690 of it, so text stays readable at 7/10 of its size or more."""
    boxes = [(*node["pos"], node["pos"][0] + node["size"][0], node["pos"][1] + node["size"][1])
             for node in TEMPLATES[name]["nodes"]]  # fmt: skip
    left, top, right, bottom = (
        pick(column) for pick, column in zip((min, min, max, max), zip(*boxes, strict=True), strict=True)
    )
    assert right - left <= 1200 / 0.7
    assert bottom - top <= 690 / 0.7
    for i, (x0, y0, x1, y1) in enumerate(boxes):
        for other_x0, other_y0, other_x1, other_y1 in boxes[:i]:
            apart = x1 <= other_x0 or other_x1 <= x0 or y1 <= other_y0 - 30 or other_y1 <= y0 - 30  # 30: the title
            assert apart
    for group in TEMPLATES[name]["groups"]:
        assert group["bounding"][0] >= left - 10


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_note_says_where_each_model_goes(name):
    ui = TEMPLATES[name]
    (note,) = (node["widgets_values"][0] for node in ui["nodes"] if node["type"] in NOTES)
    loaders = {"CheckpointLoaderSimple", "LoraLoaderModelOnly", "VAELoader", "UNETLoader", "CLIPLoader"}
    assert "models/latent_upscale_models" in note
    for node in ui["nodes"]:
        if node["type"] in loaders:
            models = node["properties"]["models"]
            assert f"models/{models[0]['directory']}" in note
            assert all(model["url"].startswith("https://huggingface.co/") for model in models)
            taesd = models[0]["directory"] == "vae_approx"
            assert models[0]["name"].removesuffix("_encoder.safetensors" if taesd else "") == node["widgets_values"][0]


def test_each_template_has_a_thumbnail_of_its_own():
    pictures = [FOLDER / f"{name}.jpg" for name in TEMPLATES]
    assert len({path.read_bytes() for path in pictures}) == len(TEMPLATES)
    assert {path.name for path in FOLDER.glob("*.jpg")} == {path.name for path in pictures}
    for path in pictures:
        assert path.stat().st_size < 60_000
        assert Image.open(path).width >= 400


def stand_in(model: str) -> str:
    """A small random model of the family and scale of one that ships."""
    return f"random-{model.removeprefix('fmboost-')}.safetensors"


def small(name: str, **changes) -> dict:
    """The API form at a size for the CPU, on small models; `changes` are inputs by node type."""
    graph = api_of(name)
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


@pytest.fixture
def photo(server) -> str:
    Image.new("RGB", (160, 96), (200, 60, 30)).save(server.base / "input" / "red.png")
    return "red.png"


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name.startswith("Photo")])
def test_photo_templates_run(server, photo, name):
    changes = {"FMBoost_CFMLatentUpscale": {"steps": 1, "tile_size": 16}} if "tiles" in name else {}
    assert size_of_result(server, small(name, LoadImage={"image": photo}, **changes)) == (320, 192)


@pytest.mark.parametrize("name", [name for name in TEMPLATES if not name.startswith("Photo")])
def test_sampled_templates_run_on_the_latents_of_a_sampler(server, tmp_path, name):
    """What is before KSampler needs a checkpoint: a latent of the family stands in for it, and its TAESD for the
    VAE."""
    graph = small(name)
    (model,) = (node["inputs"]["model_name"] for node in api_of(name).values() if node["class_type"] == LOADER)
    space = model.split("-")[1]
    need_vae(server, TAESD[space])
    side = 2 if space == "flux2" else 1  # of the blocks in which nodes have latent pixels
    torch.save({"samples": latents(1, 8 // side, 6 // side, CHANNELS[space])}, tmp_path / "sampled")
    (sampler,) = (key for key, node in graph.items() if node["class_type"] in SAMPLERS)
    graph[sampler] = {"class_type": "ProbeLoad", "inputs": {"file": str(tmp_path / "sampled")}}
    graph["vae"] = {"class_type": "VAELoader", "inputs": {"vae_name": TAESD[space]}}
    for node in graph.values():
        if "vae" in node["inputs"]:
            node["inputs"]["vae"] = ["vae", 0]
    scale = 4 if "4x" in name else 2
    assert size_of_result(server, graph) == (48 * scale, 64 * scale)


def test_blocks_are_there_for_each_family_that_ships(server):
    names = {f"Upscale {what} 2x (FMBoost {family})" for what in ("Latent", "Image") for family in FAMILIES}
    assert set(BLOCKS) == names
    assert set(FAMILIES.values()) == {name.split("-")[1] for name in shipped_models()}
    served = server.client().get("/global_subgraphs").values()
    assert names == {entry["name"] for entry in served if entry["info"]["node_pack"] == "custom_nodes.FMBoost"}


def expanded(name: str, schemas: dict, wires: list) -> tuple[dict, list]:
    """What the frontend sends for a block with `wires` at its inputs, and the wire that comes out."""
    (definition,) = BLOCKS[name]["definitions"]["subgraphs"]
    links = [[link[key] for key in ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")]
             for link in definition["links"]]  # fmt: skip
    inner = to_api({"nodes": definition["nodes"], "links": links}, schemas, wires)
    ((_, origin, slot, _, _, kind),) = (link for link in links if link[3] == -20)
    assert (definition["outputs"][0]["type"], len(definition["inputs"])) == (kind, len(wires))
    graph = {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in inner.items()}
    for node in graph.values():
        if node["class_type"] == LOADER:
            node["inputs"]["model_name"] = stand_in(node["inputs"]["model_name"])
    return graph, [str(origin), slot]


@pytest.mark.parametrize("name", BLOCKS)
def test_the_widgets_on_a_block_are_those_of_its_nodes(schemas, name):
    (outer,), (definition,) = BLOCKS[name]["nodes"], BLOCKS[name]["definitions"]["subgraphs"]
    assert outer["type"] == definition["id"]
    assert outer["title"] == definition["name"] == name
    kinds = {str(node["id"]): node["type"] for node in definition["nodes"]}
    for node, widget in outer["properties"]["proxyWidgets"]:
        assert widget in {*inputs_of(schemas[kinds[node]]), "control_after_generate"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_latent_block_is_the_node_with_the_model_of_its_family(server, schemas, tmp_path, family):
    space = FAMILIES[family]
    need_vae(server, TAESD[space])
    low = latents(1, 8, 6, CHANNELS[space])
    expected = lift(server, tmp_path, low, f"random-{space}-x2.safetensors", steps=4)["samples"]
    graph, result = expanded(f"Upscale Latent 2x (FMBoost {family})", schemas, [["in", 0], ["vae", 0]])
    graph["vae"] = {"class_type": "VAELoader", "inputs": {"vae_name": TAESD[space]}}
    torch.save({"samples": low}, tmp_path / "low")
    graph["in"] = {"class_type": "ProbeLoad", "inputs": {"file": str(tmp_path / "low")}}
    graph["out"] = {"class_type": "ProbeSave", "inputs": {"samples": result, "file": str(tmp_path / "high")}}
    server.run(graph)
    assert torch.equal(output_of(graph, "out")["samples"], expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_image_block_doubles_the_size_of_an_image(server, schemas, photo, family):
    vae = TAESD[FAMILIES[family]]
    need_vae(server, vae)
    graph, result = expanded(f"Upscale Image 2x (FMBoost {family})", schemas, [["photo", 0], ["vae", 0]])
    graph["photo"] = {"class_type": "LoadImage", "inputs": {"image": photo}}
    graph["vae"] = {"class_type": "VAELoader", "inputs": {"vae_name": vae}}
    graph["save"] = {"class_type": "SaveImage", "inputs": {"images": result, "filename_prefix": "block"}}
    assert size_of_result(server, graph) == (320, 192)


def test_a_template_without_its_checkpoint_names_the_missing_file(server):
    graph = small("Hires fix 2x - SDXL 1024 to 2048")
    with pytest.raises(run_api.WorkflowError, match=r"CheckpointLoaderSimple.*ckpt_name: 'sd_xl_base_1.0.safetensors'"):
        server.run(graph)


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


SLOW = {
    "fmboost_txt2img_1024": (256, 192),
    "fmboost_txt2img_lcm_1024": (256, 192),
    "fmboost_noise_augment": (256, 192),
    "fmboost_txt2img_2048": (256, 256),
    "fmboost_txt2img_256_1024": (256, 256),
}


@pytest.mark.parametrize(("name", "size"), SLOW.items())
def test_sampled_workflows_run_with_a_random_checkpoint(server, checkpoint, name, size):
    models = {
        "CheckpointLoaderSimple": {"ckpt_name": checkpoint},
        "LoraLoaderModelOnly": {"lora_name": "lora.safetensors"},
    }
    if name in ("fmboost_txt2img_2048", "fmboost_txt2img_256_1024"):
        models["EmptyLatentImage"] = {"width": 64, "height": 64}
    graph = small(name, **models)
    assert size_of_result(server, graph) == size
