"""Write a checkpoint of the shape of SD 1.5 with random weights: `python random_checkpoint.py COMFYUI OUT.safetensors`.

Run by ComfyUI's Python, whose own classes say which tensors there are. About 2 GB and half a minute.
"""

import json
import sys
from pathlib import Path

comfy_path, out = Path(sys.argv[1]), Path(sys.argv[2])
sys.path.insert(0, str(comfy_path))
sys.argv = ["comfy", "--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.clip_model  # noqa: E402
import comfy.ops  # noqa: E402
import torch  # noqa: E402
from comfy.ldm.models.autoencoder import AutoencoderKL  # noqa: E402
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "num_heads": 8,
    "use_spatial_transformer": True,
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "context_dim": 768,
    "legacy": False,
}
VAE = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}
operations, clip = comfy.ops.disable_weight_init, json.loads((comfy_path / "comfy/sd1_clip_config.json").read_text())
with torch.device("meta"):
    parts = {
        "model.diffusion_model.": UNetModel(**UNET, operations=operations),
        "first_stage_model.": AutoencoderKL(ddconfig=VAE, embed_dim=4),
        "cond_stage_model.transformer.": comfy.clip_model.CLIPTextModel(clip, torch.float16, "meta", operations),
    }
torch.manual_seed(0)
state = {}
for prefix, part in parts.items():
    for name, value in part.state_dict().items():
        if "text_projection" in name:
            continue
        norm = value.ndim == 1 and name.endswith("weight")
        weight = torch.ones(value.shape) if norm else torch.randn(value.shape) * 0.02
        state[prefix + name] = weight.half()
save_file(state, out)
