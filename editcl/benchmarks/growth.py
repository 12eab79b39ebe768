"""How the cost of a batch edit grows with the number of facts: time and memory, each in a process
of its own, and the law that fits.

Peak memory is that of the process (`ru_maxrss`), and what the edit added to the peak from before
it. Run as a module it measures one number of facts and prints JSON; `measure_growth` does so for
several. Knows nothing of quality.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from editcl.errors import EditclError
from editcl.model import EditableModel
from editcl.progress import progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Cost:
    """What one batch edit took.

    Attributes:
        n_facts: in the batch.
        essence_seconds: to choose what is held of each subject.
        values_seconds: for v*.
        solve_seconds: for keys and updates.
        peak: of the process, in MiB; None where the system doesn't tell.
        added: what the edit added to the peak, in MiB.
    """

    n_facts: int
    essence_seconds: float
    values_seconds: float
    solve_seconds: float
    peak: float | None
    added: float | None

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.essence_seconds + self.values_seconds + self.solve_seconds


@dataclass(frozen=True)
class Law:
    """cost = a + b n^c, the candidate of least relative error.

    Attributes:
        name: in words.
        a, b, c: its coefficients, a + b n^c; c = 0 stands for the logarithm.
        error: largest relative error on what was measured.
    """

    name: str
    a: float
    b: float
    c: float
    error: float

    def at(self, n: float) -> float:
        """The cost that it foretells."""
        return self.a + self.b * _term(n, self.c)

    def __str__(self) -> str:
        head = f"{self.a:.3g} + " if self.a else ""
        power = "" if self.c == 1 else f"^{self.c:.3g}"
        term = "ln n" if self.c == 0 else f"n{power}"
        return f"{self.name}: {head}{self.b:.3g} {term} (within {self.error:.0%})"


def _term(n: float, c: float) -> float:
    """n^c, of which the logarithm stands in for c = 0."""
    return float(np.log(n)) if c == 0 else n**c


@dataclass(frozen=True)
class Growth:
    """Costs by number of facts, ascending, and the laws of seconds and memory."""

    costs: tuple[Cost, ...]
    seconds: Law
    added: Law | None

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-able data."""
        return {
            "costs": [asdict(cost) | {"seconds": cost.seconds} for cost in self.costs],
            "seconds_law": {**asdict(self.seconds), "text": str(self.seconds)},
            "added_law": None
            if self.added is None
            else {**asdict(self.added), "text": str(self.added)},
        }

    def plot(self, *, path: str | Path | None = None) -> Figure:
        """Seconds and memory against the number of facts; see `plot_growth`."""
        from editcl.plots import plot_growth

        return plot_growth(self, path=path)


def fit_law(n: Sequence[int], cost: Sequence[float]) -> Law:
    """The law that fits best, by the largest relative error: a + b n, a + b n^2, a + b ln n, b n^c.

    Coefficients by least squares of relative errors (of logarithms, for the power law); a cost
    that shrinks with n, or a negative start, is no law of growth and is not offered; but where n
    is 1 the logarithm may be below nought.
    """
    x, y = np.asarray(n, float), np.asarray(cost, float)
    assert len(x) >= 3 and (y > 0).all(), "a law needs three costs above zero"
    found = []
    for name, power in (("linear", 1.0), ("quadratic", 2.0), ("logarithmic", 0.0)):
        term = np.array([_term(value, power) for value in x])
        columns = np.stack([np.ones_like(x), term], 1) / y[:, None]
        a, b = np.linalg.lstsq(columns, np.ones_like(y), rcond=None)[0]
        if b >= 0 and (a >= 0 or power == 0):
            found.append((name, float(a), float(b), power))
    slope, start = np.polyfit(np.log(x), np.log(y), 1)
    found.append(("power", 0.0, float(np.exp(start)), float(slope)))
    laws = [Law(*coefficients, error=0.0) for coefficients in found]
    errors = [
        max(abs(law.at(value) / paid - 1) for value, paid in zip(x, y, strict=True)) for law in laws
    ]
    best = min(range(len(laws)), key=lambda i: errors[i])
    return replace(laws[best], error=float(errors[best]))


def measure_growth(model: EditableModel, sizes: Sequence[int], *, seed: int = 0) -> Growth:
    """One process after another edits so many catalogue facts, by MEMIT at default settings.

    Args:
        model: what to edit; it must have been loaded by a name that a fresh process can load.
        sizes: numbers of facts, three at least.
        seed: of the draw.

    Raises:
        EditclError: a process failed; what it said is in the message.
    """
    costs = []
    for n_facts in progress(sorted(sizes), "growth, a process a size"):
        question = {"model": model.name, "n_facts": n_facts, "seed": seed}
        done = subprocess.run(
            [sys.executable, "-m", "editcl.benchmarks.growth", json.dumps(question)],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise EditclError(
                f"editing {n_facts} facts in a process of its own failed: {done.stderr[-400:]}"
            )
        costs.append(Cost(**json.loads(done.stdout.splitlines()[-1])))
    n = [cost.n_facts for cost in costs]
    added = [cost.added for cost in costs if cost.added]
    return Growth(
        tuple(costs),
        fit_law(n, [cost.seconds for cost in costs]),
        fit_law(n, added) if len(added) == len(costs) else None,
    )


def measure_one(model: EditableModel, n_facts: int, seed: int) -> Cost:
    """The cost of one batch in this process; nothing is logged."""
    from editcl.editing.way import plan_for, way_of
    from editcl.evaluation import catalogue_cases

    facts = [case.fact for case in catalogue_cases(n_facts, seed=seed)]
    if len(facts) < n_facts:
        raise EditclError(f"the catalogue has only {len(facts)} facts to edit together.")
    way = way_of(model, "memit", seed=seed)
    plan_for(model, facts[:1], way)  # covariance and calibration are made once, not here
    before, started = _peak(), time.perf_counter()
    plan = plan_for(model, facts, way)
    chosen = time.perf_counter()
    solution = way.editor(model, facts, plan)
    done, peak = time.perf_counter(), _peak()
    values = float(solution.details["values_seconds"])
    return Cost(
        n_facts,
        chosen - started,
        values,
        done - chosen - values,
        peak,
        None if peak is None or before is None else max(peak - before, 0.1),
    )


def _peak() -> float | None:
    """Peak memory of this process so far, in MiB."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1024 if sys.platform != "darwin" else 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def main(question: str) -> None:
    """Measures what the JSON asks for and prints the cost as JSON."""
    from editcl.loading import load

    asked = json.loads(question)
    model = load(None if asked["model"] == "embedded" else asked["model"])
    cost = measure_one(model, asked["n_facts"], asked["seed"])
    print(json.dumps(asdict(cost)))


if __name__ == "__main__":
    main(sys.argv[1])
