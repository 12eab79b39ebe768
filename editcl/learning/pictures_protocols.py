"""Figures of the protocols: perplexities of domains, regret over time steps. Computes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from editcl.learning.pictures import _DARK, _names
from editcl.plots import _figure, _fit, _label, _saved, _shown, _title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from editcl.learning.protocol_results import PretrainingReport, TimeReport

_STYLES = {  # colour, marker, filled, in words
    "ZS": ("#737373", "D", False, "zero-shot (ZS)"),
    "FT": ("#009e73", "s", True, "fine-tuned alone (FT)"),
    "CPT": ("#0072b2", "o", True, "just after training (CPT)"),
    "LC": ("#d55e00", "^", True, "last checkpoint (LC)"),
}


def plot_pretraining(report: PretrainingReport, *, path: str | Path | None = None) -> Figure:
    """Perplexities of each domain in the order of the stream, on a logarithmic scale.

    A panel for each model (down) and order (across); the bar from CPT to LC is forgetting.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    models = list(dict.fromkeys(run.model for run in report.runs))
    orders = list(dict.fromkeys(run.order for run in report.runs))
    n = len(report.runs[0].result.tasks)
    width = 2.4 + max(2.6, 0.5 * n + 0.9) * len(orders)
    figure = _figure(width, 1.5 + 2.5 * len(models))
    grid = figure.subplots(len(models), len(orders), squeeze=False, sharey="row")
    for run in report.runs:
        column = orders.index(run.order)
        axis = grid[models.index(run.model), column]
        found = run.perplexity()
        places = np.arange(n)
        axis.vlines(places, found["CPT"], found["LC"], color=_STYLES["LC"][0], alpha=0.35, lw=4)
        for name, (colour, marker, filled, words) in _STYLES.items():
            axis.plot(
                places,
                found[name],
                marker,
                color=colour,
                markerfacecolor=colour if filled else "white",
                markersize=6 if name != "LC" else 7,
                label=words,
            )
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7), numticks=12))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_locator(NullLocator())
        axis.set_xlim(-0.5, n - 0.5)
        _names(axis, "x", [_label(name) for name in run.result.tasks], rotation=35)
        forgotten = run.forgetting()
        words = f"{run.model}, {run.order} order"
        if forgotten is not None:
            words += f"\nforgetting {forgotten.mean:+.2f}".replace("-", "\N{MINUS SIGN}")
        _fit(axis.set_title(words, fontsize=9.5), words)
        if column == 0:
            axis.set_ylabel("perplexity", fontsize=9)
        axis.grid(axis="y", color="#e8e8e8", linewidth=0.7)
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=8, length=2)
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9)
    count = len(report.runs[0].result.runs)
    seeds = f"mean of {count} seeds" if count > 1 else "one seed"
    note = f"domains in the order of learning, {seeds}; bars: what was lost since"
    _title(figure, "Learning domains one after another", note)
    return _saved(figure, path)


def plot_regret(report: TimeReport, *, path: str | Path | None = None) -> Figure:
    """Regret as a heat map: states down, time steps across, the diagonal framed.

    Below the diagonal are earlier steps (backward), above it later ones (forward).
    """
    from matplotlib.patches import Rectangle

    values = report.regrets().mean(0)
    n = len(values)
    labels = [_label(name) for name in report.result.tasks]
    cell = 0.62 if n <= 12 else 0.42
    margin = 0.09 * max(map(len, labels)) + 1.2
    figure = _figure(margin + cell * 1.35 * n + 1.0, 1.6 + cell * n)
    axis = figure.add_subplot()
    span = max(float(np.abs(values).max()), 1e-6)
    axis.imshow(values, cmap="RdBu_r", vmin=-span, vmax=span, aspect="auto")
    for i, j in np.ndindex(values.shape):
        axis.text(
            j,
            i,
            f"{values[i, j]:.2f}".replace("-", "\N{MINUS SIGN}"),
            ha="center",
            va="center",
            fontsize=10 if n <= 12 else 7,
            color="white" if abs(values[i, j]) > 0.6 * span else _DARK,
        )
        if i == j:
            frame = Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, edgecolor=_DARK, lw=1.8)
            frame.set(clip_on=False, zorder=5)
            axis.add_patch(frame)
    _names(axis, "y", [f"after {name}" for name in labels])
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
    named = report.summary().items()
    words = ", ".join(f"{name.replace('_', '-')} {value}" for name, value in named)
    strategy = _shown(report.result.strategy)
    _title(figure, f"{strategy}: regret against the oracle (lower is better)", words)
    return _saved(figure, path)
