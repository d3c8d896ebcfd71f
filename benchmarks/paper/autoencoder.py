"""Tab. 6 and Fig. 16: what the autoencoder alone loses, at several sizes."""

from __future__ import annotations

import math
from statistics import fmean

import torch

from fmboost_core import metrics
from fmboost_core.figures import Picture
from fmboost_core.photos import load_photo

from .lab import Lab
from .paths import to_bytes
from .report import Column, Plot, Report


@torch.inference_mode()
def tab6(lab: Lab) -> Report:
    """Decode(encode(photo)) against the photo. A photo smaller than a size is left out there, never enlarged."""
    rows, shown = [], {}
    originals = lab.originals(lab.preset.held_out)
    for size in lab.preset.sizes:
        fid = metrics.open_fid(lab.fid).to(lab.device) if lab.fid else None
        values, ours, theirs = [], [], []
        for i, path in enumerate(originals):
            photo = load_photo(path, size, 8).to(lab.device)
            if min(photo.shape[2:]) < size // 8 * 8:
                continue
            image = lab.vae.decode(lab.vae.encode(photo))
            values.append((metrics.ssim(image, photo).item(), metrics.psnr(image, photo).item()))
            ours.append(metrics.patch_features(image))
            theirs.append(metrics.patch_features(photo))
            if fid is not None:
                fid.update(photo, real=True)
                fid.update(image, real=False)
            if i < lab.preset.pictures:
                shown.setdefault(path.stem, {})[f"{size} px"] = to_bytes(image)
                shown[path.stem]["photo"] = to_bytes(photo)
        if not values:
            continue
        rows.append(
            {
                "size": size,
                "photos": len(values),
                "ssim": fmean(s for s, _ in values),
                "psnr": fmean(p for _, p in values),
                "fid": fid.compute().item() if fid is not None else math.nan,
                "frechet": metrics.frechet_distance(torch.cat(ours), torch.cat(theirs)),
            }
        )
        print(f"  {size} px: PSNR {rows[-1]['psnr']:.2f}", flush=True)
    columns = (
        Column("short side, px", "size"),
        Column("photos", "photos"),
        Column("SSIM", "ssim", ".3f"),
        Column("PSNR", "psnr", ".2f"),
        Column("FID", "fid", ".2f"),
        Column("Frechet", "frechet", ".3f"),
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
