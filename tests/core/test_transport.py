"""The map between two Gaussians is known where one is made from the other, and by a second formula where it is not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fmboost_core import CFMModel, FlowConfig, ModelConfig, load_model, save_model
from fmboost_core.transport import Convolution, Moments, Regression, optimal_transport
from fmboost_core.unet import UNet
from fmboost_core.upsample import reduce_pixels, upsample

RNG = np.random.default_rng(0)
SIDES = ((12, 17), (9, 11), (20, 8))


def latents(channels=3):
    """Neighbours and channels depend on each other, and nothing has mean 0."""
    found = []
    for height, width in SIDES:
        noise = RNG.standard_normal((channels, height + 1, width + 1))
        blurred = noise[:, 1:, 1:] + 0.6 * noise[:, :-1, 1:] - 0.3 * noise[:, 1:, :-1]
        found.append(torch.from_numpy(blurred + 0.4 * blurred[::-1] + 0.7).float()[None])
    return found


def moments(images):
    found = Moments()
    for image in images:
        found.add(image)
    return found


def test_a_symmetric_mix_of_channels_is_found_again():
    """Positive definite maps are optimal (Brenier), so that of y = M x + m must be M itself, pixel by pixel."""
    mix = torch.tensor([[1.3, 0.2, -0.1], [0.2, 0.8, 0.3], [-0.1, 0.3, 1.1]])
    shift = torch.tensor([0.5, -0.2, 0.1])
    before = latents()
    after = [torch.einsum("ij,bjhw->bihw", mix, x) + shift[:, None, None] for x in before]
    whole = optimal_transport(moments(before), moments(after))
    expected = torch.zeros(3, 3, 5, 5)
    expected[:, :, 2, 2] = mix
    torch.testing.assert_close(whole.weight, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(whole.bias, shift, atol=1e-5, rtol=0)
    torch.testing.assert_close(whole(before[0]), after[0], atol=2e-5, rtol=0)
    half = optimal_transport(moments(before), moments(after), strength=0.5)
    torch.testing.assert_close(half(before[0]), (before[0] + after[0]) / 2, atol=2e-5, rtol=0)
    assert torch.equal(optimal_transport(moments(before), moments(after), strength=0)(before[0]), before[0])


def test_the_convolution_is_the_transport_of_patches_averaged_where_they_overlap():
    before = latents(2)
    after = [1.5 * x.flip(-1) + torch.roll(x, 1, 2) for x in latents(2)]

    def patches(images):
        """Windows of 3 x 3, a column each, by numpy."""
        windows = [np.lib.stride_tricks.sliding_window_view(x[0].double().numpy(), (3, 3), (1, 2)) for x in images]
        return np.concatenate([w.transpose(0, 3, 4, 1, 2).reshape(18, -1) for w in windows], axis=1)

    def mean_and_covariance(images):
        p = patches(images)
        return p.mean(axis=1).reshape(2, 9).mean(axis=1).repeat(9), np.cov(p, bias=True)

    (mean_a, a), (mean_b, b) = mean_and_covariance(before), mean_and_covariance(after)
    values, vectors = np.linalg.eig(a @ b)  # A^-1 (A B)^(1/2), the geometric mean of A^-1 and B, by another road
    m = np.linalg.inv(a) @ (vectors * np.sqrt(values)) @ np.linalg.inv(vectors)
    moved = (m @ (patches(before[:1]) - mean_a[:, None]) + mean_b[:, None]).real
    height, width = before[0].shape[2:]
    moved = moved.reshape(2, 3, 3, height - 2, width - 2)
    total, count = np.zeros((2, height, width)), np.zeros((height, width))
    for y in range(3):
        for x in range(3):
            total[:, y : y + height - 2, x : x + width - 2] += moved[:, y, x]
            count[y : y + height - 2, x : x + width - 2] += 1
    inner = (slice(None), slice(2, -2), slice(2, -2))  # nearer the border fewer patches overlap
    found = optimal_transport(moments(before), moments(after))(before[0])[0]
    np.testing.assert_allclose(found.numpy()[inner], (total / count)[inner], atol=1e-4)


def test_a_batch_counts_as_its_images():
    images = [torch.randn(1, 2, 6, 7) for _ in range(3)]
    together, apart = moments([torch.cat(images)]), moments(images)
    torch.testing.assert_close(together.covariance, apart.covariance)
    torch.testing.assert_close(together.mean, apart.mean)


def times(factor, shift=0.0):
    weight = torch.zeros(4, 4, 5, 5)
    weight[range(4), range(4), 2, 2] = factor
    return Convolution(weight, torch.full((4,), shift))


class Pooling:
    """Three channels are the picture, a pixel each."""

    coarse = False

    def encode(self, images):
        return F.pad(images, (0, 0, 0, 0, 0, 1))

    def decode(self, latents):
        return latents[:, :3]


def test_it_ends_a_lift_and_travels_in_the_file(tiny_net, tmp_path):
    config = ModelConfig(net=tiny_net, flow=FlowConfig(upsampling="nearest"), transport=True)
    low, net = torch.randn(1, 4, 6, 5), UNet(tiny_net)  # a fresh network stands still
    enlarged = upsample(low, 2, "nearest")
    double = times(2.0, 0.5)
    model = CFMModel(config, net, transports=[double])
    torch.testing.assert_close(model.upscale(low, steps=2), 2 * enlarged + 0.5)
    torch.testing.assert_close(model.integrate(enlarged, enlarged, steps=2), enlarged)  # no part of the flow
    path = tmp_path / "model.safetensors"
    state = {**net.state_dict(), "transport.weight": double.weight[None], "transport.bias": double.bias[None]}
    save_model(path, config, state)
    torch.testing.assert_close(load_model(path).upscale(low, steps=2), 2 * enlarged + 0.5)
    with pytest.raises(ValueError, match=r"2 unknown \(transport"):
        save_model(path, replace(config, transport=False), state)
    with pytest.raises(ValueError, match=r"2 missing \(transport"):
        save_model(path, config, net.state_dict())


def test_a_lift_with_back_projection_has_a_map_of_its_own(tiny_net):
    flow = FlowConfig(upsampling="psu", back_projection=1)
    plain = CFMModel(ModelConfig(net=tiny_net, flow=flow), UNet(tiny_net))
    model = CFMModel(
        ModelConfig(net=tiny_net, flow=flow, transport=True), plain.net, transports=[times(2.0), times(3.0)]
    )
    low, vae = torch.rand(1, 4, 8, 8), Pooling()
    for rounds, factor in ((0, 2), (1, 3), (2, 3), (None, 3)):
        expected = factor * plain.upscale(low, steps=1, vae=vae, back_projection=rounds)
        torch.testing.assert_close(model.upscale(low, steps=1, vae=vae, back_projection=rounds), expected)
    vae.coarse = True  # no back projection then
    torch.testing.assert_close(model.upscale(low, steps=1, vae=vae), 2 * plain.upscale(low, steps=1, vae=vae))


def test_regression_finds_the_convolution_that_made_the_targets():
    images = [torch.randn(2, 3, 14, 11), torch.randn(1, 3, 9, 20)]
    made = Convolution(torch.randn(5, 3, 3, 3), torch.randn(5))
    regression = Regression()
    for image in images:
        regression.add(image, made(image))
    found = regression.solve()
    torch.testing.assert_close(found.weight, made.weight, atol=2e-3, rtol=0)  # a little smaller, by the ridge
    torch.testing.assert_close(found.bias, made.bias, atol=2e-3, rtol=0)


def test_what_regression_leaves_has_nothing_to_do_with_what_it_saw():
    images, targets = torch.randn(1, 2, 30, 40) + 0.5, torch.randn(1, 1, 30, 40) - 3
    regression = Regression()
    regression.add(images, targets)
    left = (targets - regression.solve()(images))[0, 0].double().numpy()
    padded = np.pad(images[0].numpy(), ((0, 0), (1, 1), (1, 1)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (30, 40), (1, 2))
    assert abs(left.mean()) < 1e-5
    assert abs((windows * left).mean(axis=(-1, -2))).max() < 1e-3 * left.std()


def test_corrections_travel_in_the_file(tiny_net, tmp_path):
    """Three channels of the decoded latent are the picture, 8 px a latent pixel, so that a fresh network's lift is
    the enlarged picture and one correction of 4 x 4 pixels' means is known in closed form."""

    class Blocks:
        coarse = False

        def encode(self, images):
            return F.pad(F.avg_pool2d(images, 8), (0, 0, 0, 0, 0, 1))

        def decode(self, latents):
            return F.interpolate(latents[:, :3].clamp(0, 1), scale_factor=8)

    config = ModelConfig(net=tiny_net, flow=FlowConfig(upsampling="psu", back_projection=1), corrections=True)
    weight = torch.zeros(1, 4, 48, 3, 3)
    for channel in range(3):
        weight[0, channel, 16 * channel : 16 * channel + 16, 1, 1] = 1 / 16
    net, bias = UNet(tiny_net), torch.tensor([[0.0, 0.0, 0.0, 0.25]])
    path = tmp_path / "model.safetensors"
    save_model(path, config, {**net.state_dict(), "correction.weight": weight, "correction.bias": bias})
    model, vae, low = load_model(path), Blocks(), torch.rand(1, 4, 8, 8)
    plain = model.upscale(low, steps=1, vae=vae, back_projection=0)
    lacking = F.avg_pool2d(vae.decode(low) - reduce_pixels(vae.decode(plain), 2), 4)
    expected = plain + F.pad(lacking, (0, 0, 0, 0, 0, 1), value=0.25)
    torch.testing.assert_close(model.upscale(low, steps=1, vae=vae), expected)
    three = expected
    for _ in range(2):  # rounds beyond those fitted are as the last
        lacking = F.avg_pool2d(vae.decode(low) - reduce_pixels(vae.decode(three), 2), 4)
        three = three + F.pad(lacking, (0, 0, 0, 0, 0, 1), value=0.25)
    torch.testing.assert_close(model.upscale(low, steps=1, vae=vae, back_projection=3), three)
    with pytest.raises(ValueError, match=r"2 missing \(correction"):
        save_model(path, config, net.state_dict())
    with pytest.raises(ValueError, match="corrections are rounds of back projection"):
        ModelConfig(net=tiny_net, flow=FlowConfig(upsampling="psu"), corrections=True)


def test_settings_of_before_have_none(tiny_net):
    config = ModelConfig(net=tiny_net, flow=FlowConfig(upsampling="nearest"))
    text = config.to_json().replace(', "transport": false', "").replace('"corrections": false, ', "")
    assert not any(name in text for name in ("transport", "corrections"))
    assert ModelConfig.from_json(text) == config
