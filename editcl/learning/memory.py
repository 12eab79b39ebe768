"""Rows kept from earlier tasks: a uniform sample, or a quota for each; as tensors and back.

Knows nothing of what the rows are used for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from editcl.learning.batches import Encoded


def reservoir(
    kept: list[Encoded],
    seen: int,
    rows: Sequence[Encoded],
    capacity: int,
    *,
    generator: torch.Generator,
) -> list[Encoded]:
    """A uniform sample of all rows so far, in one pass and without knowing how many there will be.

    The n-th row takes a place with probability capacity / n, in the stead of any (Vitter 1985,
    algorithm R).

    Args:
        kept: the sample of the rows before.
        seen: how many these were.
        rows: the next ones.
        capacity: how many are kept.
        generator: what is drawn from.
    """
    found = list(kept)
    for n, row in enumerate(rows, start=seen + 1):
        if len(found) < capacity:
            found.append(row)
            continue
        at = int(torch.randint(n, (1,), generator=generator))
        if at < capacity:
            found[at] = row
    return found


def quota(
    kept: Sequence[Encoded],
    rows: Sequence[Encoded],
    capacity: int,
    *,
    generator: torch.Generator,
) -> list[Encoded]:
    """Equal shares of the capacity for the tasks kept and the one of the new rows.

    Each task's rows are kept in the random order of the day they came, so that a share that shrinks
    stays a uniform sample of its task. What a small task leaves over is not given to others.
    """
    order = torch.randperm(len(rows), generator=generator).tolist()
    groups: dict[str, list[Encoded]] = {}
    for row in [*kept, *(rows[i] for i in order)]:
        groups.setdefault(row.task, []).append(row)
    share = capacity // len(groups) if groups else 0
    return [row for group in groups.values() for row in group[:share]]


def to_tensors(rows: Sequence[Encoded]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Rows as tensors of 32-bit integers, and the names of their tasks as JSON."""
    names = list(dict.fromkeys(row.task for row in rows))
    number = {name: i for i, name in enumerate(names)}
    flat = [token for row in rows for token in row.ids]
    places = [(len(row.ids), row.start, number[row.task]) for row in rows]
    tensors = {
        "ids": torch.tensor(flat, dtype=torch.int32),
        "places": torch.tensor(places, dtype=torch.int32).reshape(-1, 3),
    }
    return tensors, {"tasks": names}


def from_tensors(tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> list[Encoded]:
    """The other way round; no rows where there are no tensors."""
    if not tensors:
        return []
    flat, places, names = tensors["ids"].tolist(), tensors["places"].tolist(), values["tasks"]
    rows, at = [], 0
    for length, start, task in places:
        rows.append(Encoded(tuple(flat[at : at + length]), start, names[task]))
        at += length
    return rows
