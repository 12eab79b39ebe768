"""The published tracing procedure: one forward pass for every cell of the heat map.

For each kind, token t and layer l: a batch of 1 clean and n_samples corrupted rows runs in full;
at the restored layers the corrupted rows' state at t is overwritten with the clean row's; the
answer's mean probability at the last position is the cell's value (`trace_with_patch` of the
authors' causal_trace.py, arXiv:2202.05262). It is what `editcl.tracing.restore` is measured
against and, on models whose forward pass can't start in the middle, what stands in for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from editcl.hooks import Hook, HookFunction
from editcl.model import EditableModel
from editcl.tracing.cells import Cell
from editcl.tracing.runs import Corruption, Question, names


def published_cells(
    model: EditableModel,
    question: Question,
    corruption: Corruption,
    answer: int,
    cells: Sequence[Cell],
    *,
    sever: str | None = None,
) -> Float[Tensor, "n_cells n_samples"]:
    """p(answer) of every corrupted row with each cell restored, one forward pass a cell.

    Args:
        sever: "mlp" or "attn": hold these outputs at the restored token, in the layers above
            the restored one, at their values in the corrupted run.
    """
    ids = torch.tensor(question.ids, device=model.device).expand(1 + corruption.n_samples, -1)
    current: list[Cell | None] = [None]
    held: dict[str, Tensor] = {}
    hooks: dict[str, HookFunction] = {"hook_embed": corruption.hook(question.span)}
    for kind in {cell.kind for cell in cells}:
        hooks |= {n: _restore(kind, i, current) for i, n in enumerate(names(model)[kind])}
    if sever is not None:
        hooks |= {n: _hold(i, current, held) for i, n in enumerate(names(model)[sever])}
    values = []
    with torch.no_grad(), model.hooks(hooks):
        if sever is not None:
            model.forward({"input_ids": ids})
        for cell in cells:
            current[0] = cell
            logits = model.forward({"input_ids": ids})
            values.append(torch.softmax(logits[1:, -1, :], dim=1)[:, answer])
    return torch.stack(values)


def _restore(kind: str, layer: int, current: list[Cell | None]) -> HookFunction:
    """Overwrites the current cell's state with that of the clean row."""

    def hook(activation: Tensor, _hook: Hook) -> Tensor | None:
        cell = current[0]
        if cell is None or cell.kind != kind or not cell.start <= layer < cell.stop:
            return None
        out = activation.clone()
        out[1:, cell.token] = out[0, cell.token]
        return out

    return hook


def _hold(layer: int, current: list[Cell | None], held: dict[str, Tensor]) -> HookFunction:
    """Records the corrupted run, then holds the layers above the current cell at its values."""

    def hook(activation: Tensor, where: Hook) -> Tensor | None:
        cell = current[0]
        if cell is None:
            held[where.name] = activation.clone()
            return None
        if layer < cell.stop:
            return None
        out = activation.clone()
        out[1:, cell.token] = held[where.name][1:, cell.token]
        return out

    return hook
