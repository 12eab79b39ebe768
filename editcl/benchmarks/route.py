"""`editcl bench route`: whether the router decides well, against what was measured.

Every task of `families` is edited, trained and, if mixed, split (`arms`); its label is what was
worth most. The router decides with the shipped thresholds, which come from the calibration
families alone, and is judged on the others (`verdicts`), beside rules that always edit, always
train, or count items. A mixed stream is learnt by several policies (`route_stream`). With `fit`
the thresholds are fitted anew to the calibration families. Knows no signal and no equation.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from editcl.benchmarks.arms import EDITS, Arm, ArmJudge, Measured, measure
from editcl.benchmarks.families import CALIBRATION, FAMILIES, PER_FAMILY, checksum, make_tasks
from editcl.benchmarks.posed import Posed
from editcl.benchmarks.route_stream import (
    BOTH,
    LENGTH,
    StreamLine,
    both_costs,
    run_stream,
    stream_tasks,
)
from editcl.benchmarks.verdicts import Decided, Said, by_family, figures, of_half, reliability
from editcl.editing.covariance import base_fingerprint
from editcl.errors import EditclError
from editcl.facts import Fact
from editcl.learner import Learner
from editcl.model import EditableModel
from editcl.progress import progress
from editcl.routing.decision import BUDGETS, SPLIT
from editcl.routing.route import route
from editcl.routing.rule import Thresholds, fit, shipped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROUNDS = 4  # of fitting and deciding anew
#: What the shipped thresholds say of themselves.
ABOUT = (
    "Fitted by `editcl bench route --fit data/routing` to the measured tasks of the calibration "
    "families, which are in measured.json beside this file."
)


@dataclass(frozen=True)
class RouteBenchmark:
    """The figures of `editcl bench route`.

    Attributes:
        model: what was measured.
        decided: every task, measured and decided about.
        thresholds: that the router went by.
        stream: by policy; {} if it was left out.
    """

    model: str
    decided: tuple[Decided, ...]
    thresholds: Thresholds
    stream: Mapping[str, StreamLine]

    def figures(self) -> dict[str, Any]:
        """Macro-F1, regrets and costs, on the test half."""
        return figures(self.decided, self.thresholds)

    def by_family(self) -> dict[str, dict[str, float]]:
        """Mean regrets, of both halves."""
        return by_family(self.decided)

    def reliability(self) -> list[tuple[float, float, int]]:
        """Confidence against rightness, on the test half."""
        return reliability(of_half(self.decided, "test"))

    def streamed(self) -> dict[str, Any]:
        """The stream's lines, and what both arms cost."""
        lines: dict[str, Any] = {name: line.to_json() for name, line in self.stream.items()}
        both = both_costs(self.stream)
        return lines | ({} if both is None else {BOTH: {"cost": both}})

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON-able data; under `measured` every task."""
        return {
            "model": self.model,
            **self.figures(),
            "stream": self.streamed(),
            "by_family": self.by_family(),
            "reliability": self.reliability(),
            "measured": [one.to_json() for one in self.decided],
        }

    def plot(self) -> Figure:
        """Regret by family, and the calibration of confidence."""
        from editcl.benchmarks.pictures_route import plot_route

        return plot_route(self)


def bench_route(
    model: EditableModel,
    *,
    tasks: Sequence[Posed] | None = None,
    families: Sequence[str] | None = None,
    per_family: int = PER_FAMILY,
    stream: int = LENGTH,
    keep: Path | None = None,
    fit_to: Path | None = None,
    seed: int = 0,
) -> RouteBenchmark:
    """Measures everything; the model is as before afterwards.

    Args:
        model: what to measure; its log must be empty.
        tasks: posed tasks; by default those of the families.
        families: names in FAMILIES; by default all.
        per_family: tasks of each.
        stream: tasks of the mixed stream; 0 leaves it out.
        keep: a file that takes every measured task, and every split that the router made of one, as
            soon as it is measured; a later call with the same tasks, model and seed goes on from
            there.
        fit_to: a folder for thresholds fitted to the calibration families; by default the shipped
            thresholds are judged and nothing is fitted.
        seed: of everything drawn.

    Raises:
        EditclError: the log has entries, there are no such families or tasks, none to fit to, or
            the kept file holds something else.
    """
    if len(model.log.timeline):
        raise EditclError("benchmark a model without logged edits: its log must be empty.")
    posed = tuple(
        make_tasks(families, per_family=per_family, seed=seed) if tasks is None else tasks
    )
    if not posed:
        raise EditclError("there are no tasks to measure; give at least one.")
    if fit_to is not None and not any(FAMILIES[one.family].half == CALIBRATION for one in posed):
        own = ", ".join(name for name, family in FAMILIES.items() if family.half == CALIBRATION)
        raise EditclError(f"nothing of this calibrates the router; add one of the families {own}.")
    kept = _Kept(keep, f"{base_fingerprint(model)} {seed}")
    measured = []
    for one in progress(posed, "measuring arms"):
        found = kept.of(one) or measure(model, one, seed=seed)
        kept.add(one, found)
        measured.append(found)
    thresholds = shipped()
    decided = _decide(model, posed, measured, thresholds, kept, seed)
    if fit_to is not None:
        # What is looked at depends on the thresholds, so that new ones may call for newer ones.
        for _ in range(ROUNDS):
            fitted = fit([one.row() for one in decided if one.half == CALIBRATION])
            if fitted == thresholds:
                break
            thresholds = fitted
            decided = _decide(model, posed, measured, thresholds, kept, seed)
        _write(fit_to, thresholds, [one for one in decided if one.half == CALIBRATION])
    lines = run_stream(model, stream_tasks(seed, stream)) if stream else {}
    return RouteBenchmark(model.name, tuple(decided), thresholds, lines)


# -- deciding -------------------------------------------------------------------------------------


def _decide(
    model: EditableModel,
    posed: Sequence[Posed],
    measured: Sequence[Measured],
    thresholds: Thresholds,
    kept: _Kept,
    seed: int,
) -> list[Decided]:
    """What the router says of every task, with either budget."""
    found = []
    for one, own in progress(list(zip(posed, measured, strict=True)), "deciding"):
        said = {b: _said(model, one, b, thresholds, kept, seed) for b in BUDGETS}
        found.append(Decided(own, said))
    return found


def _said(
    model: EditableModel,
    posed: Posed,
    budget: str,
    thresholds: Thresholds,
    kept: _Kept,
    seed: int,
) -> Said:
    """What the router says of a task; a split by other facts than the true ones is measured."""
    # As a user hands it over: to find its facts is part of what a decision costs.
    decision = route(model, posed.what, budget=budget, seed=seed, show=False, thresholds=thresholds)
    said = Said(
        decision.kind,
        decision.confidence,
        decision.cost.decision,
        dict(decision.signals),
        decision.reasons[0] if decision.reasons else "",
    )
    if decision.kind != SPLIT or set(decision.facts) == set(posed.facts):
        return said
    own = kept.split_of(posed, decision.facts)
    if own is None:
        judge = ArmJudge(Learner(model, edits=EDITS), posed)
        own = judge.arm(SPLIT, seed=seed, facts=decision.facts)
        kept.add_split(posed, decision.facts, own)
    return replace(said, own=own)


# -- files ----------------------------------------------------------------------------------------


class _Kept:
    """What was measured of tasks: their arms, and splits by facts that the router found.

    Each under the checksum of the task's items, the model and the seed; in a file, if there is one.
    """

    def __init__(self, path: Path | None, measured_on: str) -> None:
        self.path, self._on = path, measured_on
        self.found: dict[str, Any] = {}
        if path is not None and path.exists():
            try:
                self.found = json.loads(path.read_text(encoding="utf-8"))
                assert isinstance(self.found, dict), "no object"
            except (OSError, ValueError, AssertionError) as error:
                raise EditclError(
                    f"{path} holds no measured tasks ({error}); name another file, or move it away."
                ) from None

    def _key(self, posed: Posed, facts: Sequence[Fact] = ()) -> str:
        split = "".join(f" {fact!r}" for fact in facts)
        return hashlib.sha256(f"{checksum([posed])} {self._on}{split}".encode()).hexdigest()

    def of(self, posed: Posed) -> Measured | None:
        """What was measured of a task, if it was."""
        found = self.found.get(self._key(posed))
        return None if found is None else Measured.from_json(found)

    def split_of(self, posed: Posed, facts: Sequence[Fact]) -> Arm | None:
        """What a split by these facts came to, if it was measured."""
        found = self.found.get(self._key(posed, facts))
        return None if found is None else Arm(**found)

    def add(self, posed: Posed, measured: Measured) -> None:
        """Keeps the arms of a task."""
        self._keep(self._key(posed), measured.to_json())

    def add_split(self, posed: Posed, facts: Sequence[Fact], arm: Arm) -> None:
        """Keeps what a split by these facts came to."""
        self._keep(self._key(posed, facts), asdict(arm))

    def _keep(self, key: str, found: dict[str, Any]) -> None:
        """Writes the file anew, whole or not at all."""
        self.found[key] = found
        if self.path is None:
            return
        part = self.path.with_name(self.path.name + ".part")
        part.write_text(json.dumps(self.found, indent=1, ensure_ascii=False), encoding="utf-8")
        os.replace(part, self.path)


def _write(folder: Path, thresholds: Thresholds, rows: Sequence[Decided]) -> None:
    """`router.json`, and what it was fitted to as `measured.json`."""
    thresholds.write(folder / "router.json", ABOUT)
    held = {"about": ABOUT, "tasks": [one.to_json() for one in rows]}
    text = json.dumps(held, indent=1, ensure_ascii=False) + "\n"
    (folder / "measured.json").write_text(text, encoding="utf-8")


__all__ = ["RouteBenchmark", "bench_route"]
