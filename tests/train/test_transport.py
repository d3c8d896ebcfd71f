"""The map between two Gaussians is known where one is made from the other, and by a second formula where it is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fmboost_core.train.transport import fit_transport, transported

RNG = np.random.default_rng(0)
SIDES = ((12, 17), (9, 11), (20, 8))


def latents(channels=3):
    """Neighbours and channels depend on each other, and nothing has mean 0."""
    found = []
    for height, width in SIDES:
        noise = RNG.standard_normal((channels, height + 1, width + 1))
        blurred = noise[:, 1:, 1:] + 0.6 * noise[:, :-1, 1:] - 0.3 * noise[:, 1:, :-1]
        found.append(torch.from_numpy(blurred + 0.4 * blurred[::-1] + 0.7).float())
    return found


def test_a_symmetric_mix_of_channels_is_found_again():
    """Positive definite maps are optimal (Brenier), so that of y = M x + m must be M itself, pixel by pixel."""
    mix = torch.tensor([[1.3, 0.2, -0.1], [0.2, 0.8, 0.3], [-0.1, 0.3, 1.1]])
    shift = torch.tensor([0.5, -0.2, 0.1])
    before = latents()
    after = [torch.einsum("ij,jhw->ihw", mix, x) + shift[:, None, None] for x in before]
    whole = fit_transport(before, after)
    expected = torch.zeros(3, 3, 5, 5)
    expected[:, :, 2, 2] = mix
    torch.testing.assert_close(whole.weight, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(whole.bias, shift, atol=1e-5, rtol=0)
    torch.testing.assert_close(whole(before[0][None])[0], after[0], atol=2e-5, rtol=0)
    half = fit_transport(before, after, strength=0.5)
    torch.testing.assert_close(half(before[0][None])[0], (before[0] + after[0]) / 2, atol=2e-5, rtol=0)


def test_the_convolution_is_the_transport_of_patches_averaged_where_they_overlap():
    before, after = latents(2), [1.5 * x.flip(-1) + torch.roll(x, 1, 1) for x in latents(2)]

    def patches(images):
        """Windows of 3 x 3, a column each, by numpy."""
        windows = [np.lib.stride_tricks.sliding_window_view(x.double().numpy(), (3, 3), (1, 2)) for x in images]
        return np.concatenate([w.transpose(0, 3, 4, 1, 2).reshape(18, -1) for w in windows], axis=1)

    def moments(images):
        p = patches(images)
        return p.mean(axis=1).reshape(2, 9).mean(axis=1).repeat(9), np.cov(p, bias=True)

    (mean_a, a), (mean_b, b) = moments(before), moments(after)
    values, vectors = np.linalg.eig(a @ b)  # A^-1 (A B)^(1/2), the geometric mean of A^-1 and B, by another road
    m = np.linalg.inv(a) @ (vectors * np.sqrt(values)) @ np.linalg.inv(vectors)
    moved = (m @ (patches(before[:1]) - mean_a[:, None]) + mean_b[:, None]).real
    _, height, width = before[0].shape
    moved = moved.reshape(2, 3, 3, height - 2, width - 2)
    total, count = np.zeros((2, height, width)), np.zeros((height, width))
    for y in range(3):
        for x in range(3):
            total[:, y : y + height - 2, x : x + width - 2] += moved[:, y, x]
            count[y : y + height - 2, x : x + width - 2] += 1
    inner = (slice(None), slice(2, -2), slice(2, -2))  # nearer the border fewer patches overlap
    found = fit_transport(before, after)(before[0][None])[0]
    np.testing.assert_allclose(found.numpy()[inner], (total / count)[inner], atol=1e-4)


def test_results_move_and_all_beside_them_stays():
    before, after = latents(), latents()
    examples = [{"high": x.half(), "truth": y.half(), "noise": x} for x, y in zip(before, after, strict=True)]
    moved = transported(examples, 1.0)
    transport = fit_transport([x.half() for x in before], [y.half() for y in after])
    for x, example in zip(before, moved, strict=True):
        assert set(example) == {"high", "noise"}
        assert example["noise"] is x
        torch.testing.assert_close(example["high"], transport(x.half()[None].float())[0].half())


def test_examples_without_the_truth_are_refused():
    with pytest.raises(ValueError, match=r"goes with\s+data.reflow_model"):
        transported([{"high": latents()[0]}], 1.0)
