"""Which layers to edit: from average traces, or from trying each of them.

`by="trace"` ranks layers by the mean indirect effect of the MLP at the subject's last token, where
the paper (arXiv:2202.05262) finds facts read. `by="sweep"` ranks them by what a trial at each
layer scored. The two need not agree (Hase et al., arXiv:2301.04213), hence both. This module knows
nothing of how a trial edits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from editcl.errors import EditclError
from editcl.facts import Fact
from editcl.model import EditableModel
from editcl.tracing.average import SUBJECT_LAST, AverageTrace, trace_many
from editcl.tracing.cells import default_window

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Scores = float | Mapping[str, float]


@dataclass(frozen=True)
class LayerEvidence:
    """What speaks for one layer.

    Attributes:
        layer: the layer.
        score: what layers are ranked by; higher is better.
        details: further figures of the layer by name ("half_width", or a trial's metrics).
    """

    layer: int
    score: float
    details: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Location:
    """Where facts sit, with the evidence.

    Attributes:
        by: "trace" or "sweep".
        evidence: one entry a layer, in the order of layers.
        average: the average trace behind it; None for a sweep.
    """

    by: str
    evidence: tuple[LayerEvidence, ...]
    average: AverageTrace | None = None

    @property
    def layers(self) -> tuple[int, ...]:
        """All layers tried, best first; the lower one where scores are equal."""
        return tuple(e.layer for e in sorted(self.evidence, key=lambda e: (-e.score, e.layer)))

    @property
    def layer(self) -> int:
        """The best one."""
        return self.layers[0]

    def plot(self, *, path: str | Path | None = None) -> Figure:
        """Scores by layer, the best one marked."""
        from editcl.plots import plot_location

        return plot_location(self, path=path)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON-able values."""
        evidence = [
            {"layer": e.layer, "score": e.score, "details": dict(e.details)} for e in self.evidence
        ]
        average = None if self.average is None else self.average.to_dict()
        values = {"by": self.by, "layer": self.layer, "layers": list(self.layers)}
        return values | {"evidence": evidence, "average": average}

    def __repr__(self) -> str:
        lines = [f"Location by {self.by}: layer {self.layer}"]
        for e in self.evidence:
            details = "".join(f"  {name} {value:.3f}" for name, value in e.details.items())
            mark = "*" if e.layer == self.layer else " "
            lines.append(f" {mark} layer {e.layer:<4}{e.score:+.3f}{details}")
        return "\n".join(lines)


def locate(
    model: EditableModel,
    facts: Sequence[Fact | tuple[str, str, str]],
    *,
    by: str = "trace",
    try_layer: Callable[[int], Scores] | None = None,
    layers: Sequence[int] | None = None,
    samples: int = 10,
    window: int | None = None,
    seed: int = 0,
    average: AverageTrace | None = None,
) -> Location:
    """Ranks layers as places to edit.

    Args:
        model: the model; it is not changed.
        facts: facts that it knows, as in `trace_many`; not used where `average` or `try_layer` is.
        by: "trace" or "sweep".
        try_layer: for a sweep, gives a layer's score, or several by name of which "score" ranks.
        layers: which ones to rank; all by default.
        samples: as in `trace_many`, as is `seed`.
        window: layers restored together; by default the largest odd number within the default of
            `trace_many`, so that the window has its layer in the middle.
        average: an average trace that has been made already.

    Raises:
        EditclError: an unknown way, a layer out of range, a sweep without `try_layer`, or a score
            that is not a finite number.
    """
    if window is None:
        window = (default_window(model.n_layers) - 1) | 1
    ways: dict[str, Callable[[], Location]] = {
        "trace": lambda: _by_trace(
            average
            or trace_many(model, facts, kinds=("mlp",), samples=samples, window=window, seed=seed),
            chosen,
        ),
        "sweep": lambda: _by_sweep(try_layer, chosen),
    }
    if by not in ways:
        raise EditclError(f"by must be one of {', '.join(ways)}, got {by!r}.")
    chosen = sorted(set(range(model.n_layers) if layers is None else layers))
    if not chosen or chosen[0] < 0 or chosen[-1] >= model.n_layers:
        raise EditclError(f"layers must be within 0 to {model.n_layers - 1}, got {chosen}.")
    return ways[by]()


def _by_trace(average: AverageTrace, layers: Sequence[int]) -> Location:
    row = average.roles.index(SUBJECT_LAST)
    if "mlp" not in average.kinds:
        raise EditclError("locating by trace needs an average trace of the kind 'mlp'.")
    evidence = [
        LayerEvidence(
            layer,
            float(average.effect["mlp"][row, layer]),
            {"half_width": float(average.half_width["mlp"][row, layer])},
        )
        for layer in layers
    ]
    return Location("trace", tuple(evidence), average)


def _by_sweep(try_layer: Callable[[int], Scores] | None, layers: Sequence[int]) -> Location:
    if try_layer is None:
        raise EditclError("a sweep needs try_layer, which tries a layer and gives its score.")
    evidence = []
    for layer in layers:
        found = try_layer(layer)
        details = dict(found) if isinstance(found, Mapping) else {"score": float(found)}
        if not np.isfinite(details.get("score", np.nan)):
            raise EditclError(f"try_layer({layer}) gave no finite 'score': {found!r}.")
        evidence.append(LayerEvidence(layer, float(details.pop("score")), details))
    return Location("sweep", tuple(evidence))
