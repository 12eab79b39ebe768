"""Verdicts on measured tasks: decisions against labels, regret, simple rules beside them.

    regret(decision) = utility of the best arm - utility of the decision
    macro-F1         = mean over the true kinds of 2 TP / (2 TP + FP + FN)

Pure arithmetic over what was measured. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from editcl.benchmarks.arms import Arm, Measured
from editcl.benchmarks.families import CALIBRATION, FAMILIES, TEST, Half
from editcl.routing import rule
from editcl.routing.decision import CHEAP, EDIT, FULL, TRAIN
from editcl.routing.rule import Thresholds, macro_f1

BINS = 5  # of the confidence


@dataclass(frozen=True)
class Said:
    """What the router said of a task.

    Attributes:
        kind: of the decision.
        confidence: of it.
        seconds: that it took.
        signals: that it went by.
        reason: the weightiest.
        own: what the decision itself came to, where that was none of the arms: a split by the
            facts that the router found.
    """

    kind: str
    confidence: float
    seconds: float
    signals: Mapping[str, float]
    reason: str = ""
    own: Arm | None = None


@dataclass(frozen=True)
class Decided:
    """A measured task, and what the router said of it by budget."""

    measured: Measured
    said: Mapping[str, Said]

    @property
    def half(self) -> Half:
        """The side of the split that its family is on."""
        return FAMILIES[self.measured.family].half

    def right(self, budget: str = FULL) -> bool:
        """Whether the decision is the label."""
        return self.said[budget].kind == self.measured.label

    def regret(self, budget: str = FULL) -> float:
        """Of the decision as it would have been carried out; never below 0."""
        said = self.said[budget]
        if said.own is None:
            return self.measured.regret(said.kind)
        best = max(self.measured.utilities().values())
        total = sum(arm.seconds for arm in self.measured.arms.values())
        return max(0.0, best - said.own.utility(max(total, said.own.seconds)))

    @property
    def cost_ratio(self) -> float | None:
        """Seconds of the decision over those of the cheaper of editing and training.

        None where neither changes the model.
        """
        arms = [self.measured.arms[n] for n in (EDIT, TRAIN) if n in self.measured.arms]
        seconds = [arm.seconds for arm in arms if arm.changed]
        return self.said[FULL].seconds / min(seconds) if seconds else None

    def row(self) -> rule.Measured:
        """As the rule is fitted to."""
        return rule.Measured(
            self.said[FULL].signals,
            self.measured.label,
            self.measured.utilities(),
            self.measured.family,
        )

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            **self.measured.to_json(),
            "half": self.half,
            "said": {
                budget: asdict(replace(said, signals={})) | {"signals": dict(said.signals)}
                for budget, said in self.said.items()
            },
            "regret": self.regret(),
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Decided:
        """From what `to_json` gave."""
        said = {
            budget: Said(**{**one, "own": None if one["own"] is None else Arm(**one["own"])})
            for budget, one in found["said"].items()
        }
        return cls(Measured.from_json(found), said)


def of_half(decided: Sequence[Decided], half: Half) -> list[Decided]:
    """Those of one side; all if the side has none."""
    return [one for one in decided if one.half == half] or list(decided)


def score(decided: Sequence[Decided], budget: str = FULL) -> float:
    """Macro-F1 of the decisions."""
    truth = [one.measured.label for one in decided]
    return macro_f1(truth, [one.said[budget].kind for one in decided])


def mean_regret(decided: Sequence[Decided], policy: str | Callable[[Decided], float]) -> float:
    """Of an arm that is always taken, or of whatever gives a task's regret."""
    own = (lambda one: one.measured.regret(policy)) if isinstance(policy, str) else policy
    return sum(own(one) for one in decided) / len(decided)


@dataclass(frozen=True)
class CountRule:
    """Decides by the number of items alone.

    Attributes:
        least: items from which the second arm is taken.
        below, above: the arms.
    """

    least: int
    below: str
    above: str

    def kind(self, items: int) -> str:
        """What it says of so many items."""
        return self.above if items >= self.least else self.below

    @classmethod
    def fitted(cls, decided: Sequence[Decided]) -> CountRule:
        """That of the least regret on measured tasks."""
        counts = sorted({one.measured.items for one in decided})
        rules = [
            cls(least, *arms)
            for least in [*counts, counts[-1] + 1]
            for arms in ((EDIT, TRAIN), (TRAIN, EDIT))
        ]
        return min(rules, key=lambda own: mean_regret(decided, own.regret))

    def regret(self, one: Decided) -> float:
        """Of a task."""
        return one.measured.regret(self.kind(one.measured.items))


