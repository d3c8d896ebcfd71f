"""Fig. 1, 5 and 15: time of diffusion at 32, 64 and 128 latents, against diffusion at a low size and CFM to 128.

Time does not depend on the weights, so they are random: the UNet is that of Stable Diffusion 1.5 by its configuration,
and nothing is downloaded. The image quality in Fig. 5 and 15 needs its checkpoint and is not measured here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from fmboost_core import NetConfig
from fmboost_core.unet import UNet

from .lab import Lab
from .report import Column, Plot, Report

SD15 = {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64}
DIFFUSION_STEPS = 50
CFM_STEPS = (1, 2, 4, 10, 50)


@torch.inference_mode()
def fig1(lab: Lab) -> Report:
    """Time of whole ways to a latent of the largest size."""
    preset = lab.preset
    sizes, largest = preset.latents, preset.latents[-1]
    dtype = torch.float32 if preset.train.get("precision") == "no" else torch.bfloat16
    unet = UNet2DConditionModel(**{**SD15, **preset.speed}).to(lab.device, dtype).eval()
    words = torch.zeros(1, 77, unet.config.cross_attention_dim, device=lab.device, dtype=dtype)
    diffusion = {}
    for size in (sizes[0], *sizes):  # the first is to warm up
        x = torch.randn(1, 4, size, size, device=lab.device, dtype=dtype)
        diffusion[size] = seconds(partial(unet, x, 500, words), lab.device)
    print(f"  diffusion: {diffusion}", flush=True)
    rows = [_row(f"LDM {largest}", DIFFUSION_STEPS * diffusion[largest], 0.0, 0, "")]
    del unet
    for name, config in preset.speed_nets.items():
        cfm = cfm_seconds(config, largest, lab.device, dtype)
        print(f"  CFM {name}: {cfm}", flush=True)
        rows += [
            _row(f"LDM {size}", DIFFUSION_STEPS * diffusion[size], n * cfm, n, name)
            for size in sizes[:-1]
            for n in CFM_STEPS
        ]
    for row in rows:
        row["share"] = row["total"] / rows[0]["total"]
    columns = (
        Column("diffusion at", "way"),
        Column("CFM net", "net"),
        Column("CFM NFE", "nfe"),
        Column("diffusion s", "diffusion", ".2f"),
        Column("CFM s", "cfm", ".2f"),
        Column("total s", "total", ".2f"),
        Column(f"over LDM {largest}", "share", ".3f"),
    )
    curves = {}
    for row in rows[1:]:
        curves.setdefault(f"{row['way']} + {row['net']}", []).append((row["nfe"], row["total"]))
    curves[rows[0]["way"]] = [(CFM_STEPS[0], rows[0]["total"]), (CFM_STEPS[-1], rows[0]["total"])]
    kind = "CPU time of all threads" if lab.device == "cpu" else "time"
    note = (
        f"{kind} of one evaluation, times the evaluations: {DIFFUSION_STEPS} of a random Stable Diffusion 1.5 UNet "
        f"(batch 1, without guidance, which doubles its share) and NFE of a random CFM net at {largest}; {dtype}. One "
        f"evaluation of the UNet: {', '.join(f'{s:.2f} s at {n}' for n, s in diffusion.items())}. The decoder is the "
        "same for all and left out."
    )
    plot = Plot("CFM evaluations", "seconds", curves, log_x=True, log_y=True)
    return Report(f"Fig. 1, 5, 15: time to a {largest}x{largest} latent", columns, rows, [note], [plot])


def cfm_seconds(config: NetConfig, size: int, device: str, dtype: torch.dtype) -> float:
    """One evaluation of a random network on one latent of `size`."""
    net = UNet(config, device=device, dtype=dtype).eval()
    x = torch.randn(1, 4, size, size, device=device, dtype=dtype)
    t = torch.full((1,), 0.5, device=device)
    net(x[..., : size // 4, : size // 4], t, x[..., : size // 4, : size // 4])
    return seconds(lambda: net(x, t, x), device)


def seconds(work: Callable[[], Any], device: str) -> float:
    """CPU time of one call, which other programs do not disturb; on a GPU the median time of five after a warm-up."""
    if device == "cpu":
        start = time.process_time()
        work()
        return time.process_time() - start
    work()
    times = []
    for _ in range(5):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return median(times)


def _row(way: str, diffusion: float, cfm: float, nfe: int, net: str) -> dict[str, Any]:
    return {"way": way, "net": net, "nfe": nfe, "diffusion": diffusion, "cfm": cfm, "total": diffusion + cfm}
