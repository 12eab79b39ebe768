"""Cases: a fact to edit with the prompts that tell whether the edit is a good one.

Made from the shipped catalogue (from files: editcl.readers): paraphrases are other phrasings of the
relation, neighbours other subjects of which the same object is true, and same-subject
probes the subject's other facts. Of models it knows
only how to ask them what they say. Knows nothing of methods.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from editcl.catalogue import (
    KnownFact,
    facts_by_relation,
    known_facts,
    relation_of,
    relations,
)
from editcl.encoding import Sentence
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


def catalogue_cases(
    count: int,
    *,
    seed: int = 0,
    paraphrases: int = 3,
    neighbours: int = 5,
) -> list[Case]:
    """Cases from the catalogue: a true fact each, with a false object of the same relation.

    Facts are drawn over all relations alike; the new object is another object of the relation.
    Paraphrases and same-subject probes use phrasings that no edit is made or held by.

    The cases can be edited together: no two edit the same subject and relation, and no neighbour or
    same-subject probe asks for what another case edits (other neighbours are drawn, if there are).
    The edits depend on the seed alone; those of fewer cases are the first of those of more.
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
    cases = [case_of(fact, rng, paraphrases, neighbours) for fact in chosen]
    return _apart(cases, chosen, neighbours, random.Random(seed))


def _apart(
    cases: Sequence[Case], edited: Sequence[KnownFact], neighbours: int, rng: random.Random
) -> list[Case]:
    """The cases without probes of what any of them edits, with other neighbours in their stead."""
    assert len({(f.subject, f.relation) for f in edited}) == len(edited), "a fact is edited twice"
    asked = {
        fill(phrasing, f.subject) for f in edited for phrasing in relations()[f.relation].phrasings
    }
    free = {
        name: [f for f in facts if fill(relations()[name].prompt, f.subject) not in asked]
        for name, facts in facts_by_relation().items()
    }
    found = []
    for case, known in zip(cases, edited, strict=True):
        near = [probe for probe in case.neighbours if probe.prompt not in asked]
        if len(near) < len(case.neighbours):
            there = {probe.prompt for probe in near}
            spare = [
                probe
                for f in free[known.relation]
                if f.object != case.fact.new_object and (probe := _canonical(f)).prompt not in there
            ]
            # The same object first: those are the neighbours that an edit spills over to.
            spare = rng.sample(spare, len(spare))
            spare.sort(key=lambda probe: probe.object != known.object)
            near += spare[: neighbours - len(near)]
        own = tuple(probe for probe in case.same_subject if probe.prompt not in asked)
        found.append(replace(case, neighbours=tuple(near), same_subject=own))
    return found


def _canonical(known: KnownFact) -> Probe:
    """A known fact asked in its relation's canonical phrasing."""
    return Probe(fill(relations()[known.relation].prompt, known.subject), known.object)


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
            for prompt in rng.sample(relation.unseen, min(paraphrases, len(relation.unseen)))
        ),
        tuple(Probe(fill(relation.prompt, f.subject), f.object) for f in near),
        tuple(same_subject_probes(known, rng)),
    )


def same_subject_probes(known: KnownFact, rng: random.Random) -> Sequence[Probe]:
    """The subject's facts in other relations, each in a phrasing that is not the canonical one."""
    return [
        Probe(fill(rng.choice(relations()[f.relation].unseen), f.subject), f.object)
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
            fill(prompt, fact.subject) for prompt in relation.unseen if prompt != fact.prompt
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
        for phrasing in relations()[known.relation].unseen[:2]
    ]
    near = _answered(model, near[: 4 * neighbours])[:neighbours]
    return Case(fact, paraphrases, tuple(near), tuple(_answered(model, own)))


def _answered(model: EditableModel, probes: Sequence[Probe]) -> list[Probe]:
    """The probes that the model answers rightly now."""
    exact = model.score([Sentence(p.prompt, target=p.object) for p in probes]).exact
    return [probe for probe, right in zip(probes, exact.tolist(), strict=True) if right]
