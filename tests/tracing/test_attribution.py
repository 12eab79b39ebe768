"""The gradient's estimate: exact in the limit of small noise, and how rankings are compared."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch

import editcl
from editcl.errors import EditclError
from editcl.tracing import attribute, rank_correlation, trace
from editcl.tracing.attribution import _ranks, _spearman

SUBJECT, PROMPT = "The Eiffel Tower", "Today, {} is located in"


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2", "falcon"])
def test_estimates_approach_the_effects_as_the_noise_shrinks(architecture, tokenizer) -> None:
    model = editcl.wrap(tiny.build(architecture).double(), tokenizer)
    settings = {"samples": 2, "noise": 1e-4, "window": 1}
    exact = trace(model, SUBJECT, PROMPT, **settings)
    estimate = attribute(model, SUBJECT, PROMPT, **settings)
    assert estimate.approximate and not exact.approximate
    for kind in exact.kinds:
        a, b = exact.indirect_effect(kind), estimate.indirect_effect(kind)
        assert np.abs(a - b).max() < 2e-2 * np.abs(a).max()
        assert rank_correlation(exact, estimate)[kind] > 0.9


def test_the_window_sums_layers(model) -> None:
    one, two = (
        attribute(model, SUBJECT, PROMPT, samples=2, noise=0.1, window=w).indirect_effect("mlp")
        for w in (1, 2)
    )
    np.testing.assert_allclose(two[:, 1:], one[:, 1:] + one[:, :-1], atol=1e-6)
    np.testing.assert_allclose(two[:, 0], one[:, 0], atol=1e-6)


def test_no_gradient_is_left_in_the_model(model) -> None:
    with torch.no_grad():
        attribute(model, SUBJECT, PROMPT, samples=1)
    assert all(parameter.grad is None for parameter in model.hf.parameters())


def test_frozen_parameters_do_not_matter(model) -> None:
    free = attribute(model, SUBJECT, PROMPT, samples=1)
    model.hf.requires_grad_(False)
    frozen = attribute(model, SUBJECT, PROMPT, samples=1)
    np.testing.assert_allclose(frozen.probability["attn"], free.probability["attn"])


def test_clean_and_corrupted_equal_those_of_the_trace(model) -> None:
    exact = trace(model, SUBJECT, PROMPT, samples=2)
    estimate = attribute(model, SUBJECT, PROMPT, samples=2)
    assert estimate.clean == pytest.approx(exact.clean, rel=1e-4)
    assert estimate.corrupted == pytest.approx(exact.corrupted, rel=1e-4)
    assert "Estimated" in repr(estimate)


def test_ranks_share_ties_and_correlations_are_spearmans() -> None:
    assert _ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [2.5, 0.0, 2.5, 1.0]
    x = np.array([1.0, 2.0, 3.0, 4.0])
    assert _spearman(x, np.exp(x)) == pytest.approx(1.0)
    assert _spearman(x, -x) == pytest.approx(-1.0)
    assert _spearman(x, np.array([1.0, 3.0, 2.0, 4.0])) == pytest.approx(0.8)
    assert np.isnan(_spearman(x, np.ones(4)))


def test_traces_of_different_sentences_are_not_compared(model) -> None:
    a = attribute(model, SUBJECT, PROMPT, samples=1)
    b = attribute(model, "Rome", "{} is in the", samples=1)
    with pytest.raises(EditclError, match="one sentence"):
        rank_correlation(a, b)
