"""The nodes, as ComfyUI's V3 interface wants them."""

from __future__ import annotations

import sys
from pathlib import Path

from comfy_api.latest import ComfyExtension, io


class FMBoostExtension(ComfyExtension):
    """Load CFM Model, CFM Latent Upscale, Noise Augment, Attention Scaling."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        from .attention_scaling import AttentionScaling
        from .cfm_latent_upscale import CFMLatentUpscale
        from .load_cfm_model import LoadCFMModel
        from .noise_augment import NoiseAugment

        return [LoadCFMModel, CFMLatentUpscale, NoiseAugment, AttentionScaling]


async def comfy_entrypoint() -> FMBoostExtension:
    """Called by ComfyUI. What it raises becomes one line of the host's log, so that line says what to do."""
    try:
        import torchdiffeq  # noqa: F401
    except ModuleNotFoundError as error:
        requirements = Path(__file__).parents[1] / "requirements.txt"
        raise RuntimeError(
            f"FMBoost needs the Python package {error.name}, which this ComfyUI does not have: "
            f'run "{sys.executable}" -m pip install -r "{requirements}" and restart ComfyUI'
        ) from error
    return FMBoostExtension()
