"""Essence prompts: what must stay true of a subject while one fact about it is edited.

ROME holds the next-token distribution after "{} is a". That protects the kind of thing a subject
is, not its other facts: the key at the subject's last token is the same for all of them, so only
the objective of v* can keep them apart. Here the distributions after prompts of *other relations*
of the subject are held as well. Knows nothing of updates.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from editcl.catalogue import relation_of, relations
from editcl.editing.relation import subject_fit
from editcl.encoding import Sentence
from editcl.facts import Fact, fill
from editcl.model import EditableModel

PUBLISHED = ("{} is a",)


def essence_prompts(
    model: EditableModel,
    facts: Sequence[Fact],
    *,
    relations_held: int = 4,
    phrasings: int = 1,
) -> list[tuple[str, ...]]:
    """For each fact "{} is a" and prompts of the other relations that one says of the subject.

    Which relations these are the model tells (`subject_fit`). One is left out if the edited
    prompt is among its phrasings, or if what the model answers there begins like the old or the
    new object: it then states the edited fact itself.

    Args:
        model: the model before the edit.
        facts: what will be edited.
        relations_held: how many other relations, those that fit the subject best.
        phrasings: how many phrasings of each.
    """
    catalogue = list(relations().values())
    chosen = []
    for fact in facts:
        edited, told = relation_of(fact.prompt), _first_tokens(model, fact)
        rows = model.encode([Sentence(r.prompt, fact.subject) for r in catalogue])
        answers = _next_tokens(model, [row.ids for row in rows]).tolist()
        fit = subject_fit(model, fact.subject, catalogue).tolist()
        ranked = sorted(range(len(catalogue)), key=lambda j: -fit[j])
        held = [
            catalogue[j]
            for j in ranked
            if catalogue[j] != edited and answers[j] not in told and fit[j] > 0
        ]
        prompts = [p for r in held[:relations_held] for p in r.phrasings[:phrasings]]
        chosen.append(PUBLISHED + tuple(prompts))
    return chosen


def _next_tokens(model: EditableModel, rows: Sequence[Sequence[int]]) -> Int[Tensor, " n_rows"]:
    """The most likely next token of each row."""
    inputs = model.pad(rows)
    last = inputs["attention_mask"].sum(1) - 1
    keep, place = last.unique(return_inverse=True)
    with torch.inference_mode():
        logits = model.forward(inputs, keep=keep)
    return logits[torch.arange(len(place), device=place.device), place].argmax(-1).cpu()


def _first_tokens(model: EditableModel, fact: Fact) -> set[int]:
    """First tokens of the objects that the edit is about."""
    objects = [o for o in (fact.old_object, fact.new_object) if o]
    prompt = fill(fact.prompt, fact.subject)
    rows = model.encode([Sentence(prompt, target=o) for o in objects])
    return {row.ids[row.target_start] for row in rows}
