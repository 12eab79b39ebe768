"""Steps: what a Learner has done, read from the notes of a log and from nothing else.

    decision    opens a step; its id is the step's
    begin       entries of the step may follow (what: "step" or "repair")
    done        these are they, and what judges the step later
    undone      a beginning that came to nothing; its entries are out
    evaluation  how the step, and those before it, stood after it

Whether a step is active is not noted: it is what the log says of its entries. Knows nothing of
models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from editcl.facts import Fact
from editcl.learning.tasks import COMPLETION, TEXT, Example
from editcl.log import Edit, EditLog
from editcl.log.entry import one_line
from editcl.routing.decision import ABSTAIN, Decision

DECISION, BEGIN, DONE, UNDONE, EVALUATION = "decision", "begin", "done", "undone", "evaluation"
STEP, REPAIR = "step", "repair"
KEPT, KEPT_TEXTS = 64, 8  # test examples of a step, or texts
KEPT_CHARACTERS = 2000  # of a text

ACTIVE, PARTLY, BACK = "active", "active in part", "rolled back"
UNCHANGED, UNDONE_STATE, ABSTAINED, OPEN = "nothing to change", "undone", "abstained", "unfinished"


@dataclass(frozen=True)
class Kept:
    """What judges a step again, in any process.

    Attributes:
        examples: of its test, as many as are kept.
        kind: of the task.
        labels: of a classification.
        max_tokens: of the task.
    """

    examples: tuple[Example, ...]
    kind: str = COMPLETION
    labels: tuple[str, ...] = ()
    max_tokens: int | None = None

    @classmethod
    def of(
        cls,
        test: Sequence[Example],
        kind: str,
        labels: Sequence[str] = (),
        max_tokens: int | None = None,
    ) -> Kept | None:
        """An even sample of a test; None if it is empty."""
        if not test:
            return None
        n = min(len(test), KEPT_TEXTS if kind == TEXT else KEPT)
        chosen = [test[i * len(test) // n] for i in range(n)]
        if kind == TEXT:
            chosen = [Example("", example.completion[:KEPT_CHARACTERS]) for example in chosen]
        return cls(tuple(chosen), kind, tuple(labels), max_tokens)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "examples": [[example.prompt, example.completion] for example in self.examples],
            "kind": self.kind,
            "labels": list(self.labels),
            "max_tokens": self.max_tokens,
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Kept:
        """From what `to_json` gave."""
        examples = tuple(Example(*pair) for pair in found["examples"])
        return cls(examples, found["kind"], tuple(found["labels"]), found["max_tokens"])


@dataclass(frozen=True, repr=False)
class Step:
    """One decision of `Learner.learn`, carried out; of a costly edit that was trained instead, two.

    Attributes:
        id: of the note that opened it.
        task: its name.
        method: what was asked for.
        decided: what was decided, as JSON; `decision` reads it.
        entries: ids of what it put into the log, repairs included.
        state: "active", "active in part", "rolled back", "nothing to change" (the model said it all
            before), "undone" (it failed or was killed), "abstained" or "unfinished".
        kept: what judges it: of its test, or without one of what was trained; None if all was
            edited.
        said: facts of it that the model held before, which need no edit.
        at: how many entries the log had after it, repairs included.
        seconds: what it took.
        evaluations: what was measured after it, oldest first.
        created: when, in UTC (ISO 8601).
    """

    id: str
    task: str
    method: str
    decided: Mapping[str, Any]
    entries: tuple[str, ...] = ()
    state: str = OPEN
    kept: Kept | None = None
    said: tuple[Fact, ...] = ()
    at: int = 0
    seconds: float = 0.0
    evaluations: tuple[Mapping[str, Any], ...] = ()
    created: str = ""

    @cached_property
    def decision(self) -> Decision:
        """What was decided, with reasons; read when it is asked for, as it may hold many facts."""
        return Decision.from_json(self.decided)

    @property
    def kind(self) -> str:
        """One of "edit", "train", "split" and "abstain"."""
        return str(self.decided["kind"])

    @property
    def active(self) -> bool:
        """Whether the model shall know it."""
        return self.state in (ACTIVE, PARTLY, UNCHANGED)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "id": self.id,
            "task": self.task,
            "method": self.method,
            "kind": self.kind,
            "state": self.state,
            "decision": dict(self.decided),
            "entries": list(self.entries),
            "seconds": self.seconds,
            "evaluations": [dict(one) for one in self.evaluations],
            "created": self.created,
        }

    def __repr__(self) -> str:
        entries = f", {' '.join(self.entries)}" if self.entries else ""
        scores = self.evaluations[-1].get("scores", {}) if self.evaluations else {}
        figures = "".join(f", {name} {value:.3g}" for name, value in scores.items())
        reason = one_line(next(iter(self.decided["reasons"]), ""))
        return (
            f"Step({self.id} {one_line(self.task)}: {self.kind}, {self.state}{entries}{figures}; "
            f"{reason})"
        )


@dataclass
class _Draft:
    """A step while its notes are read."""

    note: Any
    entries: list[str] = field(default_factory=list)
    done: Mapping[str, Any] | None = None
    begun: bool = False
    undone: bool = False
    at: int = 0
    evaluations: list[Mapping[str, Any]] = field(default_factory=list)


def steps_of(log: EditLog) -> tuple[Step, ...]:
    """All steps that a log knows, in order, whoever made them."""
    drafts: dict[str, _Draft] = {}
    for note in log.notes:
        body = note.body
        if note.kind == DECISION and "decision" in body:
            drafts[note.id] = _Draft(note)
        draft = drafts.get(str(body.get("step")))
        if draft is None:
            continue
        if note.kind == BEGIN:
            draft.begun = True
        elif note.kind == DONE:
            draft.entries += body["entries"]
            draft.at = body["at"]
            draft.done = body if body["what"] == STEP else draft.done
        elif note.kind == UNDONE and body["what"] == STEP:
            draft.undone = True
        elif note.kind == EVALUATION:
            draft.evaluations.append(body)
    return tuple(_step(log, draft) for draft in drafts.values())


def _step(log: EditLog, draft: _Draft) -> Step:
    body, done = draft.note.body, draft.done or {}
    decided = body["decision"]
    return Step(
        id=draft.note.id,
        task=decided["task"],
        method=body["method"],
        decided=decided,
        entries=tuple(draft.entries),
        state=_state(log, draft, decided["kind"]),
        kept=Kept.from_json(done["kept"]) if done.get("kept") else None,
        said=tuple(Fact(**fact) for fact in done.get("said", ())),
        at=draft.at,
        seconds=done.get("seconds", 0.0),
        evaluations=tuple(draft.evaluations),
        created=draft.note.created,
    )


def _state(log: EditLog, draft: _Draft, kind: str) -> str:
    if kind == ABSTAIN:
        return ABSTAINED
    if draft.done is None:
        return UNDONE_STATE if draft.undone or not draft.begun else OPEN
    if not draft.entries:
        return UNCHANGED
    whole: list[bool] = []
    for name in draft.entries:
        entry = log.get(name)
        whole += log.active_facts(entry) if isinstance(entry, Edit) else [log.active(entry)]
    return ACTIVE if all(whole) else PARTLY if any(whole) else BACK


def fact_json(facts: Sequence[Fact]) -> list[dict[str, Any]]:
    """Facts as plain JSON."""
    return [asdict(fact) for fact in facts]
