"""Tab. 6 and Fig. 16: what the autoencoder alone loses, at several sizes."""

from __future__ import annotations

import math
from statistics import fmean

import torch

from fmboost_core.evaluate import judge, metrics
from fmboost_core.images.files import load_photo

from .fid import open_fid
from .lab import Lab
from .report import Column, Picture, Plot, Report


@torch.inference_mode()
def tab6(lab: Lab) -> Report:
    """Decode(encode(photo)) against the photo. A photo smaller than a size is left out there, never enlarged."""
    rows, shown = [], {}
    originals, features = lab.originals(lab.preset.held_out), judge.Features().to(lab.device)
    for size in lab.preset.sizes:
        fid = open_fid(lab.fid).to(lab.device) if lab.fid else None
        values, fits = [], (metrics.GaussianFit(), metrics.GaussianFit())
        for i, path in enumerate(originals):
            photo = load_photo(path, size, 8).to(lab.device)
            if min(photo.shape[2:]) < size // 8 * 8:
                continue
            image = lab.vae.decode(lab.vae.encode(photo))
            values.append((metrics.ssim(image, photo).item(), metrics.psnr(image, photo).item()))
            for fit, shown_image in zip(fits, (image, photo), strict=True):
                fit.add(judge.vectors(features(shown_image), judge.FRECHET_LEVELS["/8"]).cpu())
            if fid is not None:
                fid.update(photo, real=True)
                fid.update(image, real=False)
            if i < lab.preset.pictures:
                shown.setdefault(path.stem, {})[f"{size} px"] = image
                shown[path.stem]["photo"] = photo
        if not values:
            continue
        rows.append(
            {
                "size": size,
                "photos": len(values),
                "ssim": fmean(s for s, _ in values),
                "psnr": fmean(p for _, p in values),
                "fid": fid.compute().item() if fid is not None else math.nan,
                "frechet8": metrics.frechet_distance(*fits),
            }
        )
        print(f"  {size} px: PSNR {rows[-1]['psnr']:.2f}", flush=True)
    columns = (
        Column("short side, px", "size"),
        Column("photos", "photos"),
        Column("SSIM", "ssim", ".3f"),
        Column("PSNR", "psnr", ".2f"),
        Column("FID", "fid", ".2f"),
        Column("FD /8", "frechet8", ".1f"),
    )
    plots = [
        Plot("short side, px", title, {"autoencoder": [(r["size"], r[key]) for r in rows]}, log_x=True)
        for title, key in (("PSNR, dB", "psnr"), ("SSIM", "ssim"))
    ]
    pictures = [Picture(name, _photo_last(panels)) for name, panels in shown.items()]
    return Report("Tab. 6, Fig. 16: the autoencoder across sizes", columns, rows, [], plots, pictures)


def _photo_last(panels: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    photo = panels.pop("photo")
    return {**panels, "photo": photo}
