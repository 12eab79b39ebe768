"""replay: rows of earlier tasks, or of a pool of general instructions, join each batch.

    of every batch of b rows, ratio * b more are drawn from the memory; fractions are carried over

so that batches of 4 at ratio 0.2 get a row four times out of five, where rounding would give none
ever. Memory: at most `capacity` rows of token ids; reservoir sampling (a uniform sample of all rows
so far) or an equal quota for each task. The pool's memory is the pool.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

import torch
from torch import Tensor

from editcl.errors import EditclError
from editcl.learning.batches import Encoded, encode_examples
from editcl.learning.memory import from_tensors, quota, reservoir, to_tensors
from editcl.learning.session import Session
from editcl.learning.strategies.base import Strategy
from editcl.learning.tasks import Example

if TYPE_CHECKING:
    from editcl.learning.tasks import Task
    from editcl.model import EditableModel


class _Share:
    """How many rows are drawn for each batch: their sum is the ratio's, to the row."""

    def __init__(self, ratio: float) -> None:
        if not 0 < ratio <= 10:
            raise EditclError(
                f"a replay ratio of {ratio!r} is not in (0, 10]; 0.1 to 0.3 is usual."
            )
        self.ratio = Fraction(str(ratio))
        self.batched = self.drawn = 0

    def next(self, n_rows: int) -> int:
        """Rows to draw for a batch of so many."""
        self.batched += n_rows
        count = int(self.ratio * self.batched) - self.drawn
        self.drawn += count
        return count


@final
class Replay(Strategy):
    """Draws from the rows of finished tasks.

    Args:
        ratio: rows drawn for each row of the task.
        capacity: the most rows that are kept.
        keeps: "reservoir", a uniform sample of all rows, or "quota", equally many of each task.
    """

    name: ClassVar[str] = "replay"

    def __init__(
        self,
        ratio: float = 0.2,
        *,
        capacity: int = 1000,
        keeps: Literal["reservoir", "quota"] = "reservoir",
    ) -> None:
        if capacity < 1:
            raise EditclError(f"a memory of {capacity} rows keeps nothing; give at least 1.")
        if keeps not in ("reservoir", "quota"):
            raise EditclError(f"a memory can't keep {keeps!r}; choose 'reservoir' or 'quota'.")
        self.ratio, self.capacity, self.keeps = ratio, capacity, keeps
        self._share = _Share(ratio)
        self._rows: list[Encoded] = []
        self._seen = 0

    def examples(self, session: Session, batch: list[Encoded], step: int) -> list[Encoded]:
        """The batch and what is drawn for it."""
        return batch + _drawn(session, self._share, self._rows)

    def end(self, session: Session, task: Task) -> None:
        """Keeps a sample of the task's own rows."""
        own = [row for row in session.data if row.task == task.name]
        if self.keeps == "quota":
            self._rows = quota(self._rows, own, self.capacity, generator=session.generator)
        else:
            self._rows = reservoir(
                self._rows, self._seen, own, self.capacity, generator=session.generator
            )
        self._seen += len(own)

    def tensors(self) -> dict[str, Tensor]:
        """The rows."""
        return to_tensors(self._rows)[0]

    def state(self) -> dict[str, Any]:
        """How many rows there were, and how many were drawn."""
        counts = {"seen": self._seen, "batched": self._share.batched, "drawn": self._share.drawn}
        return to_tensors(self._rows)[1] | counts

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Puts rows together again."""
        self._rows = from_tensors(tensors, state)
        self._seen = state["seen"]
        self._share.batched, self._share.drawn = state["batched"], state["drawn"]


@final
class InstructionReplay(Strategy):
    """Draws from a pool of general instructions with their answers, from the first task on.

    Args:
        pool: kept whole; `own_answers` makes one of the model's own answers.
        ratio: rows drawn for each row of the task.
    """

    name: ClassVar[str] = "instruction_replay"

    def __init__(self, pool: Sequence[Example], ratio: float = 0.1) -> None:
        if not pool:
            raise EditclError("the pool of instructions is empty; give it some examples.")
        self.ratio, self.pool_size = ratio, len(pool)
        self._pool = tuple(pool)
        self._share = _Share(ratio)
        self._rows: list[Encoded] = []

    def begin(self, session: Session, task: Task) -> None:
        """Encodes the pool."""
        self._rows = self._rows or encode_examples(session.model, self._pool)

    def examples(self, session: Session, batch: list[Encoded], step: int) -> list[Encoded]:
        """The batch and what is drawn for it."""
        return batch + _drawn(session, self._share, self._rows)

    def state(self) -> dict[str, Any]:
        """How many rows were drawn."""
        return {"batched": self._share.batched, "drawn": self._share.drawn}

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Takes it over."""
        self._share.batched, self._share.drawn = state["batched"], state["drawn"]

    def memory(self) -> int:
        """The pool's texts."""
        texts = [text for example in self._pool for text in (example.prompt, example.completion)]
        return sum(len(text.encode()) for text in texts)


def own_answers(
    model: EditableModel, prompts: Sequence[str], max_new_tokens: int = 32
) -> list[Example]:
    """A pool of the model's own greedy answers, those that are blank left out."""
    found = zip(prompts, model.generate(prompts, max_new_tokens), strict=True)
    return [Example(prompt, answer) for prompt, answer in found if answer.strip()]


def _drawn(session: Session, share: _Share, rows: Sequence[Encoded]) -> list[Encoded]:
    """Rows for a step of `session.n_new` rows, with repetition; nothing is owed for steps before
    there were any.
    """
    if not rows:
        return []
    count = share.next(session.n_new)
    drawn = torch.randint(len(rows), (count,), generator=session.generator)
    return [rows[i] for i in drawn.tolist()]
