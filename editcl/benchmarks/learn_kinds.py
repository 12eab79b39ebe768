"""Kinds of adapter under one loop: what each learns of a new task, forgets, holds and needs.

Every kind is trained on from task to task by the same strategy with a learning rate of its own.
Memory of training is counted, not sampled: four numbers for each parameter (itself, gradient,
AdamW's two moments) and every tensor that a batch's forward pass leaves for the backward pass.
Knows nothing of strategies that hold tasks apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from editcl.benchmarks.tune import LEARNER
from editcl.errors import EditclError
from editcl.learning.batches import Encoded
from editcl.learning.kinds import KINDS, AdapterSettings
from editcl.learning.lora import Adapters
from editcl.learning.results import StreamResult
from editcl.learning.runs import Measures, encode_rows
from editcl.learning.session import Session
from editcl.learning.settings import TrainSettings
from editcl.learning.stream import evaluate_stream
from editcl.learning.tasks import Task
from editcl.model import EditableModel
from editcl.progress import progress

ADAMW = 4  # numbers for each one that trains


@dataclass(frozen=True)
class KindLine:
    """One kind.

    Attributes:
        kind: of adapter.
        lr: its learning rate.
        result: of the stream.
        parameters: numbers in the adapter.
        bytes_held: of these numbers.
        bytes_training: beside the base, in a training step on one batch.
    """

    kind: str
    lr: float
    result: StreamResult
    parameters: int
    bytes_held: int
    bytes_training: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able data; `new_task` is LA."""
        metrics = {name: asdict(value) for name, value in self.result.metrics().items()}
        return {
            "lr": self.lr,
            "new_task": metrics["LA"],
            **metrics,
            "seconds": asdict(self.result.costs()["seconds"]),
            "parameters": self.parameters,
            "bytes_held": self.bytes_held,
            "bytes_training": self.bytes_training,
            "runs": [asdict(run) for run in self.result.runs],
        }


def compare_kinds(
    model: EditableModel,
    stream: Sequence[Task],
    kinds: Sequence[str] = KINDS,
    *,
    settings: TrainSettings,
    lrs: Mapping[str, float] | None = None,
    seeds: Sequence[int] = (0,),
) -> tuple[KindLine, ...]:
    """Trains each kind on the stream; the model is as before afterwards.

    Args:
        model: what learns.
        stream: tasks with tests.
        kinds: names of KINDS.
        settings: of every training.
        lrs: learning rates in the stead of theirs, by kind.
        seeds: of the runs.

    Raises:
        TaskError, EditclError: as `evaluate_stream`; or there is no such kind.
    """
    adapters = [AdapterSettings(kind=kind) for kind in kinds]
    lines = []
    for adapter in progress(adapters, "kinds of adapter"):
        own = replace(settings, lr=(lrs or {}).get(adapter.kind, settings.lr))
        found = evaluate_stream(
            model,
            stream,
            LEARNER,
            settings=own,
            adapter=adapter,
            seeds=seeds,
            measures=Measures(general=False, survival=False),
            show_progress=False,
        )
        rows = encode_rows(model, stream[0])[: settings.batch_size]
        lines.append(_line(model, adapter, own.lr, found, rows))
    return tuple(lines)


def kinds_table(lines: Sequence[KindLine]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of a table for readers."""
    head = ["kind", "lr", "new task (LA)", "forgetting", "OP", "seconds"]
    head += ["parameters", "held, kB", "training, kB"]
    cells = []
    for line in lines:
        metrics = line.result.metrics()
        scores = [str(metrics[name]) for name in ("LA", "forgetting", "OP")]
        seconds = f"{line.result.costs()['seconds'].mean:.1f}"
        sizes = [f"{n / 1000:,.0f}" for n in (line.bytes_held, line.bytes_training)]
        cells.append([line.kind, f"{line.lr:g}", *scores, seconds, f"{line.parameters:,}", *sizes])
    return head, cells


def saved_bytes(session: Session, rows: Sequence[Encoded]) -> int:
    """Bytes that a forward pass with the active adapters keeps for its backward pass.

    Weights are there anyway and don't count; storage that several operations keep counts once.
    """
    bank = session.adapters
    weights = [*session.model.hf.parameters(), *bank.trainable(bank.active[0]).values()]
    own = {weight.untyped_storage().data_ptr() for weight in weights}
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = session.forward(rows, dropout=True)
        loss = output.loss  # alive until counted, so that no storage is freed and used again
    if not loss.requires_grad:
        raise EditclError("nothing trains in the active adapters: there is no backward pass.")
    return sum(found.values())


def _line(
    model: EditableModel,
    adapter: AdapterSettings,
    lr: float,
    result: StreamResult,
    rows: Sequence[Encoded],
) -> KindLine:
    session = Session(model, Adapters(model), adapter)
    session.new_adapter(adapter.kind)
    session.train_adapter(adapter.kind)
    session.mark_training()
    with session.adapters.using((adapter.kind,)):
        saved = saved_bytes(session, rows)
    sizes = [(p.numel(), p.element_size()) for p in session.training.values()]
    held = sum(count * size for count, size in sizes)
    count = sum(count for count, _ in sizes)
    return KindLine(adapter.kind, lr, result, count, held, ADAMW * held + saved)
