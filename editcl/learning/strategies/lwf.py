"""lwf: what the model answered before the task, it shall answer still (distillation).

    loss + lambda T^2 KL(p_old || p_new),   p = softmax(logits / T), mean over predicted tokens

on the rows of each batch, those that replay adds included, from the second task on (before the
first there was nothing to keep); and, if texts are given, on every token of some of them in each
pass, from the first task on: there the base model is the old one. arXiv:1606.09282; T = 2, and T^2
gives the term's gradients the size that they have at T = 1 (arXiv:1503.02531). The old logits come
from a frozen copy of the adapter, run on the very batch: no cache can fall out of step with it.

Memory held: between tasks the texts, if given; during one a copy of the adapter and the tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import kl_div

from editcl.errors import EditclError
from editcl.learning.parameters import positive
from editcl.learning.session import Route, Session, StepOutput
from editcl.learning.strategies.base import Strategy
from editcl.learning.texts import Texts

if TYPE_CHECKING:
    from editcl.learning.tasks import Task

COPY = "lwf/"  # in front of the names of frozen copies; a task's name has no slash


@final
class LwF(Strategy):
    """Distils from the adapters as they were when the task began.

    Args:
        strength: lambda.
        temperature: T.
        texts: general ones, unlabelled; () for none.
        texts_per_pass: how many pieces of them are drawn for each forward pass of a batch.
    """

    name: ClassVar[str] = "lwf"

    def __init__(
        self,
        strength: float = 1.0,
        *,
        temperature: float = 2.0,
        texts: Sequence[str] = (),
        texts_per_pass: int = 4,
    ) -> None:
        if texts_per_pass < 1:
            raise EditclError(f"texts_per_pass is {texts_per_pass!r}; give at least 1.")
        self.strength = positive("the strength of lwf", strength)
        self.temperature = positive("the temperature of lwf", temperature)
        self.texts_per_pass = texts_per_pass
        self._texts = Texts(texts) if texts else None
        self.texts_digest = self._texts.digest if self._texts else None
        self._old: Route | None = None  # None: there is nothing to distil

    def begin(self, session: Session, task: Task) -> None:
        """Copies the adapters that train; what is frozen stays as it is without a copy."""
        self._old = None
        if self._texts is not None:
            self._texts.encode(session.model)
        elif not session.seen:
            return
        names, bank = [], session.adapters
        for name in session.active:
            trains = bool(session.of_adapter(name))
            names.append(COPY + name if trains else name)
            if trains:
                bank.load(COPY + name, bank.settings(name), bank.state(name))
        self._old = Route(tuple(names))

    def penalty(self, session: Session, output: StepOutput) -> Mapping[str, Tensor]:
        """The divergence on the batch, and on texts."""
        found: dict[str, Tensor] = {}
        if self._old is None:
            return found
        if session.seen:
            found[self.name] = self._divergence(session, output)
        if self._texts is not None:
            rows = self._texts.draw(self.texts_per_pass, session.generator)
            told = session.forward(rows, dropout=True)
            found[f"{self.name}_texts"] = self._divergence(session, told)
        return found

    def end(self, session: Session, task: Task) -> None:
        """Drops copies and tokens."""
        self._old = None
        if self._texts is not None:
            self._texts.forget()
        for name in [name for name in session.adapters.names if name.startswith(COPY)]:
            session.adapters.remove(name)

    def memory(self) -> int:
        """The texts."""
        return super().memory() + (self._texts.n_bytes if self._texts else 0)

    def _divergence(self, session: Session, output: StepOutput) -> Float[Tensor, ""]:
        with torch.no_grad():
            old = session.forward(output.batch, route=self._old).logits
        return self.strength * distillation(old, output.logits, self.temperature)


def distillation(
    old: Float[Tensor, "n_kept d_vocab"], new: Float[Tensor, "n_kept d_vocab"], temperature: float
) -> Float[Tensor, ""]:
    """T^2 KL(p_old || p_new), the mean over rows."""
    p_old = (old.float() / temperature).log_softmax(-1)
    p_new = (new.float() / temperature).log_softmax(-1)
    # kl_div(q, p) is KL(p || q), and "batchmean" divides by the rows alone.
    return temperature**2 * kl_div(p_new, p_old, log_target=True, reduction="batchmean")
