"""Figures of learning are drawn from results alone, with labels that don't touch."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import matplotlib
import matplotlib.text
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from editcl.errors import EditclError
from editcl.learning.comparison import JointRun, StrategyComparison
from editcl.learning.pictures import plot_curves, plot_matrix, plot_strategies
from editcl.learning.results import StreamResult, StreamRun

TASKS = ("agnews", "dbpedia", "a longer name with $x$")


def made(
    name: str = "sequential",
    *,
    tasks: tuple[str, ...] = TASKS,
    seeds: int = 3,
    kind: str = "classification",
    told: bool = False,
) -> StreamResult:
    n = len(tasks)
    runs = []
    for seed in range(seeds):
        R = np.random.RandomState(seed).rand(n + 1, n) * 0.5
        for t in range(n):
            R[t + 1, t] = 0.95
        if kind == "text":
            R = 3 * R - 4
        scores = tuple(map(tuple, R.tolist()))
        better = tuple(map(tuple, (R * 0.9 + 0.1).tolist())) if told else None
        ones = (1,) * n
        runs.append(StreamRun(seed, scores, (1.0,) * n, ones, ones, ones, told=better))
    return StreamResult(name, "tiny", tasks, (kind,) * n, tuple(runs))


def compared(n: int = 5, *, seeds: int = 3) -> StrategyComparison:
    results = [made(f"strategy {i}", seeds=seeds, told=i == 0) for i in range(n)]
    joint = [JointRun(seed, (0.9, 0.8 + seed / 50, 0.9), 1.0, 10) for seed in range(seeds)]
    return StrategyComparison("tiny", TASKS, tuple(results), tuple(joint))


def texts(figure) -> str:
    return "\n".join(t.get_text() for t in figure.findobj(matplotlib.text.Text))


def overlapping(figure, axis, side: str) -> bool:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    labels = axis.get_xticklabels() if side == "x" else axis.get_yticklabels()
    boxes = [label.get_window_extent(canvas.get_renderer()) for label in labels]
    return any(a.overlaps(b) for a, b in pairwise(boxes))


def test_the_matrix_shows_every_mean_and_frames_the_diagonal(tmp_path: Path) -> None:
    path = tmp_path / "matrix.png"
    result = made()
    figure = result.plot(path=path)
    assert path.stat().st_size > 10_000
    axis = figure.axes[0]
    cells = [t.get_text() for t in axis.texts]
    assert cells == [f"{100 * value:.0f}" for value in result.mean().flat]
    frames = [(round(p.get_x() + 0.5), round(p.get_y() + 0.5)) for p in axis.patches]
    assert frames == [(0, 1), (1, 2), (2, 3)]
    shown = texts(figure)
    assert "base model" in shown and "after agnews" in shown and "mean of 3 seeds" in shown
    assert "OP" in shown and "\N{MINUS SIGN}" in shown
    assert not overlapping(figure, axis, "y")


def test_a_matrix_of_texts_is_in_log_perplexity() -> None:
    figure = made(kind="text").plot()
    assert "negative log-perplexity" in texts(figure) and "%" not in texts(figure)


def test_what_was_told_is_said() -> None:
    assert "(task told)" not in texts(plot_matrix(made(told=True)))
    assert "(task told)" in texts(plot_matrix(made(told=True), told=True))


def test_curves_have_a_panel_for_each_strategy_and_a_line_for_each_task(tmp_path: Path) -> None:
    figure = compared(5).plot("curves", path=tmp_path / "curves.svg")
    shown = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title() for axis in shown] == [f"strategy {i}" for i in range(5)]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(TASKS)
    lines = [line for line in shown[0].lines if line.get_linestyle() == "-"]
    assert len(lines) == len(TASKS)
    np.testing.assert_allclose(lines[0].get_ydata(), made().mean()[1:, 0])


def test_many_tasks_get_numbers_and_colours_of_their_own() -> None:
    names = tuple(f"task number {i}" for i in range(15))
    figure = plot_curves([made(tasks=names, seeds=1)])
    axis = figure.axes[0]
    assert [t.get_text() for t in axis.get_xticklabels()] == [str(i) for i in range(16)]
    colours = {line.get_color().tobytes() for line in axis.lines}
    assert len(colours) == 15
    assert not overlapping(figure, axis, "x")
    assert not overlapping(*(lambda f: (f, f.axes[0]))(made(tasks=names).plot()), "y")


@pytest.mark.parametrize("n", [1, 5, 20])
def test_strategies_stand_side_by_side_in_every_metric(tmp_path: Path, n: int) -> None:
    comparison = compared(n)
    figure = comparison.plot(path=tmp_path / "metrics.png")
    assert len(figure.axes) == 5
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == [name for name, _, _ in comparison.lines()]
    assert "strategy 0 (task told)" in labels
    assert not overlapping(figure, figure.axes[0], "y")
    assert not any(overlapping(figure, axis, "x") for axis in figure.axes)
    dashed = [line for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    assert comparison.bound is not None
    assert [line.get_xdata()[0] for line in dashed] == [comparison.bound.mean]
    assert "lower is better" in texts(figure)


def test_one_seed_has_no_error_bars() -> None:
    figure = plot_strategies(compared(2, seeds=1), ["OP", "forgetting"])
    assert len(figure.axes) == 2 and "one seed" in texts(figure)


def test_what_cannot_be_drawn_is_said() -> None:
    with pytest.raises(EditclError, match="'intransigence' was not measured"):
        plot_strategies(compared(2), ["intransigence"])
    with pytest.raises(EditclError, match="different streams"):
        plot_curves([made(), made(tasks=("a", "b"))])
    with pytest.raises(EditclError, match="no result"):
        plot_curves([])


def test_nothing_global_changes() -> None:
    before, loaded = dict(matplotlib.rcParams), "matplotlib.pyplot" in sys.modules
    compared(2).plot()
    assert dict(matplotlib.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == loaded
