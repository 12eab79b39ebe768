"""Material: anything that may be learnt, as examples with the facts that they state.

A task, facts, examples, pairs, plain text or a file become the same thing: examples, beside each
the fact that it states if it states one, and the task that could be trained. What can't be
anything to learn is refused here, before a model is looked at.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from editcl.editing.relation import infer_relation
from editcl.errors import EditclError, TableError
from editcl.facts import Fact
from editcl.learning.task_files import read_task
from editcl.learning.tasks import (
    CLASSIFICATION,
    TEXT,
    Example,
    Task,
    TaskError,
    name_problems,
)
from editcl.model import EditableModel
from editcl.readers import read_table
from editcl.readers.files import decode, read_bytes
from editcl.readers.problems import Problems, is_broken, printable
from editcl.routing.prose import facts_from_text
from editcl.routing.subjects import find_facts

LISTED = 5  # completions of one prompt that a message shows
UNNAMED = "untitled"
FILES = (".txt", ".csv", ".tsv", ".json", ".jsonl")


@dataclass(frozen=True, repr=False)
class Material:
    """What is to be learnt.

    Attributes:
        name: of the task.
        examples: what is learnt from, each distinct one once.
        test: what judges it; may be empty.
        facts: of each example the fact that it states, or None.
        task: what could be trained; None with fewer than two examples.
        unused: sentences of a text that gave nothing, with why.
        given: the facts that the caller named as such, in no guess of ours.

    Raises:
        TaskError: the name is none that a task may have.
    """

    name: str
    examples: tuple[Example, ...]
    test: tuple[Example, ...]
    facts: tuple[Fact | None, ...]
    task: Task | None
    unused: tuple[str, ...] = ()
    given: tuple[Fact, ...] = ()

    def __post_init__(self) -> None:
        if problems := name_problems(self.name):  # what is too small to train has no Task to check
            raise TaskError(f"task {self.name!r}", problems)

    def __repr__(self) -> str:
        stated = sum(fact is not None for fact in self.facts)
        unused = f", {len(self.unused):,} sentences unused" if self.unused else ""
        return f"Material({self.name}: {len(self.examples):,} examples, {stated:,} facts{unused})"


def material(
    what: object, *, name: str | None = None, model: EditableModel | None = None
) -> Material:
    """Makes material of anything that may be learnt.

    Args:
        what: a Task; facts, examples or (prompt, completion) pairs; plain text as a str; or a file,
            as a Path or as a str that ends in one of FILES: of a task or of facts (as `read_task`
            and `read_table` take them), or plain text.
        name: of the task; by default its own, or the file's.
        model: splits sentences that no template fits, and infers the relation of facts without a
            prompt; not changed.

    Raises:
        TaskError: it is empty, holds things that are no text, or says two things after one prompt.
        TableError: a file can't be read.
        EditclError: it is nothing of the above.
    """
    if isinstance(what, Task):
        return _of_task(what, name)
    if isinstance(what, str) and _names_a_file(what):
        return _of_file(Path(what), name, model)
    if isinstance(what, str):
        return _of_text(what, name or UNNAMED, model)
    if isinstance(what, os.PathLike):
        return _of_file(Path(os.fsdecode(what)), name, model)
    if isinstance(what, Sequence) and not isinstance(what, (bytes, bytearray, memoryview)):
        return _of_items(what, name or UNNAMED, model)
    raise EditclError(
        f"{type(what).__name__} is nothing to learn: give a Task, a list of Facts, Examples or "
        "(prompt, completion) pairs, a text, or a Path to a file."
    )


def _names_a_file(text: str) -> bool:
    """One line that ends as a file name does, which no sentence does."""
    return len(text) < 4096 and "\n" not in text and text.lower().endswith(FILES)


# -- from what is given ---------------------------------------------------------------------------


def _of_task(task: Task, name: str | None) -> Material:
    """A task's own facts stand for the examples that state them; those that none states join."""
    named = name or task.name
    if task.kind == TEXT:
        return _of_texts(task, named)
    examples = _distinct(named, task.train)
    own = {(fact.sentence, fact.new_object): fact for fact in task.facts}
    facts = [
        own.get((example.prompt.strip(), example.completion.strip())) or found
        for example, found in zip(examples, find_facts(examples), strict=True)
    ]
    stated = {(example.prompt.strip(), example.completion.strip()) for example in examples}
    more = [fact for key, fact in own.items() if key not in stated]
    examples += [Example(fact.sentence, fact.new_object) for fact in more]
    _distinct(named, examples)
    return Material(
        named, tuple(examples), task.test, (*facts, *more), task, given=tuple(own.values())
    )


def _of_texts(task: Task, name: str) -> Material:
    """Plain texts: the facts that their sentences state; trained are the texts as they are."""
    facts, unused = facts_from_text("\n".join(example.completion for example in task.train))
    facts = (*task.facts, *(fact for fact in facts if fact not in task.facts))
    examples = tuple(Example(fact.sentence, fact.new_object) for fact in facts)
    return Material(name, examples, task.test, facts, task, unused, given=task.facts)


def _of_text(text: str, name: str, model: EditableModel | None) -> Material:
    facts, unused = facts_from_text(text, model)
    examples = tuple(Example(fact.sentence, fact.new_object) for fact in facts)
    return Material(name, examples, (), facts, _task(name, examples), unused)


