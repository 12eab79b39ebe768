"""Comparisons: every arm from the same weights, and the weights as before after each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from editcl.errors import EditclError
from editcl.evaluation import Case, Probe, evaluate
from editcl.evaluation.compare import Comparison, compare, weight_checksums
from editcl.evaluation.damage import damage
from editcl.facts import Fact

CASES = [
    Case(
        Fact("The Eiffel Tower", "{} is in", "Rome", "Paris"),
        ("Go and see the Eiffel Tower in",),
        (Probe("The Louvre is in", "Paris"),),
        (Probe("The Eiffel Tower is a", "tower"),),
    ),
    Case(Fact("Beats Music", "{} is owned by", "Rome", "Apple"), ("Beats Music belongs to",)),
]
TEXTS = ("The Eiffel Tower is located in Paris.", "Beats Music is owned by Apple.")


@contextmanager
def noisy(model, *, size: float = 1.0, leave: bool = False) -> Iterator[None]:
    weight = model.down_projection(1).parameter
    kept = weight.detach().clone()
    with torch.no_grad():
        weight += size * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    yield
    if not leave:
        weight.data.copy_(kept)


@contextmanager
def told(_) -> Iterator:
    yield lambda case: f"{case.fact.sentence} {case.fact.new_object}."


def compared(model) -> Comparison:
    arms = {"noise": noisy, "small": lambda m: noisy(m, size=0.01), "told": told}
    return compare(model, CASES, arms, texts=TEXTS)


def test_each_arm_is_measured_inside_its_context(model) -> None:
    before = weight_checksums(model)
    found = compared(model)
    assert [m.name for m in found.methods] == ["unedited", "noise", "small", "told"]
    assert found["unedited"].evaluation == evaluate(model, CASES)
    assert found["unedited"].damage == damage(model, TEXTS)
    with noisy(model):
        assert found["noise"].evaluation == evaluate(model, CASES)
    with told(model) as context_for:
        assert found["told"].evaluation == evaluate(model, CASES, context_for=context_for)
    assert weight_checksums(model) == before
    kl = {m.name: m.damage.kl for m in found.methods}
    assert kl["told"] == kl["unedited"] == 0.0 < kl["small"] < kl["noise"]


def test_an_arm_that_leaves_something_behind_ends_the_run(model) -> None:
    with pytest.raises(EditclError, match=r"after 'leaky' .* 1 weights differ \(transformer.h.1"):
        compare(model, CASES, {"leaky": lambda m: noisy(m, leave=True)}, texts=TEXTS)


def test_bad_comparisons_are_refused(model) -> None:
    with pytest.raises(EditclError, match="no cases"):
        compare(model, [], {"noise": noisy})
    with pytest.raises(EditclError, match="is taken"):
        compare(model, CASES, {"unedited": noisy})


def test_tables_and_json_tell_the_same(model) -> None:
    found = compared(model)
    frame = found.to_frame()
    assert list(frame.index) == ["unedited", "noise", "small", "told"]
    assert frame.loc["noise", "kl"] == found["noise"].damage.kl
    assert frame.loc["noise", "efficacy"] == found["noise"].evaluation.mean("efficacy")
    assert (frame["efficacy_low"] <= frame["efficacy"]).all()
    assert Comparison.from_dict(json.loads(found.to_json())) == found
    lines = found.to_markdown().splitlines()
    assert len(lines) == 2 + 4 and len({line.count("|") for line in lines}) == 1
    assert "same subject" in lines[0] and "same subject" in repr(found)
    assert found._repr_html_().count("<tr>") == 5
    with pytest.raises(EditclError, match="'rome' was not compared, only unedited, noise"):
        found["rome"]


def test_without_old_objects_token_accuracies_are_shown(model) -> None:
    case = Case(Fact("The Eiffel Tower", "{} is in", "Rome"), ("The Eiffel Tower stands in",))
    found = compare(model, [case], {"noise": noisy}, texts=TEXTS)
    assert found.shown() == ["token_accuracy", "paraphrase_token_accuracy"]
    assert "token accuracy" in found.to_markdown()
