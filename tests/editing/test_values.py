"""v*: the batched, partial optimiser against the procedure written out plainly."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch

import editcl
from editcl.benchmarks.published_rome import published_value
from editcl.editing.choices import CAREFUL
from editcl.editing.essence import PUBLISHED
from editcl.editing.methods import PUBLISHED_SETTINGS
from editcl.editing.values import ValueSettings, gpu_memory, optimise_values
from editcl.encoding import Sentence
from editcl.errors import NonFiniteError
from editcl.evaluation import catalogue_cases
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
        slow = published_value(any_model, fact, 1, CONTEXTS, PUBLISHED, SETTINGS)
        fast = optimise_values(any_model, [fact], 1, CONTEXTS, [PUBLISHED], SETTINGS)
        assert relative(fast.bare[0], slow.bare) < 1e-4
        assert relative(fast.delta[0], slow.delta) < 1e-2
        assert float(fast.loss[0]) == pytest.approx(slow.loss, rel=1e-3)


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


def test_careful_settings_take_a_smaller_change_for_the_same_loss() -> None:
    own = editcl.load()
    facts = [case.fact for case in catalogue_cases(6, seed=3)]
    layer = 1
    plain, careful = (
        optimise_values(own, facts, layer, ("",), [()] * 6, settings)
        for settings in (ValueSettings(), CAREFUL)
    )
    assert float(careful.object_loss.median()) < 0.06
    sizes = [float((v.delta.norm(dim=-1) / v.residual_norm).median()) for v in (plain, careful)]
    assert sizes[1] < 0.85 * sizes[0]


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


# -- facts that share a subject --------------------------------------------------------------------

TOWER = (
    Fact("The Eiffel Tower", "{} is located in the city of", "Rome"),
    Fact("The Eiffel Tower", "The owner of {} is", "Apple"),
    Fact("The Eiffel Tower", "They met at {}", "München"),
)


def naive_nll(model, fact: Fact, context: str, added: torch.Tensor) -> torch.Tensor:
    """-log p(object) per token with `added` to the value at the subject's last token of layer 1."""
    (row,) = model.encode([Sentence(fact.prompt, fact.subject, fact.new_object, context)])

    def add(value: torch.Tensor, _hook) -> torch.Tensor:
        shift = torch.zeros_like(value)
        shift[0, row.subject_last] = added
        return value + shift

    with torch.no_grad(), model.hooks({"blocks.1.mlp.out.hook_out": add}):
        log_probs = model.forward(model.pad([row.ids])).log_softmax(-1)[0]
    taken = [log_probs[i - 1, row.ids[i]] for i in range(row.target_start, len(row.ids))]
    return -torch.stack(taken).mean()


def test_a_mates_prompt_is_asked_with_the_sum_and_with_its_own_delta_alone(model) -> None:
    contexts = CONTEXTS
    settings = ValueSettings(steps=5, stop=0.0)
    found = optimise_values(model, TOWER, 1, contexts, [()] * 3, settings, groups=[0, 0, 0])
    total = found.delta.sum(0)
    for i, fact in enumerate(TOWER):
        # By turns from the bare prompt on: the sum, alone, the sum; and the bare prompt alone.
        joint = [naive_nll(model, fact, c, total) for c in contexts[::2]]
        alone = [naive_nll(model, fact, c, found.delta[i]) for c in (contexts[1], "")]
        expected = torch.stack([*joint, *alone]).mean()
        assert float(found.object_loss[i]) == pytest.approx(float(expected), rel=1e-3)


def test_essence_prompts_see_the_sum(model) -> None:
    settings = ValueSettings(steps=4, stop=0.0, kl=1.0, relax=False)
    essence = [PUBLISHED, (), ()]
    found = optimise_values(model, TOWER, 1, ("",), essence, settings, groups=[0, 0, 0])
    (row,) = model.encode([Sentence(PUBLISHED[0], TOWER[0].subject)])

    def log_probs(added: torch.Tensor) -> torch.Tensor:
        def add(value: torch.Tensor, _hook) -> torch.Tensor:
            shift = torch.zeros_like(value)
            shift[0, row.subject_last] = added
            return value + shift

        with torch.no_grad(), model.hooks({"blocks.1.mlp.out.hook_out": add}):
            return model.forward(model.pad([row.ids]))[0, -1].log_softmax(-1)

    now, then = log_probs(found.delta.sum(0)), log_probs(torch.zeros_like(found.delta[0]))
    divergence = (now.exp() * (now - then)).sum()
    held = found.loss - found.object_loss
    assert float(held[0]) == pytest.approx(float(divergence), rel=1e-3)
    assert held[1:].abs().max() == 0


