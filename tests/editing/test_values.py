"""v*: the batched, partial optimiser against the procedure written out plainly."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch

import editcl
from editcl.benchmarks.published_rome import published_value
from editcl.editing.essence import PUBLISHED
from editcl.editing.methods import PUBLISHED_SETTINGS
from editcl.editing.values import ValueSettings, optimise_values
from editcl.errors import NonFiniteError
from editcl.facts import Fact

CONTEXTS = ("", "It rained all night.", "Beats Music is owned by Apple;")
FACTS = (
    Fact("The Eiffel Tower", "{} is located in the city of", "Rome"),
    Fact("Paris", "The name of {} is", "Apple Music"),
    Fact("東京タワー", "Beats Music is owned by {}", "München"),
    Fact("X", "{} in", "Rome"),
)
SETTINGS = replace(PUBLISHED_SETTINGS, steps=4, stop=0.0, clamp=1.5)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_the_partial_run_finds_what_the_full_model_finds_on_every_architecture(any_model) -> None:
    for fact in FACTS[:2]:
        slow, bare = published_value(any_model, fact, 1, CONTEXTS, PUBLISHED, SETTINGS)
        fast = optimise_values(any_model, [fact], 1, CONTEXTS, [PUBLISHED], SETTINGS)
        assert relative(fast.bare[0], bare) < 1e-4
        assert relative(fast.delta[0], slow) < 1e-2


def test_a_fact_gets_the_same_value_alone_and_in_a_batch(model) -> None:
    essence = [PUBLISHED, (), PUBLISHED, ("The {} of", *PUBLISHED)]
    settings = ValueSettings(steps=6, stop=4.0)
    batch = optimise_values(model, FACTS, 1, CONTEXTS, essence, settings)
    assert len(set(batch.steps.tolist())) > 1, "the facts should converge at different steps"
    for i, fact in enumerate(FACTS):
        alone = optimise_values(model, [fact], 1, CONTEXTS, essence[i : i + 1], settings)
        assert relative(batch.delta[i], alone.delta[0]) < 1e-4
        assert batch.steps[i] == alone.steps[0]
    tight = optimise_values(model, FACTS, 1, CONTEXTS, essence, settings, tokens_per_batch=1)
    assert relative(tight.delta, batch.delta) < 1e-4


def test_the_loss_falls_and_delta_stays_within_its_clamp(model) -> None:
    first = optimise_values(model, FACTS[:1], 0, CONTEXTS, [()], ValueSettings(steps=1))
    last = optimise_values(model, FACTS[:1], 0, CONTEXTS, [()], ValueSettings(steps=20, clamp=0.5))
    assert float(first.delta.norm()) == 0.0
    assert float(last.object_loss[0]) < float(first.object_loss[0])
    assert float(last.delta[0].norm()) <= 0.5 * float(last.residual_norm[0]) * (1 + 1e-5)


def test_essence_prompts_hold_their_distribution(model) -> None:
    held = ("{} is", "The story of {}")
    free = optimise_values(model, FACTS[:1], 1, CONTEXTS, [held], ValueSettings(kl=0.0, stop=0))
    kept = optimise_values(model, FACTS[:1], 1, CONTEXTS, [held], ValueSettings(kl=10.0, stop=0))
    assert float(kept.delta.norm()) < float(free.delta.norm())
    drift_free = float((free.loss - free.object_loss)[0])
    assert drift_free == 0.0  # weight zero: the term is off
    assert float((kept.loss - kept.object_loss)[0]) > 0.0  # the term is alive


def test_weights_and_their_gradient_flags_are_as_before(model) -> None:
    before = [p.detach().clone() for p in model.hf.parameters()]
    next(model.hf.parameters()).requires_grad_(False)
    flags = [p.requires_grad for p in model.hf.parameters()]
    optimise_values(model, FACTS[:2], 1, CONTEXTS, [(), ()], ValueSettings(steps=3))
    assert [p.requires_grad for p in model.hf.parameters()] == flags
    assert all(torch.equal(a, b) for a, b in zip(before, model.hf.parameters(), strict=True))
    assert all(p.grad is None for p in model.hf.parameters())


def test_a_model_with_nan_is_refused(model) -> None:
    with torch.no_grad():
        model.hf.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="not finite"):
        optimise_values(model, FACTS[:1], 1, CONTEXTS, [()], ValueSettings(steps=3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_models_get_float32_values(tokenizer, dtype) -> None:
    model = editcl.wrap(tiny.build("llama").to(dtype), tokenizer)
    values = optimise_values(model, FACTS[:2], 1, CONTEXTS, [PUBLISHED, ()], ValueSettings(steps=4))
    assert values.delta.dtype == torch.float32
    assert bool(torch.isfinite(values.delta).all())
