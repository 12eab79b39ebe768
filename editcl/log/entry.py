"""Entries of the edit log: what is kept of an edit, and how it reads.

An `Edit` is log entry and receipt at once; an `Event` takes columns of edits, or skills, out or
puts them back. Both become plain JSON and come back equal. This module knows nothing of weights and
files.
"""

from __future__ import annotations

import html
import json
import time
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from editcl.errors import LogError, NonFiniteError
from editcl.facts import Fact
from editcl.update import SHARED

SHOWN_FACTS = 5
TAKEN = 0.1  # the least p(new) of a fact that is said to have taken
ROLLBACK, REAPPLY, EDIT, SKILL, NOTE = "rollback", "reapply", "edit", "skill", "note"
FRAME_COLUMNS = (
    "id", "fact", "subject", "prompt", "old_object", "new_object", "method", "layers",
    "p_new_before", "p_new_after", "active", "created",
)  # fmt: skip


@dataclass(frozen=True)
class Probability:
    """Probability of a fact's objects: exp of the mean log-probability per token.

    Attributes:
        old: of the old object; None where it is not known.
        new: of the new object.
    """

    old: float | None
    new: float


@dataclass(frozen=True)
class Edit:
    """One edit of one or many facts: the receipt that `edit` returns and the log keeps.

    Attributes:
        id: its name in the log, such as "e0001".
        facts: what was edited.
        method: the editor that solved for it.
        layers: the edited layers.
        parameters: names of the changed matrices in the Hugging Face model.
        before, after: probabilities for each fact, or empty if not measured.
        relative_norms: norm of the change / norm of the weight it was added to, by parameter.
        seconds: what the edit took.
        created: when, in UTC (ISO 8601).
        details: JSON-able extras (hyperparameters, seed, inferred relation, evaluation).
        owners: by parameter, the index in `facts` that each column of the change belongs to, or
            SHARED; absent where column j belongs to facts[j].
    """

    id: str
    facts: tuple[Fact, ...]
    method: str
    layers: tuple[int, ...]
    parameters: tuple[str, ...]
    before: tuple[Probability, ...] = ()
    after: tuple[Probability, ...] = ()
    relative_norms: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    created: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    owners: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash((self.id, self.created))

    @property
    def joint(self) -> bool:
        """Whether facts share columns, so that the edit can only be rolled back whole."""
        return any(SHARED in owner for owner in self.owners.values())

    @property
    def sentences(self) -> tuple[str, ...]:
        """The edited facts as sentences, "... is located in the city of: Paris -> Rome"."""
        return tuple(one_line(str(fact)) for fact in self.facts)

    def __repr__(self) -> str:
        lines = [f"Edit {self.id}: {self._summary()}"]
        for j, sentence in enumerate(self.sentences[:SHOWN_FACTS]):
            change = self._change(j)
            lines.append(f"  {sentence}" + (f"   {change}" if change else ""))
        if len(self.facts) > SHOWN_FACTS:
            lines.append(f"  ... and {len(self.facts) - SHOWN_FACTS} more")
        for name, norm in self.relative_norms.items():
            lines.append(f"  |change| / |weight| {norm:.3g} in {one_line(name)}")
        if self.untaken:
            lines.append(f"  {self._advice()}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = [
            f"<tr><td style='text-align:left'>{html.escape(sentence)}</td>"
            f"<td>{html.escape(self._change(j))}</td></tr>"
            for j, sentence in enumerate(self.sentences[:SHOWN_FACTS])
        ]
        if len(self.facts) > SHOWN_FACTS:
            rows.append(f"<tr><td>... and {len(self.facts) - SHOWN_FACTS} more</td></tr>")
        norms = ", ".join(f"{one_line(n)}: {x:.3g}" for n, x in self.relative_norms.items())
        head = f"<b>Edit {html.escape(self.id)}</b>: {html.escape(self._summary())}"
        foot = f"<small>|change| / |weight| {html.escape(norms)}</small>" if norms else ""
        return f"<div>{head}<table>{''.join(rows)}</table>{foot}</div>"

    @property
    def untaken(self) -> tuple[int, ...]:
        """Facts that the edit did not bring about: p(new) is still below `TAKEN`."""
        return tuple(j for j, p in enumerate(self.after) if p.new < TAKEN)

    def _advice(self) -> str:
        return (
            f"{len(self.untaken)} of {len(self.facts)} did not take: p(new) is below {TAKEN:g}. "
            "The model may not know such names; roll it back, or try another prompt or layer."
        )

    def _summary(self) -> str:
        count = f"{len(self.facts)} fact" + ("s" if len(self.facts) != 1 else "")
        layers = "layer" + ("s " if len(self.layers) != 1 else " ")
        layers += ", ".join(map(str, self.layers))
        joint = " as one" if self.joint and len(self.facts) > 1 else ""
        return f"{count}{joint}, {one_line(self.method)}, {layers}, {self.seconds:.2f} s"

    def _change(self, j: int) -> str:
        """How the probabilities of fact j moved, as far as they were measured."""
        before = self.before[j] if self.before else None
        after = self.after[j] if self.after else None
        new = _moved("new", before.new if before else None, after.new if after else None)
        old = _moved("old", before.old if before else None, after.old if after else None)
        return ", ".join(part for part in (new, old) if part)

    def to_json(self) -> dict[str, Any]:
        """All but the id, as plain JSON."""
        return {
            "facts": [[f.subject, f.prompt, f.new_object, f.old_object] for f in self.facts],
            "method": self.method,
            "layers": list(self.layers),
            "parameters": list(self.parameters),
            "before": [[p.old, p.new] for p in self.before],
            "after": [[p.old, p.new] for p in self.after],
            "relative_norms": dict(self.relative_norms),
            "seconds": self.seconds,
            "created": self.created,
            "details": dict(self.details),
            "owners": {name: list(owner) for name, owner in self.owners.items()},
        }

    @classmethod
    def from_json(cls, name: str, body: Mapping[str, Any]) -> Edit:
        """The edit again; anything amiss raises KeyError, TypeError or ValueError."""
        edit = cls(
            id=name,
            facts=tuple(Fact(*fields) for fields in body["facts"]),
            method=_text(body["method"]),
            layers=tuple(int(layer) for layer in body["layers"]),
            parameters=tuple(_text(parameter) for parameter in body["parameters"]),
            before=_probabilities(body["before"]),
            after=_probabilities(body["after"]),
            relative_norms={_text(n): float(x) for n, x in body["relative_norms"].items()},
            seconds=float(body["seconds"]),
            created=_text(body["created"]),
            details=dict(body["details"]),
            owners={_text(n): tuple(map(_index, js)) for n, js in dict(body["owners"]).items()},
        )
        if not edit.owners.keys() <= set(edit.parameters):
            raise ValueError("it names owners of columns of a matrix that it did not change")
        if not all(j in range(SHARED, len(edit.facts)) for js in edit.owners.values() for j in js):
            raise ValueError("a column belongs to a fact that it does not have")
        return edit