def _of_items(items: Sequence[object], name: str, model: EditableModel | None) -> Material:
    if not items:
        raise TaskError(f"task {name!r}", ["it is empty; give it something to learn."])
    if all(isinstance(item, Fact) for item in items):
        return _of_table(list(items), name, model)
    examples, problems = [], []
    for number, item in enumerate(items):
        try:
            examples.append(_example(item))
        except TaskError as error:
            problems += [f"item {number}: {line}" for line in error.problems]
    if problems:
        raise TaskError(f"task {name!r}", problems)
    bare = [i for i, example in enumerate(examples) if not example.prompt.strip()]
    if bare:
        raise TaskError(f"task {name!r}", [f"item {i} has no prompt; give it one." for i in bare])
    examples = _distinct(name, examples)
    return Material(name, tuple(examples), (), find_facts(examples), _task(name, examples))


def _of_file(path: Path, name: str | None, model: EditableModel | None) -> Material:
    """A text, a task, or else facts; if it is neither, what is wrong with the likelier one."""
    named = name or path.name.split(".")[0]
    if path.suffix.lower() == ".txt":
        problems = Problems(printable(os.fsdecode(path)))
        data, _ = read_bytes(path, problems)
        text = decode(data, problems)
        if not text.strip():
            problems.fail(None, "the file is empty; give it some sentences.")
        for number, line in enumerate(text.splitlines(), 1):
            if is_broken(line):
                problems.add(
                    f"line {number}", "it holds a NUL or a lone surrogate; decode its source anew."
                )
        problems.raise_all()
        return _of_text(text, named, model)
    try:
        return _of_task(read_task(path, name=name, test_share=0.0), name)
    except TableError as no_task:
        try:
            return _of_table(path, named, model)
        except TableError as no_facts:
            raise (no_facts if _mentions_facts(path) else no_task) from None


def _mentions_facts(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(65536)
    except OSError:
        return False
    return b"new_object" in head or b"subject" in head


def _of_table(source: object, name: str, model: EditableModel | None) -> Material:
    """Facts, validated as `edit_csv` validates them; rows without a prompt need the model."""
    facts = []
    for row in read_table(source).rows:
        if row.prompt is not None:
            facts.append(row.fact())
        elif model is None:
            raise TaskError(
                f"task {name!r}",
                [f"row {row.id} has no prompt; write one, or pass the model, which infers it."],
            )
        else:
            relation = infer_relation(model, row.subject, row.new_object)
            facts.append(Fact(row.subject, relation.prompt, row.new_object, row.old_object))
    examples = [Example(fact.sentence, fact.new_object) for fact in facts]
    examples = _distinct(name, examples)
    by_key = {(fact.sentence, fact.new_object): fact for fact in facts}
    kept = tuple(by_key[example.prompt, example.completion] for example in examples)
    return Material(name, tuple(examples), (), kept, _task(name, examples), given=kept)


# -- parts ----------------------------------------------------------------------------------------


def _example(item: object) -> Example:
    if isinstance(item, Example):
        return item
    if isinstance(item, Fact):
        return Example(item.sentence, item.new_object)
    if isinstance(item, (tuple, list)) and len(item) == 2:
        return Example(*item)
    raise TaskError(
        "an item",
        [
            f"it is {type(item).__name__}; give a Fact, an Example or a pair of prompt and "
            "completion."
        ],
    )


def _distinct(name: str, examples: Sequence[Example]) -> list[Example]:
    """Each example once.

    Raises:
        TaskError: one prompt has two completions.
    """
    said: dict[str, dict[str, None]] = {}
    for example in examples:
        said.setdefault(example.prompt.strip(), {})[example.completion.strip()] = None
    problems = [
        f"{prompt[:80]!r} is followed by {' and by '.join(map(repr, [*own][:LISTED]))}; keep one."
        for prompt, own in said.items()
        if len(own) > 1
    ]
    if problems:
        raise TaskError(f"task {name!r} contradicts itself", problems)
    return list(dict.fromkeys(examples))


def _task(name: str, examples: Sequence[Example]) -> Task | None:
    return Task(name, tuple(examples)) if len(examples) > 1 else None


def whole_task(made: Material) -> Task | None:
    """A task that trains all of the material, facts too that none of its task's examples state.

    None where there is too little to train, or where facts stand beside plain texts, whose training
    would not learn them.
    """
    if made.task is None or (made.task.kind == TEXT and made.given):
        return None
    known = set(made.task.train)
    more = [example for example in made.examples if example not in known]
    if made.task.kind == TEXT or not more:
        return made.task
    return replace(made.task, train=(*made.task.train, *more), labels=())


def train_only(task: Task, chosen: Sequence[Example]) -> Task | None:
    """The task with some of its examples to learn from, and the tests that go with them.

    A test goes along if its label is still learnt (of a classification), or, of other tasks, if
    its prompt is none of those that are left out. None where too little is left.
    """
    kept = set(chosen)
    train = tuple(example for example in task.train if example in kept)
    dropped = {example.prompt for example in task.train if example not in kept}
    test = tuple(example for example in task.test if example.prompt not in dropped)
    labels: tuple[str, ...] = ()
    if task.kind == CLASSIFICATION:
        seen = {example.completion for example in train}
        labels = tuple(label for label in task.labels if label in seen)
        test = tuple(example for example in test if example.completion in seen)
        if len(labels) < 2:
            return None
    if len(train) < 2:
        return None
    return Task(task.name, train, test, task.kind, labels, max_tokens=task.max_tokens)
