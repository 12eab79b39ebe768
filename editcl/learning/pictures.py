"""Figures of learning: the score matrix, forgetting curves, strategies compared.

Nothing is computed here beyond means that the results give. As in `editcl.plots`, figures are made
without pyplot and returned; strategies and tasks keep their order and colour throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from editcl.errors import EditclError
from editcl.learning.metrics import LOWER_IS_BETTER, METRICS
from editcl.plots import _METHOD_COLOURS as COLOURS
from editcl.plots import _figure, _fit, _label, _saved, _shown, _title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from editcl.learning.comparison import StrategyComparison
    from editcl.learning.results import StreamResult

_WIDE = 12  # tasks up to which cells carry their numbers at full size
_DARK = "#252525"
_TITLES = {
    "OP": "overall performance",
    "LA": "learning accuracy",
    "BWT": "backward transfer",
    "FWT": "forward transfer",
    "forgetting": "forgetting",
    "intransigence": "intransigence",
}


def plot_matrix(
    result: StreamResult, *, told: bool = False, path: str | Path | None = None
) -> Figure:
    """Scores as a heat map: states down, from the base model on; tasks across.

    A frame marks each task's score right after it was learnt: below it stands what is left of it,
    above it what there was before. Of several seeds the mean.

    Args:
        result: of a stream.
        told: the matrix in which the task was told, where that makes a difference.
        path: where to save it; the ending gives the format.
    """
    from matplotlib.patches import Rectangle

    values = result.mean(told=told)
    n = len(result.tasks)
    cell = 0.62 if n <= _WIDE else 0.42
    labels = [_label(name) for name in result.tasks]
    margin = 0.09 * max(map(len, labels)) + 1.2
    figure = _figure(margin + cell * 1.35 * n + 1.0, 1.7 + cell * (n + 1))
    axis = figure.add_subplot()
    low, high = (0.0, 1.0) if result.shares else (float(values.min()), float(values.max()))
    high = max(high, low + 1e-6)
    axis.imshow(values, cmap="Blues", vmin=low, vmax=high, aspect="auto")
    for t, j in np.ndindex(values.shape):
        deep = (values[t, j] - low) / (high - low) > 0.55
        axis.text(
            j,
            t,
            _number(float(values[t, j]), result.shares),
            ha="center",
            va="center",
            fontsize=10 if n <= _WIDE else 7,
            color="white" if deep else _DARK,
        )
        if t == j + 1:
            frame = Rectangle((j - 0.5, t - 0.5), 1, 1, fill=False, edgecolor="#d55e00", lw=1.8)
            frame.set(clip_on=False, zorder=5)
            axis.add_patch(frame)
    axis.axhline(0.5, color="white", linewidth=3)
    _names(axis, "y", ["base model", *(f"after {name}" for name in labels)])
    axis.xaxis.tick_top()
    crowded = max(map(len, labels)) * 0.085 > cell * 1.35
    _names(axis, "x", labels, rotation=35 if crowded else 0)
    axis.tick_params(length=0)
    for side in axis.spines.values():
        side.set_visible(False)
    place = axis.inset_axes((1 + 0.25 / n, 0.0, 0.25 / n, 1.0))
    bar = figure.colorbar(axis.images[0], cax=place)
    bar.ax.tick_params(length=2, labelsize=8)
    bar.outline.set_visible(False)
    _percent(bar.ax, "y", result.shares)
    metrics = result.metrics(told=told)
    words = ", ".join(f"{name} {_spelled(name, metrics[name], result.shares)}" for name in metrics)
    how = dict((which, words) for words, which in result.parts())[told and result.routes]
    seeds = f", mean of {len(result.runs)} seeds" if len(result.runs) > 1 else ""
    _title(figure, f"{_shown(result.strategy)}{how}: {_unit(result)} on each task{seeds}", words)
    return _saved(figure, path)


def plot_curves(
    results: Sequence[StreamResult], *, told: bool = False, path: str | Path | None = None
) -> Figure:
    """Each task's score over the stream, a panel for each strategy: forgetting curves.

    A line is dotted until its task is learnt (the large dot), and full from there on; bands are
    standard deviations over seeds.

    Raises:
        EditclError: there are no results, or they are of different streams.
    """
    if not results:
        raise EditclError("there is no result to draw; give at least one.")
    tasks = results[0].tasks
    if any(result.tasks != tasks for result in results):
        raise EditclError("these results are of different streams; draw those of one together.")
    columns = min(len(results), 4 if len(results) not in (5, 6, 9) else 3)
    rows = -(-len(results) // columns)
    many = len(tasks) > len(COLOURS)
    panel = min(max(2.3, 1.0 + 0.34 * len(tasks)), 3.4)
    height = max(1.6 + 2.1 * rows, 1.4 + 0.2 * len(tasks))
    figure = _figure(1.7 + panel * columns, height)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    # Many names would not fit below the axes: numbers there, and before the names in the legend.
    states = [
        "0" if many else "base",
        *(str(t + 1) if many else _label(n) for t, n in enumerate(tasks)),
    ]
    for number, axis in enumerate(grid.flat):
        if number >= len(results):
            axis.set_visible(False)
            continue
        last = number + columns >= len(results)
        _curves(axis, results[number], told)
        axis.tick_params(labelbottom=last, labelleft=number % columns == 0)
        if last:
            _names(axis, "x", states, rotation=0 if many else 35)
        if number % columns == 0:
            axis.set_ylabel(_unit(results[0]), fontsize=9)
    handles, names = grid.flat[0].get_legend_handles_labels()
    legend = figure.legend(
        handles, names, loc="outside right center", frameon=False, fontsize=9, title="task"
    )
    for text in legend.get_texts():
        _fit(text, text.get_text())
    several = len(results[0].runs) > 1
    note = f"mean of {len(results[0].runs)} seeds, bands: standard deviation" if several else ""
    _title(figure, "What is left of each task as the stream goes on", note)
    return _saved(figure, path)


def plot_strategies(
    comparison: StrategyComparison,
    metrics: Sequence[str] | None = None,
    *,
    path: str | Path | None = None,
) -> Figure:
    """A panel for each metric, a row for each strategy: mean, deviation over seeds, each seed.

    The joint training on all data, where it was made, is a line in the panel of OP.

    Raises:
        EditclError: a metric was not measured.
    """
    lines = comparison.lines()
    present = [name for name in METRICS if all(name in line[1] for line in lines)]
    chosen = list(metrics) if metrics is not None else present
    missing = [name for name in chosen if name not in present]
    if missing:
        raise EditclError(f"{missing[0]!r} was not measured, only {', '.join(present)}.")
    shares = all(result.shares for result in comparison.strategies)
    labels = [_label(name) for name, _, _ in lines]
    seeds = _seed_values(comparison)
    width = 0.6 + 0.085 * max(map(len, labels)) + 2.05 * len(chosen)
    figure = _figure(width, 1.55 + 0.32 * len(lines))
    axes = figure.subplots(1, len(chosen), squeeze=False, sharey=True)[0]
    for axis, metric in zip(axes, chosen, strict=True):
        for row, (_, found, _) in enumerate(lines):
            colour, value = COLOURS[row % len(COLOURS)], found[metric]
            each = seeds[row][metric]
            if len(each) > 1:
                axis.plot(each, [row] * len(each), "|", color=colour, alpha=0.55, markersize=8)
            axis.errorbar(
                value.mean,
                row,
                xerr=value.deviation,
                fmt="o",
                color=colour,
                markersize=6.5,
                elinewidth=1.5,
                capsize=2.5,
            )
        if metric == "OP" and comparison.bound is not None:
            _bound(axis, comparison.bound)
        _metric_panel(axis, metric, shares)
    axes[0].set_ylim(len(lines) - 0.5, -0.5)
    _names(axes[0], "y", labels)
    for axis in axes:
        axis.tick_params(axis="y", length=0)
    count = len(comparison.strategies[0].runs)
    note = f"dots and bars: mean and standard deviation of {count} seeds, ticks: each seed"
    bound = "; dashed: trained on all tasks at once" if comparison.bound is not None else ""
    names = f"{len(comparison.tasks)} tasks on {_shown(comparison.model)}"
    _title(figure, f"Learning {names}", (note if count > 1 else "one seed") + bound)
    return _saved(figure, path)


# -- parts --------------------------------------------------------------------------------------


def _curves(axis: Axes, result: StreamResult, told: bool) -> None:
    from matplotlib import colormaps

    means, deviations = result.mean(told=told), result.deviation(told=told)
    states = np.arange(len(means))
    many = len(result.tasks) > len(COLOURS)
    colours = colormaps["viridis"](np.linspace(0, 0.92, len(result.tasks))) if many else COLOURS
    for j, name in enumerate(result.tasks):
        colour = colours[j]
        line, learnt = means[:, j], j + 1
        axis.plot(states[: learnt + 1], line[: learnt + 1], ":", color=colour, linewidth=1.2)
        axis.plot(
            states[learnt:],
            line[learnt:],
            "-",
            color=colour,
            linewidth=1.9,
            marker="o",
            markersize=2.5,
            label=f"{j + 1} {_label(name)}" if many else _label(name),
        )
        axis.plot(learnt, line[learnt], "o", color=colour, markersize=6.5)
        if deviations is not None:
            low, high = line - deviations[:, j], line + deviations[:, j]
            if result.shares:
                low, high = np.clip(low, 0, 1), np.clip(high, 0, 1)
            axis.fill_between(states, low, high, color=colour, alpha=0.13, linewidth=0)
    if result.shares:
        axis.set_ylim(-0.04, 1.06)
        _percent(axis, "y", True)
    axis.set_xlim(-0.25, len(means) - 0.75)
    axis.set_xticks(states)
    title = axis.set_title(_label(result.strategy), fontsize=10)
    _fit(title, title.get_text())
    axis.grid(axis="y", color="#e8e8e8", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=8, length=2)
    axis.spines[["top", "right"]].set_visible(False)


def _metric_panel(axis: Axes, metric: str, shares: bool) -> None:
    better = "lower" if metric in LOWER_IS_BETTER else "higher"
    name = f"{_TITLES[metric]}\n" + (f"({metric}, {better}" if metric.isupper() else f"({better}")
    axis.set_title(f"{name} is better)", fontsize=9.5)
    axis.axvline(0, color="#bdbdbd", linewidth=0.8, zorder=0)
    axis.grid(axis="x", color="#ececec", linewidth=0.7)
    axis.set_axisbelow(True)
    if shares and metric in ("OP", "LA"):
        axis.set_xlim(-0.03, 1.03)
        axis.set_xticks([0, 0.5, 1])
    else:
        axis.margins(x=0.12)
        _widened(axis, 0.2 if shares else 0.0)  # small differences must not look like large ones
        axis.locator_params(axis="x", nbins=4)
    _percent(axis, "x", shares)
    axis.tick_params(axis="x", labelsize=8, length=2)
    axis.spines[["top", "right", "left"]].set_visible(False)


def _widened(axis: Axes, least: float) -> None:
    low, high = axis.get_xlim()
    lack = least - (high - low)
    if lack > 0:
        axis.set_xlim(low - lack / 2, high + lack / 2)


def _bound(axis: Axes, bound: Any) -> None:
    axis.axvline(bound.mean, color=_DARK, linewidth=1.2, linestyle="--", zorder=0)
    if bound.deviation:
        low, high = bound.mean - bound.deviation, bound.mean + bound.deviation
        axis.axvspan(low, high, color=_DARK, alpha=0.08, linewidth=0)


def _seed_values(comparison: StrategyComparison) -> list[dict[str, list[float]]]:
    """For each line of the comparison, each metric of each seed."""
    found = []
    for result in comparison.strategies:
        for _, told in result.parts():
            runs = [run.metrics(told=told) for run in result.runs]
            found.append({name: [run[name] for run in runs] for name in runs[0]})
    return found


def _names(axis: Axes, side: str, labels: Sequence[str], *, rotation: int = 0) -> None:
    ticks = range(len(labels))
    size = 9 if len(labels) <= _WIDE + 1 else 7.5
    if side == "y":
        texts = axis.set_yticks(ticks, labels, fontsize=size) and axis.get_yticklabels()
    else:
        top = axis.xaxis.get_ticks_position() == "top"
        anchor = "left" if top else "right"
        axis.set_xticks(ticks, labels, fontsize=size)
        texts = axis.get_xticklabels()
        if rotation:
            for one in texts:
                one.set(rotation=rotation, ha=anchor, rotation_mode="anchor")
    for text, label in zip(texts, labels, strict=True):
        _fit(text, label)


def _percent(axis: Axes, side: str, shares: bool) -> None:
    from matplotlib.ticker import PercentFormatter

    if shares:
        which = axis.xaxis if side == "x" else axis.yaxis
        which.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _unit(result: StreamResult) -> str:
    return "score" if result.shares else "negative log-perplexity"


def _number(value: float, shares: bool) -> str:
    return f"{100 * value:.0f}" if shares else f"{value:.2f}"


def _spelled(name: str, value: Any, shares: bool) -> str:
    if not shares:
        return str(value)
    sign = "+" if name in ("BWT", "FWT") else ""
    spread = "" if value.deviation is None else f" ± {100 * value.deviation:.1f}"
    return f"{100 * value.mean:{sign}.1f}{spread}".replace("-", "\N{MINUS SIGN}")
