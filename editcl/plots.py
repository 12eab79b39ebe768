"""Figures of result objects: causal traces, their averages, layers to edit, methods compared.

Nothing is computed here. Figures are made without pyplot, so no global state changes and none is
shown; the caller shows or saves them. In notebooks `%matplotlib inline` displays them.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from editcl.errors import EditclError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from editcl.benchmarks.growth import Growth
    from editcl.evaluation.compare import Comparison
    from editcl.tracing.average import AverageTrace
    from editcl.tracing.locate import Location
    from editcl.tracing.result import Trace

_COLOURS = {"hidden": "Purples", "mlp": "Greens", "attn": "Reds"}
_LINES = {"hidden": "#6a51a3", "mlp": "#238b45", "attn": "#cb181d"}
_TITLES = {"hidden": "hidden state", "mlp": "MLP", "attn": "attention"}
# Okabe and Ito's colours, told apart by all kinds of colour vision; yellow is too pale for dots.
_METHOD_COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c564b",
)  # fmt: skip
_MARKERS = ("o", "s", "^", "v")
_FONT = "DejaVu Sans"  # comes with matplotlib, so its glyphs can be counted on
_LONGEST_LABEL = 26
_ROW, _COLUMN = 0.24, 0.26  # inches that a token and a layer take
_MANY_ROWS, _NARROW_ROW = 36, 0.155


def plot_trace(trace: Trace, kind: str | None = None, *, path: str | Path | None = None) -> Figure:
    """Heat maps of p(answer): tokens down, layers across, the subject's tokens starred.

    Args:
        trace: exact or estimated.
        kind: one kind only; all of the trace's by default.
        path: where to save it; the ending gives the format.

    Raises:
        EditclError: the trace has no such kind.
    """
    kinds = _chosen(trace.kinds, kind)
    starred = range(*trace.span)
    labels = [_label(t) + ("*" if i in starred else "") for i, t in enumerate(trace.tokens)]
    figure, axes = _panels(len(kinds), len(labels), trace.n_layers, max(map(_width, labels)))
    for axis, name in zip(axes, kinds, strict=True):
        values = trace.probability[name]
        low = trace.corrupted
        _heat_map(axis, values, _COLOURS[name], low, max(float(values.max()), low + 1e-6))
        axis.set_title(_panel_title(name, trace.window), fontsize=10)
        _colour_bar(figure, axis, f"p({_label(trace.answer)})")
    _tick_labels(axes[0], labels)
    corrupted = f"{trace.corrupted:.1%} with the subject corrupted"
    notes = [f"p = {trace.clean:.1%} clean, {corrupted}"]
    if trace.severed:
        notes.append(f"{_TITLES[trace.severed]} severed")
    if trace.approximate:
        notes.append("gradient estimate")
    _title(figure, f"Restoring single states: “{_shown(trace.sentence, '□')}”", "; ".join(notes))
    return _saved(figure, path)


def plot_average_trace(
    average: AverageTrace, kind: str | None = None, *, path: str | Path | None = None
) -> Figure:
    """Mean indirect effects: by role and layer above, with 95 % intervals for two roles below.

    Raises:
        EditclError: the average has no such kind.
    """
    from matplotlib.gridspec import GridSpec

    kinds = _chosen(average.kinds, kind)
    layers = range(average.n_layers)
    width = 2.3 + len(kinds) * max(2.9, 1.1 + _COLUMN * average.n_layers)
    figure = _figure(width, 5.4)
    grid = GridSpec(2, len(kinds), figure=figure, height_ratios=[1.15, 1])
    bounds = [_interval(average, name) for name in kinds]
    for column, name in enumerate(kinds):
        axis = figure.add_subplot(grid[0, column])
        values = average.effect[name]
        high = max(float(_finite(values).max()), 1e-6)
        _heat_map(axis, values, _COLOURS[name], 0.0, high)
        axis.set_title(_panel_title(name, average.window), fontsize=10)
        _colour_bar(figure, axis, "indirect effect")
        labels = [
            f"{role} ({count})" for role, count in zip(average.roles, average.counts, strict=True)
        ]
        _tick_labels(axis, labels if column == 0 else [])
        below = figure.add_subplot(grid[1, column])
        for role, style in ((2, "-"), (5, "--")):
            middle, half = values[role], average.half_width[name][role]
            below.plot(layers, middle, style, color=_LINES[name], label=average.roles[role])
            below.fill_between(layers, middle - half, middle + half, color=_LINES[name], alpha=0.18)
        below.set_ylim(min(b[0] for b in bounds), max(b[1] for b in bounds))
        _plain(below, average.n_layers)
        below.legend(
            frameon=False,
            fontsize=8,
            loc="upper left",
            bbox_to_anchor=(0.0, 1.16),
            ncols=2,
            columnspacing=1.0,
            handlelength=1.6,
        )
        if column == 0:
            below.set_ylabel("indirect effect, 95% CI", fontsize=9)
    facts = f"{average.n_facts} facts" + (
        f" ({average.n_skipped} unknown ones skipped)" if average.n_skipped else ""
    )
    severed = f"; {_TITLES[average.severed]} severed" if average.severed else ""
    notes = f"mean p = {average.clean:.1%} clean, {average.corrupted:.1%} corrupted{severed}"
    _title(figure, f"Average effect of restoring single states, {facts}", notes)
    return _saved(figure, path)


def plot_location(location: Location, *, path: str | Path | None = None) -> Figure:
    """Each layer's score, the chosen one in colour."""
    layers = [e.layer for e in location.evidence]
    scores = [e.score for e in location.evidence]
    errors = [e.details.get("half_width", 0.0) for e in location.evidence]
    colours = [_LINES["mlp"] if layer == location.layer else "#bdbdbd" for layer in layers]
    figure = _figure(max(4.2, 1.6 + 0.34 * len(layers)), 3.2)
    axis = figure.add_subplot()
    shown = errors if any(errors) else None
    axis.bar(layers, scores, color=colours, yerr=shown, ecolor="#525252", capsize=2)
    _plain(axis, len(layers), layers)
    by_trace = location.by == "trace"
    axis.set_ylabel(
        "MLP effect, subject's last token" if by_trace else "score of a trial edit", fontsize=9
    )
    how = "average causal trace" if by_trace else "trial edits"
    _title(figure, f"Layer {location.layer} by {how}", "")
    return _saved(figure, path)


