"""Where CFM models lie: those that ship, and the host's folders."""

from __future__ import annotations

from pathlib import Path

import folder_paths

from ...fmboost_core import LATENT_SPACES, shipped_models

MODEL_FOLDER = "latent_upscale_models"
DOCS = "https://github.com/fmboost/fmboost/blob/main/docs"
GUIDE = f"{DOCS}/which-model.md"
TROUBLE = f"{DOCS}/it-looks-wrong.md"


def model_names() -> list[str]:
    """Shipped models by name, then the safetensors files in the host's folders."""
    files = folder_paths.get_filename_list(MODEL_FOLDER)
    return [*shipped_models(), *(name for name in files if name.lower().endswith((".safetensors", ".sft")))]


def model_path(name: str) -> Path:
    """Raises ValueError where there is no such model, or no longer."""
    found = shipped_models().get(name) or folder_paths.get_full_path(MODEL_FOLDER, name)
    if found is None:
        raise ValueError(
            f"the CFM model '{name}' is missing: put the file into models/{MODEL_FOLDER}, or choose another one in "
            "Load CFM Model (R refreshes its list)"
        )
    return Path(found)


def models_for(channels: int) -> str:
    """What to load for latents of so many channels, to end a sentence with."""
    fit = [name for name in shipped_models() if LATENT_SPACES[name.split("-")[1]].folded_channels == channels]
    if not fit:
        return f"none of those that come with FMBoost fits, so put one into models/{MODEL_FOLDER} ({GUIDE})"
    return f"choose {' or '.join(fit)} in Load CFM Model, which come with FMBoost ({GUIDE})"
