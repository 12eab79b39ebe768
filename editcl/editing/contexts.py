"""Contexts: texts in front of a prompt, so that an edit holds wherever the subject is named.

A fixed set serves by default: it costs no generation, is the same on every machine and in every
session, and suits any model of English text. The papers sample theirs from the model; that is
`sample_contexts`. Where the relation is one of the catalogue, its other `stated` phrasings say the
fact too: an edit that is made in one phrasing alone fits that phrasing. This module knows nothing
of keys or losses.
"""

from __future__ import annotations

from collections.abc import Sequence

from editcl.catalogue import relation_of
from editcl.encoding import Sentence
from editcl.facts import Fact
from editcl.model import EditableModel

DEFAULT_CONTEXTS: tuple[str, ...] = (
    "",
    "The shop on the corner closes early today.",
    "She read the letter twice and put it away.",
    "After a long winter the garden was green again.",
    "He asked a question that nobody could answer.",
    "There was nothing on the table but bread.",
    "It rained all night, and the river rose.",
    "They met every week to talk about books.",
)


def sample_contexts(
    model: EditableModel,
    *,
    lengths: tuple[tuple[int, int], ...] = ((5, 10), (10, 10)),
    seed: int = 0,
) -> tuple[str, ...]:
    """The bare prompt and texts that the model itself writes (ROME's "{}. " prefixes).

    Args:
        model: the model that writes them.
        lengths: (tokens, count) pairs.
        seed: of the sampling.
    """
    start = model.tokenizer.bos_token_id
    row = [model.pad_id if start is None else start]
    contexts = [""]
    for tokens, count in lengths:
        new = model.generate_ids([row] * count, tokens, seed=seed + tokens)
        texts = model.tokenizer.batch_decode(new, skip_special_tokens=True)
        contexts += [f"{' '.join(text.split())}." for text in texts if text.strip()]
    return tuple(contexts)


def rephrasings(fact: Fact) -> tuple[str, ...]:
    """Other prompts that state the fact, from the catalogue; none if its relation is not there."""
    relation = relation_of(fact.prompt)
    return () if relation is None else tuple(p for p in relation.stated if p != fact.prompt)


def spoken(fact: Fact, contexts: Sequence[str], rephrased: Sequence[str] = ()) -> list[Sentence]:
    """The fact's sentence starts, one a context: its prompt and the rephrasings by turns.

    The first is the bare prompt itself.
    """
    prompts = (fact.prompt, *rephrased)
    return [
        Sentence(prompts[j % len(prompts)], fact.subject, context=context)
        for j, context in enumerate(contexts)
    ]
