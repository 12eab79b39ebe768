"""The cells of a heat map: which state is restored, at which token, in which layers.

`hidden` restores the output of one block; `mlp` and `attn` restore the outputs of a window of w
layers around l, [l - w // 2, l + (w + 1) // 2) cut off at the ends. This module knows nothing of
models.
"""

from __future__ import annotations

from dataclasses import dataclass

KINDS = ("hidden", "mlp", "attn")
"""What can be restored: a block's output, its MLP's output, its attention's output."""

_PAPER_WINDOW, _PAPER_LAYERS = 10, 48


@dataclass(frozen=True)
class Cell:
    """One restored state.

    Attributes:
        kind: "hidden", "mlp" or "attn".
        token: where it is restored.
        start, stop: the restored layers, [start, stop).
    """

    kind: str
    token: int
    start: int
    stop: int


def default_window(n_layers: int) -> int:
    """The paper's share, 10 of GPT-2 XL's 48 layers, rounded down, and at least one layer."""
    return max(1, n_layers * _PAPER_WINDOW // _PAPER_LAYERS)


def cell(kind: str, token: int, layer: int, window: int, n_layers: int) -> Cell:
    """The cell in column `layer` of the heat map of a kind."""
    if kind == "hidden":
        return Cell(kind, token, layer, layer + 1)
    start, stop = layer - window // 2, layer + (window + 1) // 2
    return Cell(kind, token, max(0, start), min(n_layers, stop))
