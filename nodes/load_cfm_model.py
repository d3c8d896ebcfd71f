"""Load CFM Model: a file in, a model in the host's care out."""

from __future__ import annotations

from comfy_api.latest import io

from .host.files import MODEL_FOLDER, model_names, model_path
from .host.memory import load_model
from .host.schema import LOADER_CATEGORY, CFMType, schema

# Takes the place of the first model: the host prints its list where it refuses a name that is not in it.
NO_MODEL = f"no CFM model was found: put one into models/{MODEL_FOLDER}"


class LoadCFMModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FMBoost_LoadCFMModel",
            display_name="Load CFM Model",
            category=LOADER_CATEGORY,
            description=(
                "Loads a Coupling Flow Matching model, which lifts latents to a larger size. The file knows its latent "
                f"family, its scale and how it was trained. Models go into models/{MODEL_FOLDER}."
            ),
            search_aliases=["latent upscaler", "flow matching", "FMBoost", "super resolution model", "upscale model"],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=model_names() or [NO_MODEL],
                    tooltip=(
                        "A model that comes with FMBoost (fmboost-<family>-x<scale>), or a .safetensors file in "
                        f"models/{MODEL_FOLDER}. Choose the family your latents come from: sd15, sdxl, sd3, flux, "
                        "flux2."
                    ),
                ),
            ],
            outputs=[
                CFMType.Output(display_name="model", tooltip="The model, for CFM Latent Upscale and Noise Augment."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, model_name: str) -> str:
        """Another value, so another load, when the file was replaced."""
        try:
            status = model_path(model_name).stat()
        except (ValueError, OSError):
            return "missing"
        return f"{status.st_mtime_ns}:{status.st_size}"

    @classmethod
    def execute(cls, model_name: str) -> io.NodeOutput:
        return io.NodeOutput(load_model(model_name))