def plot_comparison(comparison: Comparison, *, path: str | Path | None = None) -> Figure:
    """Each measure's mean by method as dots, with 95 % intervals over cases, in per cent.

    The model before any edit is grey and hollow; methods keep their order and colour throughout.
    """
    from matplotlib.ticker import PercentFormatter

    names, methods = comparison.shown(), comparison.methods
    step = min(0.16, 0.8 / len(methods))
    per_group = max(1.15, 0.2 * len(methods) + 0.35)
    figure = _figure(2.6 + per_group * len(names), 3.9)
    axis = figure.add_subplot()
    for number, method in enumerate(methods):
        found = method.evaluation.intervals()
        there = [i for i, name in enumerate(names) if name in found]
        means = [found[names[i]].mean for i in there]
        ends = [(found[names[i]].low, found[names[i]].high) for i in there]
        # Rounding may put a mean a hair outside its own interval.
        below = [max(0.0, m - low) for m, (low, _) in zip(means, ends, strict=True)]
        above = [max(0.0, high - m) for m, (_, high) in zip(means, ends, strict=True)]
        colour, marker = _METHOD_COLOURS[(number - 1) % 8], _MARKERS[(number - 1) // 8 % 4]
        unedited = number == 0
        axis.errorbar(
            [i + step * (number - (len(methods) - 1) / 2) for i in there],
            means,
            yerr=[below, above],
            fmt="D" if unedited else marker,
            color="#737373" if unedited else colour,
            markerfacecolor="white" if unedited else colour,
            markersize=4.5 if unedited else 5.5,
            elinewidth=1.3,
            capsize=2.2,
            label=method.name,
        )
    for edge in range(1, len(names)):
        axis.axvline(edge - 0.5, color="#e0e0e0", linewidth=0.8)
    axis.set_xlim(-0.5, len(names) - 0.5)
    axis.set_xticks(range(len(names)), [_measure(name) for name in names], fontsize=9)
    axis.set_ylim(-0.03, 1.03)  # dots and caps at 0 and 100 % are whole
    axis.set_yticks([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set_ylabel("prompts that pass, mean over cases", fontsize=9)
    axis.grid(axis="y", color="#e8e8e8", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.tick_params(axis="x", length=0)
    axis.tick_params(axis="y", length=2, labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    for text in axis.legend(
        frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.01, 0.5)
    ).get_texts():
        _fit(text, text.get_text())
    edited = f"{comparison.n_cases} fact" + ("s" if comparison.n_cases != 1 else "")
    first = f"{edited} edited by each method on {_shown(comparison.model)}"
    _title(figure, first, "with 95 % intervals over facts")
    return _saved(figure, path)


def plot_growth(growth: Growth, *, path: str | Path | None = None) -> Figure:
    """Seconds and added memory against the number of facts, with the law that fits each."""
    n = [cost.n_facts for cost in growth.costs]
    panels = [("seconds", [cost.seconds for cost in growth.costs], growth.seconds)]
    if growth.added is not None:
        panels.append(
            ("memory added, MiB", [cost.added or 0.0 for cost in growth.costs], growth.added)
        )
    figure = _figure(4.1 * len(panels), 3.4)
    for number, (label, measured, law) in enumerate(panels):
        axis = figure.add_subplot(1, len(panels), number + 1)
        points = [n[0] * (n[-1] / n[0]) ** (i / 60) for i in range(61)]
        axis.plot(points, [law.at(x) for x in points], color="#999999", linewidth=1.2)
        axis.plot(n, measured, "o", color=_METHOD_COLOURS[number], markersize=6)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xticks(n, [str(x) for x in n])
        axis.minorticks_off()
        axis.set_xlabel("facts in one batch", fontsize=9)
        axis.set_ylabel(label, fontsize=9)
        axis.set_title(str(law), fontsize=8.5, color="#555555")
        axis.grid(color="#e8e8e8", linewidth=0.7)
        axis.set_axisbelow(True)
        axis.tick_params(length=2, labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    return _saved(figure, path)


def _measure(name: str) -> str:
    """A measure's name in short lines."""
    return name.replace("paraphrase_token", "paraphrase token").replace("_", "\n")


# -- parts --------------------------------------------------------------------------------------


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def _panels(n: int, n_rows: int, n_columns: int, label_width: int) -> tuple[Figure, list[Axes]]:
    """Panels side by side that share their rows, sized so that labels don't touch."""
    panel = max(2.2, 1.0 + _COLUMN * n_columns)
    height = max(2.6, 1.35 + (_ROW if n_rows <= _MANY_ROWS else _NARROW_ROW) * n_rows)
    figure = _figure(0.4 + 0.085 * label_width + n * panel, height)
    axes = figure.subplots(1, n, squeeze=False)[0]
    for axis in axes[1:]:
        axis.set_yticks([])
    return figure, list(axes)


def _heat_map(axis: Axes, values: Any, colours: str, low: float, high: float) -> None:
    axis.imshow(values, cmap=colours, vmin=low, vmax=high, aspect="auto", interpolation="nearest")
    step = max(1, -(-values.shape[1] // 12))
    axis.set_xticks(range(0, values.shape[1], step))
    axis.tick_params(length=2, labelsize=8)
    axis.set_yticks([])
    axis.set_xlabel("layer", fontsize=9)
    for side in axis.spines.values():
        side.set_linewidth(0.5)


def _colour_bar(figure: Figure, axis: Axes, label: str) -> None:
    place = axis.inset_axes((1.03, 0.0, 0.05, 1.0))
    bar = figure.colorbar(axis.images[0], cax=place)
    bar.ax.tick_params(length=2, labelsize=7)
    bar.outline.set_linewidth(0.5)
    bar.set_label("")
    title = bar.ax.set_title(label, fontsize=8, loc="center", pad=6)
    _fit(title, label)


def _tick_labels(axis: Axes, labels: list[str]) -> None:
    axis.set_yticks(range(len(labels)))
    size = 8.5 if len(labels) <= _MANY_ROWS else 6.5
    for text, label in zip(axis.set_yticklabels(labels, fontsize=size), labels, strict=True):
        _fit(text, label)


def _fit(text: Any, shown: str) -> None:
    """Takes dollar signs as they are, and fonts that have the characters."""
    text.set_parse_math(False)
    text.set_fontfamily([_FONT, *dict.fromkeys(f for f in map(_fallback, shown) if f)])


def _title(figure: Figure, first: str, second: str) -> None:
    first = first if len(first) <= 88 else first[:87] + "…"
    text = figure.suptitle(f"{first}\n{second}" if second else first, fontsize=10.5)
    _fit(text, first)


def _plain(axis: Axes, n_layers: int, layers: list[int] | None = None) -> None:
    """A line or bar chart over layers."""
    layers = list(range(n_layers)) if layers is None else layers
    axis.set_xticks(layers[:: max(1, -(-n_layers // 12))])
    axis.axhline(0, color="#969696", linewidth=0.6)
    axis.set_xlabel("layer", fontsize=9)
    axis.tick_params(labelsize=8, length=2)
    axis.spines[["top", "right"]].set_visible(False)


def _interval(average: AverageTrace, kind: str) -> tuple[float, float]:
    """The range that the two lines of a kind and their intervals need."""
    import numpy as np

    rows = [2, 5]
    middle, half = average.effect[kind][rows], np.nan_to_num(average.half_width[kind][rows])
    low, high = float(np.nanmin(middle - half)), float(np.nanmax(middle + half))
    margin = 0.06 * max(high - low, 1e-3)
    return min(low, 0.0) - margin, high + margin


def _finite(values: Any) -> Any:
    return values[values == values]


def _panel_title(kind: str, window: int) -> str:
    if kind == "hidden" or window == 1:
        return f"one {_TITLES[kind]}" if kind == "hidden" else f"{_TITLES[kind]}, one layer"
    return f"{_TITLES[kind]}, {window} layers around"


def _chosen(kinds: tuple[str, ...], kind: str | None) -> tuple[str, ...]:
    if kind is not None and kind not in kinds:
        raise EditclError(f"there is no kind {kind!r} to plot, only {', '.join(kinds)}.")
    return kinds if kind is None else (kind,)


def _label(token: str) -> str:
    """A token in one line: no outer spaces, line breaks and unprintable characters visible."""
    text = _shown(token)
    stripped = text.strip()
    text = stripped if stripped else text.replace(" ", "␣")
    return text if len(text) <= _LONGEST_LABEL else text[: _LONGEST_LABEL - 1] + "…"


def _shown(text: str, instead: str = "U+{:04X}") -> str:
    """Text with what no font here can draw written as its code point, or as something else."""
    text = text.replace("\n", "⏎").replace("\t", "⇥").replace("\r", "␍")
    return "".join(c if c in _glyphs() or _fallback(c) else instead.format(ord(c)) for c in text)


def _width(label: str) -> int:
    return sum(2 if ord(c) > 0x2E80 else 1 for c in label)


@lru_cache(maxsize=1)
def _glyphs() -> frozenset[str]:
    """The characters that matplotlib's own font has."""
    return _characters(next(path for family, path in _families() if family == _FONT))


@lru_cache(maxsize=4096)
def _fallback(char: str) -> str | None:
    """An installed font family that has a character which matplotlib's own lacks."""
    if char in _glyphs():
        return None
    return next((family for family, path in _families() if char in _characters(path)), None)


@lru_cache(maxsize=1)
def _families() -> tuple[tuple[str, str], ...]:
    """Installed font families that draw real glyphs, with a file of each."""
    from matplotlib.font_manager import fontManager

    upright = [f for f in fontManager.ttflist if f.style == "normal" and f.weight == 400]
    found = {f.name: f.fname for f in upright if not f.name.startswith("Last Resort")}
    return tuple(sorted(found.items()))


@lru_cache(maxsize=512)
def _characters(path: str) -> frozenset[str]:
    from matplotlib.font_manager import get_font

    return frozenset(map(chr, get_font(path).get_charmap()))


def _saved(figure: Figure, path: str | Path | None) -> Figure:
    if path is not None:
        figure.savefig(path, dpi=200, bbox_inches="tight")
    return figure
