"""What each step of a training sees: held-out rows, batches by step, passes by length.

Everything is a function of settings and step alone, so that a resumed training needs no memory of
it. Knows nothing of tensors and strategies.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence

from editcl.errors import EditclError
from editcl.learning.batches import Encoded, epoch_order
from editcl.learning.settings import TrainSettings


def split_held_out(
    rows: list[Encoded], settings: TrainSettings
) -> tuple[list[Encoded], list[Encoded]]:
    """(to learn from, held out); equal rows stay on one side."""
    if settings.patience is None:
        return rows, []
    distinct = list(dict.fromkeys(rows))
    count = min(max(1, round(len(distinct) * settings.held_out)), len(distinct) - 1)
    if count == 0:
        raise EditclError(
            "all examples of the task are one and the same: nothing can be held out for early "
            "stopping. Leave patience out."
        )
    drawn = set(random.Random(f"{settings.seed} held out").sample(distinct, count))
    return [row for row in rows if row not in drawn], [row for row in distinct if row in drawn]


class Plan:
    """Which rows each step sees: a function of the step alone, so that it needs no memory."""

    def __init__(self, lengths: Sequence[int], settings: TrainSettings) -> None:
        self._lengths, self._settings = lengths, settings
        self._per_epoch = math.ceil(len(lengths) / settings.rows_per_step)
        self._order: tuple[int, list[list[int]]] = (-1, [])

    def batch(self, step: int) -> list[int]:
        """Indices of the rows of a step."""
        epoch, index = divmod(step, self._per_epoch)
        if self._order[0] != epoch:
            size, seed = self._settings.rows_per_step, self._settings.seed
            self._order = epoch, epoch_order(self._lengths, size, seed=seed, epoch=epoch)
        return self._order[1][index]


def parts(
    batch: Sequence[Encoded], n_parts: int, pass_costs: float
) -> Iterator[tuple[list[Encoded], float]]:
    """The rows of each forward pass of a step, and its share of the step's targets.

    A mean over all targets weighs parts by their targets: so they change no gradient. A part is cut
    once more, by length, where the padding that this saves costs more than a pass of its own: rows
    that a strategy adds need not be of the length of the batch.

    Args:
        batch: all rows.
        n_parts: how many passes there are to be at least.
        pass_costs: what a pass costs beside its tokens, in tokens.
    """
    rows = sorted(batch, key=lambda row: len(row.ids))
    size = math.ceil(len(rows) / n_parts)
    cuts = []
    for at in range(0, len(rows), size):
        end = min(at + size, len(rows))
        longest = len(rows[end - 1].ids)
        saved = {cut: (longest - len(rows[cut - 1].ids)) * (cut - at) for cut in range(at + 1, end)}
        best = max(saved, key=saved.__getitem__, default=end)
        cuts += [best, end] if saved.get(best, 0) > pass_costs else [end]
    total = sum(row.n_targets for row in rows)
    for at, end in zip([0, *cuts], cuts, strict=False):
        yield rows[at:end], sum(row.n_targets for row in rows[at:end]) / total
