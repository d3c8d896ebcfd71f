"""Write `tests/core/goldens`: tiny networks trained, saved and sampled by the code of the paper's authors.

    git clone https://github.com/CompVis/fm-boosting AUTHORS
    pip install pytorch-lightning omegaconf wandb
    python tools/make_goldens.py AUTHORS

Nothing of theirs is copied: their trainer writes the checkpoints, and their sampler and network the results.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fmboost_core.storage import write_tensors

GOLDENS = Path(__file__).parents[1] / "tests" / "core" / "goldens"
TRAINED = ("input_blocks.0.", "out.", "pool.", "un_pool.")
"""The layers that the trainer changes; both sets of weights share the others, so that a file holds these once."""

NET = {
    "in_channels": 8,
    "model_channels": 32,
    "out_channels": 4,
    "num_res_blocks": 1,
    "channel_mult": [1],
    "attention_resolutions": [1],
    "dropout": 0.0,
    "conv_resample": True,
    "dim_head": 16,
    "num_heads": 2,
    "use_linear_attn": False,
    "use_scale_shift_norm": True,
    "pool_factor": -1,
}
CASES: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {  # seed, network, trainer
    "coupling_t400": (
        2,
        {"channel_mult": [1, 1], "attention_resolutions": [2]},
        {"upsampling_mode": "nearest", "noising_step": 400},
    ),
    "gaussian_linear_attn": (
        2,
        {"use_linear_attn": True},
        {"upsampling_mode": "nearest", "start_from_noise": True, "noising_step": -1},
    ),
    "bilinear_pool2": (6, {"pool_factor": 2}, {"upsampling_mode": "bilinear", "noising_step": 200}),
}
PAPER = {**NET, "channel_mult": [1, 2, 4, 8], "num_res_blocks": 3, "attention_resolutions": [8, 16], "num_heads": 4}
SOLVERS = (("euler", 5), ("euler", 11), ("midpoint", 4), ("heun3", 4), ("rk4", 4), ("dopri5", 2))  # grid points
LOW, HIGH = 8, 16  # latent pixels


def fill(net: torch.nn.Module, seed: int = 0) -> None:
    """Weights that numpy's frozen generator makes again, in the order of their names."""
    rng = np.random.RandomState(seed)
    for name, weight in sorted(net.named_parameters()):
        mean = float(weight.ndim == 1 and name.endswith("weight"))  # the norms' scales are about 1
        spread = 1.2 * weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.3
        weight.data = torch.from_numpy((mean + spread * rng.standard_normal(tuple(weight.shape))).astype(np.float32))


def case(name: str, folder: Path) -> str:
    """Train three steps, save the checkpoint, and sample from its two sets of weights."""
    import pytorch_lightning as lightning
    from fmboost.trainer import TrainerFMBoost
    from omegaconf import OmegaConf

    seed, network, given = CASES[name]
    settings = {
        "low_res_size": LOW,
        "high_res_size": 8 * HIGH,
        "upsampling_mode_context": given["upsampling_mode"],
        "upsampling_mode_ca_context": "identity",
        "start_from_noise": False,
        "concat_context": True,
        "ca_context": False,
        "lr": 0.002,
        "ema_rate": 0.9,
        "ema_update_every": 1,
        "ema_update_after_step": 0,
        "use_ema_for_sampling": True,
        **given,
        "fm_cfg": {
            "target": "fmboost.flow.FlowModel",
            "params": {
                "schedule": "linear",
                "net_cfg": {"target": "fmboost.models.unet.model.EfficientUNet", "params": NET | network},
            },
        },
    }
    torch.manual_seed(seed)
    module = TrainerFMBoost(**OmegaConf.create(settings))
    fill(module.model.net, seed)
    for parameter_name, parameter in module.model.net.named_parameters():
        parameter.requires_grad = parameter_name.startswith(TRAINED)
    module.ema_model.copy_params_from_model_to_ema()
    kinds = {"image": (3, 8 * HIGH, 8 * HIGH), "latent": (4, HIGH, HIGH), "latent_lowres": (4, LOW, LOW)}
    batches = [{kind: torch.randn(2, *shape) for kind, shape in kinds.items()} for _ in range(3)]
    trainer = lightning.Trainer(
        max_steps=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))
    online, averaged = module.model, module.ema_model.ema_model
    for ours, theirs in zip(online.parameters(), averaged.parameters(), strict=True):
        if not ours.requires_grad:
            assert torch.equal(ours, theirs)
            theirs.data = ours.data
    trainer.save_checkpoint(GOLDENS / f"{name}.ckpt", weights_only=name != "coupling_t400")
    low = 3 * torch.randn(2, 4, LOW, LOW)
    noise = torch.randn(2, 4, HIGH, HIGH)
    with torch.no_grad():
        _, upsampled, _ = module.get_source_and_context(low, HIGH)
        x0 = noise
        if module.diffusion is not None:
            x0 = module.diffusion.q_sample(upsampled, settings["noising_step"], noise)
        tensors = {"lowres_latent": low, "upsampled_latent": upsampled, "noise": noise, "x0": x0}
        if module.diffusion is not None:
            tensors["alpha_bar_t"] = module.diffusion.alpha_bar_t
        tensors["velocity_t0.37"] = averaged(x0, torch.tensor(0.37), context=upsampled)
        for method, points in SOLVERS:
            sampling = {"method": method, "num_steps": points}
            tensors[f"x1_{method}_numsteps{points}"] = averaged.generate(x0, sampling, context=upsampled)
        sampling = {"method": "euler", "num_steps": 5}
        tensors["x1_online_euler_numsteps5"] = online.generate(x0, sampling, context=upsampled)
    save(name, tensors, settings)
    moved = (tensors["x1_rk4_numsteps4"] - x0).abs().max()
    apart = (tensors["x1_online_euler_numsteps5"] - tensors["x1_euler_numsteps5"]).abs().max()
    count = sum(p.numel() for p in online.parameters())
    return f"{count:,} parameters, moved {moved:.2f}, online and average {apart:.2f} apart"


def paper_network() -> str:
    """The layout of the paper's network on fewer channels; its weights are made again by whoever reads this."""
    from fmboost.models.unet.model import EfficientUNet

    net = EfficientUNet(**PAPER).eval()
    fill(net)
    generator = torch.Generator().manual_seed(0)
    x, context = (torch.randn(2, 4, 16, 24, generator=generator) for _ in range(2))
    t = torch.tensor([0.1, 0.8])
    with torch.no_grad():
        velocity = net(x, t, context)
    save("paper_network", {"x": x, "context": context, "t": t, "velocity": velocity}, PAPER)
    return f"{sum(p.numel() for p in net.parameters()):,} parameters, velocity {velocity.std():.2f}"


def save(name: str, tensors: dict[str, torch.Tensor], settings: dict[str, Any]) -> None:
    path = GOLDENS / f"{name}.golden.safetensors"
    write_tensors(
        {k: v.detach().contiguous().clone() for k, v in tensors.items()}, path, {"config": json.dumps(settings)}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("authors", type=Path, help="a checkout of CompVis/fm-boosting")
    sys.path.insert(0, str(parser.parse_args().authors))
    with tempfile.TemporaryDirectory() as folder:
        for name in CASES:
            print(f"{name}: {case(name, Path(folder))}")
    print(f"paper_network: {paper_network()}")


if __name__ == "__main__":
    main()