@dataclass(frozen=True)
class Event:
    """Columns of edits, and skills, taken out ("rollback") or put back ("reapply").

    Attributes:
        id: its name in the log, such as "r0001".
        action: "rollback" or "reapply".
        columns: for each edit id, the indices of the facts concerned; for each skill id, 0.
        created: when, in UTC (ISO 8601).
    """

    id: str
    action: str
    columns: Mapping[str, tuple[int, ...]]
    created: str

    def to_json(self) -> dict[str, Any]:
        """All but id and action, as plain JSON."""
        columns = {name: list(indices) for name, indices in self.columns.items()}
        return {"columns": columns, "created": self.created}

    @classmethod
    def from_json(cls, name: str, action: str, body: Mapping[str, Any]) -> Event:
        """The event again; anything amiss raises KeyError, TypeError or ValueError."""
        columns = {_text(n): tuple(int(j) for j in js) for n, js in body["columns"].items()}
        return cls(name, action, columns, _text(body["created"]))


@dataclass(frozen=True)
class Record:
    """An entry as it is stored: its kind says what the JSON body holds."""

    id: str
    kind: str
    body: dict[str, Any]


def now() -> str:
    """The time in UTC, as ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def plain_json(details: Mapping[str, Any], what: str) -> dict[str, Any]:
    """A mapping as it will come back from JSON.

    Raises:
        LogError: it holds something that JSON has no form for, such as a tensor or NaN.
    """
    try:
        return dict(json.loads(json.dumps(dict(details), allow_nan=False)))
    except (TypeError, ValueError, RecursionError) as error:
        raise LogError(
            f"{what} can't be kept in the log ({error}). Use strings, finite numbers, booleans, "
            "lists and dicts only."
        ) from error


def check_probabilities(
    name: str, values: Sequence[Probability], n_facts: int
) -> tuple[Probability, ...]:
    """The values as a tuple, none or one a fact, all finite."""
    values = tuple(values)
    assert len(values) in (0, n_facts), f"{name} has {len(values)} values for {n_facts} facts"
    for value in values:
        for number in (value.old, value.new):
            if number is not None and not 0 <= number < float("inf"):
                raise NonFiniteError(
                    f"the model gives the probability {number} {name} the edit. "
                    "Its weights or activations are not finite: reload it, or edit more gently."
                )
    return values


def fact_rows(edit: Edit, active: Sequence[bool]) -> list[dict[str, Any]]:
    """One row of `FRAME_COLUMNS` for each fact of an edit."""
    return [
        {
            "id": edit.id,
            "fact": j,
            "subject": fact.subject,
            "prompt": fact.prompt,
            "old_object": fact.old_object,
            "new_object": fact.new_object,
            "method": edit.method,
            "layers": edit.layers,
            "p_new_before": edit.before[j].new if edit.before else None,
            "p_new_after": edit.after[j].new if edit.after else None,
            "active": active[j],
            "created": edit.created,
        }
        for j, fact in enumerate(edit.facts)
    ]


def one_line(text: str) -> str:
    """A text without control characters, so that a terminal shows it and does not obey it."""
    return "".join(" " if unicodedata.category(char) == "Cc" else char for char in text)


def _moved(name: str, before: float | None, after: float | None) -> str:
    if before is None and after is None:
        return ""
    old, new = ("?" if p is None else f"{p:.3g}" for p in (before, after))
    return f"p({name}) {old} -> {new}"


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, found {type(value).__name__}")
    return value


def _index(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"expected a whole number, found {type(value).__name__}")
    return value


def _probabilities(pairs: Any) -> tuple[Probability, ...]:
    return tuple(Probability(None if o is None else float(o), float(n)) for o, n in pairs)
