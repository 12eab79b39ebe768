"""The relation catalogue: how relations are phrased, and facts of the real world by relation.

Shipped as `data/relations.json` and `data/facts.csv` (provenance in data/README.md). The phrasings
are plain English and serve any model: to infer what a prompt-less edit means, to hold a subject's
other relations while one is edited, and to measure. Knows nothing of models.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from editcl.embedded import data_folder

STATED = 3  # phrasings of each relation that editors may use


@dataclass(frozen=True)
class Relation:
    """One relation between a subject and an object.

    Attributes:
        name: its identifier ("capital").
        description: in words.
        subject_type, object_type: what stands on either side ("country", "city").
        phrasings: sentence starts with `{}` for the subject, the object to follow; the first is
            the canonical one.
    """

    name: str
    description: str
    subject_type: str
    object_type: str
    phrasings: tuple[str, ...]

    @property
    def prompt(self) -> str:
        """The canonical phrasing."""
        return self.phrasings[0]

    @property
    def stated(self) -> tuple[str, ...]:
        """The phrasings that editors may use; the canonical one first."""
        return self.phrasings[:STATED]

    @property
    def unseen(self) -> tuple[str, ...]:
        """The phrasings that only evaluation uses: no edit is made or held by them."""
        return self.phrasings[STATED:]


@dataclass(frozen=True)
class KnownFact:
    """A true fact of the catalogue."""

    subject: str
    relation: str
    object: str


@cache
def relations() -> Mapping[str, Relation]:
    """All relations of the catalogue by name, in its order."""
    path = data_folder() / "relations.json"
    loaded = json.loads(path.read_text(encoding="utf-8"))["relations"]
    return MappingProxyType(
        {
            name: Relation(
                name,
                entry["description"],
                entry["subject_type"],
                entry["object_type"],
                tuple(entry["phrasings"]),
            )
            for name, entry in loaded.items()
        }
    )


@cache
def known_facts() -> tuple[KnownFact, ...]:
    """The facts of the catalogue, in the order of the file."""
    with (data_folder() / "facts.csv").open(encoding="utf-8", newline="") as file:
        return tuple(
            KnownFact(row["subject"], row["relation"], row["object"])
            for row in csv.DictReader(file)
        )


@cache
def facts_by_relation() -> Mapping[str, tuple[KnownFact, ...]]:
    """The facts of each relation."""
    grouped: dict[str, list[KnownFact]] = defaultdict(list)
    for fact in known_facts():
        grouped[fact.relation].append(fact)
    return MappingProxyType({name: tuple(facts) for name, facts in grouped.items()})


def relation_of(prompt: str) -> Relation | None:
    """The relation that has this prompt as one of its phrasings; None if none has."""
    for relation in relations().values():
        if prompt in relation.phrasings:
            return relation
    return None
