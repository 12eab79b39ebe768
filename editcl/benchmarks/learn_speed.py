"""What learning costs: the training loop against a bare one of peft and PyTorch, and replay.

Both sides take turns in one run; figures are ratios of medians. Trains nothing by itself but in the
bare loop. Knows nothing of quality.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch

from editcl.architecture import twin
from editcl.learning.batches import collate
from editcl.learning.kinds import AdapterSettings, peft_config
from editcl.learning.lora import Adapters
from editcl.learning.plan import Plan
from editcl.learning.runs import encode_rows
from editcl.learning.session import Session
from editcl.learning.settings import TrainResult, TrainSettings
from editcl.learning.strategies import Replay, Sequential, Strategy
from editcl.learning.tasks import Task
from editcl.learning.train import precision, train
from editcl.model import EditableModel
from editcl.progress import progress

SPEED_STEPS = 12  # of each training that is timed
REPLAYED = 0.2  # rows drawn for each row of the task, where replay is timed


def compare_loops(
    model: EditableModel,
    stream: Sequence[Task],
    settings: TrainSettings,
    *,
    repeats: int,
    seed: int,
) -> dict[str, Any]:
    """Throughput against the bare loop, and the cost of replay; all take turns.

    A round goes ahead that isn't timed. Replay and what it is held against learn the second task,
    after one step of the first, so that there is something to draw.
    """
    first, second = stream[:2]
    own = replace(settings, steps=SPEED_STEPS, accumulate=1, patience=None, seed=seed)
    times: dict[str, list[float]] = {"bare": [], "ours": [], "sequential": [], "replay": []}
    error = 0.0
    for _ in progress(range(repeats + 1), "speed"):
        losses, seconds = bare_loop(model, second, own, seed=seed)
        ours = train(fresh_session(model, seed), second, Sequential(), own, show=False)
        pairs = zip(losses, ours.losses, strict=True)
        error = max(error, *(abs(a - b) for a, b in pairs))
        times["bare"].append(seconds)
        times["ours"].append(ours.seconds)
        for name, strategy in (("sequential", Sequential()), ("replay", Replay(REPLAYED))):
            done = second_task(fresh_session(model, seed), (first, second), strategy, own)
            times[name].append(done.seconds)
    median = {name: statistics.median(found[1:]) for name, found in times.items()}
    n_rows = ours.examples
    return {
        "throughput_ratio": median["bare"] / median["ours"],
        "examples_per_second": (n_rows / median["ours"], n_rows / median["bare"]),
        "loop_loss_error": error,
        "replay_cost_ratio": median["replay"] / median["sequential"],
    }


def second_task(
    session: Session, tasks: tuple[Task, Task], strategy: Strategy, settings: TrainSettings
) -> TrainResult:
    """The training on the second task, after one step of the first."""
    train(session, tasks[0], strategy, replace(settings, steps=1), show=False)
    return train(session, tasks[1], strategy, settings, show=False)


def bare_loop(
    model: EditableModel, task: Task, settings: TrainSettings, *, seed: int
) -> tuple[list[float], float]:
    """Trains a LoRA adapter with peft and PyTorch alone, as one would write it down.

    The rows of each step, the optimiser and the number format are those of the training loop: what
    differs is the loop. Targets are marked in `labels`, and all positions are unembedded.

    Returns:
        The loss of each step, and the seconds of all steps.
    """
    from peft import get_peft_model

    rows = encode_rows(model, task)
    plan = Plan([len(row.ids) for row in rows], settings)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net: Any = get_peft_model(twin(model.hf), peft_config(model, AdapterSettings()))
    net.eval()  # no dropout in the base, as in the training loop
    number = precision(fresh_session(model, seed), settings)
    parameters = [p for p in net.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(
        parameters, lr=settings.lr, weight_decay=settings.weight_decay, fused=True
    )
    total, losses = settings.total(len(rows)), []
    started = time.perf_counter()
    for step in range(total):
        optimiser.param_groups[0]["lr"] = settings.rate(step, total)
        batch = collate([rows[i] for i in plan.batch(step)], model.pad_id, model.device)
        labels = torch.full_like(batch.ids, -100)
        labels[batch.row, batch.position + 1] = batch.targets
        inputs = {"input_ids": batch.ids, "attention_mask": batch.mask(), "labels": labels}
        with torch.autocast(model.device.type, number) if number else nullcontext():
            loss = net(**inputs).loss
        loss.backward()
        if settings.clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters, settings.clip)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
    return losses, time.perf_counter() - started


def fresh_session(model: EditableModel, seed: int, *, dropout: float = 0.0) -> Session:
    """A new one, as every run of a comparison gets."""
    return Session(model, Adapters(model), AdapterSettings(dropout=dropout), seed=seed)
