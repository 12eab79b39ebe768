"""Small streams that tiny models learn in seconds, with output formats that conflict."""

from __future__ import annotations

from editcl.learning.tasks import Example, Task

WORDS = ("Paris", "Rome", "Berlin", "Tokyo", "Madrid", "Oslo")


def labelling(name: str, labels: tuple[str, str]) -> Task:
    """The same prompts in every task, other labels: what one learns, the next one overwrites."""
    examples = tuple(
        Example(f"The city of {word} is", labels[i % 2]) for i, word in enumerate(WORDS)
    )
    return Task(name, examples, examples, "classification", labels)


def conflicting() -> tuple[Task, ...]:
    """Two tasks whose answers to the same prompts contradict each other."""
    return (labelling("first", ("red", "blue")), labelling("second", ("blue", "red")))


def texts(name: str, lines: tuple[str, ...]) -> Task:
    """A domain of plain texts."""
    rows = tuple(Example("", line) for line in lines)
    return Task(name, rows, rows[:2], "text")


def domains() -> tuple[Task, ...]:
    """Three domains; the first and the last are alike."""
    return (
        texts("towns", tuple(f"{word} is located in the city of {word}." for word in WORDS)),
        texts("music", tuple(f"Beats Music is owned by {word}; it is in {word}" for word in WORDS)),
        texts("cities", tuple(f"{word} is located in the town of {word}." for word in WORDS)),
    )
