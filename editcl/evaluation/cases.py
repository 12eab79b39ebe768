"""Cases: a fact to edit with the prompts that tell whether the edit is a good one.

Read from CounterFact records, or made from the shipped catalogue: paraphrases are other phrasings
of the relation, neighbours other subjects of which the same object is true, and same-subject
probes the subject's other facts. Of models it knows
only how to ask them what they say. Knows nothing of methods.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from editcl.catalogue import (
    KnownFact,
    facts_by_relation,
    known_facts,
    relation_of,
    relations,
)
from editcl.encoding import Sentence
from editcl.errors import FactError
from editcl.facts import Fact, fill
from editcl.model import EditableModel


@dataclass(frozen=True)
class Probe:
    """A sentence start and the object that is true of it; `aliases` count as that object too."""

    prompt: str
    object: str
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """A fact with its probes.

    Attributes:
        fact: what is edited; its old object is what was true.
        paraphrases: other sentence starts after which the new object must follow.
        neighbours: prompts about other subjects whose object must stay.
        same_subject: prompts about other relations of the subject, whose object must stay.
        portability: prompts whose answer follows from the new fact (aliases, reasoning, several
            hops).
        generation: sentence starts about the subject, to be continued freely.
        with_facts: further facts that the probes take for edited too (several-hop records).
        id: the record's name in the file that it was read from.
    """

    fact: Fact
    paraphrases: tuple[str, ...] = ()
    neighbours: tuple[Probe, ...] = ()
    same_subject: tuple[Probe, ...] = ()
    portability: tuple[Probe, ...] = ()
    generation: tuple[str, ...] = ()
    with_facts: tuple[Fact, ...] = ()
    id: str = ""


def counterfact_cases(path: str | Path, *, limit: int | None = None) -> list[Case]:
    """Cases from a CounterFact file in the ROME format (a JSON list of records).

    Raises:
        FactError: the file is not such a list, or a record is broken; names file and record.
    """
    path = Path(path)
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FactError(f"{path}: not a readable JSON file ({error}).") from error
    if not isinstance(records, list):
        raise FactError(f"{path}: expected a list of CounterFact records.")
    cases = []
    for number, record in enumerate(records[:limit]):
        try:
            cases.append(_counterfact_case(record))
        except (KeyError, TypeError, FactError) as error:
            raise FactError(
                f"{path}, record {number}: {error!s} is missing or wrong. Expected the CounterFact "
                "fields requested_rewrite, paraphrase_prompts and neighborhood_prompts."
            ) from error
    return cases


def _counterfact_case(record: dict) -> Case:
    rewrite = record["requested_rewrite"]
    true = rewrite["target_true"]["str"]
    fact = Fact(rewrite["subject"], rewrite["prompt"], rewrite["target_new"]["str"], true)
    return Case(
        fact,
        tuple(record["paraphrase_prompts"]),
        tuple(Probe(prompt, true) for prompt in record["neighborhood_prompts"]),
    )


def catalogue_cases(
    count: int,
    *,
    seed: int = 0,
    paraphrases: int = 3,
    neighbours: int = 5,
) -> list[Case]:
    """Cases from the catalogue: a true fact each, with a false object of the same relation.

    Facts are drawn over all relations alike; the new object is another object of the relation.
    Same-subject probes use a phrasing other than the canonical one, which editing holds.
    """
    rng = random.Random(seed)
    grouped = facts_by_relation()
    names = [name for name in relations() if len({f.object for f in grouped.get(name, ())}) > 1]
    pools = {name: rng.sample(grouped[name], len(grouped[name])) for name in names}
    chosen: list[KnownFact] = []
    while len(chosen) < count and any(pools.values()):
        for name in names:
            if pools[name] and len(chosen) < count:
                chosen.append(pools[name].pop())
    return [case_of(fact, rng, paraphrases, neighbours) for fact in chosen]


def case_of(
    known: KnownFact,
    rng: random.Random,
    paraphrases: int = 3,
    neighbours: int = 5,
    new_object: str | None = None,
) -> Case:
    """A case that edits one fact of the catalogue to another object of its relation."""
    relation = relations()[known.relation]
    same_relation = facts_by_relation()[known.relation]
    others = sorted({f.object for f in same_relation} - {known.object})
    new = new_object or rng.choice(others)
    near = [f for f in same_relation if f.object == known.object and f.subject != known.subject]
    rest = [f for f in same_relation if f.object not in (known.object, new)]
    near = rng.sample(near, min(neighbours, len(near)))
    near += rng.sample(rest, min(neighbours - len(near), len(rest)))
    return Case(
        Fact(known.subject, relation.prompt, new, known.object),
        tuple(
            fill(prompt, known.subject)
            for prompt in rng.sample(
                relation.phrasings[1:], min(paraphrases, len(relation.phrasings) - 1)
            )
        ),
        tuple(Probe(fill(relation.prompt, f.subject), f.object) for f in near),
        tuple(same_subject_probes(known, rng)),
    )


def same_subject_probes(known: KnownFact, rng: random.Random) -> Sequence[Probe]:
    """The subject's facts in other relations, each in a phrasing that is not the canonical one."""
    return [
        Probe(fill(rng.choice(relations()[f.relation].phrasings[1:]), f.subject), f.object)
        for f in known_facts()
        if f.subject == known.subject and f.relation != known.relation
    ]


def case_for(model: EditableModel, fact: Fact, *, neighbours: int = 8) -> Case:
    """A case for any fact, from what the catalogue knows of its relation and subject.

    Paraphrases and neighbours need a prompt that is one of the catalogue's phrasings, same-subject
    probes a subject that is in it; what is not there stays unmeasured. Only probes that the model
    answers rightly now are taken: specificity is about what it knows.
    """
    relation = relation_of(fact.prompt)
    paraphrases: tuple[str, ...] = ()
    near: list[Probe] = []
    if relation is not None:
        paraphrases = tuple(
            fill(prompt, fact.subject) for prompt in relation.phrasings if prompt != fact.prompt
        )
        near = [
            Probe(fill(fact.prompt, known.subject), known.object)
            for known in facts_by_relation()[relation.name]
            if known.subject != fact.subject and known.object != fact.new_object
        ]
        near.sort(key=lambda probe: probe.object != fact.old_object)
    own = [
        Probe(fill(phrasing, fact.subject), known.object)
        for known in known_facts()
        if known.subject == fact.subject and relations()[known.relation] != relation
        for phrasing in relations()[known.relation].phrasings[1:3]
    ]
    near = _answered(model, near[: 4 * neighbours])[:neighbours]
    return Case(fact, paraphrases, tuple(near), tuple(_answered(model, own)))


def _answered(model: EditableModel, probes: Sequence[Probe]) -> list[Probe]:
    """The probes that the model answers rightly now."""
    exact = model.score([Sentence(p.prompt, target=p.object) for p in probes]).exact
    return [probe for probe, right in zip(probes, exact.tolist(), strict=True) if right]
