"""What cannot be reached over HTTP on a CPU: memory that is not enough, half precision that overflows.

`python small_memory.py COMFYUI BASE PACK`, run by ComfyUI's Python in one process with its modules; leaves what it
found in BASE/found.json.
"""

import asyncio
import importlib.util
import json
import logging
import sys
from functools import partial
from pathlib import Path

comfy_path, base, pack = sys.argv[1:4]
sys.path.insert(0, comfy_path)
sys.argv = ["comfy", "--cpu", "--base-directory", base]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.model_management as mm  # noqa: E402
import torch  # noqa: E402

spec = importlib.util.spec_from_file_location("pack", Path(pack) / "__init__.py", submodule_search_locations=[pack])
sys.modules["pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["pack"])
nodes = {
    node.define_schema().node_id: node
    for node in asyncio.run(asyncio.run(sys.modules["pack"].comfy_entrypoint()).get_node_list())
}
# The benchmark knows the library by its own name.
sys.modules["fmboost_core"] = sys.modules["pack.fmboost_core"]
spec = importlib.util.spec_from_file_location("memory", Path(pack) / "benchmarks" / "memory.py")
memory = importlib.util.module_from_spec(spec)
spec.loader.exec_module(memory)


class Lines(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def load(name: str):
    return nodes["FMBoost_LoadCFMModel"].execute(name).result[0]


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


def partly_loaded() -> dict[str, float]:
    """Weights with a patch on each, all in place or one by one as they are used: how far the network's answers are."""
    model = load("random.safetensors")
    patcher, net = model.patcher, model.net
    draw = torch.Generator().manual_seed(0)
    x, context = (torch.randn(1, c, 8, 8, generator=draw) for c in (4, model.config.net.in_channels - 4))
    plain = net(x, torch.zeros(1), context)
    weights = patcher.model_state_dict()
    patcher.add_patches({k: ("diff", (0.1 * torch.randn(w.shape, generator=draw),)) for k, w in weights.items()})
    answers = {}
    for name, memory in (("whole", 1e9), ("partly", 1)):
        patcher.load(torch.device("cpu"), lowvram_model_memory=memory)
        answers[name] = net(x, torch.zeros(1), context)
        answers[f"{name} in memory"] = patcher.loaded_size()
        patcher.unpatch_model(torch.device("cpu"))
    return {
        "moved by the patch": float((answers["whole"] - plain).abs().max()),
        "difference": float((answers["whole"] - answers["partly"]).abs().max()),
        "loaded": answers["partly in memory"] / answers["whole in memory"],
    }


with torch.inference_mode():
    log = Lines()
    logging.getLogger("pack").addHandler(log)
    low = 5 * torch.randn(1, 4, 24, 20, generator=torch.Generator().manual_seed(0))
    model = load("random.safetensors")
    whole, tiled = lift(model, low), lift(model, low, tile_size=16)
    limit(model, 32 * 32)
    fallback = lift(model, low)
    found = {"fallback": torch.equal(fallback, tiled), "tiled is another": not torch.equal(whole, tiled)}
    # Of two lifts in a row the first fits and the second does not.
    limit(model, 48 * 48)
    cascaded = lift(model, low, scale=4)
    by_hand = lift(model, lift(model, low), seed=1 << 64, tile_size=48)
    limit(model, 96 * 80)
    whole = lift(model, low, scale=4)
    found["cascade"] = [float((cascaded - other).abs().max()) for other in (by_hand, whole)]
    found["layers the host cannot cast"] = [
        name
        for name, layer in model.net.named_modules()
        if next(layer.parameters(recurse=False), None) is not None and not hasattr(layer, "comfy_cast_weights")
    ]
    found["partly loaded"] = partly_loaded()
    core = sys.modules["pack.fmboost_core.checkpoint"]
    shipped = load("fmboost-sd15-x2")
    found["measured"], found["expected"] = {}, {}
    for tile in (0, 32):
        x0 = torch.randn(1, 4, 40, 44)
        context = torch.randn(1, shipped.config.net.in_channels - 4, 40, 44)
        shipped.integrate(x0, context, steps=1, tile=tile)  # the host may now keep copies of the weights
        run = partial(shipped.integrate, x0, context, steps=1, tile=tile)
        found["measured"][tile] = memory.peak(run, torch.device("cpu"))
        found["expected"][tile] = shipped.integrate_bytes(1, 40, 44, tile)
    limit(model, 8 * 8)
    try:
        lift(model, low)
    except mm.OOM_EXCEPTION:
        found["second time"] = "raised"
    found["out of memory"] = [line for line in log.lines if "out of memory" in line]

    large = load("large.safetensors")
    half = large.variant(dtype=torch.float16)
    plain = half.upscale(low * 0.18215, steps=2)
    found["half is finite"] = bool(plain.isfinite().all())
    found["repeated in float32"] = torch.equal(lift(half, low), lift(large, low))
    found["overflow"] = [line for line in log.lines if "overflow" in line]
    # No TAESD in this base folder: the autoencoder that ships, where one does; another family has none.
    small = core.shipped_vae("sd15")
    if small is not None:
        vae = sys.modules["pack.fmboost_core.vae"].load_vae(small)
        expected = vae.encode(
            torch.nn.functional.interpolate(vae.decode(low * 0.18215), scale_factor=2, mode="bilinear")
        )
        found["shipped vae"] = float((lift(load("psu.safetensors"), low) * 0.18215 - expected).abs().max())
    try:
        lift(load("psu-sdxl.safetensors"), low)
    except ValueError as error:
        found["no vae"] = str(error)
Path(base, "found.json").write_text(json.dumps(found))
