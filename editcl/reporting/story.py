"""Story: what the log tells, in order: what was done, why, and what it cost.

Knows nothing of models but how many numbers the log keeps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from editcl.learner.steps import BEGIN, DECISION, DONE, EVALUATION, UNDONE, Step
from editcl.log import Edit, EditLog, Note, Skill
from editcl.log.entry import Event
from editcl.reporting.result import Moment, Spent

SHOWN = 3  # facts of an entry
LONGEST = 240  # characters of a text


def spent(log: EditLog) -> list[Spent]:
    """The cost of each edit and skill, whether in force or not.

    Raises:
        LogError: the file of a skill is missing or changed.
    """
    found = []
    for entry in log.timeline:
        if isinstance(entry, Edit):
            what, how, n = _facts(entry.sentences), entry.method, len(entry.facts)
        else:
            what, how, n = entry.task, entry.strategy, entry.details.get("examples", 0)
        size = log.size(entry)
        found.append(Spent(entry.id, what, how, n, entry.seconds, *size, log.active(entry)))
    return found


def deciding(steps: Sequence[Step]) -> float:
    """Seconds that decisions took."""
    return sum(step.decision.cost.decision for step in steps)


def moments(log: EditLog) -> list[Moment]:
    """Everything in the log, in order."""
    return [_moment(log, one) for one in log.everything]


def _moment(log: EditLog, one: Edit | Skill | Event | Note) -> Moment:
    if isinstance(one, Edit):
        flags = log.active_facts(one)
        state = "active" if all(flags) else "active in part" if any(flags) else "rolled back"
        text = f"{one.method}, {len(one.facts)} facts, {one.seconds:.2f} s: {_facts(one.sentences)}"
        return Moment(one.id, "edit", text, state, one.created)
    if isinstance(one, Skill):
        state = "active" if log.active(one) else "rolled back"
        score = one.details.get("score", {})
        parts = [f"{name} {value:.3f}" for name, value in score.items() if value is not None]
        text = ", ".join([f"{one.task} by {one.strategy}, {one.seconds:.1f} s", *parts])
        return Moment(one.id, "skill", text, state, one.created)
    if isinstance(one, Event):
        columns = [_columns(log, name, indices) for name, indices in one.columns.items()]
        return Moment(one.id, one.action, ", ".join(columns), "", one.created)
    return Moment(one.id, one.kind, _note(one.kind, one.body), "", one.created)


def _columns(log: EditLog, name: str, indices: Sequence[int]) -> str:
    entry = log.get(name)
    if isinstance(entry, Skill):
        return f"{name} ({entry.task})"
    whole = len(indices) == len(entry.facts)
    return f"{name} ({len(indices)} facts)" if whole else f"{name} facts {_short(list(indices))}"


def _note(kind: str, body: Mapping[str, Any]) -> str:
    """A note in a line: those of a Learner in words, any other as it is."""
    if kind == DECISION and "decision" in body:
        decision = body["decision"]
        reason = next(iter(decision["reasons"]), "")
        confidence = decision["confidence"]
        return _short(
            f"{decision['task']}: {decision['kind']} (confidence {confidence:.2f}), {reason}"
        )
    if kind == EVALUATION:
        scores = body.get("scores") or body.get("tasks") or {}
        parts = [f"{name} {value:.3f}" for name, value in scores.items()]
        survival = body.get("survival")
        if survival:
            parts.append(f"edit survival {100 * survival['share']:.1f} %")
        where = f"{body['step']}: " if "step" in body else ""
        return _short(where + (", ".join(parts) or "nothing to measure"))
    if kind in (BEGIN, DONE, UNDONE) and "step" in body:
        words = [f"{body['step']}: {body.get('what', '')}"]
        words += [f"{len(body['facts'])} facts"] if body.get("facts") else []
        words += [" ".join(body["entries"])] if body.get("entries") else []
        words += [str(body["why"])] if "why" in body else []
        return _short(", ".join(words))
    return _short(", ".join(f"{name}: {value}" for name, value in body.items()))


def _facts(sentences: Sequence[str]) -> str:
    more = f" ... and {len(sentences) - SHOWN} more" if len(sentences) > SHOWN else ""
    return _short("; ".join(sentences[:SHOWN])) + more


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
