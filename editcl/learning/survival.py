"""Edit survival: whether logged facts outlast learning.

A skill trained beside edited facts may undo them, which scores on tasks never show. The facts that
the log says are in the weights are asked for with and without adapters:

    survival = facts that hold with the adapters / facts that hold without them

Knows nothing of how facts were edited.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from editcl.encoding import Sentence
from editcl.errors import EditclError
from editcl.facts import Fact
from editcl.learning.batches import Encoded
from editcl.learning.callbacks import Callback
from editcl.learning.drift import Routing, chosen_route, through_views
from editcl.learning.lora import Adapters
from editcl.learning.session import Route
from editcl.model import EditableModel

if TYPE_CHECKING:
    from editcl.learning.session import Session


@dataclass(frozen=True, repr=False)
class Survival:
    """How logged facts stand.

    Attributes:
        n_facts: facts that are active in the log.
        before: how many hold without adapters.
        kept: how many of those hold with them.
        lost: the others of those, as sentences.
    """

    n_facts: int
    before: int
    kept: int
    lost: tuple[str, ...]

    @property
    def share(self) -> float:
        """kept / before; 1 where none held before."""
        return self.kept / self.before if self.before else 1.0

    def __repr__(self) -> str:
        lost = f", lost: {'; '.join(self.lost[:3])}" if self.lost else ""
        more = f" and {len(self.lost) - 3} more" if len(self.lost) > 3 else ""
        return (
            f"Survival({self.share:.1%}: {self.kept} of the {self.before} facts that held, of "
            f"{self.n_facts} in the log{lost}{more})"
        )


def edit_survival(adapters: Adapters, routing: Routing) -> Survival:
    """How many of the logged facts that hold without adapters hold with them.

    A fact holds if p(new) > p(old) after its prompt; without an old object, if every token of the
    new one is the most probable. Rolled-back facts don't count.

    Raises:
        EditclError: no fact is active in the log.
    """
    facts = active_facts(adapters.model)
    if not facts:
        raise EditclError(
            "the log has no active facts whose survival could be measured. Edit some first."
        )
    before = holding(adapters, facts, Route())
    now = holding(adapters, facts, routing)
    held = [i for i, holds in enumerate(before) if holds]
    lost = tuple(str(facts[i]) for i in held if not now[i])
    return Survival(len(facts), len(held), len(held) - len(lost), lost)


def active_facts(model: EditableModel) -> list[Fact]:
    """The facts that the log says are in the weights, in log order."""
    return [
        fact
        for edit in model.log.entries
        for fact, active in zip(edit.facts, model.log.active_facts(edit), strict=True)
        if active
    ]


def holding(adapters: Adapters, facts: Sequence[Fact], routing: Routing) -> list[bool]:
    """Whether each fact holds with the adapters; see `edit_survival`."""
    asked = adapters.model.encode([Sentence(fact.prompt, fact.subject) for fact in facts])
    route = chosen_route(routing, [Encoded(row.ids, len(row.ids)) for row in asked])

    def judge(view: EditableModel, chosen: list[int]) -> list[bool]:
        own = [facts[i] for i in chosen]
        new = view.score([Sentence(f.prompt, f.subject, f.new_object) for f in own])
        known = [n for n, f in enumerate(own) if f.old_object is not None]
        holds = new.exact.tolist()
        if known:
            old = view.score(
                [Sentence(own[n].prompt, own[n].subject, own[n].old_object or "") for n in known]
            )
            wins = (new.log_prob[known] > old.log_prob).tolist()
            for n, win in zip(known, wins, strict=True):
                holds[n] = win
        return [bool(one) for one in holds]

    return through_views(adapters, route, len(facts), judge)


@final
class SurvivalWatch(Callback):
    """Measures edit survival while a training goes on.

    Args:
        session: of the training.
        every: steps between two looks.

    Attributes:
        found: (step, survival) of each look.
    """

    def __init__(self, session: Session, *, every: int = 10) -> None:
        if every < 1:
            raise EditclError(f"every is {every}; give a whole number of at least 1.")
        self.found: list[tuple[int, Survival]] = []
        self._session, self._every = session, every

    def on_step(self, step: int, values: Mapping[str, float]) -> None:
        """Looks, through the adapters that are being trained with."""
        if (step + 1) % self._every == 0:
            adapters = self._session.adapters
            self.found.append((step, edit_survival(adapters, Route(adapters.active))))
