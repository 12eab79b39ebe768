"""Essence prompts: what must stay true of a subject while one fact about it is edited.

ROME holds the next-token distribution after "{} is a". That protects the kind of thing a subject
is, not its other facts: the key at the subject's last token is the same for all of them, so only
the objective of v* can keep them apart. Here the distributions after prompts of *other relations*
of the subject are held as well. Knows nothing of updates.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch

from editcl.catalogue import Relation, relation_of, relations
from editcl.editing.relation import subject_fit
from editcl.encoding import Sentence
from editcl.facts import Fact
from editcl.model import EditableModel, micro_batches

PUBLISHED = ("{} is a",)
ASKED = 2  # phrasings of each relation that tell whether it is said of a subject
SPARE = 2  # candidates beyond those that are held, for the ones that state the edited fact


def essence_prompts(
    model: EditableModel,
    facts: Sequence[Fact],
    *,
    earlier: Sequence[Fact] = (),
    relations_held: int = 6,
    phrasings: int = 1,
) -> list[tuple[str, ...]]:
    """For each fact "{} is a" and prompts of the other relations that one says of the subject.

    Which relations these are the model tells (`subject_fit`). One is left out if it is edited for
    that subject, here or in the same batch, or if what the model answers there begins like the old
    or the new object: it then states the edited fact itself.

    Args:
        model: the model before the edit.
        facts: what will be edited.
        earlier: facts of earlier edits; what they say of a subject that is edited again is held.
        relations_held: how many other relations, those that fit the subject best.
        phrasings: how many phrasings of each.
    """
    catalogue = list(relations().values())
    subjects = list(dict.fromkeys(fact.subject for fact in facts))
    scores = subject_fit(model, subjects, catalogue, phrasings=ASKED)
    fit = dict(zip(subjects, scores.tolist(), strict=True))
    told, edited, before = _told(model, facts), defaultdict(set), defaultdict(list)
    for fact in facts:
        edited[fact.subject.casefold()].add(asked_of(fact))
    for fact in earlier:
        if asked_of(fact) not in edited[fact.subject.casefold()]:
            before[fact.subject.casefold()].append(fact.prompt)
    candidates = [
        [
            catalogue[j]
            for j in sorted(range(len(catalogue)), key=lambda j: -fit[fact.subject][j])
            if catalogue[j] not in edited[fact.subject.casefold()] and fit[fact.subject][j] > 0
        ][: relations_held + SPARE]
        for fact in facts
    ]
    asked = [
        Sentence(r.prompt, f.subject) for f, rs in zip(facts, candidates, strict=True) for r in rs
    ]
    answers = iter(_next_tokens(model, [row.ids for row in model.encode(asked)]))
    chosen = []
    for fact, mine, objects in zip(facts, candidates, told, strict=True):
        held = [
            relation
            for relation, answer in [(r, next(answers)) for r in mine]
            if answer not in objects
        ]
        prompts = [p for r in held[:relations_held] for p in r.stated[:phrasings]]
        chosen.append(
            tuple(dict.fromkeys((*PUBLISHED, *before[fact.subject.casefold()], *prompts)))
        )
    return chosen


def asked_of(fact: Fact) -> Relation | str:
    """What is asked of the subject: the relation, or the prompt where the catalogue has none."""
    return relation_of(fact.prompt) or fact.prompt


def still_meant(earlier: Sequence[Fact], batch: Sequence[Fact]) -> list[Fact]:
    """Earlier facts that shall hold beside a batch, in order: of several about one relation of a
    subject the last one, and none that the batch edits."""
    latest = {(fact.subject.casefold(), asked_of(fact)): fact for fact in earlier}
    for fact in batch:
        latest.pop((fact.subject.casefold(), asked_of(fact)), None)
    return list(latest.values())


def _next_tokens(model: EditableModel, rows: Sequence[Sequence[int]]) -> list[int]:
    """The most likely next token of each row."""
    found = [0] * len(rows)
    for chosen in micro_batches([len(row) for row in rows], 4096):
        inputs = model.pad([rows[i] for i in chosen])
        last = inputs["attention_mask"].sum(1) - 1
        keep, place = last.unique(return_inverse=True)
        with torch.inference_mode():
            logits = model.forward(inputs, keep=keep)
        best = logits[torch.arange(len(place), device=place.device), place].argmax(-1).tolist()
        for i, token in zip(chosen, best, strict=True):
            found[i] = token
    return found


def _told(model: EditableModel, facts: Sequence[Fact]) -> list[set[int]]:
    """First tokens of the objects that each edit is about."""
    pairs = [(i, o) for i, f in enumerate(facts) for o in (f.old_object, f.new_object) if o]
    rows = model.encode([Sentence(facts[i].sentence, target=o) for i, o in pairs])
    told: list[set[int]] = [set() for _ in facts]
    for (i, _), row in zip(pairs, rows, strict=True):
        told[i].add(row.ids[row.target_start])
    return told
