"""Write the card of a shipped model from its own settings and its evaluation.

    python tools/card.py fmboost_core/weights/NAME.safetensors --text "What it is for." --table runs/eval/table.md \
        --command "fmboost evaluate NAME ..." --picture NAME.png > fmboost_core/weights/NAME.md
"""

from __future__ import annotations

import argparse
import hashlib
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
    parser.add_argument("--text", required=True, help="what it is for, its best settings and its limits")
    parser.add_argument("--table", type=Path, required=True, help="table.md of fmboost evaluate")
    parser.add_argument("--command", required=True, help="what printed the table")
    parser.add_argument("--picture", help="file in docs/images with windows to look at")
    parser.add_argument("--seen", default="", help="a sentence on what the picture shows")
    args = parser.parse_args()
    config, weights = read_model_file(args.model)
    net, flow = config.net, config.flow
    parameters = sum(w.numel() for w in weights.values()) / 1e6
    facts = "".join(f"| {k} | {v} |\n" for k, v in config.trained_on.items() if v not in ("", []))
    look = (
        f"\n![Windows of held-out pictures](../../docs/images/{args.picture})\n\n{args.seen}\n" if args.picture else ""
    )
    print(f"""# {args.model.stem}

{args.text}
{look}
## Figures

Held-out photographs, decoded by the TAESD of the family; [docs/models.md](../../docs/models.md) explains the columns.
Printed by `{args.command}`.

{args.table.read_text(encoding="utf-8").strip()}

## The file

| | |
|---|---|
| file | `{args.model.name}`, {args.model.stat().st_size / 2**20:.1f} MiB, {parameters:.2f}M parameters |
| SHA-256 | `{hashlib.sha256(args.model.read_bytes()).hexdigest()}` |
| licence | {config.license}; the training pictures are listed in [docs/data.md](../../docs/data.md) |
| latents | {config.latent_space}, {flow.scale}x |
| context | {context(config)} |
| flow | {flow.path} path, noise step {flow.noise_step}, sigma_min {flow.sigma_min} |
| network | {net.model_channels} channels x {net.channel_mult}, {net.num_res_blocks} blocks a level |
{facts.rstrip()}""")


if __name__ == "__main__":
    main()
