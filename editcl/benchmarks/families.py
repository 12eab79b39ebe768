"""The tasks of the router benchmark: 86 families, knowledge, skills, both, and neither.

Each family is one maker, called with a number and a random source of its own, so that a task
depends on the catalogue, the seed, its family and its number and on nothing else. Whole families
calibrate the router or test it, each kind is on both sides, and no wording is shared between the
sides but for those of the catalogue. A family that has been looked at can test no more: 74 were
written in five turns, those of each turn to test the rule before, and calibrate now. The rule was
then left alone; the last 12 were written without sight of it or its figures. Wordings and words of
`codes`, `cards` and `kinds_and_codes` were chosen anew once, after arms had been measured on first
ones that the embedded model can't be edited to say. Knows nothing of models.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from editcl.benchmarks import families_balanced as balanced
from editcl.benchmarks import families_facts as facts
from editcl.benchmarks import families_later as later
from editcl.benchmarks import families_later_mixed as later_mixed
from editcl.benchmarks import families_mixed as mixed
from editcl.benchmarks import families_skills as skills
from editcl.benchmarks import families_steps as steps
from editcl.benchmarks.posed import KNOWLEDGE, MIXED, SKILL, UNDECIDABLE, Maker, Posed
from editcl.errors import EditclError
from editcl.learning.tasks import Task

Half = Literal["calibration", "test"]
CALIBRATION: Half = "calibration"
TEST: Half = "test"
PER_FAMILY = 3


@dataclass(frozen=True)
class Family:
    """Tasks of one make.

    Attributes:
        name: of the family.
        kind: "knowledge", "skill", "mixed" or "undecidable".
        half: the side of the split.
        make: makes one of its tasks.
        at_most: tasks; None: as many as asked for.
    """

    name: str
    kind: str
    half: Half
    make: Maker
    at_most: int | None = None


_EVERY = (
    Family("one_relation", KNOWLEDGE, CALIBRATION, facts.one_relation),
    Family("prose", KNOWLEDGE, CALIBRATION, facts.prose),
    Family("codes", KNOWLEDGE, CALIBRATION, facts.codes),
    Family("invented", KNOWLEDGE, CALIBRATION, facts.invented),
    Family("kinds", SKILL, CALIBRATION, skills.kinds),
    Family("name_parts", SKILL, CALIBRATION, skills.name_parts),
    Family("questions", SKILL, CALIBRATION, skills.questions),
    Family("topics", SKILL, CALIBRATION, skills.topics),
    Family("kinds_and_facts", MIXED, CALIBRATION, mixed.kinds_and_facts),
    Family("parts_and_facts", MIXED, CALIBRATION, mixed.parts_and_facts),
    Family("nonsense", UNDECIDABLE, CALIBRATION, mixed.nonsense),
    Family("known_facts", UNDECIDABLE, CALIBRATION, mixed.known_facts),
    Family("corrections", KNOWLEDGE, CALIBRATION, facts.corrections),
    Family("few_answers", KNOWLEDGE, CALIBRATION, facts.few_answers),
    Family("cards", KNOWLEDGE, CALIBRATION, facts.cards),
    Family("many", KNOWLEDGE, CALIBRATION, facts.many, at_most=2),
    Family("five_shot", SKILL, CALIBRATION, skills.five_shot),
    Family("extraction", SKILL, CALIBRATION, skills.extraction),
    Family("arithmetic", SKILL, CALIBRATION, skills.arithmetic),
    Family("questions_and_corrections", MIXED, CALIBRATION, mixed.questions_and_corrections),
    Family("kinds_and_codes", MIXED, CALIBRATION, mixed.kinds_and_codes),
    Family("random_labels", UNDECIDABLE, CALIBRATION, mixed.random_labels),
    Family("restated", UNDECIDABLE, CALIBRATION, mixed.restated),
    Family("swapped", KNOWLEDGE, CALIBRATION, facts.swapped),
    Family("one_subject", KNOWLEDGE, CALIBRATION, facts.one_subject),
    Family("lookups", KNOWLEDGE, CALIBRATION, facts.lookups),
    Family("foreign", KNOWLEDGE, CALIBRATION, facts.foreign),
    Family("lengths", SKILL, CALIBRATION, skills.lengths),
    Family("tones", SKILL, CALIBRATION, skills.tones),
    Family("forms", SKILL, CALIBRATION, skills.forms),
    Family("few_forms", SKILL, CALIBRATION, skills.few_forms),
    Family("lengths_and_facts", MIXED, CALIBRATION, mixed.lengths_and_facts),
    Family("tones_and_lookups", MIXED, CALIBRATION, mixed.tones_and_lookups),
    Family("forms_and_swaps", MIXED, CALIBRATION, mixed.forms_and_swaps),
    Family("mislabelled", UNDECIDABLE, CALIBRATION, mixed.mislabelled),
    Family("choices", UNDECIDABLE, CALIBRATION, skills.choices),
    Family("one_kind", KNOWLEDGE, CALIBRATION, facts.one_kind),
    Family("pairs", KNOWLEDGE, CALIBRATION, facts.pairs),
    Family("rooms", KNOWLEDGE, CALIBRATION, facts.rooms),
    Family("letters", KNOWLEDGE, CALIBRATION, facts.letters),
    Family("queries", SKILL, CALIBRATION, skills.queries),
    Family("flags", SKILL, CALIBRATION, skills.flags),
    Family("few_flags", SKILL, CALIBRATION, skills.few_flags, at_most=2),
    Family("actors", SKILL, CALIBRATION, skills.actors),
    Family("actors_and_facts", MIXED, CALIBRATION, mixed.actors_and_facts),
    Family("queries_and_rooms", MIXED, CALIBRATION, mixed.queries_and_rooms),
    Family("strings", UNDECIDABLE, CALIBRATION, mixed.strings),
    Family("known_prose", UNDECIDABLE, CALIBRATION, mixed.known_prose),
    Family("interviews", KNOWLEDGE, CALIBRATION, facts.interviews),
    Family("denials", KNOWLEDGE, CALIBRATION, facts.denials),
    Family("rosters", KNOWLEDGE, CALIBRATION, facts.rosters),
    Family("sheets", KNOWLEDGE, CALIBRATION, facts.sheets),
    Family("teams", SKILL, CALIBRATION, steps.teams),
    Family("picks", SKILL, CALIBRATION, steps.picks),
    Family("series", SKILL, CALIBRATION, steps.series),
    Family("turns", SKILL, CALIBRATION, steps.turns),
    Family("teams_and_facts", MIXED, CALIBRATION, mixed.teams_and_facts),
    Family("turns_and_ledgers", MIXED, CALIBRATION, mixed.turns_and_ledgers),
    Family("second_facts", UNDECIDABLE, CALIBRATION, mixed.second_facts),
    Family("tickets", UNDECIDABLE, CALIBRATION, mixed.tickets),
    Family("bulletins", KNOWLEDGE, CALIBRATION, later.bulletins),
    Family("passwords", KNOWLEDGE, CALIBRATION, later.passwords),
    Family("stalls", KNOWLEDGE, CALIBRATION, later.stalls),
    Family("gazettes", KNOWLEDGE, CALIBRATION, later.gazettes),
    Family("sections", SKILL, CALIBRATION, later.sections),
    Family("greetings", SKILL, CALIBRATION, later.greetings),
    Family("journeys", SKILL, CALIBRATION, later.journeys),
    Family("profiles", SKILL, CALIBRATION, later.profiles),
    Family("remarks_and_cloakrooms", MIXED, CALIBRATION, later_mixed.remarks_and_cloakrooms),
    Family("profiles_and_gazettes", MIXED, CALIBRATION, later_mixed.profiles_and_gazettes),
    Family("sections_and_stalls", MIXED, CALIBRATION, later_mixed.sections_and_stalls),
    Family("quizzes", UNDECIDABLE, CALIBRATION, later_mixed.quizzes),
    Family("albums", UNDECIDABLE, CALIBRATION, later_mixed.albums),
    Family("classed", UNDECIDABLE, CALIBRATION, later_mixed.classed),
    Family("handbooks", KNOWLEDGE, TEST, balanced.handbooks),
    Family("rings", KNOWLEDGE, TEST, balanced.rings),
    Family("diaries", KNOWLEDGE, TEST, balanced.diaries),
    Family("rumours", KNOWLEDGE, TEST, balanced.rumours),
    Family("counterparts", SKILL, TEST, balanced.counterparts),
    Family("second_hand", SKILL, TEST, balanced.second_hand),
    Family("nouns_and_facts", MIXED, TEST, balanced.nouns_and_facts),
    Family("cargo_and_facts", MIXED, TEST, balanced.cargo_and_facts),
    Family("finds_and_rings", MIXED, TEST, balanced.finds_and_rings),
    Family("labels_and_rumours", MIXED, TEST, balanced.labels_and_rumours),
    Family("reminders", UNDECIDABLE, TEST, balanced.reminders),
    Family("drills", UNDECIDABLE, TEST, balanced.drills),
)
FAMILIES: Mapping[str, Family] = MappingProxyType({family.name: family for family in _EVERY})


def make_tasks(
    families: Sequence[str] | None = None, *, per_family: int = PER_FAMILY, seed: int = 0
) -> tuple[Posed, ...]:
    """The tasks, family after family; the same arguments give the same tasks anywhere.

    Args:
        families: names in FAMILIES; by default all.
        per_family: tasks of each, or as many as it has.
        seed: of everything drawn.

    Raises:
        EditclError: there is no such family, one is named twice, or no task is asked for.
    """
    names = list(FAMILIES) if families is None else list(families)
    unknown = [name for name in names if name not in FAMILIES]
    if unknown or len(set(names)) < len(names):
        found = f"no family {unknown[0]!r}" if unknown else "a family that is named twice"
        raise EditclError(f"there is {found}; choose among {', '.join(FAMILIES)}.")
    if per_family < 1:
        raise EditclError(f"{per_family} tasks of a family are none; give 1 or more.")
    found_tasks = []
    for name in names:
        family = FAMILIES[name]
        for number in range(min(per_family, family.at_most or per_family)):
            made = family.make(random.Random(f"{seed} {name} {number}"), number)
            task = Task(f"{name}-{number}", tuple(made.train), tuple(made.test), made.kind)
            found_tasks.append(Posed(name, family.kind, task, made.text, tuple(made.facts)))
    return tuple(found_tasks)


def checksum(tasks: Sequence[Posed]) -> str:
    """SHA-256 of all items of the tasks, in order."""
    digest = hashlib.sha256()
    for posed in tasks:
        digest.update(f"{posed.name}\x1e{posed.task.kind}\x1e{posed.text}\x1d".encode())
        for part in (posed.task.train, posed.task.test):
            for row in part:
                digest.update(f"{row.prompt}\x1f{row.completion}\x1e".encode())
            digest.update(b"\x1d")
    return digest.hexdigest()


__all__ = [
    "CALIBRATION",
    "FAMILIES",
    "PER_FAMILY",
    "TEST",
    "Family",
    "checksum",
    "make_tasks",
]
