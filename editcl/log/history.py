"""The history of a log: which edits there are, and which of their facts are active.

Active is what the fold of the events says: an edit starts with all its facts active, a rollback
takes some out, a reapply puts some back. A column of an edit is active with the fact that owns it;
facts that share columns go together or not at all. This module knows nothing of weights and files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from editcl.errors import LogError
from editcl.facts import Fact
from editcl.log.entry import EDIT, ROLLBACK, Edit, Event
from editcl.update import SHARED

Target: TypeAlias = str | Edit | Fact | tuple[str | Edit, int] | Iterable[Any]  # of targets
Columns: TypeAlias = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class History:
    """Edits and events in log order; a new one is made for every step.

    Attributes:
        edits: by id, in log order.
        active: by id, whether each fact of the edit is in the weights.
        events: what was taken out and put back.
    """

    edits: Mapping[str, Edit] = field(default_factory=dict)
    active: Mapping[str, tuple[bool, ...]] = field(default_factory=dict)
    events: tuple[Event, ...] = ()

    def with_edit(self, edit: Edit) -> History:
        """The history after an edit."""
        if edit.id in self.edits:
            raise ValueError(f"two entries are named {edit.id}")
        return History(
            {**self.edits, edit.id: edit},
            {**self.active, edit.id: (True,) * len(edit.facts)},
            self.events,
        )

    def with_event(self, event: Event) -> History:
        """The history after a rollback or reapply; ValueError if it does not fit."""
        active = dict(self.active)
        for name, indices in event.columns.items():
            if name not in active:
                raise ValueError(f"{event.id} names the unknown entry {name}")
            flags = list(active[name])
            for j in indices:
                if not 0 <= j < len(flags) or flags[j] != (event.action == ROLLBACK):
                    raise ValueError(f"{event.id} does not fit fact {j} of {name}")
                flags[j] = not flags[j]
            if self.edits[name].joint and any(flags) != all(flags):
                raise ValueError(f"{event.id} parts facts of {name} that share columns")
            active[name] = tuple(flags)
        return History(self.edits, active, (*self.events, event))

    def active_columns(self, entry: str, parameter: str) -> tuple[bool, ...]:
        """For each column of an entry's change of a matrix, whether it is in the weights."""
        facts = self.active[entry]
        owner = self.edits[entry].owners.get(parameter)
        if owner is None:
            return facts
        some = any(facts)
        return tuple(some if j == SHARED else facts[j] for j in owner)

    def next_id(self, kind: str) -> str:
        """The id that the next record of a kind gets: e0001, ... for edits, r0001, ... else."""
        if kind == EDIT:
            return f"e{len(self.edits) + 1:04d}"
        return f"r{len(self.events) + 1:04d}"

    def find(self, what: str | Edit) -> Edit:
        """The entry by id, or the entry that a receipt stands for.

        Raises:
            LogError: there is none, or the receipt is another log's.
        """
        name = what.id if isinstance(what, Edit) else what
        edit = self.edits.get(name)
        if edit is None:
            known = ", ".join([*self.edits][-3:]) or "none yet"
            raise LogError(
                f"the log has no entry {name!r} (it holds {len(self.edits)}; the last: {known}). "
                "model.log.entries lists them."
            )
        if isinstance(what, Edit) and what != edit:
            raise LogError(
                f"{name} of this log is another edit ({edit.sentences[0]!r}): the receipt comes "
                "from a different log. Pass an entry of model.log.entries."
            )
        return edit

    def columns(self, what: Target, *, active: bool) -> Columns:
        """The facts that are meant and are (not) active now, in log order.

        Raises:
            LogError: nothing of the sort is in the log, all of it is out (or in) already, or a
                fact is meant alone that shares columns with others.
        """
        chosen: dict[str, set[int]] = {}
        self._choose(what, active, chosen)
        if not chosen and what != "all":
            raise LogError("an empty list names nothing in a log. Pass entries, facts or 'all'.")
        for name, indices in chosen.items():
            if self.edits[name].joint and len(indices) < len(self.edits[name].facts):
                raise LogError(_only_whole(self.edits[name], active))
        return {name: tuple(sorted(chosen[name])) for name in self.edits if name in chosen}

    def dependents(self, columns: Columns) -> list[tuple[str, int]]:
        """Active facts that were solved with the named ones present, without those named.

        They are the other facts of the earliest entry named and all of the entries after it.
        """
        names = [*self.edits]
        first = min(names.index(name) for name in columns)
        named = {name: set(indices) for name, indices in columns.items()}
        return [
            (name, j)
            for name in names[first:]
            for j, active in enumerate(self.active[name])
            if active and j not in named.get(name, ())
        ]

    def _choose(self, what: Any, active: bool, chosen: dict[str, set[int]]) -> None:
        if what == "all":
            found = [(e.id, j) for e in self.edits.values() for j in range(len(e.facts))]
        elif isinstance(what, str | Edit):
            edit = self.find(what)
            found = [(edit.id, j) for j in range(len(edit.facts))]
        elif isinstance(what, Fact):
            found = self._holding(what)
        elif isinstance(what, tuple) and len(what) == 2 and isinstance(what[1], int):
            found = [self._column(*what)]
        elif isinstance(what, Iterable):
            for item in what:
                self._choose(item, active, chosen)
            return
        else:
            raise LogError(
                f"{what!r} names nothing in a log. Pass an entry or its id, a Fact, a pair "
                "(entry, index of a fact), a list of these, or 'all'."
            )
        fitting = [(name, j) for name, j in found if self.active[name][j] == active]
        if not fitting and what != "all":
            raise LogError(_nothing_to_do(what, active))
        for name, j in fitting:
            chosen.setdefault(name, set()).add(j)

    def _column(self, what: str | Edit, index: int) -> tuple[str, int]:
        edit = self.find(what)
        if not 0 <= index < len(edit.facts):
            raise LogError(f"{edit.id} has {len(edit.facts)} facts; there is no index {index}.")
        return edit.id, index

    def _holding(self, fact: Fact) -> list[tuple[str, int]]:
        found = [
            (edit.id, j)
            for edit in self.edits.values()
            for j, own in enumerate(edit.facts)
            if same_fact(fact, own)
        ]
        if not found:
            raise LogError(f"no entry of the log holds the fact {str(fact)!r}.")
        return found


def same_fact(asked: Fact, own: Fact) -> bool:
    """Whether a fact is the one asked for; without an old object, any old object fits."""
    if asked.old_object is not None and asked.old_object != own.old_object:
        return False
    keys = ("subject", "prompt", "new_object")
    return all(getattr(asked, key) == getattr(own, key) for key in keys)


def _only_whole(edit: Edit, active: bool) -> str:
    verb, call = ("rolled back", "rollback") if active else ("reapplied", "reapply")
    return (
        f"{edit.id} ({edit.method}) was solved for its {len(edit.facts)} facts together: columns "
        f"of its change belong to all of them, so no fact can be {verb} alone. "
        f"Take the whole entry: log.{call}({edit.id!r})."
    )


def _nothing_to_do(what: Target, active: bool) -> str:
    name = what.id if isinstance(what, Edit) else str(what)
    if active:
        return f"{name}: nothing to roll back, none of it is active. log.reapply puts it back."
    return f"{name}: nothing to reapply, none of it is rolled back."
