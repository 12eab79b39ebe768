"""dapt: before a task, plain language modelling on its domain.

    first `share` of the steps   mean cross-entropy of every token of domain texts
    then                         the task itself

Domain-adaptive pretraining where texts of the domain are given; without them the task's own
prompts are the texts, which is task-adaptive pretraining (both arXiv:2004.10964). The steps are
those of the training, so that it costs what the task alone would; a whole domain as a task of its
own is a Task of kind "text". With early stopping, let patience outlast the phase: the held-out rows
are the task's. Rows that other strategies have added to a batch stay in it.

Memory held: the texts, if given; during a task their tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, final

from editcl.errors import EditclError
from editcl.learning.batches import Encoded
from editcl.learning.session import Session
from editcl.learning.strategies.base import Strategy
from editcl.learning.texts import Texts

if TYPE_CHECKING:
    from editcl.learning.tasks import Task


@final
class DAPT(Strategy):
    """A phase of plain language modelling in each task.

    Args:
        texts: of the domain; () for the task's own prompts.
        share: of the steps.
    """

    name: ClassVar[str] = "dapt"

    def __init__(self, texts: Sequence[str] = (), *, share: float = 0.3) -> None:
        if not 0 < share < 1:
            raise EditclError(f"the share is {share!r}; give a number above 0 and below 1.")
        self._texts = Texts(texts) if texts else None
        self.share, self.texts_digest = share, self._texts.digest if self._texts else None
        self._adapting = False

    def begin(self, session: Session, task: Task) -> None:
        """Encodes the texts."""
        if self._texts is not None:
            self._texts.encode(session.model)

    def before_step(self, session: Session, step: int, total: int) -> None:
        """Which phase it is."""
        self._adapting = step < round(self.share * total)

    def examples(self, session: Session, batch: list[Encoded], step: int) -> list[Encoded]:
        """In the first phase texts stand in the place of the task's rows."""
        if not self._adapting:
            return batch
        n_new = session.n_new
        if self._texts is not None:
            return self._texts.draw(n_new, session.generator) + batch[n_new:]
        return [as_text(row) for row in batch[:n_new]] + batch[n_new:]

    def end(self, session: Session, task: Task) -> None:
        """Drops the tokens."""
        if self._texts is not None:
            self._texts.forget()

    def memory(self) -> int:
        """The texts."""
        return super().memory() + (self._texts.n_bytes if self._texts else 0)


def as_text(row: Encoded) -> Encoded:
    """The prompt of a row as a text of its own; the whole row where there is no more than a start.

    What follows the prompt is not shown: this phase needs no labels.
    """
    ids = row.ids[: row.start] if row.start > 1 else row.ids
    return Encoded(ids, 1, row.task)
