"""Figures: drawn from results alone, with labels that read well, without touching pyplot."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from editcl.errors import EditclError
from editcl.evaluation import CaseResult, Evaluation
from editcl.evaluation.compare import Comparison, MethodResult
from editcl.evaluation.damage import Damage
from editcl.plots import plot_average_trace, plot_comparison, plot_location, plot_trace
from editcl.tracing import AverageTrace, LayerEvidence, Location, Trace
from editcl.tracing.average import ROLES


def made_trace(tokens: tuple[str, ...], n_layers: int = 8, **changes) -> Trace:
    shape = (len(tokens), n_layers)
    random = np.random.RandomState(0)
    values = {kind: 0.1 + 0.8 * random.rand(*shape) for kind in ("hidden", "mlp", "attn")}
    fields = dict(
        sentence="".join(tokens),
        subject="".join(tokens[1:3]),
        tokens=tokens,
        span=(1, 3),
        answer=" Paris",
        answer_token=7,
        clean=0.97,
        corrupted=0.1,
        probability=values,
        deviation=values,
        noise=0.3,
        samples=10,
        window=2,
        seed=0,
    )
    return Trace(**(fields | changes))


def made_average(n_layers: int = 8) -> AverageTrace:
    effect = np.random.RandomState(0).rand(len(ROLES), n_layers) * 0.3
    effect[1] = np.nan
    kinds = ("hidden", "mlp", "attn")
    return AverageTrace(
        ROLES,
        dict.fromkeys(kinds, effect),
        dict.fromkeys(kinds, effect / 5),
        np.array([9, 0, 12, 12, 8, 12]),
        0.9,
        0.1,
        12,
        3,
        0.3,
        10,
        2,
        0,
    )


def texts(figure) -> list[str]:
    import matplotlib.text

    return [t.get_text() for t in figure.findobj(matplotlib.text.Text) if t.get_text()]


def test_subject_tokens_are_starred_and_p_is_in_the_title(tmp_path: Path) -> None:
    path = tmp_path / "trace.png"
    figure = plot_trace(made_trace(("The", " Eiffel", " Tower", " is", " in")), path=path)
    assert path.stat().st_size > 10_000
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["The", "Eiffel*", "Tower*", "is", "in"]
    shown = "\n".join(texts(figure))
    assert "97.0%" in shown and "10.0%" in shown and "p(Paris)" in shown


def test_one_kind_may_be_drawn_alone() -> None:
    trace = made_trace(("a", " b", " c", " d"))
    assert sum(bool(axis.images) for axis in trace.plot("mlp").axes) == 1
    with pytest.raises(EditclError, match="no kind 'mpl'"):
        trace.plot("mpl")


def test_no_labels_overlap_in_a_long_prompt_with_strange_tokens() -> None:
    strange = ("\n", "$x_1$", " ", "塔 (1/3)", "塔 (2/3)", "🗼", "\u200f", "برج", " w" * 30)
    tokens = ("The", *strange * 6)
    for trace in (made_trace(tokens), made_trace(tokens[:12], n_layers=48)):
        figure = plot_trace(trace)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        renderer = canvas.get_renderer()
        boxes = [t.get_window_extent(renderer) for t in figure.axes[0].get_yticklabels()]
        assert all(not a.overlaps(b) or min(a.width, b.width) < 1 for a, b in pairwise(boxes))
        assert all(box.x0 >= 0 for box in boxes)
        columns = [t.get_window_extent(renderer) for t in figure.axes[0].get_xticklabels()]
        assert not any(a.overlaps(b) for a, b in pairwise(columns))


def test_averages_are_drawn_though_a_role_is_missing(tmp_path: Path) -> None:
    figure = plot_average_trace(made_average(), path=tmp_path / "average.svg")
    shown = "\n".join(texts(figure))
    assert "12 facts" in shown and "3 unknown" in shown
    assert "last subject token (12)" in shown
    assert len(made_average().plot("attn").axes) >= 2


def test_the_chosen_layer_stands_out(tmp_path: Path) -> None:
    evidence = tuple(
        LayerEvidence(i, s, {"half_width": 0.1}) for i, s in enumerate((0.1, 0.5, 0.2))
    )
    figure = plot_location(Location("trace", evidence), path=tmp_path / "location.png")
    colours = {bar.get_facecolor() for bar in figure.axes[0].patches}
    assert len(colours) == 2 and "Layer 1" in "\n".join(texts(figure))
    Location("sweep", evidence[:1]).plot()


def test_nothing_global_changes() -> None:
    before = dict(matplotlib.rcParams)
    loaded = "matplotlib.pyplot" in sys.modules
    plot_trace(made_trace(("a", " b", " c", " d")))
    assert dict(matplotlib.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == loaded


def made_comparison(n_methods: int) -> Comparison:
    random = np.random.RandomState(0)
    measures = ("efficacy", "paraphrase", "specificity", "same_subject")
    methods = tuple(
        MethodResult(
            "unedited" if i == 0 else f"method $_{i}",
            Evaluation(tuple(CaseResult(**dict.fromkeys(measures, r)) for r in random.rand(30))),
            Damage(3.0, 2.9, 0.1, 100),
            0.5,
        )
        for i in range(n_methods)
    )
    return Comparison("tiny", 30, methods)


@pytest.mark.parametrize("n_methods", [2, 7, 16])
def test_methods_are_compared_measure_by_measure(tmp_path: Path, n_methods: int) -> None:
    figure = plot_comparison(made_comparison(n_methods), path=tmp_path / "comparison.png")
    (axis,) = figure.axes
    labels = [label.get_text() for label in axis.get_xticklabels()]
    assert labels == ["efficacy", "paraphrase", "specificity", "same\nsubject", "score"]
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    assert axis.get_yticklabels()[-1].get_text() == "100%"
    names = [text.get_text() for text in axis.get_legend().get_texts()]
    assert names == [m.name for m in made_comparison(n_methods).methods]
    legend = axis.get_legend().get_window_extent(canvas.get_renderer())
    assert legend.x0 >= axis.get_window_extent().x1
    boxes = [t.get_window_extent(canvas.get_renderer()) for t in axis.get_xticklabels()]
    assert not any(a.overlaps(b) for a, b in pairwise(boxes))
    assert "30 facts" in "\n".join(texts(figure))
