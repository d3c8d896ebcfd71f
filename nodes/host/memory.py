"""CFM models in the care of the host's memory management."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_management as mm
import comfy.model_patcher
import comfy.ops
import comfy.utils
import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from ...fmboost_core import CFMModel, ModelConfig, memory
from ...fmboost_core.files.model_file import read_model_file
from ...fmboost_core.model import build_network
from ...fmboost_core.vae.protocol import VAE
from .files import model_path, models_for

HALF = (torch.float16, torch.bfloat16)
WEIGHTS = (torch.float16, torch.bfloat16, torch.float32)
# Latent pixels to lift at once: more is slower where they leave the cache, and keeps a card no busier.
AT_ONCE = {"cpu": 64 * 64, "other": 512 * 512}


class HostModel(CFMModel):
    """What a CFM_MODEL link carries: a CFM model whose weights live in the host's patcher at every moment.

    The attribute ``patcher`` is also where the host looks for the models that a prompt uses.
    """

    def __init__(
        self, name: str, config: ModelConfig, patcher: comfy.model_patcher.ModelPatcher, dtype: torch.dtype
    ) -> None:
        super().__init__(config, patcher.model, device=patcher.load_device, dtype=dtype)
        self.name, self.patcher = name, patcher
        self.overflowed = False  # a lift in half precision did

    def images_at_once(self, height: int, width: int, tile: int) -> int:
        """How many results of height x width latent pixels to make together: as the device is fast, in half of the
        memory that is free."""
        useful = AT_ONCE.get(self.device.type, AT_ONCE["other"]) // (height * width)
        pictures = 4 * 3 * 4 * height * width * self.space.pixels**2  # up to four copies of a picture in float32
        free = mm.get_free_memory(self.device) / 2 // (self.bytes_needed(1, height, width, tile) + pictures)
        return max(1, min(useful, int(free)))

    def in_float32(self) -> HostModel:
        """The same weights, with the network's arithmetic in float32."""
        return HostModel(self.name, self.config, self.patcher, torch.float32)

    def check_samples(self, raw: Tensor) -> None:
        """Raise ValueError, which says what to load, for latents (N, C, h, w) of another family's channels."""
        try:
            self.check_latents(raw, folded=True)
        except ValueError as error:
            raise ValueError(f"{error}: {models_for(raw.shape[1])}") from error

    def make_context(self, low: Tensor, vae: VAE | None = None) -> Tensor:
        if self.config.context_encoder is not None:
            mm.load_models_gpu([self.patcher])
        return super().make_context(low, vae)

    def integrate(self, x0: Tensor, context: Tensor, sampling: Any, callback: Any = None, **options: Any) -> Tensor:
        # Only now: passes of a VAE come before and may have pushed these weights out.
        batch, _, height, width = x0.shape
        needed = self.bytes_needed(batch, height, width, sampling.tile)
        mm.load_models_gpu([self.patcher], memory_required=needed)
        return super().integrate(x0, context, sampling, callback, **options)

    def _network(self, pair: Tensor, t: Tensor) -> Tensor:
        # Here and not in the callback, so that a cancel also stops between the tiles of one evaluation.
        mm.throw_exception_if_processing_interrupted()
        try:
            return super()._network(pair, t)
        except Exception as error:
            if pair.shape[0] == 1 or not _is_out_of_memory(error):
                raise
        # Outside the handler, whose traceback would keep the tensors of the failed run alive.
        mm.soft_empty_cache()
        return torch.cat([self._network(*half) for half in zip(pair.chunk(2), t.chunk(2), strict=True)])


def load_model(name: str) -> HostModel:
    """Read a model into the host's care. Raises ValueError, one sentence, for a missing or foreign file."""
    path = model_path(name)
    try:
        config, state = read_model_file(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error}): get the file again") from error
    device = mm.get_torch_device()
    weights = mm.unet_dtype(
        device=device,
        model_params=comfy.utils.calculate_parameters(state),
        supported_dtypes=list(WEIGHTS),
        weight_dtype=comfy.utils.weight_dtype(state),
    )
    if weights not in WEIGHTS:  # 8 and 64 bits, by a command line flag that is meant for the diffusion model
        weights = torch.float32
    compute = mm.unet_manual_cast(weights, device, list(WEIGHTS)) or weights
    # Layers that follow the type of their input: the same half-precision weights can also be run in float32.
    net = build_network(
        config,
        operations=comfy.ops.manual_cast,
        attention=optimized_attention,
        dtype=weights,
        device=mm.unet_offload_device(),
    )
    net.eval().requires_grad_(False)
    net.manual_cast_dtype = compute
    getattr(mm, "archive_model_dtypes", lambda net: None)(net)
    # Looked up now: newer hosts put their dynamic patcher under this name when they start.
    patcher_class = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    patcher = patcher_class(net, load_device=device, offload_device=mm.unet_offload_device())
    dynamic = getattr(patcher, "is_dynamic", lambda: False)()
    net.load_state_dict(state, strict=True, **({"assign": True} if dynamic else {}))
    return HostModel(name, config, patcher, compute)


def within_memory(run: Callable[[int], Tensor], tile: int, side: int) -> tuple[Tensor, int]:
    """`memory.within_memory` by the host's rules."""
    return memory.within_memory(run, tile, side, ran_out=_is_out_of_memory, release=mm.soft_empty_cache)


def _is_out_of_memory(error: BaseException) -> bool:
    return getattr(mm, "is_oom", lambda e: isinstance(e, mm.OOM_EXCEPTION))(error)
