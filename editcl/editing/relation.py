"""Relation inference: which sentence does `edit(model, subject, new_object)` mean?

Every relation r of the catalogue makes a sentence T_r(s) + o. It is scored by two interactions,
log-probabilities with the main effects of subject, object and relation taken out:

    fit(s, r)  = L(T_r(s)) - mean_c L(T_r(c)) - mean_r [same]      does one say r of s?
    fit(o, r)  = mean_c log p(o | T_r(c)) - mean_r [same]          is o a thing that r gives?

c runs over control subjects: some that have the relation for the second line, some of every kind
for the first. L is the sentence's mean log-probability per token, averaged over phrasings of r. The model alone judges; the
catalogue's facts about the subject itself are never looked up. Knows nothing of edits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from editcl.catalogue import Relation, facts_by_relation, relations
from editcl.encoding import Sentence
from editcl.errors import AmbiguousFact, FactError
from editcl.facts import Fact
from editcl.model import EditableModel, micro_batches

#: Least lead of the best relation's score over the second's, in nats per token.
MARGIN = 0.5
CONTROLS_PER_RELATION = 4
#: Phrasings that judge whether a relation is said of a subject; one alone finds 76 % of a
#: subject's relations among the best four where three find 87 %.
PHRASINGS = 3


@dataclass(frozen=True)
class Ranking:
    """Relations by how well they fit a subject and an object, best first."""

    relations: tuple[Relation, ...]
    scores: tuple[float, ...]


def infer_relation(
    model: EditableModel, subject: str, new_object: str, *, margin: float = MARGIN
) -> Relation:
    """The relation whose sentence fits subject and object best.

    Raises:
        AmbiguousFact: the second-best sentence fits nearly as well; both are listed.
        FactError: subject or object is empty or can't be encoded.
    """
    ranking = rank_relations(model, subject, new_object)
    if ranking.scores[0] - ranking.scores[1] >= margin:
        return ranking.relations[0]
    listed = tuple(
        (str(Fact(subject, relation.prompt, new_object)), round(score, 3))
        for relation, score in zip(ranking.relations[:4], ranking.scores[:4], strict=True)
    )
    lines = "\n".join(f"  {score:+.2f}  {sentence}" for sentence, score in listed)
    raise AmbiguousFact(
        f"{subject!r} and {new_object!r} fit several relations:\n{lines}\n"
        "Say which one you mean with prompt='{} ...'. Nothing was changed.",
        listed,
    )


def rank_relations(model: EditableModel, subject: str, new_object: str) -> Ranking:
    """All relations of the catalogue, ranked for a subject and an object."""
    catalogue = list(relations().values())
    for relation in catalogue[:1]:
        Fact(subject, relation.prompt, new_object)  # validates both strings
    usable = [r for r in catalogue if not _mentions(r.prompt, subject)]
    if not usable:
        raise FactError(
            f"no relation of the catalogue fits the subject {subject!r}; give a prompt."
        )
    fit = subject_fit(model, subject, usable)
    object_fit = _object_fit(model, new_object, usable)
    total = (fit + object_fit).tolist()
    order = sorted(range(len(usable)), key=lambda i: -total[i])
    return Ranking(tuple(usable[i] for i in order), tuple(total[i] for i in order))


def _mentions(prompt: str, subject: str) -> bool:
    return subject.casefold() in prompt.replace("{}", "").casefold()


def _controls(relation: Relation, count: int) -> list[str]:
    """The first subjects in the catalogue that have the relation."""
    seen = dict.fromkeys(fact.subject for fact in facts_by_relation().get(relation.name, ()))
    return list(seen)[:count]


def subject_fit(
    model: EditableModel, subject: str, catalogue: Sequence[Relation]
) -> Float[Tensor, " n_relations"]:
    """How much each relation is one that is said of this subject: fit(s, r) above."""
    controls = list(dict.fromkeys(c for r in catalogue for c in _controls(r, 1)))
    key = f"relation-controls-{len(catalogue)}-{len(controls)}"
    if key not in model.memo:
        with model.at_base():
            grid = [_sentence_score(model, c, catalogue) for c in controls]
        model.memo[key] = torch.stack(grid)
    table: Tensor = model.memo[key]
    mine = _sentence_score(model, subject, catalogue) - table.mean(0)
    return mine - mine.mean()


def _sentence_score(
    model: EditableModel, subject: str, catalogue: Sequence[Relation]
) -> Float[Tensor, " n_relations"]:
    """Mean log-probability per token of each relation's sentences about a subject."""
    asked = [(i, p) for i, r in enumerate(catalogue) for p in r.phrasings[:PHRASINGS]]
    rows = model.encode([Sentence(prompt, subject) for _, prompt in asked])
    scores = torch.zeros(len(rows))
    for chosen in micro_batches([len(row.ids) for row in rows], 4096):
        inputs = model.pad([rows[i].ids for i in chosen])
        with torch.inference_mode():
            log_probs = model.forward(inputs)[:, :-1].float().log_softmax(-1)
        taken = log_probs.gather(-1, inputs["input_ids"][:, 1:, None])[..., 0]
        mask = inputs["attention_mask"][:, 1:]
        scores[chosen] = ((taken * mask).sum(1) / mask.sum(1).clamp(min=1)).cpu()
    relation = torch.tensor([i for i, _ in asked])
    total = torch.zeros(len(catalogue)).index_add(0, relation, scores)
    return total / relation.bincount()


def _object_fit(
    model: EditableModel, new_object: str, catalogue: Sequence[Relation]
) -> Float[Tensor, " n_relations"]:
    sentences, owner = [], []
    for i, relation in enumerate(catalogue):
        for control in _controls(relation, CONTROLS_PER_RELATION):
            sentences.append(Sentence(relation.prompt, control, new_object))
            owner.append(i)
    log_p = model.score(sentences).log_prob.float()
    total = torch.zeros(len(catalogue)).index_add(0, torch.tensor(owner), log_p)
    count = torch.zeros(len(catalogue)).index_add(0, torch.tensor(owner), torch.ones(len(owner)))
    mean = total / count.clamp(min=1)
    return mean - mean.mean()
