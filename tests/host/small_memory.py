"""What cannot be reached over HTTP on a CPU: memory that is not enough, half precision that overflows.

`python small_memory.py COMFYUI BASE PACK`, run by ComfyUI's Python in one process with its modules; leaves what it
found in BASE/found.json.
"""

import asyncio
import importlib.util
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path

comfy_path, base, pack = sys.argv[1:4]
sys.path.insert(0, comfy_path)
sys.argv = ["comfy", "--cpu", "--base-directory", base]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.model_management as mm  # noqa: E402
import torch  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

spec = importlib.util.spec_from_file_location("pack", Path(pack) / "__init__.py", submodule_search_locations=[pack])
sys.modules["pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["pack"])
nodes = {
    node.define_schema().node_id: node
    for node in asyncio.run(asyncio.run(sys.modules["pack"].comfy_entrypoint()).get_node_list())
}
core = sys.modules["pack.fmboost_core"]


class Lines(logging.Handler):
    """The lines logged since they were last taken."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())

    def take(self, text: str) -> list[str]:
        found, self.lines = [line for line in self.lines if text in line], []
        return found


def load(name: str):
    return nodes["FMBoost_LoadCFMModel"].execute(name).result[0]


def latents(batch: int, height: int, width: int) -> torch.Tensor:
    return 5 * torch.randn(batch, 4, height, width, generator=torch.Generator().manual_seed(0))


def lift(model, low: torch.Tensor, seed: int = 0, **settings) -> torch.Tensor:
    node = nodes["FMBoost_CFMLatentUpscale"]
    return node.execute(model, {"samples": low}, 2, seed, **settings).result[0]["samples"]


def limit(model, area: int) -> None:
    """Let the network run out of memory, as the GPU would, on more than `area` latents."""
    forward = type(model.net).forward

    def limited(x, t, context):
        if x.shape[2] * x.shape[3] > area:
            raise mm.OOM_EXCEPTION("out of memory")
        return forward(model.net, x, t, context)

    model.net.forward = limited


def out_of_memory() -> dict:
    log.take("")
    model, low, found = load("random.safetensors"), latents(2, 24, 20), {}
    whole, tiled = lift(model, low), lift(model, low, tile_size=16)
    limit(model, 32 * 32)
    found["once"] = torch.equal(lift(model, low), tiled), float((whole - tiled).abs().max()), log.take("memory")
    limit(model, 16 * 16)
    large = latents(1, 40, 36)
    twice = lift(model, large)
    found["twice"] = torch.equal(twice, lift(model, large, tile_size=16)), log.take("memory")
    limit(model, 8 * 8)
    try:
        lift(model, large)
    except mm.OOM_EXCEPTION:
        found["never enough"] = log.take("memory")
    # Of two lifts in a row the first fits and the second does not.
    low = low[:1]
    limit(model, 48 * 48)
    cascaded = lift(model, low, scale=4)
    lines = log.take("memory")
    by_hand = lift(model, lift(model, low), seed=1 << 64, tile_size=48)
    limit(model, 96 * 80)
    whole = lift(model, low, scale=4)
    found["cascade"] = [float((cascaded - other).abs().max()) for other in (by_hand, whole)], lines
    return found


def batch() -> dict:
    """A card that has room for one image at a time, though the host said that there was room for three."""
    model, low, seen = load("random.safetensors"), latents(3, 8, 8), []
    together = lift(model, low)
    forward = type(model.net).forward

    def limited(x, t, context):
        seen.append(x.shape[0])
        if x.shape[0] > 1:
            raise mm.OOM_EXCEPTION("out of memory")
        return forward(model.net, x, t, context)

    model.net.forward = limited
    return {"difference": float((lift(model, low) - together).abs().max()), "images": seen}


def uncastable(name: str) -> list[str]:
    """Layers with weights of their own that the host cannot cast as they are used."""
    return [
        where
        for where, layer in load(name).net.named_modules()
        if next(layer.parameters(recurse=False), None) is not None and not hasattr(layer, "comfy_cast_weights")
    ]


def partly_loaded(name: str) -> dict[str, float]:
    """Weights with a patch on each, all in place or one by one as they are used: how far the lifts are apart."""
    model = load(name)
    patcher, library = model.patcher, core.CFMModel(model.config, model.net)
    draw = torch.Generator().manual_seed(0)
    low = torch.randn(1, 4, 8, 8, generator=draw)
    plain = library.upscale(low, steps=2)
    weights = patcher.model_state_dict()
    patcher.add_patches({k: ("diff", (0.1 * torch.randn(w.shape, generator=draw),)) for k, w in weights.items()})
    answers = {}
    for name, memory in (("whole", 1e9), ("partly", 1)):
        patcher.load(torch.device("cpu"), lowvram_model_memory=memory)
        answers[name] = library.upscale(low, steps=2)
        answers[f"{name} in memory"] = patcher.loaded_size()
        patcher.unpatch_model(torch.device("cpu"))
    return {
        "moved by the patch": float((answers["whole"] - plain).abs().max()),
        "difference": float((answers["whole"] - answers["partly"]).abs().max()),
        "loaded": answers["partly in memory"] / answers["whole in memory"],
    }


def peak(run: Callable[[], object]) -> int:
    """The most bytes that were allocated at once by `run`."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    memory = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    allocated = most = 0
    for event in sorted(memory, key=lambda event: event.start_ns()):
        allocated += event.nbytes()
        most = max(most, allocated)
    return most


def expected_over_measured(tile: int) -> float:
    model, sampling = load("fmboost-sd15-x2"), core.Sampling(steps=1, tile=tile)
    x0, context = (torch.randn(1, channels, 40, 44) for channels in (4, model.config.context_channels))
    model.integrate(x0, context, sampling)  # the host may now keep copies of the weights
    return model.bytes_needed(1, 40, 44, tile) / peak(lambda: model.integrate(x0, context, sampling))


def overflow() -> dict:
    log.take("")
    low, large = latents(1, 24, 20), load("large.safetensors")
    half = type(large)(large.name, large.config, large.patcher, torch.float16)
    finite = bool(half.upscale(low * 0.18215, steps=2).isfinite().all())
    forward, dtypes = type(large.net).forward, []

    def recorded(x, t, context):
        dtypes.append(str(x.dtype))
        return forward(large.net, x, t, context)

    large.net.forward = recorded
    lifts = [lift(half, low), lift(half, low)]
    ran = dtypes.copy()
    exact = lift(large, low)
    return {
        "half is finite": finite,
        "repeated in float32": all(torch.equal(one, exact) for one in lifts),
        "evaluations": ran,
        "lines": log.take("overflow"),
    }


def no_vae() -> str:
    try:
        lift(load("psu-sdxl.safetensors"), latents(1, 8, 8))
    except ValueError as error:
        return str(error)
    return ""


with torch.inference_mode():
    log = Lines()
    logging.getLogger("pack").addHandler(log)
    found = {
        "out of memory": out_of_memory(),
        "batch": batch(),
        "overflow": overflow(),
        "no vae": no_vae(),
        "expected over measured": {tile: expected_over_measured(tile) for tile in (0, 32)},
    }
    for name in ("random.safetensors", "learned.safetensors"):
        found[name] = {"layers the host cannot cast": uncastable(name), "partly loaded": partly_loaded(name)}
Path(base, "found.json").write_text(json.dumps(found))
