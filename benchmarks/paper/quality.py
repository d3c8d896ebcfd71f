"""Tables and figures that compare lifted pictures: Tab. 1, 2, 3, 4, 7 and Fig. 6, 7, 9, 10, 12, 13."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any, NamedTuple

from torch import Tensor

from fmboost_core import CFMModel
from fmboost_core.evaluate import metrics
from fmboost_core.evaluate.run import EvaluationSettings, evaluate

from .fid import open_fid
from .lab import Lab
from .presets import NOISE_STEPS
from .report import Column, Picture, Plot, Report
from .sr3 import DiffusionModel

METRICS = (
    Column("SSIM", "ssim", ".3f"),
    Column("PSNR", "psnr", ".2f"),
    Column("FID", "fid", ".2f"),
    Column("lp", "lp", ".3f"),
    Column("FD /8", "frechet8", ".1f"),
    Column("HF", "high_frequency", ".2f"),
)
READING = (
    "SSIM and PSNR are to the photo, higher is nearer. FID is to the photos, where the Inception weights are at hand. "
    "lp (perceptual distance of a picture) and FD /8 (Frechet distance of features of 8 px, between the sets), both of "
    "EfficientNet-Lite0, are to the decoded true latents, lower is more alike. HF is high-frequency energy over that "
    "of the decoded true latents, 1 is right."
)


class Entry(NamedTuple):
    label: str
    model: CFMModel
    steps: int
    solver: str = "euler"


class Seen:
    """What `evaluate` shows of each method, by its label: SSIM, FID, and the first pictures."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.ssim: dict[str, list[float]] = {}
        self.fid: dict[str, Any] = {}
        self.pictures: dict[str, list[Tensor]] = {}

    def __call__(self, label: str, image: Tensor, photo: Tensor) -> None:
        self.ssim.setdefault(label, []).append(metrics.ssim(image, photo).item())
        if len(shown := self.pictures.setdefault(label, [])) < self.lab.preset.pictures:
            shown.append(image)
        if self.lab.fid:
            if label not in self.fid:
                self.fid[label] = open_fid(self.lab.fid).to(self.lab.device)
            self.fid[label].update(photo, real=True)
            self.fid[label].update(image, real=False)

    def numbers(self, label: str) -> dict[str, float | None]:
        return {"ssim": fmean(self.ssim[label]), "fid": self.fid[label].compute().item() if self.fid else None}


def score(lab: Lab, entries: Sequence[Entry]) -> tuple[list[dict[str, Any]], list[Picture]]:
    """A line of numbers for each entry over the held-out photos, and pictures of all of them side by side."""
    rows: list[dict[str, Any]] = []
    ceiling: dict[str, Any] = {}
    shown = [_examples(lab, i) for i in range(min(lab.preset.pictures, len(lab.held_out)))]
    for entry in entries:
        seen = Seen(lab)
        settings = EvaluationSettings(
            short_side=lab.preset.short_side, steps=(entry.steps,), solvers=(entry.solver,), baselines=()
        )
        result = evaluate({entry.label: entry.model}, lab.held_out, lab.vae, settings, observe=seen)
        ceiling, row = ({**asdict(r), **seen.numbers(r.label), "label": r.method} for r in result.rows)
        rows.append(row)
        print(f"  {entry.label}: PSNR {row['psnr']:.2f}, FD /8 {row['frechet8']:.1f}", flush=True)
        true, lifted = (seen.pictures[r.label] for r in result.rows)
        for i, panels in enumerate(shown):
            panels[entry.label], panels["reconstruction"] = lifted[i], true[i]
    order = ["low", *(entry.label for entry in entries), "reconstruction", "photo"]
    pictures = [Picture(lab.held_out[i].stem, {name: panels[name] for name in order}) for i, panels in enumerate(shown)]
    return [*rows, ceiling], pictures


def _examples(lab: Lab, number: int) -> dict[str, Tensor]:
    photo, low = lab.example(number)
    return {"low": lab.vae.decode(low), "photo": photo}


def tab1(lab: Lab) -> Report:
    """Nearest against bilinear upsampling, CFM against FM."""
    nets = {
        "CFM-nearest": "cfm-400",
        "CFM-bilinear": "cfm-400-bilinear",
        "FM-nearest": "fm",
        "FM-bilinear": "fm-bilinear",
    }
    return _compare(lab, "Tab. 1: upsampling of the low latent", nets)


def tab2(lab: Lab) -> Report:
    """Regression, FM and CFM; Fig. 6 and 7 are its pictures."""
    nets = {"Reg": "regression", "FM": "fm", "CFM": "cfm-400"}
    return _compare(lab, "Tab. 2, Fig. 6 and 7: regression, flow matching, coupling flow matching", nets)


def tab3(lab: Lab) -> Report:
    """Noise augmentation of the source."""
    report = _compare(lab, "Tab. 3: noise steps", {f"CFM-{n}": f"cfm-{n}" for n in NOISE_STEPS})
    report.plots = [
        Plot("noise step", title, {"CFM": [(n, r[key]) for n, r in zip(NOISE_STEPS, report.rows, strict=False)]})
        for title, key in (("FD /8", "frechet8"), ("PSNR, dB", "psnr"))
    ]
    return report


