"""The headless script's own part: what it reads and where it writes. The rest is tested on a server."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "workflows"


@pytest.fixture(scope="module")
def run():
    spec = importlib.util.spec_from_file_location("run_script", FOLDER / "api" / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("a.png", "a.png"),
        ("small/a.png", "small/a.png"),
        ("../../a.png", "a.png"),
        ("/etc/a.png", "etc/a.png"),
        ("x/../a.png", "x/a.png"),
        ("..\\a.png", "a.png"),
        ("c:\\a.png", "c_/a.png"),
        ("..", "image"),
    ],
)
def test_pictures_stay_below_the_folder_asked_for(run, tmp_path, name, place):
    assert run.free(tmp_path, name) == tmp_path / place


def test_pictures_take_no_place_of_another(run, tmp_path):
    for expected in ("a.png", "a-2.png", "a-3.png"):
        path = run.free(tmp_path, "a.png")
        assert path.name == expected
        path.touch()


@pytest.mark.parametrize("path", sorted(FOLDER.glob("api/*.json")), ids=lambda p: p.stem)
def test_workflows_for_the_api_are_read(run, path):
    assert run.read_graph(path)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda p: p.stem)
def test_workflows_of_the_editor_are_told_from_those_for_the_api(run, path):
    with pytest.raises(ValueError, match=r"File > Export \(API\)"):
        run.read_graph(path)


@pytest.mark.parametrize("content", ["", "[1]", "{}", '{"1": "node"}', '{"1": {"class_type": "KSampler"}}'])
def test_other_files_are_refused(run, tmp_path, content):
    (tmp_path / "graph.json").write_text(content)
    with pytest.raises(ValueError, match=r"graph.json is (not JSON|no API workflow)"):
        run.read_graph(tmp_path / "graph.json")


def test_an_input_that_is_not_there_is_refused_and_one_left_at_its_default_is_not(run):
    graph = json.loads((FOLDER / "api" / "fmboost_photo_upscale.json").read_text(encoding="utf-8"))
    asked = []

    def inputs(kind):
        asked.append(kind)
        return {"steps", "tile_size"}

    run.apply(graph, ["FMBoost_CFMLatentUpscale.steps=7", "FMBoost_CFMLatentUpscale.tile_size=64"], inputs)
    (node,) = (n for n in graph.values() if n["class_type"] == "FMBoost_CFMLatentUpscale")
    assert (node["inputs"]["steps"], node["inputs"]["tile_size"]) == (7, 64)
    assert asked == ["FMBoost_CFMLatentUpscale"]
    with pytest.raises(ValueError, match="no input 'stepz': expected one of .*steps"):
        run.apply(graph, ["FMBoost_CFMLatentUpscale.stepz=7"], inputs)
