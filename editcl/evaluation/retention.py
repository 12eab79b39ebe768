"""Retention: how earlier edits stand in the final state, by order of edit.

Scores taken right after each edit flatter a sequence: later edits undo earlier ones. Here every
case is measured after the last edit, in the order in which it was edited, and, where there are
scores from right after each edit, beside those. Knows nothing of how edits were made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from editcl.errors import EditclError
from editcl.evaluation.cases import Case
from editcl.evaluation.edits import ContextFor, evaluate
from editcl.evaluation.results import MEASURES, Evaluation
from editcl.model import EditableModel

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Stretch:
    """A measure over consecutive edits.

    Attributes:
        first, last: positions of the edits, counted from 0, both included.
        mean, low, high: in the final state, with the 95 % bootstrap interval.
        at_edit: the mean right after each of these edits, if that was measured.
    """

    first: int
    last: int
    mean: float
    low: float
    high: float
    at_edit: float | None = None


@dataclass(frozen=True)
class Retention:
    """Cases in the order in which they were edited, measured in the final state.

    Attributes:
        final: after the last edit.
        at_edit: each case right after its own edit, if that was measured.
    """

    final: Evaluation
    at_edit: Evaluation | None = None

    def curve(self, measure: str = "efficacy", *, stretches: int = 10) -> list[Stretch]:
        """The measure over stretches of consecutive edits, earliest first.

        Stretches in which no case has the measure are left out.

        Raises:
            EditclError: there is no such measure.
        """
        if measure not in (*MEASURES, "score"):
            raise EditclError(f"there is no measure {measure!r}, only {', '.join(MEASURES)}.")
        n = len(self.final)
        count = max(1, min(stretches, n))
        edges = [round(i * n / count) for i in range(count + 1)]
        found = []
        for first, end in pairwise(edges):
            interval = Evaluation(self.final.results[first:end]).intervals().get(measure)
            if interval is not None:
                then = None
                if self.at_edit is not None:
                    part = Evaluation(self.at_edit.results[first:end])
                    then = (part.summary() | part.magnitudes()).get(measure)
                found.append(
                    Stretch(first, end - 1, interval.mean, interval.low, interval.high, then)
                )
        return found

    def to_frame(self) -> DataFrame:
        """One row a case in order of edit: `position`, its fact, every measure in the final state.

        Measures from right after each edit follow as `<measure>_at_edit`.
        """
        frame = self.final.to_frame()
        frame.insert(0, "position", range(len(frame)))
        if self.at_edit is not None:
            then = self.at_edit.to_frame().drop(columns="fact").add_suffix("_at_edit")
            frame = frame.join(then)
        return frame

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-able data."""
        return {
            "final": self.final.to_dict(),
            "at_edit": None if self.at_edit is None else self.at_edit.to_dict(),
            "curves": {
                name: [asdict(stretch) for stretch in self.curve(name)]
                for name in self.final.summary()
            },
        }

    def __repr__(self) -> str:
        parts = []
        for name in ("efficacy", "token_accuracy"):
            curve = self.curve(name, stretches=3)
            if curve:
                shown = " / ".join(f"{stretch.mean:.1%}" for stretch in curve)
                parts.append(f"{name} of the first / middle / last third {shown}")
        return f"Retention({len(self.final)} edits: {'; '.join(parts)})"


def retention(
    model: EditableModel,
    cases: Sequence[Case],
    *,
    at_edit: Evaluation | None = None,
    context_for: ContextFor | None = None,
) -> Retention:
    """Measures every case in the model's present state.

    Args:
        model: the model after the last edit.
        cases: in the order in which they were edited.
        at_edit: `Evaluation.join` of what `evaluate` gave for each case right after its edit.
        context_for: as in `evaluate`.

    Raises:
        EditclError: `at_edit` has another number of cases, or other facts.
    """
    final = evaluate(model, cases, context_for=context_for)
    if at_edit is not None and [r.fact for r in at_edit.results] != [r.fact for r in final.results]:
        raise EditclError(
            f"at_edit tells of {len(at_edit)} cases that are not these {len(final)} in this "
            "order. Join what evaluate gave for each case in the order of the edits."
        )
    return Retention(final, at_edit)
