"""Trials on the embedded model: they tell skills from facts, and leave nothing behind."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import editcl
from editcl.catalogue import facts_by_relation, relations
from editcl.editing.covariance import Covariance
from editcl.facts import Fact
from editcl.learning.tasks import Example
from editcl.model import EditableModel, tensor_bytes
from editcl.routing.trials import (
    FACTS_PER_DIRECTION,
    capacity,
    effective_rank,
    known_covariances,
    transfer_probe,
    trial_edit,
)

CAPITALS = facts_by_relation()["capital"]


@pytest.fixture(scope="module")
def embedded() -> EditableModel:
    return editcl.load()


@contextmanager
def unchanged(model: EditableModel) -> Iterator[None]:
    def state() -> list[tuple[str, bytes, bool]]:
        named = model.hf.named_parameters()
        return [(n, bytes(tensor_bytes(p)), p.requires_grad) for n, p in named]

    before, modules = state(), [type(m) for m in model.hf.modules()]
    yield
    assert state() == before
    assert [type(m) for m in model.hf.modules()] == modules
    assert len(model.log.timeline) == 0


def test_a_short_training_carries_over_for_extraction_but_not_for_facts(
    embedded: EditableModel,
) -> None:
    said = [(f.subject, f.object) for f in CAPITALS[:40]]
    extract = [
        Example(f"{o} is the capital of {s}. The capital of {s} is", o) for s, o in said
    ]  # fmt: skip
    draw = random.Random(0)
    others = [o for _, o in said]
    draw.shuffle(others)
    prompt = relations()["capital"].prompt
    facts = [
        Example(prompt.replace("{}", s), o) for (s, _), o in zip(said, others, strict=True)
    ]  # fmt: skip
    subjects = [s for s, _ in said]
    with unchanged(embedded):
        judged, after, before = transfer_probe(embedded, extract, subjects)
        _, facts_after, _ = transfer_probe(embedded, facts, subjects)
    assert sum(after) / len(after) > 0.5 > sum(before) / len(before)
    assert sum(facts_after) / len(facts_after) < 0.2
    assert len(judged) == len(after) == len(before)


def test_no_subject_is_both_learnt_and_judged(model: EditableModel) -> None:
    examples = [
        Example(f"The {s} {k}", "ab"[k % 2]) for s in ("x", "y", "z", "w") for k in range(2)
    ]
    subjects = [s for s in "xyzw" for _ in range(2)]
    judged, _, _ = transfer_probe(model, examples, subjects, steps=1)
    told = {subjects[i] for i in judged}
    assert len(told) == 2 and len(judged) == 4


def test_what_cannot_be_halved_gives_nothing(model: EditableModel) -> None:
    examples = [Example("The x", "a"), Example("The x y", "b")]
    assert transfer_probe(model, examples, ["x", "x"], steps=1) == ([], [], [])


def test_a_trial_edit_is_met_and_taken_back(
    embedded: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = relations()["capital"].prompt
    facts = [Fact(f.subject, prompt, "Rome") for f in CAPITALS[:3]]
    others = [prompt.replace("{}", f.subject) for f in CAPITALS[10:18]]
    # The real ones take a minute to sample; for one fact, white keys do.
    monkeypatch.setattr("editcl.editing.way.default_covariances", white)
    with unchanged(embedded):
        found = trial_edit(embedded, facts, others)
    assert found.efficacy == 1
    assert 0 <= found.specificity <= 1


def white(model: EditableModel, layers: Sequence[int], *_: object, **__: object) -> dict[int, Any]:
    return {i: Covariance(i, torch.eye(model.d_mlp), 1, "a test") for i in layers}


def test_capacity_is_asked_of_covariances_that_are_in_memory(model: EditableModel) -> None:
    assert known_covariances(model) == {}
    one = Covariance(1, torch.eye(8), 1, "a test")
    model.memo |= {"covariance-x": one, "fingerprint": "else"}
    assert known_covariances(model) == {1: one}
    assert capacity({1: one, 2: one}) == pytest.approx(16 * FACTS_PER_DIRECTION)


def test_effective_rank_counts_directions() -> None:
    def rank(values: list[float]) -> float:
        return effective_rank(Covariance(0, torch.diag(torch.tensor(values)), 1, "a test"))

    assert math.isclose(rank([2.0] * 8), 8, rel_tol=1e-6)
    assert math.isclose(rank([3.0, 3.0, 0.0, 0.0]), 2, rel_tol=1e-6)
    assert 1 < rank([1.0, 0.1, 0.01]) < 2
