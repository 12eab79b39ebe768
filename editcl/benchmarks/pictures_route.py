"""The picture of `editcl bench route`: regret by family, and how far confidence can be believed.

Nothing is computed here; figures are made without pyplot.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from editcl.benchmarks.families import FAMILIES, TEST

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from editcl.benchmarks.route import RouteBenchmark

# Of Okabe and Ito's, as everywhere.
_COLOURS = {"router": "#0072b2", "always edit": "#d55e00", "always train": "#009e73"}
_MARKERS = {"router": "o", "always edit": "s", "always train": "^"}


def plot_route(found: RouteBenchmark, *, path: str | Path | None = None) -> Figure:
    """Mean regret of the router and of the arms by family, and rightness against confidence.

    Of the tested families, or of all if none is.

    Args:
        found: of a benchmark.
        path: where to save it; the ending gives the format.
    """
    from matplotlib.figure import Figure

    every = found.by_family()
    families = {n: own for n, own in every.items() if FAMILIES[n].half == TEST} or every
    figure = Figure(figsize=(9.6, 1.6 + 0.24 * max(8, len(families))), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.7, 1.0))
    _regrets(left, families)
    _reliability(right, found.reliability())
    if path is not None:
        figure.savefig(path, dpi=200, bbox_inches="tight")
    return figure


def _regrets(axis: Axes, families: dict[str, dict[str, float]]) -> None:
    names = list(families)
    for policy, colour in reversed(_COLOURS.items()):  # the router is on top
        axis.plot(
            [families[name][policy] for name in names],
            range(len(names)),
            _MARKERS[policy],
            color=colour,
            markersize=4.5 if policy == "router" else 7,
            label=policy,
            alpha=0.9,
        )
    axis.set_yticks(range(len(names)), [name.replace("_", " ") for name in names], fontsize=8)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.set_xlim(left=-0.05)
    axis.set_xlabel("mean regret", fontsize=9)
    axis.legend(fontsize=8, frameon=False, loc="lower right")
    _tidy(axis)


def _reliability(axis: Axes, bins: list[tuple[float, float, int]]) -> None:
    axis.plot([0, 1], [0, 1], color="#999999", linewidth=1)
    confidence, right, counts = zip(*bins, strict=True)
    axis.plot(confidence, right, "o", color=_COLOURS["router"], markersize=6)
    for x, y, n in bins:
        axis.annotate(str(n), (x, y), textcoords="offset points", xytext=(5, -11), fontsize=8)
    axis.set_xlim(0, 1.03)
    axis.set_ylim(0, 1.06)
    axis.set_box_aspect(1)
    axis.set_anchor("N")
    axis.set_xlabel("confidence, tested families", fontsize=9)
    axis.set_ylabel("share of right decisions", fontsize=9)
    axis.set_title(f"{sum(counts)} decisions", fontsize=8.5, color="#555555")
    _tidy(axis)


def _tidy(axis: Axes) -> None:
    axis.grid(color="#e8e8e8", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.tick_params(length=2, labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


__all__ = ["plot_route"]
