"""Repair: facts of earlier edits that a sequence has lost are edited again with the next batch.

Whatever is held, hundreds of later edits wear an earlier one down. What the model no longer says is
told by asking, costs little beside the batch, and is then a fact like the batch's own: it is in the
batch's entry a second time, and rolls back with it, or by its name wherever it stands. Knows
nothing of methods.
"""

from __future__ import annotations

from collections.abc import Sequence

from editcl.editing.essence import asked_of
from editcl.encoding import Sentence
from editcl.facts import Fact
from editcl.model import EditableModel

LOST = 0.7  # nats a token of the object: p below one half


def lost_facts(model: EditableModel, earlier: Sequence[Fact], batch: Sequence[Fact]) -> list[Fact]:
    """Earlier facts that the model does not say, the least said first; as many as the batch has.

    Of several about one relation of a subject the last one counts, and none that the batch edits.

    Args:
        model: the model as it is now.
        earlier: facts in the order in which they were edited.
        batch: what is about to be edited.
    """
    latest = {(fact.subject.casefold(), asked_of(fact)): fact for fact in earlier}
    for fact in batch:
        latest.pop((fact.subject.casefold(), asked_of(fact)), None)
    known = list(latest.values())
    if not known:
        return []
    stated = [Sentence(fact.prompt, fact.subject, fact.new_object) for fact in known]
    said = (-model.score(stated).log_prob).tolist()
    lost = sorted((i for i, loss in enumerate(said) if loss > LOST), key=lambda i: -said[i])
    return [known[i] for i in lost[: len(batch)]]
