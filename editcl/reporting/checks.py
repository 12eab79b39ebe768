"""Checks: each item of the checklist, measured on both sides.

    tasks       the score of each task's test
    ability     cross-entropy of plain sentences, and KL(base || now)
    knowledge   share of the facts that the base answers rightly and that still are
    drift       answers to generic prompts: KL, reference NLL, constraints, label bleed

Facts that the log has edited are not asked as knowledge: those shall change. Knows nothing of how
anything was learnt, beyond what the steps say.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from editcl.catalogue import known_facts, relation_of, relations
from editcl.errors import EditclError
from editcl.facts import Fact
from editcl.learner.steps import Kept, Step
from editcl.learning.batches import Encoded, encode_examples, encode_prompts
from editcl.learning.drift import Change, Drift, Instruction, label_bleed, share_kept
from editcl.learning.tasks import TEXT, Example, Task
from editcl.reporting.result import Knowledge, TaskLine
from editcl.reporting.sides import Sides

SAMPLE = 300  # facts of the catalogue
MAX_NEW_TOKENS = 16

# -- tasks ----------------------------------------------------------------------------------------


def task_lines(sides: Sides, steps: Sequence[Step], tasks: Sequence[Task]) -> list[TaskLine]:
    """A line for each active step with a kept test, and for each given task.

    A given task takes the place of a step of its name: its whole test counts.

    Raises:
        EditclError: a given task has no test, or can't be encoded; or two have one name.
    """
    own = {step.task: step for step in steps if step.active}
    tests = {name: step.kept for name, step in own.items() if step.kept is not None}
    names = [task.name for task in tasks]
    for task in tasks:
        if not task.test:
            raise EditclError(f"task {task.name!r} has no test to be judged by; give it one.")
        if names.count(task.name) > 1:
            raise EditclError(f"two of the tasks are called {task.name!r}; rename one.")
        tests[task.name] = Kept(task.test, task.kind, task.labels, task.max_tokens)
    learnt = {s.task: f"learnt by {s.strategy} ({s.id})" for s in sides.judge.skills.active}
    learnt |= {name: f"{step.kind} ({step.id}), {step.state}" for name, step in own.items()}
    return [
        _task_line(sides, name, kept, learnt.get(name, "not learnt"))
        for name, kept in tests.items()
    ]


def unjudged(sides: Sides, lines: Sequence[TaskLine]) -> list[str]:
    """Of each skill without a line, that its test is not known."""
    judged = {line.name for line in lines}
    return [
        f"{skill.id} ({skill.task}) is not judged: the log keeps no test of it. Pass the task."
        for skill in sides.judge.skills.active
        if skill.task not in judged
    ]


def _task_line(sides: Sides, name: str, kept: Kept, how: str) -> TaskLine:
    own = name if name in sides.judge.skills.tasks else None
    told: float | None = None
    if kept.kind == TEXT:
        task = Task(name, kept.examples, kept.examples, TEXT, max_tokens=kept.max_tokens)
        now = sides.judge.skills.evaluate(task, own).score
        with sides.at(True):
            base = sides.judge.skills.evaluate(task, None).score
        told = None if own is None else now
    else:
        before, after = sides.right(kept.examples, kept.labels)
        base, now = _share(before), _share(after)
        if own is not None:
            told = _share(sides.judge.correct(kept.examples, kept.labels, own))
    return TaskLine(name, kept.kind, base, now, told, len(kept.examples), how)


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags)


# -- knowledge ------------------------------------------------------------------------------------


def catalogue_facts(seed: int, edited: Iterable[Fact], count: int = SAMPLE) -> list[Fact]:
    """Facts of the catalogue in their canonical phrasing, drawn by seed.

    Whatever relation of a subject was edited is left out, by all of its phrasings.
    """
    taken = set()
    for fact in edited:
        relation = relation_of(fact.prompt)
        taken.add((fact.subject, fact.prompt if relation is None else relation.name))
    named = relations()
    left = [
        known
        for known in known_facts()
        if (known.subject, known.relation) not in taken
        and (known.subject, named[known.relation].prompt) not in taken
    ]
    drawn = random.Random(seed).sample(left, min(count, len(left)))
    return [Fact(one.subject, named[one.relation].prompt, one.object) for one in drawn]


def knowledge(sides: Sides, facts: Sequence[Fact]) -> Knowledge | None:
    """How facts are answered on both sides: each token of the object the most probable one.

    Args:
        sides: of the model.
        facts: their new objects are the right answers.
    """
    if not facts:
        return None
    asked = [Example(fact.sentence, fact.new_object) for fact in facts]
    before, now = sides.right(asked)
    groups: dict[str, tuple[int, int]] = {}
    for fact, was, still in zip(facts, before, now, strict=True):
        relation = relation_of(fact.prompt)
        if relation is not None and was:
            known, kept = groups.get(relation.name, (0, 0))
            groups[relation.name] = known + 1, kept + still
    lost = [f for f, was, still in zip(facts, before, now, strict=True) if was and not still]
    gained = sum(still and not was for was, still in zip(before, now, strict=True))
    known = sum(before)
    sentences = tuple(f"{fact.sentence} {fact.new_object}" for fact in lost)
    return Knowledge(len(facts), known, known - len(lost), gained, sentences, groups)


# -- instruction drift ----------------------------------------------------------------------------


def drift(
    sides: Sides,
    instructions: Sequence[Instruction],
    labels: Sequence[str],
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> tuple[Drift | None, list[str]]:
    """Answers on both sides; see `Drift`, whose base is here that without edits as well.

    Returns:
        The drift, or None if no prompt fits the model beside an answer; and what was left out.
    """
    model = sides.model
    asked = [one.prompt for one in instructions]
    prompts = encode_prompts(model, asked, max_tokens=model.max_tokens)
    fitting = [
        i for i, row in enumerate(prompts) if len(row.ids) + max_new_tokens <= model.max_tokens
    ]
    out = len(instructions) - len(fitting)
    left = [f"{out} of {len(instructions)} generic prompts are too long for the model"] * (out > 0)
    if not fitting:
        return None, left
    told = [instructions[i] for i in fitting]
    prompts = [prompts[i] for i in fitting]
    own, new = sides.say(prompts, max_new_tokens)
    spoken = [Encoded(row.ids + ids, row.start) for row, ids in zip(prompts, own, strict=True)]
    decode = model.tokenizer.decode
    before, now = ([decode(ids, skip_special_tokens=True) for ids in said] for said in (own, new))
    checks = [one.constraints for one in told]
    found = Drift(
        kl=sides.compare(spoken).kl,
        reference=_reference(sides, told),
        constraints=(
            Change(share_kept(checks, before), share_kept(checks, now)) if any(checks) else None
        ),
        bleed=Change(label_bleed(labels, before), label_bleed(labels, now)) if labels else None,
        n_instructions=len(told),
    )
    return found, left


def _reference(sides: Sides, asked: Sequence[Instruction]) -> Change | None:
    pairs = [Example(one.prompt, one.reference) for one in asked if one.reference]
    rows = encode_examples(sides.model, pairs)
    rows = [row for row in rows if len(row.ids) <= sides.model.max_tokens]
    if not rows:
        return None
    found = sides.compare(rows)
    return Change(found.base_cross_entropy, found.cross_entropy)


def task_labels(sides: Sides, tasks: Sequence[Task]) -> tuple[str, ...]:
    """The label words of what was learnt and of the given tasks."""
    found = [label for skill in sides.judge.skills.active for label in skill.details["labels"]]
    return tuple(dict.fromkeys([*found, *(label for task in tasks for label in task.labels)]))
