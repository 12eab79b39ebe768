"""Figures of a report: shares on both sides, tasks over the steps, cost. Computes nothing.

Hollow dots are the base, filled ones the model now, as everywhere in these figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from editcl.plots import _METHOD_COLOURS as COLOURS
from editcl.plots import _figure, _fit, _label, _saved, _title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from editcl.reporting.result import Report

#: (label, share of the base or None, share now)
Pairs: TypeAlias = Sequence[tuple[str, float | None, float]]

MOST = 40  # rows of a figure; of more the last ones
_GREY, _NOW, _EDIT, _SKILL = "#8a8a8a", COLOURS[0], COLOURS[1], COLOURS[2]


def plot_report(report: Report, *, path: str | Path | None = None) -> Figure:
    """Shares on both sides, and what each entry has cost.

    Args:
        report: of a model.
        path: where to save it; the ending gives the format.
    """
    pairs = shares(report)
    rows = max(len(pairs), min(len(report.spent), MOST), 3)
    figure = _figure(10.5, 1.5 + 0.3 * rows)
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    _dumbbells(left, pairs)
    left.set_title("hollow: base model, filled: now", fontsize=9.5)
    _costs(right, report)
    _title(figure, f"{report.model} after learning", "")
    return _saved(figure, path)


def plot_shares(report: Report) -> Figure | None:
    """Tasks, knowledge, survival and constraints on both sides; None if none is a share."""
    return _pairs_figure(shares(report), "What is done now, and what the base does")


def plot_knowledge(report: Report) -> Figure | None:
    """Relations in which known facts were lost, and the share that is kept; None if in none."""
    groups = {} if report.knowledge is None else report.knowledge.groups
    pairs = [
        (f"{name.replace('_', ' ')} ({known})", 1.0, kept / known)
        for name, (known, kept) in groups.items()
        if kept < known
    ]
    pairs.sort(key=lambda pair: pair[2])
    title = f"{len(pairs)} of {len(groups)} relations have lost known facts"
    return _pairs_figure(pairs, title)


def plot_harness(report: Report) -> Figure | None:
    """Metrics of lm-eval that are shares."""
    pairs = [
        (f"{line.task}: {line.metric}", line.base, line.now)
        for line in report.harness
        if line.higher_is_better and 0 <= line.base <= 1 and 0 <= line.now <= 1
    ]
    return _pairs_figure(pairs, "lm-eval")


def plot_costs(report: Report) -> Figure | None:
    """Seconds of each entry; None without entries."""
    if not report.spent:
        return None
    figure = _figure(7.0, 1.3 + 0.3 * max(2, min(len(report.spent), MOST)))
    _costs(figure.add_subplot(), report)
    return figure


def plot_history(report: Report) -> Figure | None:
    """Each task's score after each step, as the log tells; None before the second step."""
    evaluated = [step for step in report.steps if step.evaluations]
    lines: dict[str, list[tuple[int, float]]] = {}
    for at, step in enumerate(evaluated):
        body = step.evaluations[0]
        own, survival = body.get("scores", {}), body.get("survival")
        scores = dict(body.get("earlier", {}))
        if "test" in own:
            scores[step.task] = own["test"]
        if "facts" in own:
            lines.setdefault(f"facts of {step.task}", []).append((at, own["facts"]))
        if survival:
            lines.setdefault("earlier facts", []).append((at, survival["share"]))
        for name, value in scores.items():
            lines.setdefault(name, []).append((at, value))
    if len(evaluated) < 2 or not lines:
        return None
    from matplotlib import colormaps

    figure = _figure(3.2 + 0.45 * min(len(evaluated), 24) + 2.0, 3.6)
    axis = figure.add_subplot()
    many = len(lines) > len(COLOURS)
    for number, (name, points) in enumerate(lines.items()):
        colour = colormaps["viridis"](number / len(lines)) if many else COLOURS[number]
        axis.plot(*zip(*points, strict=True), "o-", color=colour, markersize=4, label=_label(name))
    _ticks(axis, "x", [_label(step.task) for step in evaluated])
    axis.set_ylabel("score", fontsize=9)
    if all(0 <= value <= 1 for points in lines.values() for _, value in points):
        axis.set_ylim(-0.04, 1.04)
    _plain(axis, "y")
    if len(lines) <= 20:
        legend = figure.legend(loc="outside right center", frameon=False, fontsize=8)
        for text in legend.get_texts():
            _fit(text, text.get_text())
    _title(figure, "Scores after each step", "as measured then, each prompt inferred")
    return figure


