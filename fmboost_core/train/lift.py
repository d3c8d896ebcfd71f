"""Training a model that lifts latents: data, objective, validation and file, for the loop to run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..files.model_file import save_model
from ..images.folders import find_photos
from ..images.resize import enlarge
from ..model import CFMModel, build_network
from ..sampling import STEPS, Sampling
from ..unet import UNet
from ..vae.autoencoder import Autoencoder
from ..vae.files import load_vae
from .disturb import disturb, disturb_context
from .encode import Encoder, Variant, encode_photos
from .few_step import FewStep
from .latents import LatentCrops, LatentSet, is_packed
from .loop import ADVERSARIES, NETWORK, Losses
from .objectives import context_loss, context_of, flow_loss
from .settings import RunSettings
from .start import start_from
from .validate import HeldOut, held_out, validate

log = logging.getLogger(__name__)


class LiftTask:
    """The task of `settings` in the folder `out`; see `loop.Task`."""

    def __init__(self, settings: RunSettings, accelerator: Accelerator, out: Path, fresh: bool) -> None:
        self.settings, self.out, self.device = settings, out, accelerator.device
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        train = settings.train
        torch.manual_seed(train.seed)  # decides the first weights; every later draw has its own generator
        net = build_network(settings.model_config())
        if train.start_from and fresh:
            said = start_from(net, settings.model_config(), train.start_from)
            if accelerator.is_main_process:
                log.info(said)
        if train.objective == "context":
            for name, parameter in net.named_parameters():
                parameter.requires_grad_(name.startswith("context_encoder."))
        self.modules: dict[str, nn.Module] = {NETWORK: net}
        self.rates = {NETWORK: 1.0, ADVERSARIES: settings.few_step.adversary_rate}
        self.few_step: FewStep | None = None
        if train.objective == "few_step":
            self.few_step = FewStep(settings, self.vae)
            self.modules[ADVERSARIES] = self.few_step.adversaries
        self.unwrap = accelerator.unwrap_model
        self.held = self._held_out() if accelerator.is_main_process else []
        self.crops = self._crops()

    def batch(self, step: int) -> dict[str, Tensor]:
        train = self.settings.train
        rng = np.random.default_rng((train.seed, step, self.rank, 1))
        cascaded = bool(rng.random() < train.cascaded)
        batch = self.crops.batch(step, train.batch // self.world, self.rank, self.world)
        if cascaded:
            batch = self._lifted_low(batch, seed=int(rng.integers(2**20)))
        if train.disturbed:
            draw = torch.Generator().manual_seed(int(rng.integers(2**62)))
            change = disturb_context if self.settings.flow.upsampling == "psu" else disturb
            batch = change(batch, train.disturbed, draw)
        return batch

    def losses(self, modules: dict[str, nn.Module], batch: dict[str, Tensor], step: int) -> Losses:
        settings, net = self.settings, modules[NETWORK]
        context = context_of(self.unwrap(net), settings.flow, batch)
        if settings.train.objective == "context":
            yield NETWORK, context_loss(context, settings.flow, batch), {}
            return
        channels = batch["high"].shape[1]
        upsampled, features = context[:, :channels], context[:, channels:]
        # The source depends on the upsampled latent, too: a gradient through the network alone would run away.
        context = torch.cat([upsampled.detach(), features], dim=1)
        if self.few_step is not None:
            losses = self.few_step.losses(modules, batch, context, step)
        else:
            losses = iter([(NETWORK, flow_loss(settings.train.objective, net, settings.flow, batch, context), {})])
        for name, loss, seen in losses:
            if name == NETWORK and settings.context_encoder is not None:
                error = (upsampled - batch["high"]).abs().mean()
                loss, seen = loss + settings.train.upsampled_weight * error, {**seen, "upsampled": error.detach()}
            yield name, loss, seen

    def validate(self, weights: dict[str, Tensor], picture: Path) -> dict[str, float]:
        if not self.held:
            return {}
        config = self.settings.model_config()
        net = build_network(config, device=self.device)
        net.load_state_dict(weights)
        steps = {"regression": 1, "few_step": self.settings.few_step.steps}.get(self.settings.train.objective, STEPS)
        return validate(CFMModel(config, net.eval()), self.held, self.vae, picture, steps)

    def export(self, weights: dict[str, Tensor], facts: Mapping[str, object]) -> Path:
        data, path = self.settings.data, self.out / f"{self.settings.name}.safetensors"
        facts = {**facts, "short_sides": list(data.short_sides), "data_license": data.license}
        save_model(path, self.settings.model_config(facts), weights)
        return path

    @cached_property
    def vae(self) -> Autoencoder:
        data = self.settings.data
        if not data.vae:
            raise ValueError(
                f"objective {self.settings.train.objective} and validation decode pictures: set data.vae, or leave "
                "data.validation out"
            )
        return run_vae(self.settings, self.device)

    def _crops(self) -> LatentCrops:
        data, train = self.settings.data, self.settings.train
        if is_packed(data.cache):
            examples, groups = LatentSet.load(data.cache), ()
            self._check_packed(examples)
        else:
            examples, groups = encode_run(self.settings, self.vae, (self.rank, self.world))
        shares = data.shares if groups else ()
        kinds = ["high", "low"] + ["lower"] * (train.cascaded > 0)
        if self.settings.flow.upsampling == "psu" or train.objective == "context":
            kinds += ["psu", "picture"]
        return LatentCrops(
            examples.of(kinds).to(self.device),
            crop=train.crop,
            scale=self.settings.flow.scale,
            seed=train.seed,
            groups=groups,
            shares=shares,
        )

    def _held_out(self) -> list[HeldOut]:
        data = self.settings.data
        if not data.validation:
            return []
        if not data.vae:
            log.info("no validation: it needs an autoencoder, and data.vae is empty")
            return []
        photos = find_photos(data.validation)[: self.settings.train.validation_photos]
        return held_out(photos, self.vae, self.settings.flow, data.short_sides[0])

    @torch.no_grad()
    def _lifted_low(self, batch: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
        """A batch whose low latents are lifts of latents smaller still, as the second lift of a cascade meets them."""
        model = CFMModel(self.settings.model_config(), self._network())
        sampling = Sampling(steps=2, seed=seed)
        if self.settings.flow.upsampling != "psu":
            return {**batch, "low": model.upscale(batch["lower"], sampling)}
        low = model.upscale(batch["lower"], sampling, vae=self.vae)
        picture = self.vae.decode(low)
        return {**batch, "low": low, "picture": picture, "psu": self.vae.encode(enlarge(picture, model.scale))}

    def _network(self) -> UNet:
        net = self.unwrap(self.modules[NETWORK])
        assert isinstance(net, UNet)
        return net

    def _check_packed(self, examples: LatentSet) -> None:
        wanted = {"latent_space": self.settings.data.latent_space, "scale": self.settings.flow.scale}
        if self.settings.data.vae:
            wanted["autoencoder"] = self.vae.fingerprint()
        if self.settings.flow.upsampling == "psu" or self.settings.train.objective == "context":
            wanted["psu"] = 1
        found = {name: examples.identity.get(name) for name in wanted}
        if found != wanted:
            raise ValueError(
                f"the packed latents {self.settings.data.cache} were made with {found}, this run has {wanted}: pack "
                "others with 'fmboost pack'"
            )


def run_vae(settings: RunSettings, device: torch.device | str = "cpu") -> Autoencoder:
    """The autoencoder of a run, in the precision of its latents."""
    dtype = torch.bfloat16 if settings.train.precision == "bf16" else torch.float32
    return load_vae(settings.data.vae, space=settings.data.latent_space, device=device, dtype=dtype)


def encode_run(settings: RunSettings, vae: Autoencoder, share: tuple[int, int]) -> tuple[LatentSet, list[int]]:
    """The examples of a run, encoded where they are not cached yet, and the number of the folder of each."""
    data, flow = settings.data, settings.flow
    if settings.train.objective == "context":  # which learns from pixel-space upsampling
        flow = replace(flow, upsampling="psu")
    encoder = Encoder(vae, flow)
    variants = [
        Variant(side, flip) for flip in ((False, True) if data.flips else (False,)) for side in data.short_sides
    ]
    files, groups = [], []
    for number, folder in enumerate(data.photos):
        found = encode_photos(find_photos(folder), variants, data.cache, encoder, share)
        files += found
        groups += [number] * len(found)
    return LatentSet.read(files, encoder.identity), groups
