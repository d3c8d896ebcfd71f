"""Everything learned about the host: model patcher, dtype, memory, latent formats, VAE, progress, preview, cancel."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.model_management as mm
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.utils
import folder_paths
import latent_preview
import torch
import torch.nn.functional as F
from comfy.ldm.modules.attention import optimized_attention
from comfy_api.latest import io
from torch import Tensor

import nodes as comfy_nodes

from ..fmboost_core import LATENT_SPACES, CFMModel, LatentSpace, ModelConfig, load_vae, shipped_models
from ..fmboost_core.checkpoint import Maps, read_model_file, shipped_vae, take_maps
from ..fmboost_core.unet import UNet
from ..fmboost_core.upsample import VAE

log = logging.getLogger(__name__)

MODEL_FOLDER = "latent_upscale_models"
CATEGORY = "latent/FMBoost"
CFMType = io.Custom("CFM_MODEL")
ADVANCED = {"advanced": True}  # the `advanced=` keyword of inputs is younger than the oldest host
HALF = (torch.float16, torch.bfloat16)
PREVIEW_SIZE = 128
VAE_TILE = 64  # smaller ones see too little of their surroundings

_FORMATS = {
    "sd15": comfy.latent_formats.SD15,
    "sdxl": comfy.latent_formats.SDXL,
    "sd3": comfy.latent_formats.SD3,
    "flux": comfy.latent_formats.Flux,
}


def schema(**settings: Any) -> io.Schema:
    """io.Schema without the settings this host does not know yet; one of them would hide the whole pack."""
    known = {field.name for field in dataclasses.fields(io.Schema)}
    return io.Schema(**{name: value for name, value in settings.items() if name in known})


def seed_input() -> io.Int.Input:
    """The seed of a node that draws noise."""
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=0xFFFFFFFFFFFFFFFF,
        control_after_generate=True,
        tooltip=(
            "The noise: an image with the same seed gets the same, alone or in a batch, on any device. Without noise "
            "(noise_step 0) it changes nothing."
        ),
    )


# Models


class HostModel(CFMModel):
    """What a CFM_MODEL link carries: a CFM model whose weights live in the host's patcher at every moment.

    The attribute ``patcher`` is also where the host looks for the models a prompt uses.
    """

    def __init__(
        self,
        name: str,
        config: ModelConfig,
        patcher: comfy.model_patcher.ModelPatcher,
        dtype: torch.dtype,
        maps: Maps,
    ) -> None:
        super().__init__(config, patcher.model, device=patcher.load_device, dtype=dtype, **maps)
        self.name, self.patcher, self.maps = name, patcher, maps

    def variant(self, *, dtype: torch.dtype | None = None, upsampling: str | None = None) -> HostModel:
        """The same weights run in another floating type, or from another upsampling than trained; away from psu
        without back projection. Raises ValueError where the network also looks at the decoded samples."""
        flow = self.config.flow
        if upsampling not in (None, "psu") and flow.picture_context:
            raise ValueError(
                f"upsampling is {upsampling}, and the CFM model '{self.name}' looks at the decoded samples, as psu "
                "does: choose auto or psu"
            )
        if upsampling is not None:
            rounds = flow.back_projection if upsampling == "psu" else 0
            flow = dataclasses.replace(flow, upsampling=upsampling, back_projection=rounds)
        corrections = self.config.corrections and bool(flow.back_projection)
        config = dataclasses.replace(self.config, flow=flow, corrections=corrections)
        return HostModel(self.name, config, self.patcher, dtype or self.dtype, self.maps)

    def integrate(self, x0: Tensor, context: Tensor, *, tile: int = 0, **settings: Any) -> Tensor:
        # Only now: upsampling through a VAE comes before and may have pushed these weights out.
        batch, _, height, width = x0.shape
        mm.load_models_gpu([self.patcher], memory_required=self.integrate_bytes(batch, height, width, tile))
        return super().integrate(x0, context, tile=tile, **settings)

    def _network(self, pair: Tensor, t: Tensor) -> Tensor:
        # Here, not in the callback, so that a cancel also stops between the tiles of one evaluation.
        mm.throw_exception_if_processing_interrupted()
        return super()._network(pair, t)


def model_names() -> list[str]:
    """Shipped models by name, then the safetensors files in the host's folders."""
    files = folder_paths.get_filename_list(MODEL_FOLDER)
    return [*shipped_models(), *(name for name in files if name.lower().endswith((".safetensors", ".sft")))]


def model_path(name: str) -> Path:
    """Raises ValueError where there is no such model (any more)."""
    found = shipped_models().get(name) or folder_paths.get_full_path(MODEL_FOLDER, name)
    if found is None:
        raise ValueError(
            f"the CFM model '{name}' is not there: put the file into models/{MODEL_FOLDER}, or choose another one "
            "in Load CFM Model (R refreshes its list)"
        )
    return Path(found)


