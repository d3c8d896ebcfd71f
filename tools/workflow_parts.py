"""What tools/workflow_specs.py makes templates and blocks of: nodes with their settings, notes, links to files."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Group = list[tuple[str, list["Node"]]]
Columns = list[Group]
HUB = "https://huggingface.co"
SIZES = {  # heights, as the frontend draws them
    "CheckpointLoaderSimple": 98,
    "LoraLoaderModelOnly": 82,
    "UNETLoader": 82,
    "CLIPLoader": 106,
    "VAELoader": 58,
    "ModelSamplingDiscrete": 82,
    "ModelSamplingAuraFlow": 58,
    "CLIPTextEncode": 110,
    "ConditioningZeroOut": 30,
    "EmptyLatentImage": 106,
    "EmptySD3LatentImage": 106,
    "EmptyFlux2LatentImage": 106,
    "KSampler": 262,
    "KSamplerSelect": 58,
    "RandomNoise": 82,
    "CFGGuider": 98,
    "Flux2Scheduler": 106,
    "SamplerCustomAdvanced": 112,
    "LoadImage": 314,
    "VAEEncode": 50,
    "VAEEncodeTiled": 150,
    "VAEDecode": 50,
    "VAEDecodeTiled": 150,
    "SaveImage": 330,
    "FMBoost_LoadCFMModel": 58,
    "FMBoost_CFMLatentUpscale": 296,
    "FMBoost_NoiseAugment": 134,
    "FMBoost_AttentionScaling": 58,
}


@dataclass(frozen=True)
class Node:
    """`values` are widget values, or for a link the other node's key and its output slot; `OPEN` is no link."""

    key: str
    kind: str
    values: dict[str, Any] = field(default_factory=dict)
    title: str = ""
    height: int = 0
    models: list[dict[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Template:
    """`columns` from left to right, each a list of groups: (title or "", nodes from top to bottom)."""

    api: str
    columns: Columns


@dataclass(frozen=True)
class Block:
    """Ports are (name, type, [(node key, the node's input or output)]); `widgets` are (node key, widget)."""

    name: str
    description: str
    nodes: list[Node]
    inputs: list[tuple[str, str, list[tuple[str, str]]]]
    outputs: list[tuple[str, str, list[tuple[str, str]]]]
    widgets: tuple[tuple[str, str], ...] = (
        ("lift", "steps"),
        ("lift", "seed"),
        ("lift", "control_after_generate"),
        ("model", "model_name"),
    )
    category: str = "Image generation and editing/Upscale"
    aliases: tuple[str, ...] = ("upscale", "upscaler", "enlarge", "hires fix", "2x", "super resolution", "FMBoost")


def file(name: str, address: str, folder: str) -> dict[str, str]:
    return {"name": name, "url": f"{HUB}/{address}", "directory": folder}


SD15_FILE = file(
    "v1-5-pruned-emaonly-fp16.safetensors",
    "Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/v1-5-pruned-emaonly-fp16.safetensors",
    "checkpoints",
)
SDXL_FILE = file(
    "sd_xl_base_1.0.safetensors",
    "stabilityai/stable-diffusion-xl-base-1.0/resolve/main/sd_xl_base_1.0.safetensors",
    "checkpoints",
)
SD35_FILE = file(
    "sd3.5_large_fp8_scaled.safetensors",
    "Comfy-Org/stable-diffusion-3.5-fp8/resolve/main/sd3.5_large_fp8_scaled.safetensors",
    "checkpoints",
)
LCM_FILE = file(
    "lcm-lora-sdv1-5.safetensors",
    "latent-consistency/lcm-lora-sdv1-5/resolve/main/pytorch_lora_weights.safetensors",
    "loras",
)


@dataclass(frozen=True)
class Split:
    """A diffusion model that comes in three files; `kind` is what CLIPLoader calls its text encoder."""

    name: str
    model: dict[str, str]
    text: dict[str, str]
    kind: str
    vae: dict[str, str]


Z = "Comfy-Org/z_image_turbo/resolve/main/split_files"
KLEIN = "Comfy-Org/flux2-klein/resolve/main/split_files"
Z_IMAGE = Split(
    "Z-Image",
    file("z_image_turbo_bf16.safetensors", f"{Z}/diffusion_models/z_image_turbo_bf16.safetensors", "diffusion_models"),
    file("qwen_3_4b.safetensors", f"{Z}/text_encoders/qwen_3_4b.safetensors", "text_encoders"),
    "lumina2",
    file("ae.safetensors", f"{Z}/vae/ae.safetensors", "vae"),
)
FLUX2_KLEIN = Split(
    "FLUX.2 Klein",
    file("flux-2-klein-4b.safetensors", f"{KLEIN}/diffusion_models/flux-2-klein-4b.safetensors", "diffusion_models"),
    file("qwen_3_4b.safetensors", f"{KLEIN}/text_encoders/qwen_3_4b.safetensors", "text_encoders"),
    "flux2",
    file("flux2-vae.safetensors", "Comfy-Org/flux2-dev/resolve/main/split_files/vae/flux2-vae.safetensors", "vae"),
)
OPEN = ("", 0)  # an input of a block: what is connected to it comes from outside
PROMPT = "a lighthouse on a cliff at sunset, crashing waves, photograph, sharp focus"


def wired(**origins: str) -> dict[str, tuple[str, int]]:
    """Inputs that are each linked to the first output of a node, by its key."""
    return {name: (key, 0) for name, key in origins.items()}


def taesd(name: str) -> list[dict[str, str]]:
    files = [f"{name}_{part}.safetensors" for part in ("encoder", "decoder")]
    source = {"taesd": "taesd", "taesdxl": "taesdxl", "taef1": "taef1"}[name]
    return [file(f, f"madebyollin/{source}/resolve/main/{f}", "vae_approx") for f in files]


def note(text: str, height: int) -> Node:
    return Node("note", "MarkdownNote", {"text": text}, title="Read me", height=height)


def where(model: str, other: str) -> str:
    """The end of every note: which files the template needs and where they go."""
    return (
        f"\n\n**CFM model**: `{model}` comes with FMBoost; there is nothing to download. Models of your own go into "
        f"`models/latent_upscale_models`.\n\n{other}"
    )


def checkpoint(models: dict[str, str], family: str) -> str:
    return (
        f"**Checkpoint**: any {family} model in `models/checkpoints`, for example [{models['name']}]({models['url']})."
    )


def vae_note(name: str, family: str) -> str:
    return (
        f"**VAE**: `{name}_encoder.safetensors` and `{name}_decoder.safetensors` go into `models/vae_approx` "
        f"([both]({HUB}/madebyollin/{name}/tree/main)). Any {family} VAE in `models/vae` serves as well."
    )


def cfm(model: str) -> Node:
    return Node("model", "FMBoost_LoadCFMModel", {"model_name": model})


def lift(vae: tuple[str, int], samples: str = "sampler", key: str = "lift", **settings: Any) -> Node:
    values = {"model": ("model", 0), "samples": (samples, 0), "vae": vae, "steps": 4, "seed": 0, **settings}
    return Node(key, "FMBoost_CFMLatentUpscale", values)


def load_checkpoint(models: dict[str, str]) -> Node:
    return Node("checkpoint", "CheckpointLoaderSimple", {"ckpt_name": models["name"]}, models=[models])


def prompts(clip: tuple[str, int]) -> list[Node]:
    return [
        Node("positive", "CLIPTextEncode", {"text": PROMPT, "clip": clip}, "Positive prompt"),
        Node("negative", "CLIPTextEncode", {"text": "blurry, low quality, watermark", "clip": clip}, "Negative prompt"),
    ]


def empty(size: int, kind: str = "EmptyLatentImage") -> Node:
    return Node("empty", kind, {"width": size, "height": size, "batch_size": 1})


def sampler(model: tuple[str, int] = ("checkpoint", 0), **settings: Any) -> Node:
    values = {"steps": 20, "cfg": 7.0, "sampler_name": "dpmpp_2m", "scheduler": "karras", **settings}
    wires = {"model": model, **wired(positive="positive", negative="negative", latent_image="empty")}
    return Node("sampler", "KSampler", {**wires, "seed": 42, **values, "denoise": 1.0})


def decode(prefix: str, vae: tuple[str, int], *, tiled: bool = False, height: int = 0) -> list[Node]:
    values = {"samples": ("lift", 0), "vae": vae}
    return [
        Node("decode", "VAEDecodeTiled" if tiled else "VAEDecode", values),
        Node("save", "SaveImage", {"images": ("decode", 0), "filename_prefix": f"fmboost/{prefix}"}, height=height),
    ]


def photo(api: str, model: str, vae: str, text: str, tiled: bool = False) -> Template:
    loader = Node("vae", "VAELoader", {"vae_name": vae}, models=taesd(vae))
    values = {"pixels": ("photo", 0), "vae": ("vae", 0)}
    encode = Node("encode", "VAEEncodeTiled" if tiled else "VAEEncode", values)
    upscale = lift(("vae", 0), "encode", **({"tile_size": 128} if tiled else {}))
    return Template(
        api,
        [
            [("", [note(text, 330)]), ("1. Models", [loader, cfm(model)])],
            [("2. Photo", [Node("photo", "LoadImage", {"image": "example.png"}), encode])],
            [("3. Upscale the latents 2x", [upscale])],
            [("4. Result", decode(api.removeprefix("fmboost_"), ("vae", 0), tiled=tiled))],
        ],
    )


def sampled(
    text: str,
    model: str,
    size: int,
    third: Group,
    fourth: Group,
    *more: Node,
    base: Any = None,
    latent: str = "EmptyLatentImage",
) -> Columns:
    """Text to image with a checkpoint; `more` are nodes between it and KSampler."""
    return [
        [("", [note(text, 330)]), ("1. Models", [load_checkpoint(base or SD15_FILE), cfm(model)])],
        [
            ("2. Prompt and size", [*prompts(("checkpoint", 1)), empty(size, latent)]),
            *([("Model", list(more))] if more else []),
        ],
        third,
        fourth,
    ]


def split_sampled(
    text: str, model: str, split: Split, latent: str, more: tuple[str, list[Node]], third: list[Node], prefix: str
) -> Columns:
    """Text to image with a model in three files: `latent` is the kind of empty latent, `more` a group below it, and
    `third` samples 1024 pixels."""
    vae = ("vae", 0)
    loaders = [
        Node("unet", "UNETLoader", {"unet_name": split.model["name"]}, models=[split.model]),
        Node("clip", "CLIPLoader", {"clip_name": split.text["name"], "type": split.kind}, models=[split.text]),
        Node("vae", "VAELoader", {"vae_name": split.vae["name"]}, models=[split.vae]),
    ]
    files = (
        f"**{split.name}**: [model]({split.model['url']}) into `models/diffusion_models`, [text encoder]"
        f"({split.text['url']}) into `models/text_encoders`, [VAE]({split.vae['url']}) into `models/vae`."
    )
    prompt = [
        Node("positive", "CLIPTextEncode", {"text": PROMPT, "clip": ("clip", 0)}, "Prompt"),
        Node("negative", "ConditioningZeroOut", {"conditioning": ("positive", 0)}),
        empty(1024, latent),
    ]
    return [
        [("1. Models", [*loaders, cfm(model)]), ("", [note(text + where(model, files), 240)])],
        [("2. Prompt and size", prompt), more],
        [("3. Sample at 1024", third), ("4. Upscale the latents 2x", [lift(vae)])],
        [("5. Result", decode(prefix, vae))],
    ]
