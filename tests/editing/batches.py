"""What the tests of batch editors share: facts, plans, and keys with a covariance to solve on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from editcl.editing.batch import SubjectKeys
from editcl.editing.covariance import Covariance, measure
from editcl.editing.plan import Method, Plan
from editcl.editing.trial import tried
from editcl.editing.values import ValueSettings
from editcl.encoding import Sentence
from editcl.facts import Fact
from editcl.log import EditLog
from editcl.model import EditableModel, tensor_bytes

PROMPT = "{} is located in the city of"
FACTS = (
    Fact("The Eiffel Tower", PROMPT, "Rome", "Paris"),
    Fact("The Colosseum", PROMPT, "Paris", "Rome"),
    Fact("Beats Music", "{} is owned by", "Paris", "Apple"),
)
#: Two facts about one subject and one about another.
MATES = (FACTS[0], Fact("the Eiffel Tower", "The name of {} is", "Apple", "Rome"), FACTS[1])
#: The object follows the subject at once: a random model's attention carries little further.
CONTROL = (
    Fact("The Eiffel Tower", "The city of {}", "Rome", "Paris"),
    Fact("The Colosseum", "The city of {}", "Apple", "Rome"),
    Fact("Beats Music", "The owner of {}", "Paris", "Apple"),
)
# One context: a random model's predictions after several texts have nothing in common.
CONTEXTS = ("",)


def plan_for(
    model: EditableModel, facts: Sequence[Fact], layers: tuple[int, ...], **changes: Any
) -> Plan:
    """A plan whose covariance is measured on random tokens."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(2, model.d_vocab, (40, 24), generator=generator).tolist()
    plan = Plan(
        layers=layers,
        settings=ValueSettings(steps=30, clamp=4.0, stop=0.3),
        covariances=measure(model, layers, rows, sampled=True),
        essence=[() for _ in facts],
        contexts=CONTEXTS,
        preservation=0.01,
    )
    return replace(plan, **changes)


def state(model: EditableModel) -> list[bytes]:
    """The bytes of every parameter."""
    return [bytes(tensor_bytes(p)) for p in model.hf.parameters()]


def leads(model: EditableModel, facts: Sequence[Fact]) -> list[bool]:
    """Whether p(new) is above p(old)."""
    new = model.score([Sentence(f.prompt, f.subject, f.new_object) for f in facts]).prob
    old = model.score([Sentence(f.prompt, f.subject, f.old_object or "") for f in facts]).prob
    return (new > old).tolist()


def leaning(model: EditableModel, facts: Sequence[Fact]) -> list[Fact]:
    """The facts, objects swapped where the new one leads already."""
    pairs = zip(facts, leads(model, facts), strict=True)
    return [
        Fact(f.subject, f.prompt, f.old_object or "", f.new_object) if ahead else f
        for f, ahead in pairs
    ]


def assert_it_edits(model: EditableModel, layers: tuple[int, ...], method: Method) -> None:
    """The positive control: no new object leads before, all of them inside the trial only."""
    facts, before = leaning(model, CONTROL), state(model)
    assert not any(leads(model, facts))
    solution = method(model, facts, plan_for(model, facts, layers))
    assert state(model) == before, "a method leaves the model as it was"
    with tried(model, solution.updates):
        assert all(leads(model, facts))
    assert state(model) == before and not any(leads(model, facts))


def assert_one_fact_comes_out(
    model: EditableModel,
    twin: EditableModel,
    facts: Sequence[Fact],
    layers: tuple[int, ...],
    method: Method,
    *,
    taken: int = 1,
) -> None:
    """A fact rolled back: bytes of a log that never had it; all rolled back: the base's bytes."""
    base = state(model)
    assert state(twin) == base
    solution = method(model, facts, plan_for(model, facts, layers))
    entry = EditLog(model).append(solution.updates, facts, method="m", layers=list(layers))
    full = state(model)
    assert full != base
    model.log.rollback((entry, taken))
    others = [i for i in range(len(facts)) if i != taken]
    updates = [_without(update, taken) for update in solution.updates]
    EditLog(twin).append(updates, [facts[i] for i in others], method="m", layers=list(layers))
    assert state(model) == state(twin) != full
    model.log.reapply((entry, taken))
    assert state(model) == full
    model.log.rollback(entry)
    assert state(model) == base


def _without(update: Any, taken: int) -> Any:
    owner = update.owner or tuple(range(update.rank))
    kept = [j for j, own in enumerate(owner) if own != taken]
    renumbered = tuple(owner[j] - (owner[j] > taken) for j in kept)
    return replace(update, left=update.left[:, kept], right=update.right[:, kept], owner=renumbered)


@dataclass(frozen=True)
class Problem:
    """Keys of some subjects and a covariance, in float64 where they are solved."""

    covariance: Covariance
    keys: SubjectKeys
    residual: Tensor

    @property
    def moment(self) -> Tensor:
        """C."""
        return self.covariance.moment.double()


def problem(
    *, n_subjects: int = 3, n_contexts: int = 4, d_mlp: int = 12, d_model: int = 5, seed: int = 0
) -> Problem:
    """Random keys that differ between contexts, and a random covariance."""
    generator = torch.Generator().manual_seed(seed)
    centre = 2 * torch.randn(n_subjects, 1, d_mlp, generator=generator)
    keys = centre + 0.3 * torch.randn(n_subjects, n_contexts, d_mlp, generator=generator)
    sample = torch.randn(200, d_mlp, generator=generator) * torch.linspace(0.1, 2, d_mlp)
    covariance = Covariance(0, sample.T @ sample / 200, 200, "random")
    residual = torch.randn(n_subjects, d_model, generator=generator, dtype=torch.float64)
    return Problem(covariance, SubjectKeys.of(keys, range(n_subjects)), residual)
