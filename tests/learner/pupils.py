"""Small Learners that the tests share: tiny models, cheap edits, short trainings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny
from batches import CONTEXTS, CONTROL
from lessons import QUICK, answered, labelled

import editcl
from editcl.editing.values import ValueSettings
from editcl.facts import Fact
from editcl.learner import EditSettings, Learner, Outcome
from editcl.learning.tasks import Example, Task
from editcl.log import EditLog
from editcl.model import EditableModel, tensor_bytes

#: As cheap as it gets, where it doesn't matter what is learnt.
CHEAP = EditSettings(
    layers=(1,),
    settings=ValueSettings(steps=2, scale="absolute"),
    contexts=CONTEXTS,
    preservation=0.01,
)
#: Tiny random models learn a few facts at once by these.
SOUND = EditSettings(
    layers=(0, 1),
    settings=ValueSettings(steps=30, clamp=4.0, stop=0.3),
    contexts=CONTEXTS,
    preservation=0.01,
)
FACTS = list(CONTROL)
OTHER = [Fact("Apple", "The home of {}", "Bayern", "city")]
ONE, TWO = answered("one"), labelled("two", ("red", "blue"))
MIXED = Task(
    "mixed",
    (*TWO.train, *(Example(fact.sentence, fact.new_object) for fact in OTHER)),
    TWO.test,
    facts=tuple(OTHER),
)
PROMPTS = ["one 3: say Tower", "two: the Paris 7 is", "The city of The Eiffel Tower", "Music"]


def fresh(log: Path | None = None) -> EditableModel:
    """A tiny model, each time the same, with a log in memory or in a folder."""
    model = editcl.wrap(tiny.build("gpt2"), tiny.byte_tokenizer())
    if log is not None:
        EditLog(model, log)
    return model


def learner(log: Path | None = None, edits: EditSettings = CHEAP) -> Learner:
    return Learner(fresh(log), edits=edits)


def learn(one: Learner, task: Any, method: str, **options: Any) -> Outcome:
    return one.learn(task, method, **({"settings": QUICK, "show": False} | options))


def bits(one: Learner) -> list[bytes]:
    """The distributions of all ways in which a Learner answers, and all weights."""
    ways = [None, *one.skills.tasks]
    found = [bytes(tensor_bytes(one.skills.next_token(PROMPTS, way))) for way in ways]
    if one.skills.tasks:
        said = one.skills.next_token(PROMPTS, "infer", abstain=one.abstain)
        found.append(bytes(tensor_bytes(said)))
    return [*found, *(bytes(tensor_bytes(p)) for p in one.model.hf.parameters())]


def story(one: Learner) -> list[dict[str, Any]]:
    """The history as plain JSON."""
    return [step.to_json() for step in one.history()]