def test_what_mates_hold_of_their_subject_is_held_once(model) -> None:
    settings = ValueSettings(steps=4, stop=0.0, kl=1.0, relax=False)
    alike, once = [PUBLISHED, PUBLISHED, PUBLISHED], [PUBLISHED, (), ()]
    found, plain = (
        optimise_values(model, TOWER, 1, ("",), essence, settings, groups=[0, 0, 0])
        for essence in (alike, once)
    )
    assert relative(found.delta, plain.delta) < 1e-5
    assert float((found.loss - found.object_loss)[0]) > 0


def test_mates_take_shorter_steps(model) -> None:
    """The first step of Adam is lr long in each coordinate, whatever the gradient."""
    settings = ValueSettings(steps=2, stop=0.0, adapt="coordinate", kl=0.0, clamp=100.0)
    mates = optimise_values(model, TOWER, 1, ("",), [()] * 3, settings, groups=[0, 0, 0])
    alone = optimise_values(model, TOWER[:1], 1, ("",), [()], settings)
    assert mates.steps.tolist() == [3, 3, 3] and alone.steps.tolist() == [2]
    step = optimise_values(
        model, TOWER, 1, ("",), [()] * 3, replace(settings, steps=1), groups=[0, 0, 0]
    )
    ratio = float(step.delta[0].norm() / alone.delta[0].norm())
    assert step.steps.tolist() == [2, 2, 2]
    assert ratio == pytest.approx(3**-0.5, rel=0.05)


def test_a_group_of_one_is_a_fact_alone(model) -> None:
    essence = [PUBLISHED, (), PUBLISHED, ()]
    settings = ValueSettings(steps=6, stop=4.0)
    plain = optimise_values(model, FACTS, 1, CONTEXTS, essence, settings)
    named = optimise_values(model, FACTS, 1, CONTEXTS, essence, settings, groups=[5, 2, 9, 0])
    for name in ("delta", "bare", "loss", "object_loss", "steps"):
        assert torch.equal(getattr(plain, name), getattr(named, name)), name


def test_strangers_and_the_size_of_a_batch_change_nothing_for_a_group(model) -> None:
    settings = ValueSettings(steps=5, stop=3.0)
    facts = [FACTS[1], TOWER[0], FACTS[2], TOWER[1], TOWER[2], FACTS[3]]
    groups, mates = [0, 1, 2, 1, 1, 3], [1, 3, 4]
    essence = [PUBLISHED, (), PUBLISHED, PUBLISHED, (), ()]
    batch = optimise_values(model, facts, 1, CONTEXTS, essence, settings, groups=groups)
    tight = optimise_values(
        model, facts, 1, CONTEXTS, essence, settings, groups=groups, tokens_per_batch=1
    )
    assert relative(tight.delta, batch.delta) < 1e-4
    assert torch.equal(tight.steps, batch.steps)
    alone = optimise_values(
        model, TOWER, 1, CONTEXTS, [essence[i] for i in mates], settings, groups=[0, 0, 0]
    )
    assert relative(batch.delta[mates], alone.delta) < 1e-4
    for i in (0, 2, 5):
        single = optimise_values(model, [facts[i]], 1, CONTEXTS, [essence[i]], settings)
        assert relative(batch.delta[i], single.delta[0]) < 1e-4
        assert batch.steps[i] == single.steps[0]


def test_a_group_converges_together(model) -> None:
    settings = ValueSettings(steps=30, stop=5.0, lr=0.3, clamp=4.0)
    facts = [*TOWER, FACTS[1]]
    found = optimise_values(
        model, facts, 1, ("",), [()] * 4, settings, groups=[0, 0, 0, 1], tokens_per_batch=10**6
    )
    steps = found.steps.tolist()
    assert len(set(steps[:3])) == 1
    assert steps[0] == round(settings.steps * 3**0.5) or bool((found.object_loss[:3] < 5.0).all())
    assert steps[3] <= settings.steps
    first = optimise_values(model, facts, 1, ("",), [()] * 4, replace(settings, steps=1))
    assert bool((found.object_loss < first.object_loss).all()), "the objective is alive"


def test_a_micro_batch_on_a_gpu_leaves_room_for_the_weights() -> None:
    assert gpu_memory(80 << 30, 12 << 30) == 20 << 30
    assert gpu_memory(16 << 30, 12 << 30) == 2 << 30
    assert gpu_memory(16 << 30, 20 << 30) == 0
