"""What the templates and blocks hold, for tools/workflows.py."""

from __future__ import annotations

from .workflow_parts import (
    FLUX2_KLEIN,
    LCM_FILE,
    OPEN,
    SD15_FILE,
    SD35_FILE,
    SDXL_FILE,
    Z_IMAGE,
    Block,
    Node,
    Template,
    cfm,
    checkpoint,
    decode,
    lift,
    photo,
    sampled,
    sampler,
    split_sampled,
    vae_note,
    where,
    wired,
)

VAE = ("checkpoint", 2)
SD15 = where("fmboost-sd15-x2", checkpoint(SD15_FILE, "SD 1.5"))
TEMPLATES = {
    "Photo upscale 2x - SD1.5": photo(
        "fmboost_photo_upscale",
        "fmboost-sd15-x2",
        "taesd",
        "# Upscale a photo 2x\n\nThe photo is encoded to SD 1.5 latents, **CFM Latent Upscale** doubles their size, "
        "and the VAE decodes the result. For photos above 1500 pixels a side, open the template *Photo upscale 2x in "
        "tiles*." + where("fmboost-sd15-x2", vae_note("taesd", "SD 1.5")),
    ),
    "Photo upscale 2x - FLUX": photo(
        "fmboost_flux_photo",
        "fmboost-flux-x2",
        "taef1",
        "# Upscale a photo 2x in FLUX latents\n\nThe 16 channels of FLUX latents keep more of a photo than the 4 of SD "
        "1.5. The same model lifts what FLUX.1, Z-Image, Chroma and Lumina 2 sample."
        + where("fmboost-flux-x2", vae_note("taef1", "FLUX")),
    ),
    "Photo upscale 2x in tiles - SD1.5 2048 to 4096": photo(
        "fmboost_tiled_4096",
        "fmboost-sd15-x2",
        "taesd",
        "# Upscale a large photo 2x in tiles\n\nMemory stays that of a 1024 pixel image: with **tile_size** 128 the "
        "network sees tiles of 128 latent pixels (1024 pixels). They are blended at every step, so there are no seams."
        + where("fmboost-sd15-x2", vae_note("taesd", "SD 1.5")),
        tiled=True,
    ),
    "Hires fix 2x - SD1.5 512 to 1024": Template(
        "fmboost_txt2img_1024",
        sampled(
            "# Hires fix 2x without a second sampling\n\nKSampler works at 512 pixels, the size SD 1.5 was trained at. "
            "**CFM Latent Upscale** makes 1024 pixels of its latents in 4 steps." + SD15,
            "fmboost-sd15-x2",
            512,
            [("3. Sample at 512", [sampler()]), ("4. Upscale the latents 2x", [lift(VAE)])],
            [("5. Result", decode("txt2img_1024", VAE))],
        ),
    ),
    "Hires fix 2x - SDXL 1024 to 2048": Template(
        "fmboost_sdxl_2048",
        sampled(
            "# Hires fix 2x for SDXL\n\nKSampler works at 1024 pixels, **CFM Latent Upscale** makes 2048 of its "
            "latents. Illustrious, Pony and NoobAI have the same latents: choose one of them as the checkpoint."
            + where("fmboost-sdxl-x2", checkpoint(SDXL_FILE, "SDXL")),
            "fmboost-sdxl-x2",
            1024,
            [("3. Sample at 1024", [sampler(steps=25, cfg=6.0)]), ("4. Upscale the latents 2x", [lift(VAE)])],
            [("5. Result", decode("sdxl_2048", VAE))],
            base=SDXL_FILE,
        ),
    ),
    "Hires fix 2x - Z-Image 1024 to 2048": Template(
        "fmboost_zimage_2048",
        split_sampled(
            "# Hires fix 2x for Z-Image\n\nZ-Image has the latents of FLUX, so the FLUX model lifts them: 1024 to 2048 "
            "pixels.",
            "fmboost-flux-x2",
            Z_IMAGE,
            "EmptySD3LatentImage",
            ("Model", [Node("shift", "ModelSamplingAuraFlow", {"model": ("unet", 0), "shift": 3.0})]),
            [sampler(("shift", 0), steps=8, cfg=1.0, sampler_name="res_multistep", scheduler="simple")],
            "zimage_2048",
        ),
    ),
    "Hires fix 2x - FLUX.2 Klein 1024 to 2048": Template(
        "fmboost_flux2_2048",
        split_sampled(
            "# Hires fix 2x for FLUX.2\n\nFLUX.2 Klein samples 1024 pixels in four steps, and **CFM Latent Upscale** "
            "makes 2048 of its latents. FLUX.2 Dev has the same latents.",
            "fmboost-flux2-x2",
            FLUX2_KLEIN,
            "EmptyFlux2LatentImage",
            (
                "Four steps",
                [
                    Node("noise", "RandomNoise", {"noise_seed": 42}),
                    Node("method", "KSamplerSelect", {"sampler_name": "euler"}),
                    Node("sigmas", "Flux2Scheduler", {"steps": 4, "width": 1024, "height": 1024}),
                ],
            ),
            [
                Node(
                    "guider", "CFGGuider", {**wired(model="unet", positive="positive", negative="negative"), "cfg": 1.0}
                ),
                Node(
                    "sampler",
                    "SamplerCustomAdvanced",
                    wired(noise="noise", guider="guider", sampler="method", sigmas="sigmas", latent_image="empty"),
                ),
            ],
            "flux2_2048",
        ),
    ),
    "Hires fix 2x - SD3.5 1024 to 2048": Template(
        "fmboost_sd3_2048",
        sampled(
            "# Hires fix 2x for SD 3.5\n\nKSampler works at 1024 pixels, **CFM Latent Upscale** makes 2048 of its "
            "latents." + where("fmboost-sd3-x2", checkpoint(SD35_FILE, "SD 3.5")),
            "fmboost-sd3-x2",
            1024,
            [
                (
                    "3. Sample at 1024",
                    [sampler(steps=20, cfg=4.0, sampler_name="euler", scheduler="sgm_uniform")],
                ),
                ("4. Upscale the latents 2x", [lift(VAE)]),
            ],
            [("5. Result", decode("sd3_2048", VAE))],
            base=SD35_FILE,
            latent="EmptySD3LatentImage",
        ),
    ),
    "Hires fix 2x - SD1.5 LCM in 8 steps": Template(
        "fmboost_txt2img_lcm_1024",
        sampled(
            "# 1024 pixels in eight steps\n\nKSampler takes four steps of LCM at 512 pixels, and **CFM Latent "
            "Upscale** four more to 1024.\n\n**LoRA**: "
            f"[LCM-LoRA for SD 1.5]({LCM_FILE['url']}), saved as `models/loras/{LCM_FILE['name']}`." + SD15,
            "fmboost-sd15-x2",
            512,
            [
                (
                    "3. Sample at 512",
                    [sampler(("lcm", 0), steps=4, cfg=1.5, sampler_name="lcm", scheduler="sgm_uniform")],
                ),
                ("4. Upscale the latents 2x", [lift(VAE)]),
            ],
            [("5. Result", decode("lcm_1024", VAE))],
            Node(
                "lora",
                "LoraLoaderModelOnly",
                {"model": ("checkpoint", 0), "lora_name": LCM_FILE["name"], "strength_model": 1.0},
                models=[LCM_FILE],
            ),
            Node("lcm", "ModelSamplingDiscrete", {"model": ("lora", 0), "sampling": "lcm", "zsnr": False}),
        ),
    ),
    "Hires fix 2x with Noise Augment - SD1.5": Template(
        "fmboost_noise_augment",
        sampled(
            "# More or less invented detail\n\n**Noise Augment** says how much noise the lift starts from: 0 stays "
            "close to the small picture, 200 to 400 leaves room for new texture, and -1 is what the model was trained "
            "with." + SD15,
            "fmboost-sd15-x2",
            512,
            [
                ("3. Sample at 512", [sampler()]),
                (
                    "4. Choose the noise",
                    [
                        Node(
                            "noise",
                            "FMBoost_NoiseAugment",
                            {"model": ("model", 0), "samples": ("sampler", 0), "noise_step": 200, "seed": 7},
                        )
                    ],
                ),
            ],
            [
                ("5. Upscale the latents 2x", [lift(VAE, "noise")]),
                ("6. Result", decode("noise_augment", VAE, height=200)),
            ],
        ),
    ),
    "Hires fix 4x in two lifts - SD1.5 512 to 2048": Template(
        "fmboost_txt2img_2048",
        sampled(
            "# Hires fix 4x: two lifts in a row\n\nEach **CFM Latent Upscale** doubles the size. The second one works "
            "in tiles and so does the VAE, so memory stays that of a 1024 pixel image." + SD15,
            "fmboost-sd15-x2",
            512,
            [("3. Sample at 512", [sampler()]), ("4. Upscale the latents 2x", [lift(VAE, key="first")])],
            [
                ("5. Upscale them 2x again, in tiles", [lift(VAE, "first", tile_size=128)]),
                ("6. Result", decode("txt2img_2048", VAE, tiled=True, height=110)),
            ],
        ),
    ),
    "Hires fix 4x - SD1.5 256 to 1024": Template(
        "fmboost_txt2img_256_1024",
        sampled(
            "# Hires fix 4x from 256 pixels\n\nSD 1.5 samples 256 pixels here, at a quarter of the cost of 512, and "
            "**Attention Scaling** adapts it to that size. One lift with the 4x model makes 1024 pixels."
            + where("fmboost-sd15-x4", checkpoint(SD15_FILE, "SD 1.5")),
            "fmboost-sd15-x4",
            256,
            [("3. Sample at 256", [sampler(("scaled", 0))]), ("4. Upscale the latents 4x", [lift(VAE)])],
            [("5. Result", decode("txt2img_256_1024", VAE))],
            Node("scaled", "FMBoost_AttentionScaling", {"model": ("checkpoint", 0), "training_size": 512}),
        ),
    ),
}


