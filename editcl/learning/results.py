"""Results of streams: what strategies reached on tasks one after another, over several seeds.

Plain numbers with their means and deviations; they become JSON and come back equal. Scores are
higher-is-better: shares of test examples, or the negative logarithm of perplexity for tasks of kind
"text". Knows nothing of models, tasks and strategies.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from jaxtyping import Float

from editcl.errors import EditclError
from editcl.learning.metrics import METRICS, Spread, spread, summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

Row: TypeAlias = tuple[float, ...]

#: Costs and side effects, in the order in which tables show them.
COSTS = ("seconds", "trained", "adapters", "memory", "general", "survival")
TOLD = " (task told)"  # after a strategy's name, where it was told which task a prompt belongs to


@dataclass(frozen=True)
class StreamRun:
    """One strategy on one stream with one seed.

    Attributes:
        seed: of the session and every training.
        scores: R: row 0 of the base model, then one after each task. The task is not told, unless
            the strategy must be told it.
        told: the same where the task is told; None where that makes no difference.
        single: each task's score after training on it alone, if that was measured.
        seconds: what each training took.
        trained: how many numbers each training trained.
        adapters: how many numbers all adapters have, after each task.
        memory: bytes that the strategy holds beside them, after each task.
        general: by how much the cross-entropy of general text has risen, after each task (nats per
            token); empty if that was not measured.
        survival: the share of logged facts that still hold, after each task; empty likewise.
        measured: what the strategy has found out about itself, as JSON.
    """

    seed: int
    scores: tuple[Row, ...]
    seconds: Row
    trained: tuple[int, ...]
    adapters: tuple[int, ...]
    memory: tuple[int, ...]
    told: tuple[Row, ...] | None = None
    single: Row | None = None
    general: Row = ()
    survival: Row = ()
    measured: Mapping[str, Any] = field(default_factory=dict)

    def matrix(self, *, told: bool = False) -> Float[np.ndarray, "n_states n_tasks"]:
        """R, or R with the task told (which is the same for most strategies)."""
        return np.array(self.told if told and self.told is not None else self.scores)

    def metrics(self, *, told: bool = False) -> dict[str, float]:
        """`editcl.learning.metrics.summary` of this run."""
        single = None if self.single is None else np.array(self.single)
        return summary(self.matrix(told=told), single)

    def costs(self) -> dict[str, float]:
        """Sum of the seconds, most numbers trained at once, the others as they are in the end."""
        found = {
            "seconds": sum(self.seconds),
            "trained": float(max(self.trained)),
            "adapters": float(self.adapters[-1]),
            "memory": float(self.memory[-1]),
        }
        if self.general:
            found["general"] = self.general[-1]
        if self.survival:
            found["survival"] = self.survival[-1]
        return found

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StreamRun:
        """The run that `asdict` told of, also where it went through JSON."""
        own = {name: _tuples(value) for name, value in data.items() if name != "measured"}
        return cls(**own, measured=data.get("measured", {}))


@dataclass(frozen=True, repr=False)
class StreamResult:
    """One strategy on one stream.

    Attributes:
        strategy: its name.
        model: what learnt.
        tasks: their names, in the order in which they were learnt.
        kinds: of the tasks.
        runs: one for each seed.
        must_tell: whether it can't predict without being told the task.
    """

    strategy: str
    model: str
    tasks: tuple[str, ...]
    kinds: tuple[str, ...]
    runs: tuple[StreamRun, ...]
    must_tell: bool = False

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of the runs."""
        return tuple(run.seed for run in self.runs)

    @property
    def routes(self) -> bool:
        """Whether it makes a difference if the task is told."""
        return any(run.told is not None for run in self.runs)

    @property
    def shares(self) -> bool:
        """Whether all scores are shares from 0 to 1."""
        return "text" not in self.kinds

    def mean(self, *, told: bool = False) -> Float[np.ndarray, "n_states n_tasks"]:
        """R, the mean over seeds."""
        return self._stacked(told).mean(0)

    def deviation(self, *, told: bool = False) -> Float[np.ndarray, "n_states n_tasks"] | None:
        """The sample deviation of each cell over seeds; None of one seed."""
        return self._stacked(told).std(0, ddof=1) if len(self.runs) > 1 else None

    def metrics(self, *, told: bool = False) -> dict[str, Spread]:
        """Each metric that all runs have, by its name in METRICS."""
        return _spreads([run.metrics(told=told) for run in self.runs], METRICS)

    def costs(self) -> dict[str, Spread]:
        """Each of COSTS that all runs have; see `StreamRun.costs`."""
        return _spreads([run.costs() for run in self.runs], COSTS)

    def to_frame(self) -> DataFrame:
        """One row for each score: seed, after (0 is the base model), state, task, score, told."""
        import pandas

        columns = ["seed", "after", "state", "task", "score", "told"]
        rows = []
        for run in self.runs:
            for told in (False, True) if run.told is not None else (False,):
                for t, line in enumerate(run.matrix(told=told).tolist()):
                    state = "base" if t == 0 else self.tasks[t - 1]
                    for name, score in zip(self.tasks, line, strict=True):
                        rows.append((run.seed, t, state, name, score, told))
        return pandas.DataFrame(rows, columns=columns)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-able data, with the metrics and costs beside what they come from."""
        found = asdict(self)
        found["metrics"] = {name: asdict(value) for name, value in self.metrics().items()}
        if self.routes:
            told = self.metrics(told=True).items()
            found["metrics_told"] = {name: asdict(value) for name, value in told}
        found["costs"] = {name: asdict(value) for name, value in self.costs().items()}
        return found

    def to_json(self, *, indent: int | None = 1) -> str:
        """`to_dict` as a text."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StreamResult:
        """The result that `to_dict` told of."""
        return cls(
            data["strategy"],
            data["model"],
            tuple(data["tasks"]),
            tuple(data["kinds"]),
            tuple(StreamRun.from_dict(run) for run in data["runs"]),
            data["must_tell"],
        )

    def plot(self, kind: str = "matrix", *, path: str | Path | None = None) -> Figure:
        """The matrix as a heat map, or (kind "curves") each task's score over the stream.

        Raises:
            EditclError: there is no such kind of figure.
        """
        from editcl.learning.pictures import plot_curves, plot_matrix

        if kind not in ("matrix", "curves"):
            raise EditclError(f"there is no figure {kind!r} of a stream: take matrix or curves.")
        return plot_matrix(self, path=path) if kind == "matrix" else plot_curves([self], path=path)

    def _stacked(self, told: bool) -> Float[np.ndarray, "n_seeds n_states n_tasks"]:
        return np.stack([run.matrix(told=told) for run in self.runs])

    def parts(self) -> list[tuple[str, bool]]:
        """(what follows the name, told) of each matrix that differs."""
        return [(TOLD if self.must_tell else "", False), *([(TOLD, True)] if self.routes else [])]

    def __repr__(self) -> str:
        lines = [
            f"{self.strategy} on {len(self.tasks)} tasks, {seeds_of(self.runs)} ({self.model})"
        ]
        for title, told in self.parts():
            metrics = self.metrics(told=told).items()
            lines.append(f"  {', '.join(f'{name} {value}' for name, value in metrics)}{title}")
            lines += [f"  {line}" for line in aligned(self._table(told))]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        parts = []
        for title, told in self.parts():
            metrics = self.metrics(told=told).items()
            words = ", ".join(f"{name} {value}" for name, value in metrics)
            parts.append(f"<div>{html.escape(words + title)}</div>{as_html(self._table(told))}")
        head = f"{self.strategy} on {len(self.tasks)} tasks, {seeds_of(self.runs)}"
        return f"<div><b>{html.escape(head)}</b> ({html.escape(self.model)}){''.join(parts)}</div>"

    def _table(self, told: bool) -> list[list[str]]:
        states = ["base", *(f"after {name}" for name in self.tasks)]
        body = self.mean(told=told).tolist()
        cells = [
            [state, *(f"{value:.3f}" for value in line)]
            for state, line in zip(states, body, strict=True)
        ]
        return [["", *self.tasks], *cells]


# -- parts --------------------------------------------------------------------------------------


def _spreads(found: Sequence[Mapping[str, float]], names: Sequence[str]) -> dict[str, Spread]:
    there = [name for name in names if all(name in one for one in found)]
    return {name: spread([one[name] for one in found]) for name in there}


def seeds_of(runs: Sequence[Any]) -> str:
    """How many runs there are, in words."""
    return f"{len(runs)} seed" + ("s" if len(runs) != 1 else "")


def aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: the first column at the left, the others at the right."""
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    return [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    ]


def as_html(table: Sequence[Sequence[str]]) -> str:
    """The table as HTML; its first line is the head."""
    head, *body = table
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    lines = (
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>"
        for line in body
    )
    return f"<table><tr>{top}</tr>{''.join(lines)}</table>"


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
