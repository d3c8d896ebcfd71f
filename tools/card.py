"""Write the card of a shipped model from its own settings, its evaluation and the manifest of its photos.

    python tools/card.py fmboost_core/weights/NAME.safetensors --table runs/eval/table.md \
        --manifest photos/manifest.csv --machine "two CPU cores" --text "What it is for." \
        --command "fmboost evaluate NAME ..." > fmboost_core/weights/NAME.md
"""

from __future__ import annotations

import argparse
import csv
import hashlib
from collections import Counter
from pathlib import Path

from fmboost_core import ModelConfig
from fmboost_core.files.model_file import read_model_file


def context(config: ModelConfig) -> str:
    """What the network sees beside the state of the flow."""
    if (encoder := config.context_encoder) is not None:
        return f"learned by {encoder.depth} blocks of {encoder.width} channels, with {encoder.features} features"
    return config.flow.upsampling + (" and the decoded small picture" if config.flow.picture_context else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--table", type=Path, required=True, help="table.md of fmboost evaluate")
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--machine", required=True, help="what it was trained on")
    parser.add_argument("--text", required=True, help="what it is for, and its limits")
    parser.add_argument("--command", required=True, help="what printed the table")
    args = parser.parse_args()
    config, weights = read_model_file(args.model)
    net, flow = config.net, config.flow
    with args.manifest.open(encoding="utf-8") as file:
        photos = [row for row in csv.DictReader(file) if row["file"].startswith("train/")]
    licences = Counter(row["licence"] for row in photos)
    parameters = sum(w.numel() for w in weights.values()) / 1e6
    print(f"""# {args.model.stem}

{args.text}

| | |
|---|---|
| file | `{args.model.name}`, {args.model.stat().st_size / 2**20:.1f} MiB, {parameters:.2f}M parameters |
| SHA-256 | `{hashlib.sha256(args.model.read_bytes()).hexdigest()}` |
| licence of the weights | {config.license} |
| latents | {config.latent_space}, x{flow.scale} |
| context | {context(config)} |
| flow | {flow.path} path, noise step {flow.noise_step}, sigma_min {flow.sigma_min} |
| network | {net.model_channels} channels x {net.channel_mult}, {net.num_res_blocks} blocks a level |
| trained on | {args.machine} |
| recipe | {", ".join(f"{k} {v}" for k, v in config.trained_on.items() if v not in ("", []))} |
| configuration | SHA-256 `{config.sha256}` |

## Figures

On held-out photographs, with the TAESD of the family, printed by `{args.command}`. Columns: README, section on models.

{args.table.read_text(encoding="utf-8").strip()}

## Data

{len(photos)} photographs. Their licences, as stated where they were found:
""")
    for licence, count in licences.most_common():
        print(f"- {count}: {licence}")


if __name__ == "__main__":
    main()
