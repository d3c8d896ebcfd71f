"""Tab. 5: a sweep of the guidance scale, on a ComfyUI server that has the Stable Diffusion checkpoint.

    python -m benchmarks.paper.guidance workflows/api/fmboost_txt2img_1024.json --prompts prompts.txt \
        --reference photos/ --fid weights-inception-2015-12-05-6726825d.pth --clip clip-vit-base-patch16/

One image a prompt and scale, each prompt with its own seed, the same for all scales. Without --fid and --clip the table
holds the Frechet distance of the judge's features alone. Nothing is downloaded: --clip is a folder of the CLIP model.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from fmboost_core.evaluate import judge, metrics
from fmboost_core.images.files import load_photo
from fmboost_core.images.folders import find_photos

from .fid import open_fid
from .report import Column, Plot, Report, write

SCALES = (1.0, 3.0, 5.0, 7.0, 9.0)


def sweep(graph: Mapping[str, Any], scales: Sequence[float], prompts: Sequence[str], titles: Mapping[str, str]) -> Any:
    """Yields (scale, number of the prompt, workflow) for every combination; `graph` stays as it is.

    `titles` names the nodes of the ``sampler`` and the positive ``prompt``.
    """
    for scale in scales:
        for i, prompt in enumerate(prompts):
            job = copy.deepcopy(dict(graph))
            sampler, text = (titles[name] for name in ("sampler", "prompt"))
            settings = (f"{sampler}.cfg={scale}", f"{sampler}.seed={i}", f"{text}.text={json.dumps(prompt)}")
            api().apply(job, list(settings))
            yield scale, i, job


@torch.inference_mode()
def measure(
    images: Sequence[Path], prompts: Sequence[str], reference: Sequence[Path], fid: Path | None, clip: Path | None
) -> dict[str, float]:
    """Of the images of one scale, in the order of the prompts, against the reference photos."""
    side = min(load_photo(images[0], None, 32).shape[2:])
    ours = [load_photo(path, side, 32) for path in images]
    theirs = [load_photo(path, side, 32) for path in reference]
    features, fits = judge.Features(), (metrics.GaussianFit(), metrics.GaussianFit())
    for fit, group in zip(fits, (ours, theirs), strict=True):
        for image in group:
            fit.add(judge.vectors(features(image), judge.FRECHET_LEVELS["/8"]))
    values = {"frechet8": metrics.frechet_distance(*fits)}
    if fid is not None:
        inception = open_fid(fid)
        for group, real in ((ours, False), (theirs, True)):
            for image in group:
                inception.update(image, real=real)
        values["fid"] = inception.compute().item()
    if clip is not None:
        from torchmetrics.multimodal.clip_score import CLIPScore

        scorer = CLIPScore(model_name_or_path=str(clip))  # pyright: ignore[reportArgumentType]
        for image, prompt in zip(ours, prompts, strict=True):
            scorer.update((image[0] * 255).to(torch.uint8), prompt)
        values["clip"] = scorer.compute().item() / 100
    return values


def api() -> ModuleType:
    """workflows/api/run.py, which is a script for machines without this package."""
    spec = importlib.util.spec_from_file_location("run_api", Path(__file__).parents[2] / "workflows" / "api" / "run.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault("run_api", module)
    spec.loader.exec_module(module)
    return module


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workflow", type=Path, help="API workflow with one KSampler")
    parser.add_argument("--prompts", type=Path, required=True, help="text file, one prompt a line")
    parser.add_argument("--reference", type=Path, required=True, help="folder of real photos")
    parser.add_argument("--server", default="http://127.0.0.1:8188")
    parser.add_argument("--scales", type=float, nargs="+", default=list(SCALES))
    parser.add_argument("--sampler", default="KSampler", help="title, type or id of the sampler node")
    parser.add_argument("--prompt-node", default="Positive prompt", help="title or id of the prompt node")
    parser.add_argument("--fid", type=Path)
    parser.add_argument("--clip", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/paper-guidance"))
    args = parser.parse_args(arguments)
    prompts = [line for line in args.prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not prompts:
        parser.error(f"{args.prompts} has no prompts: expected one a line")
    graph = json.loads(args.workflow.read_text(encoding="utf-8"))
    client = api().Client(args.server)
    images: dict[float, list[Path]] = {}
    args.out.mkdir(parents=True, exist_ok=True)
    for scale, i, job in sweep(graph, args.scales, prompts, {"sampler": args.sampler, "prompt": args.prompt_node}):
        path = args.out / f"cfg{scale:g}-{i:05d}.png"
        images.setdefault(scale, []).append(path)
        record, asked = path.with_suffix(".json"), json.dumps(job, sort_keys=True)
        if not path.exists() or not record.exists() or record.read_text(encoding="utf-8") != asked:
            _, contents = next(client.images(client.run(job)))
            path.write_bytes(contents)
            record.write_text(asked, encoding="utf-8")
        print(path, flush=True)
    reference = find_photos(args.reference)
    rows = [
        {"cfg": scale, "images": len(paths), **measure(paths, prompts, reference, args.fid, args.clip)}
        for scale, paths in images.items()
    ]
    columns = (
        Column("CFG", "cfg", "g"),
        Column("FID", "fid", ".2f"),
        Column("CLIP", "clip", ".3f"),
        Column("FD /8", "frechet8", ".1f"),
    )
    plot = Plot("guidance scale", "FD /8", {args.workflow.stem: [(row["cfg"], row["frechet8"]) for row in rows]})
    settings = {"workflow": args.workflow.name, "prompts": len(prompts), "reference photos": len(reference)}
    print(write(Report("Tab. 5: guidance", columns, rows, plots=[plot]), "tab5", args.out, settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
