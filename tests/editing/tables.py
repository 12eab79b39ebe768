"""What the tests of tables share: models, cheap options, files, and failures to inject."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import tiny
from batches import CONTEXTS, CONTROL, leaning, state

import editcl
from editcl.editing.methods import METHODS
from editcl.editing.values import ValueSettings
from editcl.facts import Fact
from editcl.model import EditableModel

#: Options with which tiny random models learn a few facts at once, without a calibration.
TINY: dict[str, Any] = {
    "layers": [0, 1],
    "settings": ValueSettings(steps=30, clamp=4.0, stop=0.3),
    "contexts": CONTEXTS,
    "preservation": 0.01,
    "guard": None,
}
#: As cheap as it gets, where it doesn't matter what is learnt.
FAST = TINY | {"layers": [1], "settings": ValueSettings(steps=2, scale="absolute")}


def wrapped(architecture: str = "gpt2") -> EditableModel:
    """A fresh tiny model, each time the same."""
    return editcl.wrap(tiny.build(architecture), tiny.byte_tokenizer())


def table(path: Path, facts: Sequence[Fact], **columns: Sequence[Any]) -> Path:
    """A CSV file of the facts; `columns` replaces or adds some."""
    names = ["subject", "prompt", "new_object", "old_object"]
    values = {name: [getattr(fact, name) or "" for fact in facts] for name in names} | columns
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(values)
        writer.writerows(zip(*values.values(), strict=True))
    return path


def control(model: EditableModel) -> list[Fact]:
    """Three facts that the model does not hold, of three subjects."""
    return leaning(model, CONTROL)


def snapshot(model: EditableModel) -> tuple[list[bytes], Any]:
    """Weights and log; equal if neither has changed."""
    return state(model), (model.log.entries, model.log.events)


def interrupt(monkeypatch: Any, method: str, at: int, error: BaseException) -> list[int]:
    """Makes a method fail at its call number `at`; counts the facts of each call."""
    solve, calls = METHODS[method].solve, []

    def failing(model: Any, facts: Any, plan: Any) -> Any:
        calls.append(len(facts))
        if len(calls) == at:
            raise error
        return solve(model, facts, plan)

    monkeypatch.setitem(METHODS, method, replace(METHODS[method], solve=failing))
    return calls
