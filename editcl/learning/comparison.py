"""StrategyComparison: several strategies on one stream, beside the joint upper bound.

Plain numbers with their means and deviations over seeds; they become JSON and come back equal.
Knows nothing of models, tasks and strategies.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from editcl.errors import EditclError
from editcl.learning.metrics import METRICS, Spread, spread
from editcl.learning.results import COSTS, Row, StreamResult, aligned, as_html, seeds_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

_HEADS = {
    "seconds": "seconds",
    "trained": "trained",
    "adapters": "in adapters",
    "memory": "memory, kB",
    "general": "general text, nats",
    "survival": "facts that hold",
}


@dataclass(frozen=True)
class JointRun:
    """One training on the data of all tasks at once: the upper bound.

    Attributes:
        seed: of the session and the training.
        scores: on each task, in the end.
        seconds: what it took.
        trained: how many numbers it trained.
    """

    seed: int
    scores: Row
    seconds: float
    trained: int


@dataclass(frozen=True, repr=False)
class StrategyComparison:
    """Several strategies on the same stream with the same seeds.

    Attributes:
        model: what learnt.
        tasks: their names, in order.
        strategies: a result for each, in the order in which they ran.
        joint: the training on all data at once, for each seed; empty if it was not asked for.
    """

    model: str
    tasks: tuple[str, ...]
    strategies: tuple[StreamResult, ...]
    joint: tuple[JointRun, ...] = ()

    def __getitem__(self, name: str) -> StreamResult:
        for result in self.strategies:
            if result.strategy == name:
                return result
        names = ", ".join(result.strategy for result in self.strategies)
        raise EditclError(f"{name!r} was not compared, only {names}.")

    @property
    def bound(self) -> Spread | None:
        """OP of the joint training; None if it was not asked for."""
        if not self.joint:
            return None
        return spread([sum(run.scores) / len(run.scores) for run in self.joint])

    def lines(self) -> list[tuple[str, dict[str, Spread], dict[str, Spread]]]:
        """(name, metrics, costs) of each strategy; twice where telling the task matters."""
        return [
            (result.strategy + title, result.metrics(told=told), result.costs())
            for result in self.strategies
            for title, told in result.parts()
        ]

    def to_frame(self) -> DataFrame:
        """One row a strategy: each metric and cost with its `<name>_deviation` over seeds.

        The upper bound, if there, is the last row, and has OP alone.
        """
        import pandas

        rows: dict[str, dict[str, float | None]] = {}
        for name, metrics, costs in self.lines():
            rows[name] = _flat(metrics | costs)
        if self.bound is not None:
            rows["joint"] = _flat({"OP": self.bound}) | _flat(self._joint_costs())
        frame = pandas.DataFrame.from_dict(rows, orient="index")
        return frame.rename_axis("strategy")

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Header and cells of a table for readers: means with deviations over seeds."""
        lines = self.lines()
        metrics = [name for name in METRICS if any(name in line[1] for line in lines)]
        costs = [name for name in COSTS if any(name in line[2] for line in lines)]
        cells = [
            [name, *(_cell(n, m.get(n)) for n in metrics), *(_cell(n, c.get(n)) for n in costs)]
            for name, m, c in lines
        ]
        if self.bound is not None:
            paid = self._joint_costs()
            bound = [_cell(n, self.bound if n == "OP" else None) for n in metrics]
            cells.append(["joint", *bound, *(_cell(n, paid.get(n)) for n in costs)])
        return ["strategy", *metrics, *(_HEADS[name] for name in costs)], cells

    def to_markdown(self) -> str:
        """The table of `rows` in Markdown."""
        head, cells = self.rows()
        lines = [head, ["---", *["---:"] * (len(head) - 1)], *cells]
        escaped = ([cell.replace("|", "\\|") for cell in line] for line in lines)
        return "\n".join(f"| {' | '.join(line)} |" for line in escaped)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-able data."""
        return {
            "model": self.model,
            "tasks": list(self.tasks),
            "strategies": {result.strategy: result.to_dict() for result in self.strategies},
            "joint": {
                "OP": None if self.bound is None else asdict(self.bound),
                "runs": [asdict(run) for run in self.joint],
            },
        }

    def to_json(self, *, indent: int | None = 1) -> str:
        """`to_dict` as a text."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StrategyComparison:
        """The comparison that `to_dict` told of."""
        joint = [
            JointRun(**(run | {"scores": tuple(run["scores"])})) for run in data["joint"]["runs"]
        ]
        results = [StreamResult.from_dict(one) for one in data["strategies"].values()]
        return cls(data["model"], tuple(data["tasks"]), tuple(results), tuple(joint))

    def plot(self, kind: str = "metrics", *, path: str | Path | None = None) -> Figure:
        """Metrics by strategy with deviations over seeds, or (kind "curves") forgetting curves.

        Raises:
            EditclError: there is no such kind of figure.
        """
        from editcl.learning.pictures import plot_curves, plot_strategies

        if kind not in ("metrics", "curves"):
            raise EditclError(f"there is no figure {kind!r} of strategies: take metrics or curves.")
        if kind == "metrics":
            return plot_strategies(self, path=path)
        return plot_curves(self.strategies, path=path)

    def _joint_costs(self) -> dict[str, Spread]:
        return {
            "seconds": spread([run.seconds for run in self.joint]),
            "trained": spread([float(run.trained) for run in self.joint]),
        }

    def _head(self) -> str:
        first = self.strategies[0]
        return f"{len(self.tasks)} tasks ({', '.join(self.tasks)}), {seeds_of(first.runs)}"

    def __repr__(self) -> str:
        head, cells = self.rows()
        return "\n".join([f"Strategies on {self.model}: {self._head()}", *aligned([head, *cells])])

    def _repr_html_(self) -> str:
        head, cells = self.rows()
        title = f"<b>{html.escape(self.model)}</b>: {html.escape(self._head())}"
        return f"<div>{title}{as_html([head, *cells])}</div>"


# -- parts --------------------------------------------------------------------------------------


def _flat(values: Mapping[str, Spread]) -> dict[str, float | None]:
    flat: dict[str, float | None] = {}
    for name, value in values.items():
        flat |= {name: value.mean, f"{name}_deviation": value.deviation}
    return flat


def _cell(name: str, value: Spread | None) -> str:
    if value is None:
        return "–"
    if name == "memory":
        return f"{value.mean / 1000:,.1f}"
    if name in ("trained", "adapters"):
        return f"{value.mean:,.0f}"
    return f"{value.mean:.1f}" if name == "seconds" else str(value)
