"""report: the evaluation checklist as one call.

    new-task performance | ability retention | knowledge retention | instruction drift
    edit survival | cost | decisions and log | and, if asked for, tasks of lm-eval

Everything is compared with the base model: all edits out and no adapters. Measuring is a question
and not a step: neither the weights nor the log are changed by it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from editcl.errors import EditclError
from editcl.evaluation.damage import general_texts
from editcl.facts import Fact
from editcl.learner.judge import Judge, current_facts
from editcl.learner.learn import Learner
from editcl.learner.settings import ABSTAIN
from editcl.learner.steps import steps_of
from editcl.learning.drift import Instruction
from editcl.learning.skills import Skills
from editcl.learning.survival import active_facts
from editcl.learning.tasks import Task
from editcl.log.entry import now
from editcl.model import EditableModel
from editcl.progress import progress
from editcl.reporting.checks import (
    catalogue_facts,
    drift,
    knowledge,
    task_labels,
    task_lines,
    unjudged,
)
from editcl.reporting.harness import harness, require_harness
from editcl.reporting.instructions import GENERIC
from editcl.reporting.result import Report
from editcl.reporting.sides import Sides
from editcl.reporting.story import deciding, moments, spent

Found = TypeVar("Found")


def report(
    model_or_learner: EditableModel | Learner | Skills,
    tasks: Sequence[Task] = (),
    *,
    facts: Sequence[Fact] | None = None,
    texts: Sequence[str] | None = None,
    instructions: Sequence[Instruction] = GENERIC,
    lm_eval: Sequence[str | Path | Mapping[str, Any]] = (),
    limit: int | None = None,
    seed: int = 0,
    show: bool = True,
) -> Report:
    """Measures a model after learning against its base; nothing is written anywhere.

    Args:
        model_or_learner: each prompt is answered by the skill that its Learner would choose; of a
            model or of Skills, by the one that a Learner with its defaults would choose.
        tasks: with tests; tasks whose tests the log keeps are judged anyway, by those.
        facts: knowledge that shall last, the new object being the right one; by default a sample
            of the catalogue's facts.
        texts: plain texts of general ability; by default those of `damage`.
        instructions: generic prompts of no task.
        lm_eval: tasks of lm-eval: names, YAML files, or configurations. They need the extra.
        limit: of the examples of each task of lm-eval.
        seed: of what is sampled.
        show: draws a progress bar in terminals.

    Raises:
        EditclError: a task is unfit or has no test, or a text can't be encoded; or a task of
            lm-eval is asked for that is not known, or lm-eval isn't installed.
    """
    started = time.perf_counter()
    sides = Sides(_judge(model_or_learner))
    tasks = _listed(tasks)
    manager = require_harness(lm_eval) if lm_eval else None
    log = sides.model.log
    steps = steps_of(log)
    edited = current_facts(log, steps)
    labels = task_labels(sides, tasks)
    if facts is None:
        facts = catalogue_facts(seed, [*edited.values(), *active_facts(sides.model)])
    plain = list(general_texts() if texts is None else texts)
    asked: dict[str, Callable[[], Any]] = {
        "tasks": lambda: task_lines(sides, steps, tasks),
        "ability": lambda: sides.compare_texts(plain) if plain else None,
        "to_skills": lambda: sides.judge.bleed(plain) if plain else 0.0,
        "knowledge": lambda: knowledge(sides, facts),
        "drift": lambda: drift(sides, instructions, labels),
        "survival": lambda: sides.judge.survival([*edited.values()]),
        "harness": lambda: (
            harness(sides, lm_eval, manager, limit=limit, seed=seed) if lm_eval else []
        ),
    }
    found = {name: asked[name]() for name in progress(list(asked), "measuring", show=show)}
    drifted, left = found["drift"]
    return Report(
        model=sides.model.name,
        log=repr(log),
        created=now(),
        seed=seed,
        tasks=tuple(found["tasks"]),
        ability=found["ability"],
        to_skills=found["to_skills"],
        knowledge=found["knowledge"],
        drift=drifted,
        survival=found["survival"],
        spent=tuple(spent(log)),
        n_parameters=sum(parameter.numel() for parameter in sides.model.hf.parameters()),
        deciding=deciding(steps),
        steps=steps,
        moments=tuple(moments(log)),
        harness=tuple(found["harness"]),
        notes=(*unjudged(sides, found["tasks"]), *left, *_unknown(found["knowledge"])),
        seconds=time.perf_counter() - started,
    )


def _judge(what: EditableModel | Learner | Skills) -> Judge:
    if isinstance(what, Learner):
        return Judge(what.skills, what.abstain)
    if isinstance(what, EditableModel):
        return Judge(Skills(what), ABSTAIN)
    if isinstance(what, Skills):
        return Judge(what, ABSTAIN)
    raise EditclError(
        f"a {type(what).__name__} can't be reported on; give an EditableModel, Skills or a Learner."
    )


def _listed(tasks: object) -> tuple[Task, ...]:
    found = tuple(tasks) if isinstance(tasks, Sequence) and not isinstance(tasks, str) else (tasks,)
    for task in found:
        if not isinstance(task, Task):
            raise EditclError(
                f"tasks holds a {type(task).__name__}; give Tasks (editcl.learning.tasks), for "
                "files those that read_task makes."
            )
    return tuple(task for task in found if isinstance(task, Task))


def _unknown(found: Any) -> list[str]:
    if found is None or found.known:
        return []
    return [
        f"knowledge retention is not measured: the base answers none of {found.n} facts rightly. "
        "Pass facts that it knows."
    ]
