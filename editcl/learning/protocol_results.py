"""Results of the protocols: perplexities by domain, regret by time step.

Plain numbers; they become JSON and come back equal. Knows nothing of models and tasks.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from editcl.errors import EditclError
from editcl.learning.metrics import Spread, Triangles, spread, triangles
from editcl.learning.results import StreamResult, aligned, as_html, seeds_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

#: What is reported of each domain, in the order in which tables show it.
PERPLEXITIES = ("ZS", "FT", "CPT", "LC")


@dataclass(frozen=True)
class PretrainingRun:
    """One model on the domains in one order.

    Attributes:
        model: its name.
        n_parameters: its size.
        order: "similar", "random" or "given".
        result: of the stream, with the runs on single domains.
    """

    model: str
    n_parameters: int
    order: str
    result: StreamResult

    def log_perplexity(self) -> dict[str, Float[np.ndarray, "n_seeds n_domains"]]:
        """Of each seed and domain, in the order of the stream, by the names in PERPLEXITIES."""
        R = np.stack([run.matrix() for run in self.result.runs])
        single = np.array([run.single for run in self.result.runs])
        learnt = np.stack([np.diagonal(one[1:]) for one in R])
        return {"ZS": -R[:, 0], "FT": -single, "CPT": -learnt, "LC": -R[:, -1]}

    def perplexity(self) -> dict[str, Float[np.ndarray, " n_domains"]]:
        """Of each domain: exp of the mean over seeds of log-perplexity."""
        return {name: np.exp(found.mean(0)) for name, found in self.log_perplexity().items()}

    def forgetting(self) -> Spread | None:
        """LC - CPT in perplexity, the mean over all domains but the last; None of one domain."""
        found = self.log_perplexity()
        if found["LC"].shape[1] < 2:
            return None
        change = (np.exp(found["LC"]) - np.exp(found["CPT"]))[:, :-1].mean(1)
        return spread(change.tolist())

    def transfer(self) -> dict[str, Spread]:
        """BWT and FWT of -log perplexity, where there are two domains."""
        found = self.result.metrics()
        return {name: found[name] for name in ("BWT", "FWT") if name in found}


@dataclass(frozen=True, repr=False)
class PretrainingReport:
    """Models and orders of domains beside each other.

    Attributes:
        runs: one for each model and order.
    """

    runs: tuple[PretrainingRun, ...]

    def __getitem__(self, place: tuple[str, str]) -> PretrainingRun:
        for run in self.runs:
            if (run.model, run.order) == place:
                return run
        there = ", ".join(f"{(run.model, run.order)}" for run in self.runs)
        raise EditclError(f"there is no run {place!r}, only {there}.")

    def to_frame(self) -> DataFrame:
        """One row for each model, order and domain (`place` in the stream): ZS, FT, CPT, LC."""
        import pandas

        rows = []
        for run in self.runs:
            found = run.perplexity()
            for place, name in enumerate(run.result.tasks):
                own = {key: float(found[key][place]) for key in PERPLEXITIES}
                head = {"model": run.model, "order": run.order, "place": place, "domain": name}
                rows.append(head | own)
        return pandas.DataFrame(rows)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-able data, with the figures beside what they come from."""
        runs = []
        for run in self.runs:
            forgotten = run.forgetting()
            runs.append(
                {
                    "model": run.model,
                    "n_parameters": run.n_parameters,
                    "order": run.order,
                    "result": run.result.to_dict(),
                    "perplexity": {name: v.tolist() for name, v in run.perplexity().items()},
                    "forgetting": None if forgotten is None else asdict(forgotten),
                }
            )
        return {"runs": runs}

    def to_json(self, *, indent: int | None = 1) -> str:
        """`to_dict` as a text."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PretrainingReport:
        """The report that `to_dict` told of."""
        runs = [
            PretrainingRun(
                one["model"],
                one["n_parameters"],
                one["order"],
                StreamResult.from_dict(one["result"]),
            )
            for one in data["runs"]
        ]
        return cls(tuple(runs))

    def plot(self, *, path: str | Path | None = None) -> Figure:
        """Perplexities of each domain, a panel for each model and order."""
        from editcl.learning.pictures_protocols import plot_pretraining

        return plot_pretraining(self, path=path)

    def _tables(self) -> list[tuple[str, list[list[str]]]]:
        found = []
        for run in self.runs:
            perplexity = run.perplexity()
            table = [["domain", *PERPLEXITIES]]
            for j, name in enumerate(run.result.tasks):
                table.append([name, *(f"{perplexity[key][j]:.2f}" for key in PERPLEXITIES)])
            words = [f"{run.model} ({run.n_parameters / 1e6:.1f}M), {run.order} order"]
            forgotten = run.forgetting()
            if forgotten is not None:
                words.append(f"forgetting LC - CPT {forgotten}")
            words += [f"{name} {value}" for name, value in run.transfer().items()]
            found.append((", ".join(words), table))
        return found

    def __repr__(self) -> str:
        lines = [f"Continual pretraining, {seeds_of(self.runs[0].result.runs)} (perplexity)"]
        for title, table in self._tables():
            lines += [f"  {title}", *(f"    {line}" for line in aligned(table))]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        parts = [f"<b>{html.escape(title)}</b>{as_html(table)}" for title, table in self._tables()]
        return f"<div>{''.join(parts)}</div>"


@dataclass(frozen=True, repr=False)
class TimeReport:
    """Time steps learnt one after another, beside an oracle for each.

    Attributes:
        result: of the strategy.
        oracle: of trainings on all data so far; its diagonal counts.
    """

    result: StreamResult
    oracle: StreamResult

    def regrets(self) -> Float[np.ndarray, "n_seeds n_steps n_steps"]:
        """Of each seed: oracle[j] - R[i, j], row i the state after step i; lower is better."""
        pairs = zip(self.result.runs, self.oracle.runs, strict=True)
        return np.stack(
            [np.diagonal(best.matrix()[1:])[None] - run.matrix()[1:] for run, best in pairs]
        )

    def summary(self) -> dict[str, Spread]:
        """Mean regret in-distribution (diagonal), backward (lower) and forward (upper triangle)."""
        found = [asdict(triangles(one)) for one in self.regrets()]
        names = [name for name in Triangles.__dataclass_fields__ if found[0][name] is not None]
        return {name: spread([one[name] for one in found]) for name in names}

    def to_frame(self) -> DataFrame:
        """Mean regret over seeds: states down, time steps across."""
        import pandas

        steps = list(self.result.tasks)
        index = pandas.Index([f"after {name}" for name in steps])
        return pandas.DataFrame(self.regrets().mean(0), index=index, columns=steps)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-able data, with the figures beside what they come from."""
        return {
            "result": self.result.to_dict(),
            "oracle": self.oracle.to_dict(),
            "regret": {name: asdict(value) for name, value in self.summary().items()},
        }

    def to_json(self, *, indent: int | None = 1) -> str:
        """`to_dict` as a text."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TimeReport:
        """The report that `to_dict` told of."""
        return cls(StreamResult.from_dict(data["result"]), StreamResult.from_dict(data["oracle"]))

    def plot(self, *, path: str | Path | None = None) -> Figure:
        """Regret as a heat map."""
        from editcl.learning.pictures_protocols import plot_regret

        return plot_regret(self, path=path)

    def _table(self) -> list[list[str]]:
        steps = self.result.tasks
        body = self.regrets().mean(0).tolist()
        cells = [
            [f"after {name}", *(f"{value:.3f}" for value in line)]
            for name, line in zip(steps, body, strict=True)
        ]
        return [["", *steps], *cells]

    def _head(self) -> str:
        words = [f"{name.replace('_', '-')} {value}" for name, value in self.summary().items()]
        return f"Regret of {self.result.strategy} against the oracle: {', '.join(words)}"

    def __repr__(self) -> str:
        return "\n".join([self._head(), *(f"  {line}" for line in aligned(self._table()))])

    def _repr_html_(self) -> str:
        return f"<div><b>{html.escape(self._head())}</b>{as_html(self._table())}</div>"
