"""From stored records back to history and factors; everything in them is checked first.

Tensors of skills are read to be checked, and left where they are until somebody asks for them.

What a log says is taken for true only where it fits the model at hand: names of matrices, shapes,
dtypes, finite numbers. This module writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from editcl.errors import LogError
from editcl.log.entry import EDIT, NOTE, REAPPLY, ROLLBACK, SKILL, Edit, Event, Record
from editcl.log.history import History
from editcl.log.skill import Note, Skill
from editcl.log.state import Factors, LiveWeights

KEPT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SKILL_DTYPES = (*KEPT_DTYPES, torch.float64, torch.int32, torch.int64)  # rows of token ids too


class TensorSource(Protocol):
    """Where the tensors of a record come from."""

    def tensors(self, record: Record) -> dict[str, Tensor]:
        """The tensors of one record, by name."""


def replay(
    source: TensorSource, records: Sequence[Record], weights: LiveWeights
) -> tuple[History, dict[str, dict[str, Factors]]]:
    """Folds records into a history and loads the factors of its edits.

    Raises:
        LogError: a record is of an unknown kind, does not read, or does not fit the model.
    """
    history = History()
    factors: dict[str, dict[str, Factors]] = {}
    for record in records:
        try:
            if record.id != history.next_id(record.kind):
                raise ValueError("it is out of order")
            if record.kind == EDIT:
                edit = Edit.from_json(record.id, record.body)
                history = history.with_edit(edit)
                factors[edit.id] = _factors(edit, source.tensors(record), weights)
            elif record.kind == SKILL:
                history = history.with_skill(Skill.from_json(record.id, record.body))
                check_skill_tensors(source.tensors(record))
            elif record.kind == NOTE:
                history = history.with_note(Note.from_json(record.id, record.body))
            elif record.kind in (ROLLBACK, REAPPLY):
                history = history.with_event(Event.from_json(record.id, record.kind, record.body))
            else:
                raise LogError(
                    f"the log has an entry of the kind {record.kind!r}, which this editcl does "
                    "not know. Use the version that wrote it, or a newer one."
                )
            _check_digests(record)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            if isinstance(error, LogError):
                raise
            raise LogError(
                f"entry {record.id} of the log does not read: {type(error).__name__}: {error}. "
                "Restore the folder from a copy."
            ) from error
    return history, factors


def _factors(edit: Edit, tensors: Mapping[str, Tensor], weights: LiveWeights) -> dict[str, Factors]:
    sides = {f"{name}.{side}" for name in edit.parameters for side in ("left", "right")}
    if not edit.facts or not edit.parameters or sides != set(tensors):
        raise ValueError(f"it names {sorted(sides)}, its file holds {sorted(tensors)}")
    found = {}
    for name in edit.parameters:
        projection = weights.projection(name)
        if projection is None:
            raise ValueError(f"{name} is no down-projection of this model")
        d_mlp, d_model = projection.weight.shape
        rank = len(edit.owners.get(name, edit.facts))
        left, right = tensors[f"{name}.left"], tensors[f"{name}.right"]
        for factor, width in ((left, d_mlp), (right, d_model)):
            if tuple(factor.shape) != (width, rank):
                shape = tuple(factor.shape)
                raise ValueError(f"{name}: a factor is {shape}, not {(width, rank)}")
            if factor.dtype not in KEPT_DTYPES or not bool(torch.isfinite(factor).all()):
                raise ValueError(f"{name}: a factor is {factor.dtype} or not finite")
        found[name] = Factors(left.contiguous(), right.contiguous())
    return found


def check_skill_tensors(tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError if there is none, or one is of an odd dtype or not finite."""
    if not tensors:
        raise ValueError("it has no tensors")
    for name, tensor in tensors.items():
        if tensor.dtype not in SKILL_DTYPES or not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} is {tensor.dtype} or not finite")


def _check_digests(record: Record) -> None:
    digests = record.body["weights"]
    if not isinstance(digests, dict) or not all(isinstance(x, str) for x in digests.values()):
        raise TypeError("its checksums of the weights are not text")
