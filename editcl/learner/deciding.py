"""Deciding: what a call of `learn` does, from the router or as it was asked for.

A method that is asked for becomes a Decision as well, so that the log tells of every step alike.
Knows nothing of models but for handing one to the router.
"""

from __future__ import annotations

from dataclasses import replace

from editcl.errors import EditclError
from editcl.learning.tasks import Task
from editcl.model import EditableModel
from editcl.routing.decision import EDIT, SPLIT, TRAIN, Cost, Decision
from editcl.routing.material import Material, train_only
from editcl.routing.route import route
from editcl.routing.words import unused_reasons

AUTO = "auto"
METHODS = (AUTO, EDIT, TRAIN, SPLIT)
ASKED = "asked for"


def check_method(method: str) -> None:
    """Refuses what is no method; EditclError."""
    if method not in METHODS:
        raise EditclError(f"there is no method {method!r}; choose one of {', '.join(METHODS)}.")


def decide(
    model: EditableModel, made: Material, method: str, *, budget: str, seed: int, show: bool
) -> Decision:
    """What to do with material.

    Raises:
        EditclError: what was asked for is not possible, or there is no such method.
    """
    check_method(method)
    if method == AUTO:
        found = route(model, made, budget=budget, seed=seed, show=show)
        trains = None if found.trains is None else replace(found.trains, name=made.name)
        return replace(found, task=made.name, trains=trains)
    asked = {EDIT: _edit, TRAIN: _train, SPLIT: _split}[method](made)
    return replace(asked, budget=budget)


def trained_instead(decision: Decision, made: Material, whole: Task, why: str) -> Decision:
    """Another decision after an edit was tried and taken back: all of it is trained.

    Its confidence is that of guessing one arm of two: what was measured speaks against the edit.

    Args:
        decision: of the edit.
        made: what is learnt.
        whole: the task that trains all of it.
        why: what the edit cost.
    """
    told = f"{why}, so it was taken back, and all is trained instead"
    before = (f"decided before: {reason}" for reason in decision.reasons)
    return replace(
        decision,
        kind=TRAIN,
        confidence=0.5,
        reasons=(told, *before),
        facts=(),
        trains=_named(made, whole),
    )


def _asked(made: Material, kind: str, *more: str) -> Decision:
    reasons = (ASKED, *more, *unused_reasons(made.unused))
    return Decision(made.name, kind, 1.0, reasons, {}, Cost(0.0, None, None))


def _edit(made: Material) -> Decision:
    """All facts; examples that state none are left out, and that is said."""
    facts = tuple(dict.fromkeys(fact for fact in made.facts if fact is not None))
    if not facts:
        raise EditclError(
            f"no item of {made.name!r} states a fact (a subject in its prompt that a short answer "
            "follows), so there is nothing to edit. Give Facts with their subjects, or train."
        )
    out = sum(fact is None for fact in made.facts)
    left = [f"{out} of {len(made.facts)} items state no fact and are left out"] if out else []
    return replace(_asked(made, EDIT, *left), facts=facts)


def _train(made: Material) -> Decision:
    return replace(_asked(made, TRAIN), trains=_named(made, made.task))


def _split(made: Material) -> Decision:
    """The facts that the task names, or else those that are found, apart from the rest."""
    given = set(made.given)
    stated = [fact is not None and (not given or fact in given) for fact in made.facts]
    facts = tuple(f for f, is_fact in zip(made.facts, stated, strict=True) if is_fact and f)
    rest = [e for e, is_fact in zip(made.examples, stated, strict=True) if not is_fact]
    trains = None if made.task is None else train_only(made.task, rest)
    if not facts or trains is None:
        raise EditclError(
            f"{made.name!r} can't be split: {len(facts)} of its {len(made.examples)} items are "
            f"facts, and {len(rest)} are left to train on. Name the facts (Task.facts), or choose "
            "edit or train."
        )
    return replace(_asked(made, SPLIT), facts=facts, trains=_named(made, trains))


def _named(made: Material, task: Task | None) -> Task:
    if task is None:
        raise EditclError(
            f"{made.name!r} has {len(made.examples)} examples; training takes two. Edit it, or "
            "give it more."
        )
    return replace(task, name=made.name)