def latent_block(family: str, model: str) -> Block:
    return Block(
        f"Upscale Latent 2x (FMBoost {family})",
        f"Doubles the size of {LATENTS[family]} latents by Coupling Flow Matching. Connect the VAE of the checkpoint. "
        "The result is final: decode it.",
        [cfm(model), lift(OPEN, "")],
        [("samples", "LATENT", [("lift", "samples")]), ("vae", "VAE", [("lift", "vae")])],
        [("samples", "LATENT", [("lift", "samples")])],
    )


def image_block(family: str, model: str) -> Block:
    return Block(
        f"Upscale Image 2x (FMBoost {family})",
        f"Doubles the size of an image in {LATENTS[family]} latents by Coupling Flow Matching. Connect the VAE of a "
        f"{family} checkpoint, or of Load VAE.",
        [
            cfm(model),
            Node("encode", "VAEEncode"),
            lift(OPEN, "encode"),
            Node("decode", "VAEDecode", {"samples": ("lift", 0)}),
        ],
        [
            ("image", "IMAGE", [("encode", "pixels")]),
            ("vae", "VAE", [("encode", "vae"), ("lift", "vae"), ("decode", "vae")]),
        ],
        [("image", "IMAGE", [("decode", "IMAGE")])],
    )


LATENTS = {
    "SD1.5": "Stable Diffusion 1.x and 2.x",
    "SDXL": "SDXL, Illustrious, Pony and NoobAI",
    "SD3": "Stable Diffusion 3 and 3.5",
    "FLUX": "FLUX.1, Z-Image, Chroma and Lumina 2",
    "FLUX.2": "FLUX.2",
}
FAMILIES = {
    "SD1.5": "fmboost-sd15-x2",
    "SDXL": "fmboost-sdxl-x2",
    "SD3": "fmboost-sd3-x2",
    "FLUX": "fmboost-flux-x2",
    "FLUX.2": "fmboost-flux2-x2",
}
BLOCKS = [make(family, model) for make in (latent_block, image_block) for family, model in FAMILIES.items()]
