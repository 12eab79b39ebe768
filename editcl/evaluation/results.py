"""Results of an evaluation: one per case, and their means with intervals.

Shares and magnitudes are means over a case's prompts of one kind; an evaluation's are means over
the cases that have such prompts, every case weighing the same. Intervals are percentile bootstraps
over cases. Knows nothing of models.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pandas import DataFrame

#: CounterFact's three comparisons, of which the score is the harmonic mean.
COMPARISONS = ("efficacy", "paraphrase", "specificity")
#: Measures that are shares, from 0 to 1, in the order in which they are shown.
SHARES = (
    *COMPARISONS,
    "same_subject",
    "portability",
    "free_running",
    "free_paraphrase",
    "free_portability",
    "token_accuracy",
    "paraphrase_token_accuracy",
    "locality_accuracy",
)
#: Differences of probabilities, from -1 to 1.
MAGNITUDES = ("efficacy_magnitude", "paraphrase_magnitude", "specificity_magnitude")
MEASURES = (*SHARES, *MAGNITUDES)

CONFIDENCE = 0.95
RESAMPLES = 1000


@dataclass(frozen=True)
class CaseResult:
    """Measures of one case; None where it has no such prompts, or no old object to compare with.

    p is the exponential of the mean log-probability per target token. "Exact" means that every
    target token is the argmax under teacher forcing; aliases of a probe's object count as it.

    Attributes:
        efficacy: p(new) > p(old) after the edit's own prompt.
        paraphrase: the same over the paraphrases.
        specificity: p(true) > p(new) over the neighbours.
        same_subject: the subject's other objects, exact.
        portability: objects of the portability probes, exact.
        free_running: the greedy continuation of the prompt is the new object.
        free_paraphrase: the same over the paraphrases.
        free_portability: the same for the objects of the portability probes.
        token_accuracy: share of the new object's tokens that are the argmax after the edit's own
            prompt (zsRE's measure).
        paraphrase_token_accuracy: the same over the paraphrases.
        locality_accuracy: share of the true object's tokens that are the argmax, over neighbours.
        efficacy_magnitude: p(new) - p(old) after the edit's own prompt (EM).
        paraphrase_magnitude: the same over the paraphrases (PM).
        specificity_magnitude: p(true) - p(new) over the neighbours (NM).
        fact: the edit in words.
    """

    efficacy: float | None = None
    paraphrase: float | None = None
    specificity: float | None = None
    same_subject: float | None = None
    portability: float | None = None
    free_running: float | None = None
    free_paraphrase: float | None = None
    free_portability: float | None = None
    token_accuracy: float | None = None
    paraphrase_token_accuracy: float | None = None
    locality_accuracy: float | None = None
    efficacy_magnitude: float | None = None
    paraphrase_magnitude: float | None = None
    specificity_magnitude: float | None = None
    fact: str = ""


@dataclass(frozen=True)
class Interval:
    """A mean over cases with its 95 % bootstrap interval.

    Attributes:
        mean: over the cases that have the measure.
        low, high: the percentiles of the resampled means.
        n_cases: how many cases have the measure.
    """

    mean: float
    low: float
    high: float
    n_cases: int


@dataclass(frozen=True)
class Evaluation:
    """Means over cases of each measure, every case weighing the same."""

    results: tuple[CaseResult, ...]

    def __len__(self) -> int:
        return len(self.results)

    def mean(self, measure: str) -> float | None:
        """The mean of a measure over the cases that have it; None if none has."""
        values = [v for r in self.results if (v := getattr(r, measure)) is not None]
        return sum(values) / len(values) if values else None

    def summary(self) -> dict[str, float]:
        """Each share that is present by name, and the score if it is; magnitudes are apart."""
        means = {name: self.mean(name) for name in SHARES} | {"score": self.score}
        return {name: value for name, value in means.items() if value is not None}

    def magnitudes(self) -> dict[str, float]:
        """Each difference of probabilities that is present by name."""
        means = {name: self.mean(name) for name in MAGNITUDES}
        return {name: value for name, value in means.items() if value is not None}

    @property
    def score(self) -> float | None:
        """Harmonic mean of efficacy, paraphrase and specificity; None unless all are present."""
        parts = [self.mean(name) for name in COMPARISONS]
        present = [p for p in parts if p is not None]
        if len(present) < len(parts):
            return None
        return len(present) / sum(1 / p for p in present) if all(present) else 0.0

    def intervals(self, *, seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Interval]:
        """Mean and 95 % percentile-bootstrap interval of every present measure and the score.

        Cases are resampled with replacement; a resample in which no case has the measure does not
        count. One case alone gives an interval of no width: it tells nothing of other cases.
        """
        if not self.results:
            return {}
        table = np.array(
            [
                [np.nan if (v := getattr(r, m)) is None else v for m in MEASURES]
                for r in self.results
            ]
        )
        means = _resampled_means(table, np.random.default_rng(seed), resamples)
        columns = dict(zip(MEASURES, means.T, strict=True))
        parts = np.stack([columns[name] for name in COMPARISONS])
        with np.errstate(divide="ignore"):
            columns["score"] = len(parts) / (1 / parts).sum(0)
        counts = dict(zip(MEASURES, np.isfinite(table).sum(0).tolist(), strict=True))
        counts["score"] = min(counts[name] for name in COMPARISONS)
        return {
            name: Interval(mean, *_bounds(columns[name]), n_cases=counts[name])
            for name, mean in (self.summary() | self.magnitudes()).items()
        }

    def to_frame(self) -> DataFrame:
        """One row a case: its fact and every measure, NaN where there is none."""
        import pandas

        rows = [asdict(result) for result in self.results]
        frame = pandas.DataFrame(rows, columns=["fact", *MEASURES])
        return frame.astype(dict.fromkeys(MEASURES, float))

    def table(self) -> DataFrame:
        """One row a measure: mean, low and high of its 95 % interval, and how many cases."""
        import pandas

        rows = {name: asdict(interval) for name, interval in self.intervals().items()}
        columns = ["mean", "low", "high", "n_cases"]
        return pandas.DataFrame.from_dict(rows, orient="index", columns=columns)

    def to_dict(self) -> dict[str, Any]:
        """The means with their intervals and every case, as JSON-able data."""
        return {
            "n_cases": len(self.results),
            "measures": {name: asdict(found) for name, found in self.intervals().items()},
            "cases": [
                {name: value for name, value in asdict(result).items() if value is not None}
                for result in self.results
            ],
        }

    def to_json(self, *, indent: int | None = 1) -> str:
        """`to_dict` as a text."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Evaluation:
        """The evaluation that `to_dict` told of."""
        return cls(tuple(CaseResult(**case) for case in data["cases"]))

    def __repr__(self) -> str:
        shown = [f"{name} {value:.1%}" for name, value in self.summary().items()]
        shown += [f"{name} {value:+.3f}" for name, value in self.magnitudes().items()]
        return f"Evaluation({len(self.results)} cases: {', '.join(shown)})"

    def _repr_html_(self) -> str:
        rows = [
            f"<tr><td style='text-align:left'>{html.escape(name.replace('_', ' '))}</td>"
            f"<td>{in_words(name, found.mean)}</td><td>{in_words(name, found.low)} to "
            f"{in_words(name, found.high)}</td><td>{found.n_cases}</td></tr>"
            for name, found in self.intervals().items()
        ]
        head = "<tr><th></th><th>mean</th><th>95 % interval</th><th>cases</th></tr>"
        title = f"<b>Evaluation of {len(self.results)} cases</b>"
        return f"<div>{title}<table>{head}{''.join(rows)}</table></div>"

    @classmethod
    def join(cls, parts: Iterable[Evaluation]) -> Evaluation:
        """One evaluation over the cases of several."""
        return cls(tuple(result for part in parts for result in part.results))


def in_words(measure: str, value: float) -> str:
    """A share in per cent, a difference of probabilities with its sign."""
    return f"{value:+.3f}" if measure in MAGNITUDES else f"{value:.1%}"


def share(values: Sequence[float]) -> float | None:
    """The mean; None of nothing."""
    return sum(values) / len(values) if values else None


def _resampled_means(table: np.ndarray, rng: np.random.Generator, resamples: int) -> np.ndarray:
    """[resamples, n_measures] means over cases drawn with replacement; NaN where none has it."""
    n_cases = len(table)
    there = np.isfinite(table)
    filled = np.where(there, table, 0.0)
    means = np.full((resamples, table.shape[1]), np.nan)
    for i in range(resamples):
        times = np.bincount(rng.integers(0, n_cases, n_cases), minlength=n_cases)
        count = times @ there
        np.divide(times @ filled, count, out=means[i], where=count > 0)
    return means


def _bounds(means: np.ndarray) -> tuple[float, float]:
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.nanpercentile(means, [tail, 100 - tail])
    return float(low), float(high)
