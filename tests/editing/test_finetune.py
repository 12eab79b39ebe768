"""Fine-tuning baselines: they learn, they touch nothing, and the log takes them back whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor

import editcl
from editcl.editing import finetune
from editcl.editing.finetune import (
    FT_L,
    FT_M,
    LORA,
    FineTuneSettings,
    factorised,
    fine_tune,
    fine_tune_with,
)
from editcl.editing.plan import Plan
from editcl.editing.trial import tried
from editcl.editing.values import ValueSettings
from editcl.encoding import Row, Sentence
from editcl.errors import LogError, NonFiniteError
from editcl.facts import Fact
from editcl.log import EditLog
from editcl.model import EditableModel, tensor_bytes

PROMPT = "{} is located in the city of"
FACTS = (
    Fact("The Eiffel Tower", PROMPT, "Rome", "Paris"),
    Fact("The Colosseum", PROMPT, "Paris", "Rome"),
    Fact("Beats Music", "{} is owned by", "München, in Bayern", "Apple"),
    Fact("東京タワー", "{}は", "パリにあります", "東京にあります"),
)
METHODS = {"ft-l": FT_L, "ft-m": FT_M, "lora": LORA}


@pytest.fixture(params=METHODS)
def settings(request: pytest.FixtureRequest) -> FineTuneSettings:
    return METHODS[request.param]


def state(model: EditableModel) -> list[bytes]:
    return [bytes(tensor_bytes(p)) for p in model.hf.parameters()]


def leads(model: EditableModel, facts: Sequence[Fact]) -> list[bool]:
    """Whether p(new) is above p(old)."""
    new = model.score([Sentence(f.prompt, f.subject, f.new_object) for f in facts]).prob
    old = model.score([Sentence(f.prompt, f.subject, f.old_object or "") for f in facts]).prob
    return (new > old).tolist()


# -- learning -----------------------------------------------------------------------------------


def test_the_loss_falls_and_the_new_objects_lead(
    model: EditableModel, settings: FineTuneSettings
) -> None:
    facts = [Fact(f.subject, f.prompt, "Paris", "Rome") for f in FACTS[:3]]
    assert not any(leads(model, facts)), "a model that leans to Rome"
    solution = fine_tune(model, facts, [1], settings)
    assert solution.values is None and solution.details["training"]["lr"] == settings.lr
    assert solution.details["last_loss"] < 0.7 * solution.details["first_loss"]
    with tried(model, solution.updates):
        assert all(leads(model, facts))
    assert not any(leads(model, facts))


@pytest.mark.parametrize("settings", [FT_M, LORA])
def test_objects_of_several_tokens_are_learned_whole(
    model: EditableModel, settings: FineTuneSettings
) -> None:
    # The last norm bounds a tiny model's logits: no fact gets a probability near 1.
    settings = replace(settings, passes=150, lr=0.1, stop=0.3)
    solution = fine_tune(model, FACTS, [0, 1], settings)
    assert solution.details["passes"] < 150 and solution.details["last_loss"] < 0.3
    with tried(model, solution.updates):
        scores = model.score([Sentence(f.prompt, f.subject, f.new_object) for f in FACTS])
        assert bool(scores.exact.all())


def test_it_works_on_every_architecture(any_model: EditableModel) -> None:
    before = state(any_model)
    for settings in METHODS.values():
        solution = fine_tune(any_model, FACTS[:2], [1], replace(settings, passes=5))
        assert solution.details["last_loss"] < solution.details["first_loss"]
        assert state(any_model) == before


# -- the loss, recomputed naively -----------------------------------------------------------------


def naive_loss(model: EditableModel, row: Row, at_end: bool) -> Tensor:
    """Mean -log p of an object, one sentence at a time, unpadded and from the first block on."""
    logits = model.hf(torch.tensor([row.ids]).to(model.device)).logits[0].float().log_softmax(-1)
    places = range(row.target_start - 1, len(row.ids) - 1)
    each = [
        -logits[row.target_start - 1 if at_end else place, row.ids[place + 1]] for place in places
    ]
    return torch.stack(each).mean()


@pytest.mark.parametrize("settings", [FT_L, FT_M])
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gpt_neo"])
def test_one_step_moves_against_the_gradient_of_the_naive_loss(
    tokenizer, architecture: str, settings: FineTuneSettings
) -> None:
    """Adam's first step is lr * sign(gradient), whatever the gradient's size."""
    model = editcl.wrap(tiny.build(architecture), tokenizer)
    rows = model.encode([Sentence(f.prompt, f.subject, f.new_object) for f in FACTS])
    projection = model.down_projection(1)
    losses = [naive_loss(model, row, settings.loss == "prompt-end") for row in rows]
    mean = torch.stack(losses).mean()
    (gradient,) = torch.autograd.grad(mean, projection.parameter)
    gradient = gradient.T if projection.transposed else gradient
    solution = fine_tune(model, FACTS, [1], replace(settings, passes=1, bound=None))
    assert solution.details["first_loss"] == pytest.approx(mean.item(), rel=1e-4)
    unit = float(projection.weight.square().mean().sqrt())
    clear = gradient.abs() > 1e-3 * gradient.abs().max()
    expected = -settings.lr * unit * gradient.sign()
    change = solution.updates[0].dense()
    torch.testing.assert_close(change[clear], expected[clear], rtol=1e-3, atol=1e-8)


def test_micro_batches_do_not_change_the_result(
    model: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = replace(FT_M, passes=4)
    whole = fine_tune(model, FACTS, [1], short)
    monkeypatch.setattr(finetune, "TOKENS_PER_BATCH", 1)
    single = fine_tune(model, FACTS, [1], short)
    assert single.details["last_loss"] == pytest.approx(whole.details["last_loss"], rel=1e-3)
    gap = (whole.updates[0].dense() - single.updates[0].dense()).norm()
    assert float(gap) < 0.05 * whole.updates[0].norm()


# -- bounds, factors, determinism ---------------------------------------------------------------


@pytest.mark.parametrize("bound", [0.005, 0.05])
def test_no_entry_moves_beyond_the_bound(model: EditableModel, bound: float) -> None:
    unit = float(model.down_projection(1).weight.square().mean().sqrt())
    solution = fine_tune(model, FACTS, [1], replace(FT_L, bound=bound))
    largest = float(solution.updates[0].dense().abs().max())
    assert largest <= bound * unit * (1 + 1e-6)
    assert largest > 0.99 * bound * unit, "the bound binds"


@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (5, 5)])
def test_factors_of_the_smaller_side_reproduce_a_change_exactly(shape: tuple[int, int]) -> None:
    change = torch.randn(shape)
    left, right = factorised(change)
    assert left.shape == (shape[0], min(shape)) and right.shape == (shape[1], min(shape))
    assert torch.equal(left @ right.T, change)


def test_ranks_are_those_of_the_trained_tensors(model: EditableModel) -> None:
    (dense,) = fine_tune(model, FACTS, [1], replace(FT_M, passes=2)).updates
    assert dense.rank == model.d_model and dense.owner == (-1,) * dense.rank
    low = fine_tune(model, FACTS, [0, 2], replace(LORA, rank=3, passes=2)).updates
    assert [update.rank for update in low] == [3, 3]
    assert [u.parameter for u in low] == [model.down_projection(i).name for i in (0, 2)]
    assert torch.linalg.matrix_rank(low[0].dense()) == 3


def test_a_seed_fixes_the_bits_and_the_global_generator_is_left_alone(
    model: EditableModel, settings: FineTuneSettings
) -> None:
    short = replace(settings, passes=3, facts_per_step=2, stop=0.0)
    random_state = torch.get_rng_state()
    first, again = (fine_tune(model, FACTS, [1], short) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(first.updates[0].left, again.updates[0].left)
    assert torch.equal(first.updates[0].right, again.updates[0].right)
    other = fine_tune(model, FACTS, [1], replace(short, seed=1))
    assert not torch.equal(first.updates[0].dense(), other.updates[0].dense())


# -- what it leaves -------------------------------------------------------------------------------


def test_weights_and_flags_are_the_same_bytes_afterwards(
    model: EditableModel, settings: FineTuneSettings
) -> None:
    parameters = list(model.hf.parameters())
    parameters[0].requires_grad_(False)
    flags = [p.requires_grad for p in parameters]
    before = state(model)
    with torch.no_grad():
        fine_tune(model, FACTS, [1], replace(settings, passes=2))
    assert state(model) == before
    assert all(a is b for a, b in zip(model.hf.parameters(), parameters, strict=True))
    assert [p.requires_grad for p in parameters] == flags
    assert all(p.grad is None for p in parameters)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_log_takes_it_back_whole_and_nothing_less(
    tokenizer, tmp_path: Path, dtype: torch.dtype
) -> None:
    model = editcl.wrap(tiny.build("llama").to(dtype), tokenizer)
    before = state(model)
    with EditLog(model, tmp_path / "log") as log:
        for settings in METHODS.values():
            solution = fine_tune(model, FACTS, [0, 1], replace(settings, passes=2))
            log.append(solution.updates, FACTS, method="ft", layers=(0, 1))
        after = state(model)
        for what in (FACTS[1], ("e0002", 0)):
            with pytest.raises(LogError, match="alone"):
                log.rollback(what)
        log.rollback("e0002")
        log.reapply("e0002")
        assert state(model) == after and log.verify().ok
        log.rollback("all")
        assert state(model) == before


def test_a_single_fact_is_its_whole_entry(model: EditableModel) -> None:
    before = state(model)
    plan = Plan((1,), ValueSettings(), {}, [()])
    solution = fine_tune_with(replace(FT_M, passes=1))(model, FACTS[:1], plan)
    model.log.append(solution.updates, FACTS[:1], method="ft", layers=(1,))
    model.log.rollback(FACTS[0])
    assert state(model) == before


def test_a_broken_model_is_refused(model: EditableModel) -> None:
    plan = Plan((1,), ValueSettings(), {}, [()] * len(FACTS))
    with torch.no_grad():
        model.hf.transformer.ln_f.weight[0] = float("nan")
    with pytest.raises(NonFiniteError, match="loss of fine-tuning"):
        fine_tune_with(FT_M)(model, FACTS, plan)
    with torch.no_grad():
        model.down_projection(1).parameter.zero_()
    with pytest.raises(NonFiniteError, match="RMS"):
        fine_tune_with(FT_M)(model, FACTS, plan)
