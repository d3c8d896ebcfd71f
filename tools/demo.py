"""Write the latents that ship for ``fmboost demo``: the centres of a few held-out photos.

python tools/demo.py --photos FOLDER_WITH_MANIFEST --vae PATH
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from fmboost_core import FlowConfig, load_vae
from fmboost_core.demo import EXAMPLES, SCALE, SPACE
from fmboost_core.images.files import load_photo
from fmboost_core.images.resize import centre_square
from fmboost_core.storage import write_tensors
from fmboost_core.train.encode import compact, encode_example

CHOSEN = {"bison": "val/0036.jpg", "cat": "val/0071.jpg", "sign": "val/0571.jpg", "ravioli": "val/0190.jpg"}
SIZE = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=EXAMPLES, help="folder (default: that of the package)")
    args = parser.parse_args()
    with (args.photos / "manifest.csv").open(encoding="utf-8") as file:
        manifest = {row["file"]: row for row in csv.DictReader(file)}
    vae = load_vae(args.vae, space=SPACE)
    args.out.mkdir(exist_ok=True)
    for name, file in CHOSEN.items():
        photo = centre_square(load_photo(args.photos / file, SIZE, 8 * SCALE), SIZE)
        example = compact(encode_example(photo, FlowConfig(scale=SCALE, upsampling="psu"), vae))
        origin = f"{manifest[file]['source_repo']}/{manifest[file]['source_path']}; {manifest[file]['licence']}"
        kept = {k: example[k] for k in ("low", "high", "psu", "picture")}
        write_tensors(kept, args.out / f"{name}.safetensors", {"origin": origin})
        print(name, origin)


if __name__ == "__main__":
    main()
