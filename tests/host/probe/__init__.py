"""Nodes for the tests: a LATENT from a file, all that is in a LATENT into a file (torch.save of its dict), and a
small MODEL whose first self-attention can be looked at."""

import torch


class ProbeLoad:
    """A list of samples in the file makes a nested latent."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("LATENT",), "run", "probe"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"file": ("STRING", {})}}

    def run(self, file):
        latent = torch.load(file, weights_only=True)
        if isinstance(latent["samples"], list):
            from comfy.nested_tensor import NestedTensor

            latent["samples"] = NestedTensor(latent["samples"])
        return (latent,)


class ProbeSave:
    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "run", "probe", True

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"samples": ("LATENT", {}), "file": ("STRING", {})}}

    def run(self, samples, file):
        torch.save({key: value for key, value in samples.items() if key != "fmboost_noise"}, file)
        return {"ui": {"keys": sorted(samples)}}


class ProbeModel:
    """A MODEL around a random U-Net of the kind SD 1.x has, or around a linear layer."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "run", "probe"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"unet": ("BOOLEAN", {})}}

    def run(self, unet):
        import comfy.model_patcher
        import comfy.ops
        from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

        settings = {"image_size": 32, "in_channels": 4, "model_channels": 32, "out_channels": 4, "num_res_blocks": [1]}
        settings |= {"channel_mult": [1], "num_heads": 2, "use_spatial_transformer": True, "transformer_depth": [1]}
        settings |= {"transformer_depth_output": [1, 1], "transformer_depth_middle": 1}
        settings |= {"context_dim": 16, "legacy": False}
        model = torch.nn.Module()
        with torch.inference_mode(False):
            torch.manual_seed(0)
            network = UNetModel(**settings, operations=comfy.ops.disable_weight_init) if unet else torch.nn.Linear(2, 2)
            for parameter in network.parameters():
                parameter.data.normal_(std=0.3)
            model.diffusion_model = network
        cpu = torch.device("cpu")
        return (comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu),)


class ProbeAttention:
    """Runs the first transformer block of a MODEL, with all but its self-attention silenced, as part of a picture of
    height x width latents; saves its input, weights and output."""

    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "run", "probe", True

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {
            "required": {"model": ("MODEL", {}), "height": ("INT", {}), "width": ("INT", {}), "file": ("STRING", {})}
        }

    def run(self, model, height, width, file):
        from comfy.ldm.modules.attention import BasicTransformerBlock

        network = model.get_model_object("diffusion_model")
        block = next(m for m in network.modules() if isinstance(m, BasicTransformerBlock))
        for layer in (block.attn2.to_out[0], block.ff.net[2]):
            for parameter in layer.parameters():
                parameter.zero_()
        x, context = torch.randn(1, height * width, 32), torch.randn(1, 7, 16)
        options = {**model.model_options["transformer_options"], "original_shape": [1, 4, height, width]}
        y = block(x, context=context, transformer_options=options)
        torch.save({"x": x, "y": y, "weights": block.state_dict()}, file)
        return {}


NODE_CLASS_MAPPINGS = {node.__name__: node for node in (ProbeLoad, ProbeSave, ProbeModel, ProbeAttention)}
