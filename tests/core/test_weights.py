"""What ships is small, in half precision, and described."""

from __future__ import annotations

import hashlib

import pytest
import torch

from fmboost_core.files.model_file import find_model, read_model_file, shipped_models


@pytest.mark.parametrize("name", sorted(shipped_models()))
def test_a_shipped_model_is_small_and_has_a_card_of_its_own(name):
    path = find_model(name)
    config, weights = read_model_file(path)
    assert name.startswith(f"fmboost-{config.latent_space}-x{config.flow.scale}")
    assert sum(w.numel() for w in weights.values()) <= 8_000_000
    assert path.stat().st_size <= 16 * 2**20
    assert {w.dtype for w in weights.values()} == {torch.float16}
    assert all(w.isfinite().all() for w in weights.values())
    assert config.license and config.trained_on
    card = path.with_suffix(".md").read_text(encoding="utf-8")
    assert hashlib.sha256(path.read_bytes()).hexdigest() in card