def by_family(decided: Sequence[Decided]) -> dict[str, dict[str, float]]:
    """Mean regret of the router and of the arms, and its share of right decisions, by family."""
    found = {}
    for name in dict.fromkeys(one.measured.family for one in decided):
        own = [one for one in decided if one.measured.family == name]
        found[name] = {
            "router": mean_regret(own, lambda one: one.regret()),
            "always edit": mean_regret(own, EDIT),
            "always train": mean_regret(own, TRAIN),
            "right": sum(one.right() for one in own) / len(own),
        }
    return found


def held_out(decided: Sequence[Decided], thresholds: Thresholds) -> list[Decided]:
    """Each task as it is decided by thresholds that were fitted to all families but its own.

    Signals are those that the router took; the confidence is made of margins as `thresholds` say.
    With one family the tasks are as they were decided.
    """
    without = rule.fits_without([one.row() for one in decided])
    found = []
    for one in decided:
        own = without.get(one.measured.family, thresholds)
        own = replace(own, base=thresholds.base, slope=thresholds.slope)
        said = {name: _again(said, own, thresholds) for name, said in one.said.items()}
        found.append(replace(one, said=said if without else one.said))
    return found


def _again(said: Said, own: Thresholds, thresholds: Thresholds) -> Said:
    """What was said, or what the other thresholds make of it where they judge otherwise."""
    verdict = rule.judge(said.signals, own)
    if verdict.kind == rule.judge(said.signals, thresholds).kind:
        return replace(said, confidence=verdict.confidence)
    return replace(said, kind=verdict.kind, confidence=verdict.confidence, own=None)


def reliability(decided: Sequence[Decided]) -> list[tuple[float, float, int]]:
    """(mean confidence, share of right decisions, tasks) of equally many tasks each."""
    rows = sorted((one.said[FULL].confidence, one.right()) for one in decided)
    n = min(BINS, len(rows))
    bins = [rows[i * len(rows) // n : (i + 1) * len(rows) // n] for i in range(n)]
    return [
        (sum(c for c, _ in own) / len(own), sum(r for _, r in own) / len(own), len(own))
        for own in bins
    ]


def brier(decided: Sequence[Decided]) -> float:
    """Mean square of confidence minus rightness; 0 is perfect."""
    errors = [one.said[FULL].confidence - one.right() for one in decided]
    return sum(error**2 for error in errors) / len(errors)


def figures(decided: Sequence[Decided], thresholds: Thresholds) -> dict[str, Any]:
    """What the verdicts come to: on the test half, the count rule fitted to the other one; and
    `cross_validated`, on all families, each decided by a fit to the others.

    With one half only, that is judged, and the figures say no more than how it was fitted.
    """
    test = of_half(decided, TEST)
    count = CountRule.fitted(of_half(decided, CALIBRATION))
    ratios = [
        one.cost_ratio for one in test if one.measured.items >= 20 and one.cost_ratio is not None
    ]
    truth = [one.measured.label for one in test]
    return {
        "families": len({one.measured.family for one in decided}),
        "tasks": len(decided),
        "tested": len(test),
        **_decisions(test),
        "regret_count_only": mean_regret(test, count.regret),
        "regret_oracle": 0.0,
        "count_only_macro_f1": macro_f1(truth, [count.kind(one.measured.items) for one in test]),
        "count_rule": asdict(count),
        "calibration_macro_f1": score(of_half(decided, CALIBRATION)),
        "cross_validated": _decisions(held_out(decided, thresholds)),
        "decision_cost_ratio": max(ratios, default=None),
        "decision_cost_ratio_mean": sum(ratios) / len(ratios) if ratios else None,
        "cheap_seconds": max(one.said[CHEAP].seconds for one in test),
        "thresholds": asdict(thresholds),
    }


def _decisions(decided: Sequence[Decided]) -> dict[str, float]:
    """How good they are with either budget, beside always taking one arm."""
    return {
        "macro_f1": score(decided),
        "cheap_macro_f1": score(decided, CHEAP),
        "right": sum(one.right() for one in decided) / len(decided),
        "regret": mean_regret(decided, lambda one: one.regret()),
        "cheap_regret": mean_regret(decided, lambda one: one.regret(CHEAP)),
        "regret_always_edit": mean_regret(decided, EDIT),
        "regret_always_train": mean_regret(decided, TRAIN),
        "brier": brier(decided),
    }


__all__ = [
    "CountRule",
    "Decided",
    "Said",
    "brier",
    "by_family",
    "figures",
    "held_out",
    "mean_regret",
    "of_half",
    "reliability",
    "score",
]
