"""Transactions: several entries of a log that are all in force, or none.

    note "begin"  ->  entries  ->  note "done"          all in force
    note "begin"  ->  entries  ->  error or Ctrl-C      rolled back at once, note "undone"
    note "begin"  ->  entries  ->  the process dies     rolled back when a Learner opens the log

What belongs to a beginning is told by its task and its facts, so that what somebody else put into
the log after a process had died is left alone. Knows nothing of what the entries do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from editcl.errors import LogError
from editcl.facts import Fact
from editcl.learner.steps import BEGIN, DECISION, DONE, STEP, UNDONE, fact_json
from editcl.log import Edit, EditLog, Skill

KILLED = "the process ended before it was done"


class Transaction:
    """As a context: what is put into the log inside it is rolled back unless `done` is called.

    Args:
        log: of the model.
        step: id of the step.
        task: its name.
        facts: what edits of it will state.
        what: "step" or "repair".
    """

    def __init__(
        self, log: EditLog, step: str, *, task: str, facts: Sequence[Fact] = (), what: str = STEP
    ) -> None:
        self.log = log
        self._body = {"step": step, "what": what, "task": task, "at": len(log.timeline)}
        self._facts = facts
        self._open = False

    def __enter__(self) -> Transaction:
        self._body |= {"facts": fact_json(self._facts)}
        self._open = True
        self.log.note(BEGIN, self._body)
        return self

    @property
    def entries(self) -> tuple[Edit | Skill, ...]:
        """What it has put into the log so far and is active."""
        return own_entries(self.log, self._body)

    def done(self, body: Mapping[str, Any] | None = None) -> None:
        """Makes it last.

        Args:
            body: what the note says beside step, entries and the length of the log.
        """
        own = {
            "step": self._body["step"],
            "what": self._body["what"],
            "entries": [entry.id for entry in self.entries],
            "at": len(self.log.timeline),
        }
        self.log.note(DONE, {**(body or {}), **own})
        self._open = False

    def take_back(self, why: str) -> None:
        """Rolls everything back."""
        self._open = False
        _undo(self.log, self._body, why)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._open:
            return
        try:
            self.take_back(str(error) or type(error).__name__)
        except LogError as failed:
            names = ", ".join(entry.id for entry in self.entries)
            raise LogError(
                f"{error or type(error).__name__}; and what was done before ({names or 'nothing'}) "
                f"could not be rolled back: {failed}. Open the log again: a Learner does it then."
            ) from error


def recover(log: EditLog) -> tuple[str, ...]:
    """Rolls back what a process that has died left half done; ids of the steps.

    Raises:
        LogError: the log can't be written.
    """
    left: dict[tuple[str, str], Mapping[str, Any]] = {}
    known = {note.id for note in log.notes if note.kind == DECISION}
    for note in log.notes:
        if note.body.get("step") not in known:
            continue
        key = note.body["step"], note.body.get("what", "")
        if note.kind == BEGIN:
            left[key] = note.body
        elif note.kind in (DONE, UNDONE):
            left.pop(key, None)
    for body in left.values():
        _undo(log, body, KILLED)
    return tuple(step for step, _ in left)


def own_entries(log: EditLog, body: Mapping[str, Any]) -> tuple[Edit | Skill, ...]:
    """The active entries of a beginning."""
    facts = {(f["subject"], f["prompt"], f["new_object"]) for f in body["facts"]}

    def belongs(entry: Edit | Skill) -> bool:
        if isinstance(entry, Skill):
            return entry.task == body["task"]
        return {(f.subject, f.prompt, f.new_object) for f in entry.facts} <= facts

    later = log.timeline[body["at"] :]
    return tuple(entry for entry in later if log.active(entry) and belongs(entry))


def _undo(log: EditLog, body: Mapping[str, Any], why: str) -> None:
    entries = own_entries(log, body)
    if entries:
        log.rollback(list(entries), remeasure=False)
    log.note(
        UNDONE,
        {
            "step": body["step"],
            "what": body["what"],
            "entries": [entry.id for entry in entries],
            "why": why,
        },
    )