def shares(report: Report) -> list[tuple[str, float | None, float]]:
    """Whatever of the checklist is a share, with the base's where it has one."""
    found: list[tuple[str, float | None, float]] = [
        (f"task {line.name}", line.base, line.now) for line in report.tasks if line.share
    ]
    if report.knowledge is not None and report.knowledge.share is not None:
        found.append(("knowledge kept", 1.0, report.knowledge.share))
    if report.survival is not None:
        found.append(("edit survival", None, report.survival.share))
    if report.drift is not None and report.drift.constraints is not None:
        kept = report.drift.constraints
        found.append(("constraints kept", kept.before, kept.now))
    if report.drift is not None and report.drift.bleed is not None:
        bleed = report.drift.bleed
        found.append(("label bleed, less is better", bleed.before, bleed.now))
    return found


# -- parts ----------------------------------------------------------------------------------------


def _pairs_figure(pairs: Pairs, title: str) -> Figure | None:
    if not pairs:
        return None
    figure = _figure(7.0, 1.5 + 0.28 * max(2, min(len(pairs), MOST)))
    _dumbbells(figure.add_subplot(), pairs)
    _title(figure, title, "hollow: base model, filled: now")
    return figure


def _dumbbells(axis: Axes, pairs: Pairs) -> None:
    from matplotlib.ticker import PercentFormatter

    pairs = pairs[-MOST:]
    for row, (_, base, now) in enumerate(pairs):
        if base is not None:
            axis.plot([base, now], [row, row], "-", color="#c8c8c8", linewidth=2.2, zorder=1)
            axis.plot(base, row, "o", mfc="white", mec=_GREY, markersize=8, zorder=2)
        axis.plot(now, row, "o", color=_NOW, markersize=6, zorder=3)
    _ticks(axis, "y", [_label(name) for name, _, _ in pairs])
    axis.set_ylim(max(len(pairs), 1) - 0.5, -0.5)
    axis.set_xlim(-0.04, 1.04)
    axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    _plain(axis, "x")


def _costs(axis: Axes, report: Report) -> None:
    spent = report.spent[-MOST:]
    for row, one in enumerate(spent):
        colour = _EDIT if one.id.startswith("e") else _SKILL
        bar = axis.barh(row, one.seconds, height=0.62, color=colour, edgecolor="white")
        if not one.active:
            bar[0].set(alpha=0.35, hatch="///")
    _ticks(axis, "y", [_label(f"{one.id} {one.what}") for one in spent])
    axis.set_ylim(max(len(spent), 1) - 0.5, -0.5)
    axis.set_xlim(left=0)
    title = axis.set_title("seconds of each entry (hatched: rolled back)", fontsize=9.5)
    _fit(title, title.get_text())
    _plain(axis, "x")


def _ticks(axis: Axes, side: str, labels: Sequence[str]) -> None:
    places = range(len(labels))
    if side == "y":
        axis.set_yticks(places, labels, fontsize=8.5)
        texts = axis.get_yticklabels()
    else:
        axis.set_xticks(places, labels, fontsize=8.5, rotation=35, ha="right")
        texts = axis.get_xticklabels()
    for text, label in zip(texts, labels, strict=True):
        _fit(text, label)


def _plain(axis: Axes, side: Literal["x", "y"]) -> None:
    axis.grid(axis=side, color="#e8e8e8", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=8, length=2)
    axis.spines[["top", "right"]].set_visible(False)
