"""Low latents as a sampler leaves them, contexts as another autoencoder makes them: what changes, and how much."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fmboost_core.train.disturb import disturb, disturb_context

GAIN, DRIFT, NOISE = 0.1, 0.05, 0.08  # as the module states them


def disturbed(share, value=0.0, count=3000):
    batch = {"low": torch.full((count, 2, 8, 8), value), "high": torch.full((count, 2, 16, 16), value), "t": object()}
    return batch, disturb(batch, share, torch.Generator().manual_seed(5))


def test_a_share_of_nothing_changes_nothing():
    batch, found = disturbed(0.0, 1.5)
    for kind in ("low", "high"):
        assert torch.equal(found[kind], batch[kind])


def test_the_share_is_that_of_the_crops_and_the_rest_stays():
    batch, found = disturbed(0.3, 1.5)
    changed = (found["low"] != 1.5).flatten(1).any(dim=1)
    assert torch.equal(changed, (found["high"] != 1.5).flatten(1).any(dim=1))
    assert abs(changed.sum().item() - 900) < 4 * (3000 * 0.3 * 0.7) ** 0.5
    assert found["t"] is batch["t"]


def test_the_generator_decides():
    for kind in ("low", "high"):
        assert torch.equal(disturbed(1.0, count=20)[1][kind], disturbed(1.0, count=20)[1][kind])


def test_contrast_changes_in_both_latents_alike():
    """Of latents of 1e6, beside which drift and noise are nothing; the gain is uniform about 1."""
    _, found = disturbed(1.0, 1e6)
    gain = found["low"] / 1e6
    torch.testing.assert_close(gain[:, :1, :1, :1].expand(-1, 2, 16, 16), found["high"] / 1e6, atol=2e-6, rtol=0)
    gain = gain[:, 0, 0, 0]
    assert 1 - GAIN <= gain.min() < 1 - 0.99 * GAIN and 1 + 0.99 * GAIN < gain.max() <= 1 + GAIN
    assert gain.mean().item() == pytest.approx(1, abs=4 * GAIN / (3 * 3000) ** 0.5)
    assert gain.std().item() == pytest.approx(GAIN / 3**0.5, rel=0.05)


def test_drift_is_in_both_latents_and_noise_in_the_low_one_alone():
    """In a corner drift is one coarse value, the same in both latents. Amounts are uniform: a variance is a third."""
    _, found = disturbed(1.0)
    drift = found["high"][:, :, 0, 0]
    white = found["low"][:, :, 0, 0] - drift
    assert drift.square().mean().item() == pytest.approx(DRIFT**2 / 3, rel=0.1)
    assert white.square().mean().item() == pytest.approx(NOISE**2 / 3, rel=0.1)
    both = torch.stack([drift.flatten(), white.flatten()])
    assert abs(torch.corrcoef(both)[0, 1].item()) < 4 / both.shape[1] ** 0.5
    # Elsewhere, too, high latents have the low ones' drift: what differs is the noise, which does not fade in the mean.
    pooled = F.avg_pool2d(found["high"], 2)
    assert (found["low"] - pooled).square().mean().item() == pytest.approx(NOISE**2 / 3, rel=0.1)
    # Drift is smooth: neighbours differ by far less than it is large.
    assert found["high"].diff(dim=3).square().mean() < 0.05 * found["high"].square().mean()


def with_context(share, count=2000, seed=5):
    """A batch whose contexts are a checkerboard of amplitude 1 about 0, and of 0.25 about a grey of 0.5."""
    sign = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * 2.0 - 1
    batch = {
        "psu": sign.expand(count, 2, 8, 8),
        "picture": 0.5 + 0.25 * sign.expand(count, 3, 8, 8),
        "high": torch.ones(count, 2, 8, 8),
    }
    return batch, disturb_context(batch, share, torch.Generator().manual_seed(seed))


def test_a_share_of_the_contexts_changes_and_the_truth_never():
    batch, found = with_context(0.3)
    changed = (found["psu"] != batch["psu"]).flatten(1).any(dim=1)
    assert torch.equal(changed, (found["picture"] != batch["picture"]).flatten(1).any(dim=1))
    assert abs(changed.sum().item() - 600) < 4 * (2000 * 0.3 * 0.7) ** 0.5
    assert found["high"] is batch["high"]
    assert torch.equal(found["psu"], with_context(0.3)[1]["psu"])
    assert torch.equal(with_context(0.0)[1]["picture"], batch["picture"])


def test_contexts_become_softer_and_crisper_alike_in_latent_and_picture():
    """A binomial filter leaves nothing of a checkerboard inside, so its contrast is 1 + sharpness, by -1 to 0.5."""
    batch, found = with_context(1.0)
    inside = (slice(None), slice(None), slice(2, 6), slice(2, 6))
    contrast = (found["psu"] * batch["psu"])[inside].mean((1, 2, 3))
    seen = ((found["picture"] - 0.5) * batch["psu"][:, :1])[inside].mean((1, 2, 3)) / 0.25
    assert contrast.mean().item() == pytest.approx(0.75, abs=4 * 1.5 / 12**0.5 / 2000**0.5)
    assert contrast.std().item() == pytest.approx(1.5 / 12**0.5, rel=0.1)
    assert contrast.min().item() == pytest.approx(0, abs=0.1) and contrast.max().item() == pytest.approx(1.55, abs=0.1)
    assert torch.corrcoef(torch.stack([contrast, seen]))[0, 1] > 0.98


def test_a_flat_context_gets_drift_and_noise_and_no_more():
    """At a corner drift is one coarse value. Amounts are uniform, so a variance is a third of the largest's."""
    flat = {"psu": torch.zeros(3000, 2, 8, 8), "picture": torch.full((3000, 3, 8, 8), 0.5)}
    found = disturb_context(flat, 1.0, torch.Generator().manual_seed(6))
    assert found["psu"][:, :, 0, 0].square().mean().item() == pytest.approx((0.05**2 + 0.08**2) / 3, rel=0.1)
    assert (found["picture"] - 0.5).square().mean().item() == pytest.approx(0.03**2 / 3, rel=0.1)
    assert found["picture"].min() >= 0 and found["picture"].max() <= 1
