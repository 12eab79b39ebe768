"""What the rows of a table say of each other: duplicates are merged, contradictions noted.

Knows nothing of where rows come from.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from editcl.readers.problems import Place, Problems, shown
from editcl.readers.rows import FactRow

T = TypeVar("T")


def settled(
    rows: list[FactRow], places: list[Place], problems: Problems, *, independent: bool
) -> list[FactRow]:
    """The rows, none twice; notes those that contradict each other.

    Args:
        rows: in the order of the source.
        places: of each row.
        problems: where errors and warnings are noted.
        independent: whether records are edited one at a time, as in published files: then a
            contradiction is worth a warning only.
    """
    kept: list[FactRow] = []
    index: dict[tuple[str, str, str], int] = {}
    stated: dict[tuple[str, str], tuple[FactRow, Place]] = {}
    ids: dict[str, Place] = {}
    where: list[Place] = []
    for row, place in zip(rows, places, strict=True):
        if row.key in index:
            first = index[row.key]
            old, again = kept[first].old_object, row.old_object
            differs = (
                f", with the old object {shown(old)}" if old and again not in (None, old) else ""
            )
            problems.warn(place, f"says the same as {where[first].short}; kept once{differs}.")
            kept[first] = _merged(kept[first], row)
            continue
        if row.states is not None:
            other, there = stated.setdefault(row.states, (row, place))
            if other is not row:
                message = (
                    f"subject and prompt are those of {there.short}, but the new object is "
                    f"{shown(row.new_object)} here and {shown(other.new_object)} there; "
                )
                if independent:
                    problems.warn(place, message + "never edit both at once.")
                else:
                    problems.add(place, message + "delete one of the rows.", "new_object")
        if ids.setdefault(row.id, place) is not place:
            problems.warn(place, f"the id {shown(row.id)} is also that of {ids[row.id].short}.")
        index[row.key] = len(kept)
        kept.append(row)
        where.append(place)
    return kept


def _merged(row: FactRow, again: FactRow) -> FactRow:
    """One row with the probes of both, so that none is lost with a duplicate."""
    return replace(
        row,
        old_object=row.old_object or again.old_object,
        paraphrases=_union(row.paraphrases, again.paraphrases),
        neighbours=_union(row.neighbours, again.neighbours),
        open_neighbours=_union(row.open_neighbours, again.open_neighbours),
        same_subject=_union(row.same_subject, again.same_subject),
        portability=_union(row.portability, again.portability),
        generation=_union(row.generation, again.generation),
        with_facts=_union(row.with_facts, again.with_facts),
    )


def _union(first: tuple[T, ...], more: tuple[T, ...]) -> tuple[T, ...]:
    seen = set(first)
    return first + tuple(item for item in more if item not in seen)
