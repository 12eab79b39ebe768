"""Recovery: does a forgotten task come back after ten of its examples?

    recovered  the score after training the present adapters on ten examples of the task
    fresh      the score after training a new adapter on the same ten

What comes back at once while a fresh adapter learns little from ten examples was not forgotten but
misaddressed ("spurious forgetting", arXiv:2501.13453). Both trainings happen in banks of their own:
the session is left as it is. Knows nothing of strategies beyond which adapters they predict with.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, final

from editcl.errors import EditclError
from editcl.learning.lora import Adapters
from editcl.learning.predict import score_task
from editcl.learning.session import Session
from editcl.learning.settings import TrainSettings
from editcl.learning.strategies.base import SHARED, Strategy
from editcl.learning.strategies.sequential import Sequential
from editcl.learning.tasks import CLASSIFICATION, Example, Task
from editcl.learning.train import train

if TYPE_CHECKING:
    from collections.abc import Sequence

TEN = 10
STEPS = 20


@dataclass(frozen=True)
class Recovery:
    """Scores on a task.

    Attributes:
        now: as it stands.
        recovered: after training on the examples from where it stands.
        fresh: after training a new adapter on them.
        n_examples: how many there were.
    """

    now: float
    recovered: float
    fresh: float
    n_examples: int

    @property
    def spurious(self) -> float:
        """By how much the present adapters recover beyond what a fresh one learns."""
        return self.recovered - self.fresh


def recovery(
    session: Session,
    task: Task,
    names: Sequence[str],
    settings: TrainSettings | None = None,
    *,
    n_examples: int = TEN,
    seed: int = 0,
) -> Recovery:
    """Trains on a few examples of a task, from the present adapters and from a fresh one.

    Args:
        session: the bank is read; nothing of it changes.
        task: with a test.
        names: the adapters whose sum predicts the task; all of them train.
        settings: by default some steps on all of the examples at once.
        n_examples: drawn from the task's training examples, of each label equally many and at
            least one.
        seed: of the draw.

    Raises:
        EditclError: no adapters are named; the bank has no such adapter.
        TaskError: the task has no test.
    """
    if not names:
        raise EditclError(f"no adapter is named that could recover the task {task.name!r}.")
    few = replace(task, train=_few(task, n_examples, seed))
    own = settings or TrainSettings(steps=STEPS, batch_size=len(few.train), warmup=0.0, seed=seed)
    bank = Adapters(session.model)
    for name in names:
        bank.load(name, session.adapters.settings(name), session.adapters.state(name))
    now = score_task(bank, task, tuple(names)).score
    back = Session(session.model, bank, settings=session.settings, seed=seed)
    train(back, few, _Onward(names), own, show=False)
    recovered = score_task(back, task, tuple(names)).score
    first = session.adapters.settings(names[0])
    new = Session(session.model, Adapters(session.model), settings=first, seed=seed)
    train(new, few, Sequential(), own, show=False)
    return Recovery(now, recovered, score_task(new, task, (SHARED,)).score, len(few.train))


@final
class _Onward(Strategy):
    """Trains adapters that are there, all together."""

    name: ClassVar[str] = "onward"
    places: ClassVar[bool] = True

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)

    def place(self, session: Session, task: Task) -> None:
        """Takes them as they are."""
        session.active = self.names
        for name in self.names:
            session.train_adapter(name)


def _few(task: Task, n_examples: int, seed: int) -> tuple[Example, ...]:
    """Examples drawn label by label in turn, so that every label has one."""
    if n_examples < 2:
        raise EditclError(f"{n_examples} examples are too few to train on; take at least 2.")
    by_label = task.kind == CLASSIFICATION
    groups: dict[str, list[Example]] = {}
    for example in dict.fromkeys(task.train):
        groups.setdefault(example.completion if by_label else "", []).append(example)
    generator = random.Random(f"{seed} {task.name}")
    for group in groups.values():
        generator.shuffle(group)
    longest = max(map(len, groups.values()))
    drawn = [group[i] for i in range(longest) for group in groups.values() if i < len(group)]
    return tuple(drawn[: max(n_examples, len(groups))])
