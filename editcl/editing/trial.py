"""Trial edits: updates that are in the weights inside a context and gone, bit for bit, after it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from editcl.model import EditableModel
from editcl.update import WeightUpdate


@contextmanager
def tried(model: EditableModel, updates: Sequence[WeightUpdate]) -> Iterator[None]:
    """The model with the updates in place; nothing is logged, the old bytes come back."""
    projections = {p.name: p for p in model.map.projections}
    kept = {u.parameter: projections[u.parameter].parameter.detach().clone() for u in updates}
    try:
        with torch.no_grad():
            for update in updates:
                weight = projections[update.parameter].weight
                weight.copy_(weight.float() + update.dense().to(weight.device))
        yield
    finally:
        for name, before in kept.items():
            projections[name].parameter.data.copy_(before)
