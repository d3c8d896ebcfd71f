"""Write the latents that ship for ``fmboost demo``: the centres of a few held-out photos.

python benchmarks/make_demo.py --photos FOLDER_WITH_MANIFEST --vae PATH
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from fmboost_core import load_vae
from fmboost_core.demo import EXAMPLES, write_example
from fmboost_core.photos import centre_square, load_photo
from fmboost_core.train.data import encode_example

CHOSEN = {"bison": "val/0036.jpg", "cat": "val/0071.jpg", "sign": "val/0571.jpg", "ravioli": "val/0190.jpg"}
SIZE = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True)
    args = parser.parse_args()
    with (args.photos / "manifest.csv").open(encoding="utf-8") as file:
        manifest = {row["file"]: row for row in csv.DictReader(file)}
    vae = load_vae(args.vae, space="sd15")
    EXAMPLES.mkdir(exist_ok=True)
    for name, file in CHOSEN.items():
        latents = encode_example(centre_square(load_photo(args.photos / file, SIZE, 16), SIZE), 2, vae)
        row = manifest[file]
        origin = f"{row['source_repo']}/{row['source_path']}; {row['licence']}"
        write_example(EXAMPLES / f"{name}.safetensors", latents, origin)
        print(name, origin)


if __name__ == "__main__":
    main()