def load_model(name: str) -> HostModel:
    """Read a model into the host's care. Raises ValueError, one sentence, for a missing or foreign file."""
    path = model_path(name)
    try:
        config, _ = read_model_file(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error}): get the file again") from error
    state = comfy.utils.load_torch_file(str(path), safe_load=True)
    maps = take_maps(state)
    device = mm.get_torch_device()
    allowed = [torch.float16, torch.bfloat16, torch.float32]
    weights = mm.unet_dtype(
        device=device,
        model_params=comfy.utils.calculate_parameters(state),
        supported_dtypes=allowed,
        weight_dtype=comfy.utils.weight_dtype(state),
    )
    if weights not in allowed:  # 8 and 64 bits on request of a command line flag that means the big model
        weights = torch.float32
    compute = mm.unet_manual_cast(weights, device, allowed) or weights
    # Layers that follow the type of their input: the same half weights can also be run in float32.
    net = UNet(
        config.net,
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
    return HostModel(name, config, patcher, compute, maps)


def is_out_of_memory(error: BaseException) -> bool:
    return getattr(mm, "is_oom", lambda e: isinstance(e, mm.OOM_EXCEPTION))(error)


# Latents


class Latents:
    """The tensor in a LATENT as networks see it, (B, C, h, w) float32, and the way back to what nodes pass on."""

    def __init__(self, latent: dict[str, Any], what: str = "samples") -> None:
        """Raises ValueError for what is no picture: video, audio, nested, not finite or all zero latents."""
        samples = latent["samples"]
        if getattr(samples, "is_nested", False):
            raise ValueError(f"{what} holds several latents in one (video with sound): expected those of pictures")
        self.origin, self.frames = latent, samples.ndim == 5
        if self.frames:
            if samples.shape[2] != 1:
                raise ValueError(
                    f"{what} is a video latent of {samples.shape[2]} frames: expected pictures; lift frames one by one"
                )
            samples = samples.squeeze(2)
        if samples.ndim != 4:
            raise ValueError(
                f"{what} has shape {tuple(samples.shape)}: expected the latents of pictures, "
                "(batch, channels, height, width)"
            )
        if not samples.isfinite().all():
            raise ValueError(
                f"{what} holds values that are not finite (NaN or infinity): the node before it failed; "
                "if that is a VAE or a sampler in half precision, run it in float32"
            )
        if not samples.any():
            raise ValueError(
                f"{what} is all zeros, as from Empty Latent Image: connect the latent of a picture, "
                "from KSampler or VAE Encode"
            )
        self.raw = samples.float()

    @property
    def batch_index(self) -> list[int]:
        return list(self.origin.get("batch_index") or range(self.raw.shape[0]))

    def repack(self, raw: Tensor, **entries: Any) -> dict[str, Any]:
        """A LATENT with `raw` in place of the samples, `entries` set, and every other key kept."""
        latent = self.origin.copy()
        latent.pop("downscale_ratio_spacial", None)  # newer hosts: of empty latents only
        latent.pop("downscale_ratio_temporal", None)
        return {**latent, **self.pack(raw), **entries}

    def pack(self, raw: Tensor) -> dict[str, Any]:
        """A LATENT of `raw` alone, where its rows are not those that came in."""
        dtype = getattr(mm, "intermediate_dtype", lambda: torch.float32)()
        raw = raw.to(mm.intermediate_device(), dtype)
        return {"samples": raw.unsqueeze(2) if self.frames else raw}


def latent_format(space: str) -> comfy.latent_formats.LatentFormat:
    """Scaling to and from what nodes pass on (``process_in``, ``process_out``), and the colours of previews."""
    return _FORMATS[space]()


def choose_space(model: CFMModel, choice: str) -> LatentSpace:
    """The latent space of the model, or the one chosen instead. Raises ValueError where channels differ."""
    if choice == "auto":
        return model.space
    space = LATENT_SPACES[choice]
    if space.channels != model.space.channels:
        raise ValueError(
            f"latent_space is {choice} ({space.channels} channels) and the model was trained on {model.space.name} "
            f"({model.space.channels} channels): choose auto, or a model of that family"
        )
    return space


# Autoencoders


class HostVAE:
    """A VAE of the host as pixel-space upsampling wants it: (B, 3, H, W) images in [0, 1], scaled latents.

    In tiles of `tile` latent pixels on a side, or `VAE_TILE`, where `tile` > 0; else the host decides, by memory.
    """

    coarse = False

    def __init__(self, vae: comfy.sd.VAE, space: LatentSpace, tile: int = 0) -> None:
        pixels, channels = vae.spacial_compression_decode(), vae.latent_channels
        if getattr(vae, "latent_dim", 2) != 2 or (channels, pixels) != (space.channels, space.pixels):
            raise ValueError(
                f"the VAE has latents of {channels} channels and {pixels} pixels a side, the CFM model works on "
                f"{space.name} ones of {space.channels} and {space.pixels}: connect the VAE these latents come from"
            )
        self.vae, self.format, self.pixels = vae, latent_format(space.name), space.pixels
        self.tile = max(tile, VAE_TILE) if tile else 0

    def decode(self, latents: Tensor) -> Tensor:
        raw = self.format.process_out(latents)
        if self.tile and max(raw.shape[2:]) > self.tile:
            images = self.vae.decode_tiled(raw, tile_x=self.tile, tile_y=self.tile, overlap=self.tile // 4)
        else:
            images = self.vae.decode(raw)
        return images.movedim(-1, 1).to(latents)  # the host leaves them on a device of its own choice

    def encode(self, images: Tensor) -> Tensor:
        images, tile = images.movedim(1, -1), self.tile * self.pixels
        if tile and max(images.shape[1:3]) > tile:
            raw = self.vae.encode_tiled(images, tile_x=tile, tile_y=tile, overlap=tile // 4)
        else:
            raw = self.vae.encode(images)
        return self.format.process_in(raw)


class ShippedVAE:
    """The small autoencoder that comes with FMBoost, in the host's care; it makes windows of its own."""

    coarse = True

    def __init__(self, path: Path) -> None:
        vae = load_vae(path)
        device, offload = mm.vae_device(), mm.vae_offload_device()
        self.vae, self.device = vae, device
        self.patcher = comfy.model_patcher.ModelPatcher(vae, load_device=device, offload_device=offload)

    def encode(self, images: Tensor) -> Tensor:
        self._load()
        return self.vae.encode(images.to(self.device)).to(images)

    def decode(self, latents: Tensor) -> Tensor:
        self._load()
        return self.vae.decode(latents.to(self.device)).to(latents)

    def _load(self) -> None:
        # In full: its layers are torch's own, which the host cannot feed one by one.
        mm.load_models_gpu([self.patcher], force_full_load=True)


def find_vae(
    model: HostModel, vae: comfy.sd.VAE | None, space: LatentSpace, back_projection: int | None = None
) -> Callable[[int], VAE] | None:
    """The autoencoder for pixel-space upsampling and back projection, by tile size: the one connected, else the TAESD
    of the family in the host's folders, else the one that ships; None where the model needs none. Raises ValueError
    where there is none."""
    if model.config.flow.upsampling != "psu" and not back_projection:
        return None
    if vae is not None:
        return partial(HostVAE, vae, space)
    loader, shipped = comfy_nodes.VAELoader, shipped_vae(space.name)
    if space.taesd in loader.vae_list(loader):
        log.info("CFM Latent Upscale: no VAE connected, using %s from models/vae_approx", space.taesd)
        return partial(HostVAE, loader().load_vae(space.taesd)[0], space)
    if shipped is not None:
        message = "CFM Latent Upscale: no VAE connected, using %s of FMBoost, which is too coarse for back projection"
        log.info(message, shipped.stem)
        small = ShippedVAE(shipped)
        return lambda tile: small
    raise ValueError(
        f"the CFM model '{model.name}' works with pixels (pixel-space upsampling, back projection) and has no "
        f"autoencoder: connect the VAE of your checkpoint to the vae input, or put {space.taesd}_encoder and "
        f"{space.taesd}_decoder into models/vae_approx"
    )


# Progress


class Progress:
    """The node's progress bar, with the current estimate of the result as its picture."""

    def __init__(self, device: torch.device, space: str, lifts: int, evaluations: int | None) -> None:
        """`evaluations` a lift of one image; None where the solver chooses them: then progress is time in the flow."""
        self.per_lift = evaluations or 1000
        self.evaluations = 0
        self.bar = comfy.utils.ProgressBar(lifts * self.per_lift)
        self.previewer = latent_preview.get_previewer(device, latent_format(space))

    def update(self, lift: int, evaluation: int, total: int | None, t: float, estimate: Tensor) -> None:
        """Report evaluation number `evaluation` of lift number `lift`; `estimate` (1, C, h, w), scaled."""
        self.evaluations += 1
        done = evaluation if total else round(t * self.per_lift)
        value = lift * self.per_lift + done
        self.bar.update_absolute(value, self.bar.total, self._picture(estimate))

    def _picture(self, estimate: Tensor) -> Any:
        if self.previewer is None:
            return None
        try:
            factor = PREVIEW_SIZE / max(estimate.shape[2:])
            if factor < 1:  # a preview is shown small: decoding all of a large latent would cost more than a step
                size = [max(1, round(side * factor)) for side in estimate.shape[2:]]
                estimate = F.interpolate(estimate, size, mode="area")
            return self.previewer.decode_latent_to_preview_image("JPEG", estimate)
        except mm.InterruptProcessingException:
            raise
        except Exception:
            log.exception("FMBoost: no preview in this run, its picture could not be made")
            self.previewer = None
            return None
