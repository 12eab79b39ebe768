"""Small tasks and sessions that the tests of learning share."""

from __future__ import annotations

import random

import tiny

import editcl
from editcl.learning.kinds import AdapterSettings
from editcl.learning.lora import Adapters
from editcl.learning.session import Session
from editcl.learning.settings import TrainSettings
from editcl.learning.tasks import Example, Task
from editcl.model import EditableModel

WORDS = ("Paris", "Rome", "Apple", "Tower", "Music", "city", "Bayern", "Brücke")
#: Quick, and of the same bits on every processor.
QUICK = TrainSettings(steps=6, batch_size=4, lr=1e-2, autocast="off")


def labelled(name: str, labels: tuple[str, ...] = ("Paris", "Rome"), n: int = 24) -> Task:
    """Each word has its label."""
    draw = random.Random(name)

    def example(i: int) -> Example:
        word = WORDS[i % len(WORDS)]
        tail = " and so" * draw.randint(0, 3)
        return Example(
            f"{name}: the {word} {draw.randint(0, 99)}{tail} is", labels[i % len(labels)]
        )

    train = tuple(example(i) for i in range(n))
    return Task(name, train, tuple(example(i) for i in range(8)), "classification", labels)


def answered(name: str, n: int = 12) -> Task:
    """Completions of several lengths."""
    examples = tuple(
        Example(f"{name} {i}: say {WORDS[i % 8]}", " ".join(WORDS[: 1 + i % 3])) for i in range(n)
    )
    return Task(name, examples, examples[:4])


def session(
    model: EditableModel | None = None, *, dropout: float = 0.0, kind: str = "lora", seed: int = 0
) -> Session:
    """A new session on a tiny model."""
    found = model or editcl.wrap(tiny.build("gpt2"), tiny.byte_tokenizer())
    settings = AdapterSettings(kind=kind, rank=4, dropout=dropout)
    return Session(found, Adapters(found), settings, seed=seed)
