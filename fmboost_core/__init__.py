"""FMBoost: lift small latents of a diffusion model to 2x or 4x by Coupling Flow Matching (arXiv 2312.07360)."""

from .checkpoint import load_model, save_model, shipped_models
from .config import FlowConfig, ModelConfig, NetConfig
from .latent_spaces import LATENT_SPACES, LatentSpace
from .model import CFMModel
from .solver import SOLVERS
from .vae import TinyVAE, load_vae

__version__ = "0.1.0"

__all__ = [
    "LATENT_SPACES",
    "SOLVERS",
    "CFMModel",
    "FlowConfig",
    "LatentSpace",
    "ModelConfig",
    "NetConfig",
    "TinyVAE",
    "load_model",
    "load_vae",
    "save_model",
    "shipped_models",
]
