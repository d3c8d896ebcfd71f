"""What the network sees beside x_t, against definitions written out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from fmboost_core.config import ContextEncoderConfig, FlowConfig
from fmboost_core.context import ContextEncoder, interpolate, join_context, make_context
from fmboost_core.files.model_file import load_model, save_model
from fmboost_core.images.resize import enlarge, resize

ENCODER = ContextEncoderConfig(width=16, depth=2, features=6)


def latent(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def upsample(low, scale, kind, vae=None):
    return make_context(FlowConfig(upsampling=kind, scale=scale), low, vae=vae)


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(8, 8), (5, 7), (1, 3)])
@pytest.mark.parametrize("kind", ["nearest", "bilinear", "psu"])
def test_shapes(kind, size, scale, block_vae):
    assert upsample(latent(2, 4, *size), scale, kind, block_vae).shape == (2, 4, scale * size[0], scale * size[1])


def test_nearest_repeats_every_pixel():
    low = latent(2, 4, 5, 6)
    expected = low.repeat_interleave(3, 2).repeat_interleave(3, 3)
    assert torch.equal(upsample(low, 3, "nearest"), expected)


def test_bilinear_doubling_mixes_three_to_one_and_holds_the_edges():
    low = torch.tensor([0.0, 4.0, 8.0]).view(1, 1, 1, 3)
    assert upsample(low, 2, "bilinear")[0, 0, 0].tolist() == [0, 1, 3, 5, 7, 8]


def test_psu_is_decode_bilinear_encode(block_vae):
    """Blocks 0 and 8 decoded, doubled and averaged again: by hand, 16 of the 32 pixels are in the two inner blocks,
    where the ramp between the colours takes up one pixel in 16, symmetric about the edge."""
    low = torch.zeros(1, 4, 1, 2)
    low[:, :3, :, 1] = 8
    row = upsample(low, 2, "psu", block_vae)[0, :, 0]
    # the ramp pixels at the edge are 2 and 6: the block before it is (7 * 0 + 2) / 8, the one behind (6 + 7 * 8) / 8
    assert row[0].tolist() == [0, 0.25, 7.75, 8]
    assert row[3].tolist() == [1, 1, 1, 1]


def test_psu_keeps_the_type_of_the_latent(block_vae):
    low = latent(1, 4, 4, 4).double()
    assert upsample(low, 2, "psu", block_vae).dtype == torch.float64


def test_psu_asks_for_its_vae():
    with pytest.raises(ValueError, match=r"starts from pixel-space upsampling \(psu\) and no vae was given: pass"):
        upsample(latent(1, 4, 4, 4), 2, "psu")


@pytest.mark.parametrize(("scale", "pixels"), [(2, 4), (4, 2)])
def test_a_picture_context_holds_every_pixel_of_the_low_picture(scale, pixels, block_vae):
    """At x2, 4 x 4 pixels lie below a latent one: channel 4 + 16 c + 4 i + j at (y, x) is colour c of the pixel
    (4 y + i, 4 x + j), from -1 to 1. At x4 they are 2 x 2."""
    flow = FlowConfig(upsampling="psu", picture_context=True, scale=scale)
    picture = torch.rand(2, 3, 24, 40, generator=torch.Generator().manual_seed(0))
    upsampled = latent(2, 4, 3 * scale, 5 * scale)
    context = join_context(flow, upsampled, picture)
    assert torch.equal(context[:, :4], upsampled)
    assert context.shape == (2, 4 + 3 * pixels**2, 3 * scale, 5 * scale)
    for c, i, j, y, x in [(0, 0, 0, 0, 0), (1, 1, 0, 4, 7), (2, pixels - 1, 1, 5, 9), (0, 1, pixels - 1, 2, 3)]:
        expected = 2 * picture[:, c, pixels * y + i, pixels * x + j] - 1
        torch.testing.assert_close(context[:, 4 + pixels**2 * c + pixels * i + j, y, x], expected)
    low = latent(2, 4, 3, 5)
    expected = join_context(flow, upsample(low, scale, "psu", block_vae), block_vae.decode(low))
    assert torch.equal(make_context(flow, low, vae=block_vae), expected)


# --- pictures


def test_pixels_are_enlarged_by_linear_interpolation_of_their_centres():
    """A linear ramp stays one away from its ends."""
    ramp = torch.arange(8.0).expand(1, 3, 8, 8)
    expected = (torch.arange(32) + 0.5) / 4 - 0.5
    torch.testing.assert_close(enlarge(ramp, 4)[0, 0, 5, 2:-2], expected[2:-2])


def test_reduction_reaches_any_size_and_keeps_the_mean():
    image = torch.rand(1, 3, 64, 48, generator=torch.Generator().manual_seed(0))
    assert resize(image, (64, 48)) is image
    small = resize(image, (43, 31))
    assert small.shape == (1, 3, 43, 31)
    torch.testing.assert_close(small.mean(dim=(2, 3)), image.mean(dim=(2, 3)), rtol=0, atol=0.01)
    assert small.std() < 0.8 * image.std()  # antialiased


# --- the learned context


@pytest.fixture
def learned_model(random_model, tiny_net):
    def make(scale=2, **settings):
        net = replace(tiny_net, in_channels=8 + ENCODER.features)
        return random_model(net=net, encoder=ENCODER, upsampling="learned", scale=scale, **settings)

    return make


@pytest.mark.parametrize("scale", [2, 4])
def test_the_encoder_is_its_convolutions_written_out(scale, randomise):
    encoder = randomise(ContextEncoder(4, scale, ENCODER))
    state = encoder.state_dict()

    def conv(name, x):
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)

    def silu(x):
        return x / (1 + (-x).exp())

    low = latent(2, 4, 5, 7)
    h = conv("stem", low)
    for n in range(ENCODER.depth):
        h = h + conv(f"blocks.{n}.second", silu(conv(f"blocks.{n}.first", silu(h))))
    h = conv("head", silu(F.pixel_shuffle(conv("up", silu(h)), scale)))
    h[:, :4] += F.interpolate(low, (5 * scale, 7 * scale), mode="bilinear")
    found = encoder(low)
    assert found.shape == (2, 4 + ENCODER.features, 5 * scale, 7 * scale)
    torch.testing.assert_close(found, h, rtol=0, atol=1e-5)


def test_the_blocks_of_a_fresh_encoder_do_nothing_and_without_a_correction_it_is_bilinear():
    encoder, low = ContextEncoder(4, 2, ENCODER).requires_grad_(False), latent(1, 4, 6, 5)
    fresh = encoder(low)
    encoder.blocks = torch.nn.ModuleList()
    assert torch.equal(encoder(low), fresh)
    for parameter in encoder.head.parameters():
        parameter[:4] = 0
    assert torch.equal(encoder(low)[:, :4], interpolate(low, 2, "bilinear"))
    assert torch.equal(encoder(low)[:, 4:], fresh[:, 4:])


@pytest.mark.parametrize("scale", [2, 4])
def test_a_model_with_an_encoder_needs_no_vae(scale, learned_model):
    """The flow begins at the first channels of the context and sees all of it."""
    model, low = learned_model(scale), latent(2, 4, 4, 3)
    context = model.make_context(low)
    torch.testing.assert_close(context, model.net.context_encoder(low))
    high = model.upscale(low, steps=1)
    first = context[:, :4]
    torch.testing.assert_close(high, first + model.velocity(first, torch.zeros(1), context))
    other = torch.cat([first, torch.zeros_like(context[:, 4:])], dim=1)
    assert not torch.allclose(model.velocity(first, torch.zeros(1), other), high - first, atol=1e-3)


def test_an_image_has_the_same_context_alone_and_in_a_batch(learned_model):
    model, low = learned_model(), latent(3, 4, 4, 6)
    together = model.make_context(low)
    for i in range(3):
        torch.testing.assert_close(model.make_context(low[i : i + 1])[0], together[i], rtol=0, atol=1e-5)


def test_the_encoder_travels_in_the_model_file(learned_model, tmp_path):
    model, low = learned_model(noise_step=200), latent(1, 4, 4, 6)
    path = tmp_path / "model.safetensors"
    save_model(path, model.config, model.net.state_dict(), dtype=torch.float32)
    again = load_model(path)
    assert again.config == model.config
    assert torch.equal(again.upscale(low, steps=2), model.upscale(low, steps=2))
    state = {k: v for k, v in model.net.state_dict().items() if not k.startswith("context_encoder.head")}
    with pytest.raises(ValueError, match=r"2 missing \(context_encoder.head.bias, context_encoder.head.weight\)"):
        save_model(path, model.config, state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_makes_a_float32_context(dtype, learned_model):
    low = latent(1, 4, 4, 6)
    found = learned_model(dtype=dtype).make_context(low.to(dtype))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, learned_model().make_context(low), rtol=0, atol=0.02)
