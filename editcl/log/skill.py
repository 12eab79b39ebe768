"""Skills and notes: the entries of a log that are no edits.

A `Skill` is a trained adapter: its full state, the edits and skills that were active when it was
trained, and how. Several skills may be versions of one adapter, which is their slot: each holds
all of its state, and was trained on top of the version before. Undoing a version under a newer one
is no subtraction, so the active versions of a slot are always a chain:

    active versions of a slot = its newest active version, and the versions that it was trained on

A `Note` is a decision or an evaluation; it changes nothing. This module knows nothing of weights,
files and what an adapter is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from editcl.log.entry import one_line


@dataclass(frozen=True)
class Skill:
    """A trained adapter as the log keeps it.

    Attributes:
        id: its name in the log, such as "s0001".
        task: what was learned.
        slot: the adapter that it is a version of.
        settings: how the adapter is made, as JSON.
        strategy: how it was trained.
        edits: for each edit that was active then, the indices of its active facts.
        parents: ids of the skills that were active then.
        base: fingerprint of the base model.
        details: JSON-able extras (metrics, settings of the training, seed).
        seconds: what training took.
        created: when, in UTC (ISO 8601).
    """

    id: str
    task: str
    slot: str
    settings: Mapping[str, Any]
    strategy: str
    edits: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    parents: tuple[str, ...] = ()
    base: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    created: str = ""

    def __hash__(self) -> int:
        return hash((self.id, self.created))

    def __repr__(self) -> str:
        where = "" if self.slot == self.task else f" in {one_line(self.slot)}"
        text = f"Skill {self.id}: {one_line(self.task)}{where}, {one_line(self.strategy)}"
        n_facts = sum(len(indices) for indices in self.edits.values())
        if n_facts:
            text += f", trained with {n_facts} edited fact" + ("s" if n_facts > 1 else "")
        return f"{text}, {self.seconds:.1f} s"

    def to_json(self) -> dict[str, Any]:
        """All but the id, as plain JSON."""
        return {
            "task": self.task,
            "slot": self.slot,
            "settings": dict(self.settings),
            "strategy": self.strategy,
            "edits": {name: list(indices) for name, indices in self.edits.items()},
            "parents": list(self.parents),
            "base": self.base,
            "details": dict(self.details),
            "seconds": self.seconds,
            "created": self.created,
        }

    @classmethod
    def from_json(cls, name: str, body: Mapping[str, Any]) -> Skill:
        """The skill again; anything amiss raises KeyError, TypeError or ValueError."""
        texts = {key: body[key] for key in ("task", "slot", "strategy", "base", "created")}
        for key, value in texts.items():
            if not isinstance(value, str):
                raise TypeError(f"{key} is no text")
        if not texts["task"] or not texts["slot"]:
            raise ValueError("its task or its slot has no name")
        edits = {str(n): tuple(map(_index, js)) for n, js in dict(body["edits"]).items()}
        parents = tuple(body["parents"])
        if not all(isinstance(parent, str) for parent in parents):
            raise TypeError("its parents are no ids")
        return cls(
            id=name,
            settings=dict(body["settings"]),
            edits=edits,
            parents=parents,
            details=dict(body["details"]),
            seconds=float(body["seconds"]),
            **texts,
        )


@dataclass(frozen=True)
class Note:
    """Something worth keeping that changes nothing.

    Attributes:
        id: its name in the log, such as "n0001".
        kind: what it is, such as "decision" or "evaluation".
        body: JSON.
        created: when, in UTC (ISO 8601).
    """

    id: str
    kind: str
    body: Mapping[str, Any]
    created: str

    def __hash__(self) -> int:
        return hash((self.id, self.created))

    def to_json(self) -> dict[str, Any]:
        """All but the id, as plain JSON."""
        return {"kind": self.kind, "body": dict(self.body), "created": self.created}

    @classmethod
    def from_json(cls, name: str, body: Mapping[str, Any]) -> Note:
        """The note again; anything amiss raises KeyError, TypeError or ValueError."""
        kind, created = body["kind"], body["created"]
        if not isinstance(kind, str) or not isinstance(created, str):
            raise TypeError("its kind or its date is no text")
        return cls(name, kind, dict(body["body"]), created)


def broken_chain(skills: Mapping[str, Skill], active: Mapping[str, bool]) -> str:
    """Why skills can't be active together, and what to do; empty if they can.

    Args:
        skills: by id, in log order.
        active: by id, whether it would be active.
    """
    newest = {skill.slot: skill for name, skill in skills.items() if active[name]}
    for slot, top in newest.items():
        own = [skill for skill in skills.values() if skill.slot == slot]
        below = [s.id for s in own if s.id in top.parents]
        missing = [name for name in below if not active[name]]
        if missing:
            newer = [s.id for s in own if active[s.id] and {*missing} & {*s.parents}]
            return (
                f"{_list(missing)} can't be out while {_list(newer)} is active: that is a later "
                f"version of the adapter {slot!r}, trained on top. Take both together, "
                f"{[*missing, *newer]}, or use log.rollback_to with the entry before."
            )
        foreign = [s.id for s in own if active[s.id] and s.id != top.id and s.id not in below]
        if foreign:
            return (
                f"{_list(foreign)} can't be active beside {top.id}: that is a later version of the "
                f"adapter {slot!r}, trained without it. Roll {top.id} back first."
            )
    return ""


def _list(names: list[str]) -> str:
    return ", ".join(names)


def _index(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"expected a whole number, found {type(value).__name__}")
    return value
