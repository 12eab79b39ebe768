"""Drift is measured against naive computations, and is nothing where nothing has changed."""

from __future__ import annotations

import json

import pytest
import torch

from editcl.errors import EditclError
from editcl.evaluation.damage import general_texts
from editcl.learning import drift
from editcl.learning.drift import (
    Constraint,
    Drift,
    Instruction,
    general_change,
    instruction_drift,
)
from editcl.learning.kinds import AdapterSettings
from editcl.learning.lora import BASE, Adapters
from editcl.learning.session import Route
from editcl.model import EditableModel

ASKED = (
    Instruction("The Eiffel Tower is", "in Paris", (Constraint("at_least_words", 1),)),
    Instruction("Beats Music is owned by", "Apple", (Constraint("excludes", "zzzz"),)),
    Instruction("In the city of", "", (Constraint("contains", "zzzz"),)),
)


@pytest.fixture
def adapters(model: EditableModel) -> Adapters:
    """Two adapters that change the model, one of them a lot."""
    bank = Adapters(model)
    for seed, name in enumerate(("mild", "wild")):
        bank.add(name, AdapterSettings(rank=2), seed=seed)
        with torch.no_grad():
            for parameter in bank.trainable(name).values():
                parameter.add_(torch.randn_like(parameter) * (0.1, 0.6)[seed])
    return bank


def log_probs(adapters: Adapters, names: tuple[str, ...], ids: list[int]) -> torch.Tensor:
    with torch.no_grad(), adapters.using(names):
        return adapters.view.forward({"input_ids": torch.tensor([ids])})[0].log_softmax(-1)


def test_the_base_does_not_drift_from_itself(adapters: Adapters) -> None:
    found = instruction_drift(adapters, ASKED, Route(), labels=("red",), max_new_tokens=6)
    assert found.kl == 0.0 and found.n_instructions == 3
    for change in (found.reference, found.constraints, found.bleed):
        assert change is not None and change.increase == 0.0
    assert found.constraints is not None and found.constraints.now == pytest.approx(2 / 3)
    assert general_change(adapters, Route()).increase == 0.0


def test_kl_and_reference_are_those_of_one_prompt_at_a_time(adapters: Adapters) -> None:
    found = instruction_drift(adapters, ASKED, Route(("wild",)), max_new_tokens=5)
    model = adapters.model
    divergences, before, now = [], [], []
    for one in ASKED:
        prompt = model.tokenizer(one.prompt)["input_ids"]
        answer = model.generate_ids([prompt], 5)[0].tolist()
        p, q = (log_probs(adapters, names, prompt + answer) for names in ((), ("wild",)))
        for at in range(len(prompt) - 1, len(prompt) + 4):
            divergences.append(float((p[at].exp() * (p[at] - q[at])).sum()))
        if one.reference:
            ids = model.tokenizer(" " + one.reference)["input_ids"] + [model.tokenizer.eos_token_id]
            for names, kept in (((), before), (("wild",), now)):
                scores = log_probs(adapters, names, prompt + ids)
                kept += [-float(scores[len(prompt) - 1 + i, t]) for i, t in enumerate(ids)]
    assert found.kl == pytest.approx(sum(divergences) / len(divergences), rel=1e-5)
    assert found.reference is not None
    assert found.reference.before == pytest.approx(sum(before) / len(before), rel=1e-5)
    assert found.reference.now == pytest.approx(sum(now) / len(now), rel=1e-5)
    assert found.kl > 0.01 and found.bleed is None


def test_a_larger_change_drifts_further(adapters: Adapters) -> None:
    mild, wild = (general_change(adapters, Route((name,))).kl for name in ("mild", "wild"))
    assert 0 < mild < wild


def test_general_text_is_scored_like_one_text_at_a_time(adapters: Adapters) -> None:
    texts = general_texts()[:3]
    found = general_change(adapters, Route(("wild",)), texts)
    losses, count = 0.0, 0
    for text in texts:
        ids = [0, *adapters.model.tokenizer(text)["input_ids"]]
        scores = log_probs(adapters, ("wild",), ids)
        losses -= sum(float(scores[i, token]) for i, token in enumerate(ids[1:]))
        count += len(ids) - 1
    assert found.n_tokens == count
    assert found.cross_entropy == pytest.approx(losses / count, rel=1e-5)


def test_each_prompt_goes_through_the_adapter_that_its_route_names(adapters: Adapters) -> None:
    names = ("wild", BASE, "mild")

    def choose(rows) -> Route:
        return Route(rows=names[: len(rows)])

    mixed = instruction_drift(adapters, ASKED, choose, max_new_tokens=4)
    alone = [
        instruction_drift(
            adapters, (one,), Route(() if name == BASE else (name,)), max_new_tokens=4
        ).kl
        for one, name in zip(ASKED, names, strict=True)
    ]
    assert alone[1] == 0.0
    assert mixed.kl == pytest.approx(sum(alone) / 3, rel=1e-5)  # answers are equally long
    assert adapters.active == ()


def test_label_bleed_counts_answers_that_begin_with_a_label_as_a_word() -> None:
    answers = (" Positive.", "positively so", "It is positive", "negative", "")
    assert drift.label_bleed(("positive", "negative"), answers) == pytest.approx(2 / 5)


@pytest.mark.parametrize(
    ("kind", "value", "kept", "broken"),
    [
        ("contains", "rome", "All of Rome", "Paris"),
        ("excludes", "rome", "Paris", "in ROME"),
        ("begins", "yes", " Yes, it is", "No, yes"),
        ("ends", "done", "all DONE ", "done it"),
        ("at_least_words", 2, "two words", "one"),
        ("at_most_words", 2, "two words", "three words now"),
        ("matches", r"^\d+$", "123", "12a"),
    ],
)
def test_constraints_are_verified_by_program(
    kind: str, value: str | int, kept: str, broken: str
) -> None:
    constraint = Constraint(kind, value)
    assert constraint.kept(kept) and not constraint.kept(broken)


def test_a_drift_comes_back_equal_from_json_and_reads_well(adapters: Adapters) -> None:
    found = instruction_drift(adapters, ASKED, Route(("mild",)), labels=("a",), max_new_tokens=3)
    assert Drift.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert "reference NLL" in repr(found) and "label bleed" in repr(found)


def test_what_cannot_be_measured_is_said(adapters: Adapters) -> None:
    with pytest.raises(EditclError, match="no instructions"):
        instruction_drift(adapters, (), Route())
    with pytest.raises(EditclError, match="no constraint 'rhymes'"):
        Constraint("rhymes", "x")
    with pytest.raises(EditclError, match="takes a number of words"):
        Constraint("at_most_words", "x")
    with pytest.raises(EditclError, match="the model takes at most"):
        instruction_drift(adapters, ASKED, Route(), max_new_tokens=500)
    assert adapters.active == ()