def tab4(lab: Lab) -> Report:
    """Evaluations of the network, with time; Fig. 12 is its plot, Fig. 13 its picture."""
    model = lab.model("cfm-200")
    entries = [Entry(f"NFE {n}", model, n) for n in lab.preset.evaluations]
    rows, pictures = score(lab, [*entries, Entry("dopri5", model, 1, "dopri5")])
    columns = (
        Column("CFM-200", "label"),
        Column("NFE", "evaluations", ".0f"),
        *METRICS,
        Column("ms", "lift_ms", ".0f"),
    )
    plots = [
        Plot(x, "FD /8", _curve(rows[:-1], key, "frechet8", "CFM-200"), log_x=True)
        for x, key in (("network evaluations", "evaluations"), ("ms an image, lift only", "lift_ms"))
    ]
    plots.append(Plot("network evaluations", "PSNR, dB", _curve(rows[:-1], "evaluations", "psnr", "CFM-200"), True))
    return Report("Tab. 4, Fig. 12 and 13: function evaluations", columns, rows, [READING], plots, pictures)


def tab7(lab: Lab) -> Report:
    """Two sizes of network."""
    names = {"FM": "fm", "CFM-400": "cfm-400", "CFM-200": "cfm-200"}
    nets = {
        f"{label}, {size}": prefix + net
        for size, prefix in (("big", "big-"), ("small", ""))
        for label, net in names.items()
    }
    report = _compare(lab, "Tab. 7: two sizes of network", nets)
    for row, net in zip(report.rows, nets.values(), strict=False):
        row["parameters"] = sum(p.numel() for p in lab.model(net).net.parameters()) / 1e6
    report.columns = [*report.columns, Column("parameters, M", "parameters", ".2f")]
    return report


def fig9(lab: Lab) -> Report:
    """CFM against SR3 in the course of training."""
    entries = [
        (Entry(f"{label} after {step}", lab.model(net, step), lab.preset.steps), label, step)
        for label, net in (("CFM", "cfm-400"), ("SR3", "sr3"))
        for step in lab.preset.milestones
    ]
    rows, _ = score(lab, [entry for entry, _, _ in entries])
    for row, (_, label, step) in zip(rows, entries, strict=False):
        row.update(net=label, training=step)
    plots = [Plot("training steps", title, _curves(rows[:-1], "training", key)) for title, key in QUALITIES]
    return Report(
        "Fig. 9: CFM and SR3 in training", (Column("net", "label"), *METRICS), _same_keys(rows), [READING], plots
    )


def fig10(lab: Lab) -> Report:
    """CFM against SR3 by evaluations, with both usual ways to place DDIM's steps."""
    sr3 = lab.model("sr3")
    trailing = DiffusionModel(sr3.config, sr3.net)
    trailing.spacing = "trailing"
    nets = {"CFM": lab.model("cfm-400"), "FM": lab.model("fm"), "SR3": sr3, "SR3, trailing steps": trailing}
    pairs = [(label, n) for label in nets for n in lab.preset.curve]
    rows, pictures = score(lab, [Entry(f"{label} {n}", nets[label], n) for label, n in pairs])
    for row, (label, n) in zip(rows, pairs, strict=False):
        row.update(net=label, steps=n)
    plots = [
        Plot("network evaluations", title, _curves(rows[:-1], "steps", key), log_x=True) for title, key in QUALITIES
    ]
    columns = (Column("net and evaluations", "label"), *METRICS)
    return Report("Fig. 10: CFM and SR3 by evaluations", columns, _same_keys(rows), [READING], plots, pictures[:1])


QUALITIES = (("FD /8", "frechet8"), ("lp", "lp"), ("PSNR, dB", "psnr"))


def _compare(lab: Lab, title: str, nets: dict[str, str]) -> Report:
    entries = [
        Entry(label, lab.model(net), 1 if net == "regression" else lab.preset.steps) for label, net in nets.items()
    ]
    rows, pictures = score(lab, entries)
    columns = (Column("net", "label"), Column("NFE", "evaluations", ".0f"), *METRICS)
    return Report(title, columns, rows, [READING], pictures=pictures)


def _curve(rows: Sequence[dict[str, Any]], x: str, y: str, label: str) -> dict[str, list[tuple[float, float]]]:
    return _curves([{**row, "net": label if row["solver"] == "euler" else row["solver"]} for row in rows], x, y)


def _curves(rows: Sequence[dict[str, Any]], x: str, y: str) -> dict[str, list[tuple[float, float]]]:
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        curves.setdefault(row["net"], []).append((row[x], row[y]))
    return curves


def _same_keys(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The ceiling's line belongs to no net, and the CSV wants all columns in all lines."""
    return [{key: row.get(key) for key in rows[0]} for row in rows]
