"""Where CFM models lie: those that ship, and the host's folders."""

from __future__ import annotations

from pathlib import Path

import folder_paths

from ...fmboost_core import shipped_models

MODEL_FOLDER = "latent_upscale_models"


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
