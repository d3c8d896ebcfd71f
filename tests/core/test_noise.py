"""The cosine schedule against the authors' table, and noise that belongs to an image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fmboost_core.noise import alpha_bar, augment, draw_noise


@pytest.mark.parametrize(
    ("step", "value"), [(0, 1.0), (100, 0.975477), (200, 0.904318), (400, 0.653904), (600, 0.344591), (998, 2.47e-6)]
)
def test_alpha_bar_at_published_steps(step, value):
    assert alpha_bar(step) == pytest.approx(value, rel=2e-3 if step == 998 else 2e-6)


def test_alpha_bar_is_the_authors_table(golden):
    table = golden("coupling_t400")["alpha_bar_t"].double()
    ours = torch.tensor([alpha_bar(step) for step in range(1000)], dtype=torch.float64)
    torch.testing.assert_close(ours, table, rtol=1e-6, atol=1e-7)
    assert (ours.diff() < 0).all()


def test_alpha_bar_is_a_squared_cosine():
    for step in range(0, 999, 37):
        assert alpha_bar(step) == pytest.approx(math.cos(math.pi * step / 1998) ** 2, abs=2e-5)


@pytest.mark.parametrize("step", [-1, 1000])
def test_steps_off_the_table(step):
    with pytest.raises(ValueError, match=f"noise_step is {step}: expected 0"):
        alpha_bar(step)


def test_augment_preserves_variance():
    x, e = (torch.randn(1, 1, 400, 400, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    for step in (1, 200, 400, 800, 999):
        assert augment(x, step, e).var().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(augment(x, 0, e), x)
    assert torch.equal(augment(x, 999, e), e)


def test_noise_belongs_to_the_image():
    batch = draw_noise((4, 4, 9, 11), seed=7)
    assert batch.dtype == torch.float32 and batch.device.type == "cpu"
    for i in range(4):
        assert torch.equal(draw_noise((1, 4, 9, 11), seed=7, batch_index=[i])[0], batch[i])
    assert torch.equal(draw_noise((2, 4, 9, 11), seed=7, batch_index=[3, 1]), batch[[3, 1]])
    assert torch.equal(draw_noise((2, 4, 9, 11), seed=7, batch_index=[2, 2])[0], batch[2])


def test_noise_is_standard_normal_and_independent():
    images = draw_noise((2, 4, 128, 128), seed=0)
    others = draw_noise((2, 4, 128, 128), seed=1)
    assert images.mean().item() == pytest.approx(0, abs=0.02)
    assert images.std().item() == pytest.approx(1, abs=0.02)
    assert (images**4).mean().item() == pytest.approx(3, abs=0.15)
    flat = torch.cat([images.flatten(1), others.flatten(1)])
    assert torch.corrcoef(flat).fill_diagonal_(0).abs().max() < 0.02  # seed 0 image 1 is not seed 1 image 0, say


def test_noise_of_a_seed_never_changes():
    """A seed makes the same picture in every version: numpy's SeedSequence seeds torch's CPU generator."""
    state = np.random.SeedSequence([123, 5]).generate_state(1, np.uint64)[0]
    expected = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(int(state)))
    assert torch.equal(draw_noise((1, 4, 8, 8), seed=123, batch_index=[5])[0], expected)


@pytest.mark.parametrize("seed", [0, 2**32, 2**64 - 1])
def test_seeds_up_to_64_bits(seed):
    assert draw_noise((1, 4, 8, 8), seed=seed).isfinite().all()


def test_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    draw_noise((2, 4, 8, 8), seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_image_needs_an_index():
    with pytest.raises(ValueError, match="batch_index has 2 entries for 3 images"):
        draw_noise((3, 4, 8, 8), seed=0, batch_index=[0, 1])
