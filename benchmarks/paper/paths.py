"""What happens between start and end: Fig. 8, and how straight the learned flows are."""

from __future__ import annotations

import torch
from torch import Tensor

from fmboost_core import Sampling, trajectory
from fmboost_core.evaluate.metrics import high_frequency_energy, psnr

from .lab import Lab
from .report import Bars, Column, Picture, Plot, Report

FRAMES = 5  # Fig. 8
FLOWS = {
    "CFM-0": "cfm-0",
    "CFM-100": "cfm-100",
    "CFM-200": "cfm-200",
    "CFM-400": "cfm-400",
    "FM": "fm",
    "SR3": "sr3",
}


def distance(states: Tensor) -> Tensor:
    """Root mean square of the difference of the ends of `states` (N, B, ...), (B,)."""
    return (states[-1] - states[0]).flatten(1).square().mean(dim=1).sqrt()


def length_ratio(states: Tensor) -> Tensor:
    """Length of the way through `states` (N, B, ...) over the distance of its ends, (B,): 1 is straight.

    Both are distances in the space of latents, so how fast a path is walked does not matter: of flows and of a
    diffusion's probability-flow ODE it means the same.
    """
    moves = states.diff(dim=0).flatten(2)
    return moves.norm(dim=2).sum(dim=0) / moves.sum(dim=0).norm(dim=1)


def turning(states: Tensor) -> Tensor:
    """Curvature summed along the way through `states` (N, B, ...): the angles between moves, (B,) in degrees.

    Moves of length 0 have no direction and are passed over.
    """
    total = []
    for way in states.diff(dim=0).flatten(2).double().unbind(1):
        way = way[way.norm(dim=1) > 0]
        way = way / way.norm(dim=1, keepdim=True)
        # Of small angles the cosine says nothing; half the angle has the difference as its sine.
        half = (way.diff(dim=0).norm(dim=1) / 2).clamp(max=1).asin()
        total.append(2 * half.sum())
    return torch.rad2deg(torch.stack(total))


def acceleration(states: Tensor) -> Tensor:
    """Mean of |velocity - (x1 - x0)|^2 over |x1 - x0|^2 along `states` at even times, (B,): 0 is straight and even.

    Liu et al. 2022, Sec. 2. Of a diffusion it depends on its schedule; in its own time it is what a fixed-step solver
    has to follow.
    """
    moves = states.diff(dim=0).flatten(2)
    mean = moves.mean(dim=0)
    return (moves - mean).square().sum(dim=2).mean(dim=0) / mean.square().sum(dim=1)


@torch.inference_mode()
def straight(lab: Lab) -> Report:
    """Straightness of the learned flows."""
    steps = lab.preset.trajectory_steps
    rows = []
    for label, net in FLOWS.items():
        model = lab.model(net)
        ways = []
        for i in range(min(lab.preset.straight_photos, len(lab.held_out))):
            _, low = lab.example(i)
            sampling, context = Sampling(steps, batch_index=(i,)), model.make_context(low)
            states = model.integrate(model.make_source(context, sampling), context, sampling, frames=steps + 1)
            ways.append([f(states).item() for f in (distance, length_ratio, turning, acceleration)])
        far, length, angle, uneven = torch.tensor(ways).mean(dim=0).tolist()
        rows.append({"net": label, "distance": far, "length": length, "turning": angle, "acceleration": uneven})
        print(f"  {label}: length {length:.4f}, turning {angle:.0f} degrees", flush=True)
    columns = (
        Column("net", "net"),
        Column("distance", "distance", ".3f"),
        Column("length over distance", "length", ".4f"),
        Column("turning, degrees", "turning", ".1f"),
        Column("acceleration", "acceleration", ".4f"),
    )
    note = (
        f"Means over {lab.preset.straight_photos} photos of {steps} Euler (SR3: DDIM) steps. Distance: of the ends, "
        "root mean square. Length: of the way over that distance, 1 is straight. Turning: the angles between "
        "successive steps, added. Acceleration: mean squared deviation of the velocity from x1 - x0, over "
        "|x1 - x0|^2; of SR3 (probability flow) in the time of its schedule."
    )
    bars: list[Plot | Bars] = [Bars(c.title, {row["net"]: row[c.key] for row in rows}) for c in columns[1:]]
    return Report("Straightness of the learned flows", columns, rows, [note], bars)


@torch.inference_mode()
def fig8(lab: Lab) -> Report:
    """The states on the way, decoded."""
    model, rows, pictures = lab.model("cfm-400"), [], []
    sums: dict[int, list[list[float]]] = {}
    for i, path in enumerate(lab.held_out[: lab.preset.straight_photos]):
        photo, low = lab.example(i)
        way = trajectory(model, low, frames=FRAMES, steps=lab.preset.trajectory_steps, batch_index=(i,))
        truth = lab.vae.decode(lab.vae.encode(photo))
        panels = {}
        for n, state in enumerate(way.states):
            image = lab.vae.decode(state)
            ratio = high_frequency_energy(image) / high_frequency_energy(truth)
            sums.setdefault(n, []).append([psnr(image, photo).item(), ratio.item()])
            panels[f"NFE {n * lab.preset.trajectory_steps // (FRAMES - 1)}"] = image
        if i < lab.preset.pictures:
            pictures.append(Picture(path.stem, {**panels, "photo": photo}))
    for n, values in sums.items():
        quality, sharp = torch.tensor(values).mean(dim=0).tolist()
        nfe = n * lab.preset.trajectory_steps // (FRAMES - 1)
        rows.append({"nfe": nfe, "t": n / (FRAMES - 1), "psnr": quality, "high_frequency": sharp})
    columns = (
        Column("NFE", "nfe"),
        Column("t", "t", ".2f"),
        Column("PSNR, dB", "psnr", ".2f"),
        Column("HF", "high_frequency", ".2f"),
    )
    plots = [Plot("t", "PSNR, dB", {"CFM-400": [(r["t"], r["psnr"]) for r in rows]})]
    note = "The states x_t themselves, decoded: the first is the enlarged latent with noise of step 400."
    return Report("Fig. 8: along the trajectory", columns, rows, [note], plots, pictures)
