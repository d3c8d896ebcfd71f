"""Attention Scaling: self-attention of a U-Net at another size than it was trained at (paper 6.2)."""

from __future__ import annotations

import math
from typing import Any

from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy_api.latest import io
from torch import Tensor

from .host.schema import LATENT_CATEGORY, schema

PIXELS = 8  # a latent pixel of the models this works for


def temperature(tokens: int, trained: float) -> float:
    """sqrt(log N / log T): what keeps the entropy of attention over N tokens at that of the T it was trained on."""
    return math.sqrt(math.log(tokens) / math.log(trained)) if tokens > 1 and trained > 1 else 1.0


class AttentionScaling(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FMBoost_AttentionScaling",
            display_name="Attention Scaling",
            category=LATENT_CATEGORY,
            description=(
                "Adapts the self-attention of SD 1.x, SD 2.x and SDXL to pictures of another size than they were "
                "trained on, so that a KSampler can work a little above or below that size before the latents are "
                "lifted."
            ),
            search_aliases=["attention temperature", "resolution", "entropy", "FMBoost", "scale attention"],
            inputs=[
                io.Model.Input("model", tooltip="A model with a U-Net: SD 1.x, SD 2.x or SDXL."),
                io.Int.Input(
                    "training_size",
                    default=512,
                    min=64,
                    max=4096,
                    step=64,
                    tooltip="Side of the pictures it was trained on, in pixels: 512 SD 1.x, 768 SD 2.1, 1024 SDXL.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="The model, for KSampler; unchanged at its training size.",
                ),
            ],
        )

    @classmethod
    def execute(cls, model: Any, training_size: int) -> io.NodeOutput:
        network = model.get_model_object("diffusion_model")
        if not isinstance(network, UNetModel):
            raise ValueError(
                f"Attention Scaling works for U-Nets (SD 1.x, SD 2.x, SDXL) and this model is a "
                f"{type(network).__name__}: leave the node out"
            )
        trained_area = (training_size / PIXELS) ** 2

        def scale_queries(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
            # These come before the projections; the one of q has no bias, so the factor passes through it.
            height, width = options["original_shape"][-2:]
            tokens = k.shape[1]
            return q * temperature(tokens, tokens * trained_area / (height * width)), k, v

        model = model.clone()
        model.set_model_attn1_patch(scale_queries)
        return io.NodeOutput(model)
