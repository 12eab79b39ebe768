"""Tasks: examples to learn from and to be judged by, and streams of them.

A task is checked when it is made, so that training never starts on one that can't be learnt: empty,
one example, one label only, labels that no training example has. This module knows nothing of
models, tokens and files.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from editcl.errors import EditclError
from editcl.facts import Fact
from editcl.readers.problems import is_broken

COMPLETION, CLASSIFICATION, TEXT = "completion", "classification", "text"
KINDS = (COMPLETION, CLASSIFICATION, TEXT)
SHOWN = 20  # problems in the message of a TaskError


class TaskError(EditclError):
    """A task that can't be learnt as it stands; lists all that is wrong with it.

    Attributes:
        problems: every problem found, one line each; the message shows the first ones.
    """

    def __init__(self, what: str, problems: Sequence[str]) -> None:
        lines = [f"{what}: {problems[0]}"] if len(problems) == 1 else [f"{what}:"]
        if len(problems) > 1:
            lines += [f"  {problem}" for problem in problems[:SHOWN]]
        if len(problems) > SHOWN:
            lines.append(f"  ... and {len(problems) - SHOWN:,} more.")
        super().__init__("\n".join(lines))
        self.problems = tuple(problems)


@dataclass(frozen=True)
class Example:
    """A text and what shall follow it.

    Attributes:
        prompt: what is given; "" where the whole text is to be learnt.
        completion: what is learnt: the answer, the label's word, or the text.

    Raises:
        TaskError: one of them is no text, or the completion is blank.
    """

    prompt: str
    completion: str

    def __post_init__(self) -> None:
        for name in ("prompt", "completion"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise TaskError(
                    "an example",
                    [f"its {name} is of type {type(value).__name__}; convert it to text."],
                )
            if is_broken(value):
                raise TaskError(
                    "an example",
                    [
                        f"its {name} has a NUL or a lone surrogate: {value[:60]!r}; decode its "
                        "source anew."
                    ],
                )
        if not self.completion.strip():
            raise TaskError(
                "an example", [f"nothing follows {self.prompt[:60]!r}; give it a completion."]
            )


@dataclass(frozen=True, repr=False)
class Task:
    """Something to learn.

    Attributes:
        name: what it is called; no two tasks of a stream share it.
        train: what is learnt from.
        test: what judges it.
        kind: "completion" (judged by the exact greedy continuation), "classification" (completions
            are label words; judged by the label with the highest mean log-probability per token)
            or "text" (prompts are empty; judged by the negative logarithm of perplexity).
        labels: the label words, of classification; by default those of `train`, as they first
            occur there.
        facts: facts that the task is known to hold.
        max_tokens: longer rows lose the middle of their prompt (texts are cut into pieces); None:
            the model's longest row is the limit, and a longer prompt is an error.

    Raises:
        TaskError: it can't be learnt as it stands.
    """

    name: str
    train: tuple[Example, ...]
    test: tuple[Example, ...] = ()
    kind: str = COMPLETION
    labels: tuple[str, ...] = ()
    facts: tuple[Fact, ...] = field(default=())
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("train", "test", "labels", "facts"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.kind == CLASSIFICATION and not self.labels:
            found = dict.fromkeys(example.completion for example in self.train)
            object.__setattr__(self, "labels", tuple(found))
        problems = [*name_problems(self.name), *_sized(self), *_fitting(self)]
        if problems:
            raise TaskError(f"task {self.name!r}", problems)

    def __repr__(self) -> str:
        labels = f", {len(self.labels)} labels" if self.labels else ""
        return (
            f"Task({self.name}: {self.kind}, {len(self.train):,} to learn from, "
            f"{len(self.test):,} to be judged by{labels})"
        )


def name_problems(name: object) -> list[str]:
    """What makes this no name of a task; an empty list if nothing does."""
    if not isinstance(name, str) or not name.strip():
        return ["it has no name; give it one."]
    if any(char in "./\\" or ord(char) < 32 for char in name) or name.startswith("__"):
        return [
            "its name holds '.', '/', a backslash or a control character, or begins with '__'; it "
            "names adapters and files: use letters, digits, '-' and '_'."
        ]
    return []


def _sized(task: Task) -> list[str]:
    if task.kind not in KINDS:
        return [f"there is no kind {task.kind!r}; choose one of {', '.join(KINDS)}."]
    if task.max_tokens is not None and task.max_tokens < 2:
        return [f"max_tokens is {task.max_tokens}; a row needs at least 2."]
    if not task.train:
        return ["it has no examples to learn from; give it some."]
    if len(task.train) == 1 and task.kind != TEXT:
        return ["it has one example to learn from; give it at least two."]
    return []


def _fitting(task: Task) -> list[str]:
    """What is wrong between the examples and the kind."""
    if task.kind == TEXT:
        prompted = sum(bool(example.prompt) for example in (*task.train, *task.test))
        return [f"{prompted} examples of a text have a prompt; leave it empty."] * (prompted > 0)
    bare = sum(not example.prompt.strip() for example in (*task.train, *task.test))
    problems = [f"{bare} examples have no prompt; give them one, or kind='text'."] * (bare > 0)
    if task.kind != CLASSIFICATION:
        return problems + ["labels are given; leave them out, or kind='classification'."] * bool(
            task.labels
        )
    seen = Counter(example.completion for example in task.train)
    if len(task.train) > 1 and len(seen) == 1:
        problems.append(
            f"all {len(task.train):,} examples to learn from have the label "
            f"{next(iter(seen))!r}; give it examples of at least two labels."
        )
    twice = [label for label, count in Counter(task.labels).items() if count > 1]
    if twice:
        problems.append(f"the label {twice[0]!r} is listed twice; delete one.")
    for label in seen:
        if label not in task.labels:
            problems.append(f"examples have the label {label!r}, which is not listed in labels.")
    for label in task.labels:
        if seen and label not in seen:
            problems.append(f"no example to learn from has the listed label {label!r}.")
    for label in dict.fromkeys(example.completion for example in task.test):
        if label not in seen:
            problems.append(
                f"the label {label!r} of the test is in no example to learn from; add some, or "
                "take it out of the test."
            )
    return problems


def check_stream(tasks: Sequence[Task]) -> None:
    """Refuses a stream without tasks, or with two of one name.

    Raises:
        TaskError: it is one of these.
    """
    if not tasks:
        raise TaskError("a stream", ["it has no tasks; give it at least one."])
    twice = [name for name, count in Counter(task.name for task in tasks).items() if count > 1]
    if twice:
        raise TaskError(
            "a stream", [f"two tasks are called {name!r}; rename one." for name in twice]
        )


def split_examples(
    examples: Sequence[Example], share: float, *, seed: int, by_label: bool = False
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """(train, test): a share of the examples drawn for the test, the rest in its order.

    Equal examples stay together, so that no test example is trained on. By label, each label gives
    its share and keeps at least one example to learn from.
    """
    if not 0 <= share < 1:
        raise TaskError("a split", [f"a test share of {share} is not in [0, 1)."])
    distinct = list(dict.fromkeys(examples))
    groups: dict[str, list[Example]] = {}
    for example in distinct:
        groups.setdefault(example.completion if by_label else "", []).append(example)
    drawn: set[Example] = set()
    for label in sorted(groups):
        group = groups[label]
        count = min(round(len(group) * share), len(group) - 1)
        drawn.update(random.Random(f"{seed} {label}").sample(group, count))
    train = tuple(example for example in examples if example not in drawn)
    return train, tuple(example for example in distinct if example in drawn)
