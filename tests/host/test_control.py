"""Progress, preview, cancel, repeated and simultaneous use of a real ComfyUI."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from . import small_models
from .conftest import PACK, Server, run_api
from .graphs import CHANNELS, latents, lift, lift_graph, output_of

LONG = {"steps": 200}  # newer hosts report every half per cent at most


def start(client, graph, **extra):
    """Queue `graph` and wait until its first evaluations are reported; returns the events and the prompt."""
    events = client.listen()
    prompt = client.queue(graph, **extra)
    reported = (e for e in events if isinstance(e, dict) and e["type"] == "progress" and e["data"]["value"] > 1)
    next(reported)
    return events, prompt


def last_progress(events, end: str) -> int:
    """The last evaluation reported before event `end`."""
    value = 0
    for event in events:
        if isinstance(event, dict) and event["type"] == "progress":
            value = event["data"]["value"]
        if isinstance(event, dict) and event["type"] == end:
            return value
    raise AssertionError(f"no {end}")


def test_every_evaluation_is_reported(server, tmp_path):
    seen = []
    graph = lift_graph(tmp_path, latents(2), steps=3, solver="heun")
    server.run(graph, lambda node, value, total: seen.append((node, value, total)))
    assert seen[-1] == ("3", 12, 12)
    assert [value for _, value, _ in seen] == sorted({value for _, value, _ in seen})
    assert "2 images, 8x8 -> 16x16 latent, 64x64 -> 128x128 px, 12 evaluations" in server.log


def test_the_two_passes_of_the_vae_are_reported_before_the_evaluations(server, tmp_path):
    seen = []
    graph = lift_graph(tmp_path, latents(2), "identity-psu.safetensors", steps=3)
    server.run(graph, lambda node, value, total: seen.append((value, total)))
    assert seen[0] == (2, 10)  # of two lifts together, of two passes and three evaluations each
    assert seen[-1] == (10, 10)
    assert [value for value, _ in seen] == sorted({value for value, _ in seen})


def test_progress_counts_over_all_lifts(server, tmp_path):
    seen = []
    server.run(lift_graph(tmp_path, latents(2), steps=3, scale=4), lambda node, *counts: seen.append(counts))
    assert seen[-1] == (12, 12)
    assert [value for value, _ in seen] == sorted({value for value, _ in seen})
    assert "2 images, 8x8 -> 32x32 latent, 64x64 -> 256x256 px, 12 evaluations" in server.log


@pytest.mark.parametrize(
    ("method", "frames", "space"),
    [("latent2rgb", 0, "sd15"), ("taesd", 0, "sd15"), ("taesd", 2, "sd15"), ("latent2rgb", 0, "flux2"),
     ("taesd", 0, "flux2")],
)  # fmt: skip
def test_the_preview_is_a_picture_of_the_result(server, tmp_path, method, frames, space):
    low = latents(max(frames, 1), 12, 8, CHANNELS[space])
    model, pixels = ("identity", "64x96 -> 128x192") if space == "sd15" else ("random-flux2", "128x192 -> 256x384")
    if frames:
        low = low.movedim(0, 1)[None]  # one image of that many
    client, pictures, texts = server.client(), [], []
    with client.listen() as events:
        prompt = client.queue(lift_graph(tmp_path, low, f"{model}.safetensors", steps=3), preview_method=method)
        for event in events:
            if isinstance(event, bytes) and event[3] == 1:
                pictures.append(event)
            elif isinstance(event, bytes):
                texts.append(event[8:].decode())
            elif event["type"] == "execution_success" and event["data"]["prompt_id"] == prompt:
                break
    assert len(pictures) == 3  # frames are lifted together
    assert f"8x12 -> 16x24 latent, {pixels} px, {3 * max(frames, 1)} evaluations, " in texts[-1]
    kind, encoding = int.from_bytes(pictures[0][:4], "big"), int.from_bytes(pictures[0][4:8], "big")
    assert (kind, encoding) == (1, 1)  # a preview, as JPEG
    width, height = Image.open(BytesIO(pictures[-1][8:])).size
    assert height / width == pytest.approx(12 / 8, rel=0.05)


def test_what_is_written_on_a_node_reaches_only_the_tab_that_queued_it(server, tmp_path):
    """Tabs with workflows from one template have nodes of the same numbers."""
    tabs = [server.client(), server.client()]
    with tabs[0].listen() as first, tabs[1].listen() as second:
        for tab, side in zip(tabs, (8, 12), strict=True):
            tab.queue(lift_graph(tmp_path, latents(1, side, side), steps=1))
        for events, size in ((first, "64x64 -> 128x128"), (second, "96x96 -> 192x192")):
            texts = []
            for event in events:
                if isinstance(event, bytes) and event[3] == 3:
                    texts.append(event[8:].decode())
                elif isinstance(event, dict) and event["type"] == "execution_success":
                    break
            assert len(texts) == 1
            assert f"{size} px, 1 evaluation, " in texts[0]


@pytest.mark.parametrize(("vae", "doubted"), [("taesd", False), ("taesdxl", True)])
def test_a_vae_of_another_family_is_doubted_on_the_node_and_in_the_log(server, tmp_path, vae, doubted):
    graph = lift_graph(tmp_path, latents(), "identity-psu.safetensors", vae=["5", 0])
    graph["5"] = {"class_type": "VAELoader", "inputs": {"vae_name": vae}}
    client, texts, before = server.client(), [], len(server.log)
    with client.listen() as events:
        prompt = client.queue(graph)
        for event in events:
            if isinstance(event, bytes) and event[3] == 3:
                texts.append(event[8:].decode())
            elif isinstance(event, dict) and event["type"] == "execution_success":
                assert event["data"]["prompt_id"] == prompt
                break
    sentence = "the VAE makes latents with the colours of sdxl and the CFM model works on sd15 latents"
    assert (sentence in texts[-1], sentence in server.log[before:]) == (doubted, doubted)


def test_a_cancel_is_obeyed_within_one_evaluation_and_the_next_run_works(server, tmp_path):
    """Evaluations take a few tenths of a second here, far longer than a request or an event on its way."""
    client = server.client()
    events, prompt = start(client, lift_graph(tmp_path, latents(1, 40, 40), "random.safetensors", **LONG))
    done = []

    def follow():
        for event in events:
            if isinstance(event, dict) and event["type"] == "progress":
                done.append(event["data"]["value"])
            if isinstance(event, dict) and event["type"] == "execution_interrupted":
                return

    follower = threading.Thread(target=follow)
    follower.start()
    time.sleep(3)
    before = len(done)
    client.cancel(prompt)
    follower.join(300)
    assert not follower.is_alive()
    assert before > 0
    assert len(done) - before <= 2  # the one under way when the server hears of it, and its report
    with pytest.raises(run_api.WorkflowError, match="interrupted"):
        client.finished(prompt)
    assert lift(server, tmp_path, latents())["samples"].shape == (1, 4, 16, 16)


def test_a_cancel_stops_between_the_tiles_of_one_evaluation(server, tmp_path):
    """One evaluation of this run takes hundreds of tiles."""
    client = server.client()
    graph = lift_graph(tmp_path, latents(1, 160, 160), "random.safetensors", steps=1, tile_size=16)
    with client.listen() as events:
        prompt = client.queue(graph)
        next(e for e in events if isinstance(e, dict) and e["type"] == "executing" and e["data"]["node"] == "3")
        time.sleep(1)
        client.cancel(prompt)
        assert last_progress(events, "execution_interrupted") == 0


def test_a_queue_of_twenty_of_which_every_third_is_cancelled(server, tmp_path):
    """They wait behind a long run, so that the cancelled ones have not begun."""
    client = server.client()
    events, first = start(server.client(), lift_graph(tmp_path, latents(1, 40, 40), "random.safetensors", **LONG))
    with client.listen() as mine:
        graphs = [lift_graph(tmp_path, latents(), "random.safetensors", seed=k) for k in range(20)]
        prompts = [client.queue(graph) for graph in graphs]
        for prompt in [*prompts[::3], first]:
            client.cancel(prompt)
        left = set(prompts) - set(prompts[::3])
        for event in mine:
            if isinstance(event, dict) and event["type"] == "execution_success":
                left.discard(event["data"]["prompt_id"])
            if not left:
                break
    written = [Path(graph["4"]["inputs"]["file"]).is_file() for graph in graphs]
    assert written == [k % 3 != 0 for k in range(20)]
    last_progress(events, "execution_interrupted")


def test_a_model_deleted_between_queue_and_run(server, tmp_path):
    """It waits behind another run until its file is gone; the sentence names it and the server goes on."""
    path = server.models / "soon-deleted.safetensors"
    small_models.write(path, small_models.config())
    first, second = server.client(), server.client()
    events, prompt = start(first, lift_graph(tmp_path, latents(1, 40, 40), "random.safetensors", **LONG))
    with second.listen() as waiting:
        deleted = second.queue(lift_graph(tmp_path, latents(), path.name))
        path.unlink()
        first.cancel(prompt)
        last_progress(events, "execution_interrupted")
        last_progress(waiting, "execution_error")
    with pytest.raises(run_api.WorkflowError, match=f"the CFM model '{path.name}' is missing: put the file into"):
        second.finished(deleted)
    assert lift(server, tmp_path, latents())["samples"].shape == (1, 4, 16, 16)


def test_a_model_replaced_between_queue_and_run_is_the_new_one(server, tmp_path):
    path = server.models / "soon-replaced.safetensors"
    small_models.write(path, small_models.config())
    first, second = server.client(), server.client()
    events, prompt = start(first, lift_graph(tmp_path, latents(1, 40, 40), "random.safetensors", **LONG))
    with second.listen() as waiting:
        graph = lift_graph(tmp_path, latents(), path.name)
        second.queue(graph)
        small_models.write(path, small_models.config(scale=4))
        first.cancel(prompt)
        last_progress(events, "execution_interrupted")
        last_progress(waiting, "execution_success")
    assert output_of(graph)["samples"].shape == (1, 4, 32, 32)


def test_free_between_runs(server, tmp_path):
    first = lift(server, tmp_path, latents(), "random.safetensors", seed=1)["samples"]
    server.client().post("/free", {"unload_models": True, "free_memory": True})
    time.sleep(1.5)  # the queue looks at it once a second
    assert first.equal(lift(server, tmp_path, latents(), "random.safetensors", seed=1)["samples"])


def test_two_clients_and_the_cancel_of_one(server, tmp_path):
    first, second = server.client(), server.client()
    events, prompt = start(first, lift_graph(tmp_path, latents(1, 40, 40), "random.safetensors", **LONG))
    done = []
    graph = lift_graph(tmp_path, latents(), steps=1)
    waiting = threading.Thread(target=lambda: done.append(second.run(graph)))
    waiting.start()
    time.sleep(0.5)
    assert not done
    first.cancel(prompt)
    waiting.join(300)
    assert done
    last_progress(events, "execution_interrupted")


WORKFLOW = PACK / "workflows" / "api" / "fmboost_photo_upscale.json"


def run_script(address, *arguments, **environment):
    command = [sys.executable, PACK / "workflows" / "api" / "run.py", *arguments, "--server", address]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


@pytest.mark.parametrize(
    ("proxy", "steps"), [({}, 2), ({"http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}, 3)]
)
def test_the_script_runs_a_photo_with_overrides(server, tmp_path, proxy, steps):
    """With and without `http://` in the address, and past a proxy, where there is none on port 9."""
    Image.new("RGB", (64, 96), (30, 60, 200)).save(tmp_path / "blue.png")
    done = run_script(
        server.url.removeprefix("http://") if proxy else server.url,
        WORKFLOW,
        *("--upload", f"LoadImage.image={tmp_path / 'blue.png'}"),
        *("--set", "FMBoost_LoadCFMModel.model_name=identity.safetensors"),
        *("--set", f"FMBoost_CFMLatentUpscale.steps={steps}"),
        *("--set", "FMBoost_CFMLatentUpscale.tile_size=64"),  # which the file leaves at its default
        *("-o", tmp_path / "out"),
        no_proxy="",
        **proxy,
    )
    assert done.returncode == 0, done.stderr
    assert f"{steps}/{steps}" in done.stderr
    (path,) = done.stdout.split()
    assert Image.open(path).size == (128, 192)


@pytest.mark.parametrize(
    ("workflow", "setting", "status", "sentence"),
    [
        (WORKFLOW, "FMBoost_LoadCFMModel.model_name=no-such-model", 1, "no-such-model"),
        (WORKFLOW, "KSampler.steps=2", 2, "'KSampler' is 0 nodes of the workflow"),
        (WORKFLOW, "FMBoost_CFMLatentUpscale.stepz=2", 2, "FMBoost_CFMLatentUpscale has no input 'stepz'"),
        (WORKFLOW.parents[1] / "Photo upscale 2x - SD1.5.json", "KSampler.steps=2", 2, "File > Export (API)"),
    ],
)
def test_the_script_fails_with_a_sentence(server, workflow, setting, status, sentence):
    done = run_script(server.url, workflow, "--set", setting)
    assert (done.returncode, sentence in done.stderr) == (status, True)


@pytest.mark.parametrize(
    ("address", "status", "sentence"),
    [
        ("http://127.0.0.1:9", 3, "no answer from http://127.0.0.1:9"),
        ("127.0.0.1:9", 3, "no answer from 127.0.0.1:9"),
        ("localhost:none", 2, "the server's address is localhost:none"),
        ("https://localhost", 2, "expected HOST:PORT or http://HOST:PORT"),
    ],
)
def test_the_script_says_so_when_there_is_no_server(address, status, sentence):
    done = run_script(address, WORKFLOW)
    assert (done.returncode, sentence in done.stderr) == (status, True)


def test_a_server_that_dies_is_a_connection_error(comfy, tmp_path):
    server = Server(comfy, tmp_path / "comfy")
    small_models.write(server.models / "random.safetensors", small_models.config(), gain=0.05)
    try:
        client = server.start().client()
        start(client, lift_graph(tmp_path, latents(1, 40, 40), "random.safetensors", **LONG))
        threading.Timer(1, lambda: os.kill(server.process.pid, signal.SIGKILL)).start()
        with pytest.raises((ConnectionError, OSError)):
            client.run(lift_graph(tmp_path, latents(), "random.safetensors"))
    finally:
        server.stop()
