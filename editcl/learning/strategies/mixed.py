"""mixed: plain general text joins every batch, from the first task on.

    of every batch of b rows, ratio * b more are drawn from the pool; fractions are carried over

and learnt whole, token by token, as in pretraining. The default pool are plain sentences that come
with the project, none of those that general damage is measured on.

Memory held: the texts; during a task their tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, final

from torch import Tensor

from editcl.learning.session import Session
from editcl.learning.strategies.base import Strategy
from editcl.learning.strategies.replay import _drawn, _Share
from editcl.learning.texts import Texts, plain_texts

if TYPE_CHECKING:
    from editcl.learning.batches import Encoded
    from editcl.learning.tasks import Task


@final
class Mixed(Strategy):
    """Draws from a pool of texts.

    Args:
        texts: the pool.
        ratio: rows drawn for each row of the task.
    """

    name: ClassVar[str] = "mixed"

    def __init__(self, texts: Sequence[str] | None = None, ratio: float = 0.2) -> None:
        self._texts = Texts(plain_texts() if texts is None else texts)
        self._share = _Share(ratio)
        self.ratio, self.texts_digest = ratio, self._texts.digest

    def begin(self, session: Session, task: Task) -> None:
        """Encodes the texts."""
        self._texts.encode(session.model)

    def examples(self, session: Session, batch: list[Encoded], step: int) -> list[Encoded]:
        """The batch and what is drawn for it."""
        return batch + _drawn(session, self._share, self._texts.rows)

    def end(self, session: Session, task: Task) -> None:
        """Drops the tokens."""
        self._texts.forget()

    def state(self) -> dict[str, Any]:
        """How many rows were drawn."""
        return {"batched": self._share.batched, "drawn": self._share.drawn}

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Takes it over."""
        self._share.batched, self._share.drawn = state["batched"], state["drawn"]

    def memory(self) -> int:
        """The texts and the counts."""
        return super().memory() + self._texts.n_bytes
