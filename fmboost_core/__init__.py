"""FMBoost: lift small latents of a diffusion model to 2x or 4x by Coupling Flow Matching (arXiv 2312.07360)."""

from .cascade import cascade
from .checkpoint import load_model, save_model, shipped_models
from .config import FlowConfig, ModelConfig, NetConfig
from .convert import convert_checkpoint
from .latent_spaces import LATENT_SPACES, LatentSpace
from .model import CFMModel
from .solver import SOLVERS
from .trajectory import Trajectory, trajectory
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
    "Trajectory",
    "cascade",
    "convert_checkpoint",
    "load_model",
    "load_vae",
    "save_model",
    "shipped_models",
    "trajectory",
]
