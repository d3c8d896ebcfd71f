"""FMBoost: lift small latents of a diffusion model to 2x or 4x by Coupling Flow Matching (arXiv 2312.07360)."""

from .cascade import cascade
from .config import ContextEncoderConfig, FlowConfig, ModelConfig, NetConfig
from .files.authors import convert_checkpoint
from .files.model_file import load_model, save_model, shipped_models
from .latent_spaces import LATENT_SPACES, LatentSpace
from .model import CFMModel
from .sampling import Sampling
from .solver import SOLVERS
from .trajectory import Trajectory, trajectory
from .vae.autoencoder import Autoencoder
from .vae.files import load_vae
from .version import __version__

__all__ = [
    "LATENT_SPACES",
    "SOLVERS",
    "Autoencoder",
    "CFMModel",
    "ContextEncoderConfig",
    "FlowConfig",
    "LatentSpace",
    "ModelConfig",
    "NetConfig",
    "Sampling",
    "Trajectory",
    "__version__",
    "cascade",
    "convert_checkpoint",
    "load_model",
    "load_vae",
    "save_model",
    "shipped_models",
    "trajectory",
]
