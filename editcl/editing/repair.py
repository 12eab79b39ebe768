"""Repair: facts of earlier edits that a sequence has lost are edited again with the next batch.

Whatever is held, hundreds of later edits wear an earlier one down. What the model no longer says is
told by asking, costs little beside the batch, and is then a fact like the batch's own: it is in the
batch's entry a second time, at its end. Rolling back what it repairs rolls it back too. Knows
nothing of methods.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from editcl.editing.essence import still_meant
from editcl.editing.values import UNSAID
from editcl.encoding import Sentence
from editcl.facts import Fact
from editcl.model import EditableModel

REPAIRS = 2  # of a fact: what doesn't hold then can't be had


def lost_facts(model: EditableModel, earlier: Sequence[Fact], batch: Sequence[Fact]) -> list[Fact]:
    """Earlier facts that the model does not say, the least said first.

    As many as the batch has at most, and so few that keys of all can be told apart. Of several
    about one relation of a subject the last one counts, none that the batch edits, and none that
    has been repaired `REPAIRS` times.

    Args:
        model: the model as it is now.
        earlier: facts in the order in which they were edited, repairs too.
        batch: what is about to be edited.
    """
    edited = Counter(earlier)
    known = [fact for fact in still_meant(earlier, batch) if edited[fact] <= 1 + REPAIRS]
    room = min(len(batch), max(0, model.d_mlp // 2 - len(batch)))
    if not known or not room:
        return []
    stated = [Sentence(fact.prompt, fact.subject, fact.new_object) for fact in known]
    said = (-model.score(stated).log_prob).tolist()
    lost = sorted((i for i, loss in enumerate(said) if loss > UNSAID), key=lambda i: -said[i])
    return [known[i] for i in lost[:room]]
