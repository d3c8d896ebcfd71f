"""Average the weights of models of one run, such as the running averages of its middle and of its end.

    python tools/mean.py OUT.safetensors MODEL.safetensors MODEL.safetensors ...

The settings and facts are those of the last. Averaged weights of one run are often nearer to the truth than the last.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from fmboost_core import ModelConfig
from fmboost_core.files.model_file import read_model_file, save_model


def mean(out: Path, models: list[Path]) -> None:
    """Raises ValueError where the models are not of one kind."""
    files = [read_model_file(model) for model in models]
    config = files[-1][0]
    for model, (other, _) in zip(models, files, strict=True):
        if _kind(other) != _kind(config):
            raise ValueError(f"{model} is of another kind than {models[-1]}: average models of one run")
    save_model(out, config, {name: torch.stack([w[name].float() for _, w in files]).mean(0) for name in files[0][1]})


def _kind(config: ModelConfig) -> tuple[object, ...]:
    return config.net, config.flow, config.context_encoder, config.latent_space


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT.safetensors")
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL.safetensors")
    args = parser.parse_args()
    try:
        mean(args.out, args.models)
    except (OSError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
