"""The training loop: one for every strategy, in one place.

    loss = mean cross-entropy of the targets + what the strategy adds

AdamW steps over the parameters that the strategy chose, with warm-up, cosine, clipping and
accumulation; early stopping on held-out rows; checkpoints that a killed training goes on from, bit
for bit. A training that fails leaves bank and strategy as they were. Knows nothing of what the
strategies do, nor of the log.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from editcl.errors import EditclError, NonFiniteError
from editcl.learning.batches import Encoded, encode_examples
from editcl.learning.callbacks import Callback, ProgressBar
from editcl.learning.checkpoint import Before, Checkpoint, Progress, keep, resume
from editcl.learning.plan import Plan, parts, split_held_out
from editcl.learning.session import TOKENS_PER_BATCH, Session
from editcl.learning.settings import TrainResult, TrainSettings
from editcl.learning.strategies.base import Strategy, title
from editcl.learning.tasks import Task
from editcl.model import micro_batches, tensor_bytes

PASS_COSTS = 192  # tokens that a CPU could run in what a forward and backward pass costs otherwise
TASK_LOSS, NORM = "loss", "gradient_norm"  # beside the names of penalties


def train(
    session: Session,
    task: Task,
    strategy: Strategy,
    settings: TrainSettings | None = None,
    *,
    callbacks: Sequence[Callback] = (),
    checkpoint: Checkpoint | None = None,
    show: bool = True,
) -> TrainResult:
    """Learns a task.

    Args:
        session: the bank, to which the strategy's adapters are added or whose adapters it changes.
        task: a name that the session has not seen.
        strategy: the same object for all tasks of a session.
        settings: of this training.
        callbacks: get plain numbers.
        checkpoint: keeps the training in its folder, and goes on from what is there. The result is
            that of a training that was never interrupted.
        show: draws a progress bar in terminals.

    Raises:
        EditclError: the task can't be encoded or was learnt before, nothing would be trained, or
            the checkpoint is another training's. Bank and strategy are as before.
        NonFiniteError: loss or gradient became NaN or infinite. Likewise.
    """
    settings = settings or TrainSettings()
    if task.name in session.seen:
        raise EditclError(
            f"the session has learnt a task {task.name!r} before; name this one otherwise."
        )
    rows = encode_examples(
        session.model, task.train, kind=task.kind, task=task.name, max_tokens=task.max_tokens
    )
    question = _question(session, rows, strategy, settings) if checkpoint else {}
    kept = Before.read(checkpoint, question) if checkpoint else None
    now = Before.of(session, strategy)
    watching = [*callbacks, *([ProgressBar()] if show else [])]
    try:
        if kept is not None:
            kept.restore(session, strategy)
        elif checkpoint is not None:
            now.write(checkpoint, question)
        with _own_random_state(session, settings):
            result = _learn(session, task, rows, strategy, settings, watching, checkpoint)
    except BaseException:
        now.restore(session, strategy)
        raise
    finally:
        session.task, session.data, session.precision = None, (), None
        session.active, session.training = (), {}
        for watcher in watching:
            if isinstance(watcher, ProgressBar):
                watcher.close()
    session.seen.append(task.name)
    if checkpoint is not None:
        checkpoint.clear()
    for watcher in watching:
        watcher.on_end(result)
    return result


def _learn(
    session: Session,
    task: Task,
    rows: list[Encoded],
    strategy: Strategy,
    settings: TrainSettings,
    watching: Sequence[Callback],
    checkpoint: Checkpoint | None,
) -> TrainResult:
    """The training itself: one long function, so that all that happens is read in its order."""
    # 1. Data, adapters, parameters.
    own, held_out = split_held_out(rows, settings)
    session.task, session.active, session.training = task, (), {}
    strategy.place(session, task)
    session.data = strategy.dataset(session, task, own)
    with session.adapters.using(session.active):
        strategy.begin(session, task)
    _check_trains(session, strategy)
    session.precision = precision(session, settings)
    total = settings.total(len(session.data))
    parameters = list(session.training.values())
    optimiser = torch.optim.AdamW(
        parameters, lr=settings.lr, weight_decay=settings.weight_decay, fused=True
    )

    # 2. Back to where a killed training was.
    at, best = Progress(), dict[str, Tensor]()
    if checkpoint is not None:
        at, best = resume(checkpoint, session, strategy, optimiser)
    for watcher in watching:
        watcher.on_start(_info(session, task, strategy, settings, at.step, total))

    # 3. Steps.
    plan = Plan([len(row.ids) for row in session.data], settings)
    pass_costs = PASS_COSTS if session.model.device.type == "cpu" else math.inf
    look_every = settings.evaluate_every or max(1, total // 20)
    with session.adapters.using(session.active), strategy.around(session):
        session.mark_training()
        while at.step < total and not at.stopped:
            began, step = time.perf_counter(), at.step
            session.lr = optimiser.param_groups[0]["lr"] = settings.rate(step, total)
            strategy.before_step(session, step, total)
            batch = [session.data[i] for i in plan.batch(step)]
            session.n_new = len(batch)
            batch = strategy.examples(session, batch, step)

            sums: dict[str, Tensor] = {}
            for part, share in parts(batch, settings.accumulate, pass_costs):
                output = session.forward(part, dropout=True)
                added = strategy.penalty(session, output)
                terms = {TASK_LOSS: output.loss, **added}
                weighted = {name: term.float() * share for name, term in terms.items()}
                torch.stack(list(weighted.values())).sum().backward()
                sums = {n: t.detach() + sums.get(n, 0.0) for n, t in weighted.items()}
            strategy.after_backward(session)
            limit = math.inf if settings.clip is None else settings.clip
            sums[NORM] = torch.nn.utils.clip_grad_norm_(parameters, limit)
            # One look at the numbers before they reach the parameters: the step's only wait.
            values = dict(zip(sums, torch.stack(list(sums.values())).tolist(), strict=True))
            _check_finite(values, step)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            with torch.no_grad():
                strategy.after_step(session, step, total)

            norm, loss = values.pop(NORM), values.pop(TASK_LOSS)
            at.note(loss, values, len(batch))
            if held_out and (at.step % look_every == 0 or at.step == total):
                best = _look(session, held_out, at, best, settings, watching)
            at.seconds += time.perf_counter() - began
            for watcher in watching:
                watcher.on_step(step, _numbers(at, session.lr, norm))
            if checkpoint is not None and at.step % checkpoint.every == 0:
                keep(checkpoint, session, strategy, optimiser, at, best)
        with torch.no_grad():
            for name, tensor in best.items():
                session.training[name].copy_(tensor)

        # 4. What the strategy keeps, at full precision.
        session.precision = None
        strategy.end(session, task)
    count = sum(parameter.numel() for parameter in parameters)
    return TrainResult(
        losses=tuple(at.losses),
        penalties={name: tuple(found) for name, found in at.penalties.items()},
        held_out=tuple(at.held_out),
        steps=at.step,
        examples=at.examples,
        seconds=at.seconds,
        parameters=count,
        stopped_early=at.stopped,
        best=at.best[0] if at.best else None,
    )


# -- looks and checks -----------------------------------------------------------------------------


def _look(
    session: Session,
    held_out: Sequence[Encoded],
    at: Progress,
    best: dict[str, Tensor],
    settings: TrainSettings,
    watching: Sequence[Callback],
) -> dict[str, Tensor]:
    """Judges by the held-out rows; returns the best parameters so far."""
    loss = mean_loss(session, held_out)
    at.held_out.append((at.step, loss))
    if at.best is None or loss < at.best[1]:
        at.best, at.worse = (at.step, loss), 0
        best = {name: p.detach().clone() for name, p in session.training.items()}
    else:
        at.worse += 1
        at.stopped = at.worse >= (settings.patience or math.inf)
    for watcher in watching:
        watcher.on_evaluate(at.step - 1, {"held_out_loss": loss, "best": at.best[1]})
    return best


def mean_loss(session: Session, rows: Sequence[Encoded]) -> float:
    """The mean over all targets of the rows, without dropout, with the adapters active now."""
    total, count = 0.0, 0
    with torch.no_grad():
        for chosen in micro_batches([len(row.ids) for row in rows], TOKENS_PER_BATCH):
            losses = session.forward([rows[i] for i in chosen]).token_losses
            total += float(losses.double().sum())
            count += len(losses)
    return total / count


def precision(session: Session, settings: TrainSettings) -> torch.dtype | None:
    """The autocast of a training; see TrainSettings.autocast."""
    if settings.autocast == "off":
        return None
    if settings.autocast == "bf16":
        return torch.bfloat16
    if session.model.dtype in (torch.bfloat16, torch.float16):
        return None
    if session.model.device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else None
    if session.model.device.type == "cpu":
        return torch.bfloat16 if _multiplies_bf16() else None
    return None


def _multiplies_bf16() -> bool:
    """Whether this processor has instructions for products of bf16."""
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # absent in some builds
    return any(getattr(torch.cpu, name, bool)() for name in asked)


def _check_trains(session: Session, strategy: Strategy) -> None:
    if not session.training:
        raise EditclError(
            f"the strategy {title(strategy)} leaves nothing to train on "
            f"{type(session.model.hf).__name__}: choose other targets or another strategy."
        )
    if not session.data:
        raise EditclError(f"the strategy {title(strategy)} leaves no rows to learn from.")


def _check_finite(values: Mapping[str, float], step: int) -> None:
    wrong = [name for name, value in values.items() if not math.isfinite(value)]
    if wrong:
        raise NonFiniteError(
            f"step {step}: {', '.join(wrong)} became NaN or infinite; adapters are as before the "
            "training. Lower lr, set clip, or use autocast='off'."
        )


@contextmanager
def _own_random_state(session: Session, settings: TrainSettings) -> Iterator[None]:
    """Seeds what dropout draws from; the caller's random state is back afterwards."""
    devices = [session.model.device] if session.model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(settings.seed + 7919 * len(session.seen))
        yield


# -- what is told ---------------------------------------------------------------------------------


def _info(
    session: Session,
    task: Task,
    strategy: Strategy,
    settings: TrainSettings,
    step: int,
    total: int,
) -> dict[str, Any]:
    return {
        "task": task.name,
        "strategy": title(strategy),
        "step": step,
        "total": total,
        "rows": len(session.data),
        "parameters": sum(parameter.numel() for parameter in session.training.values()),
        "settings": asdict(settings),
    }


def _numbers(at: Progress, lr: float, norm: float) -> dict[str, float]:
    last = {name: values[-1] for name, values in at.penalties.items()}
    speed = at.examples / at.seconds if at.seconds else 0.0
    told = {"loss": at.losses[-1], "lr": lr, "gradient_norm": norm, "examples_per_second": speed}
    return told | last


def _question(
    session: Session, rows: Sequence[Encoded], strategy: Strategy, settings: TrainSettings
) -> dict[str, Any]:
    """Everything that the result of a training depends on, in short."""
    weights = hashlib.sha256()
    for name, parameter in sorted(session.model.hf.named_parameters()):
        weights.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        weights.update(tensor_bytes(parameter))
    return {
        "model": weights.hexdigest(),
        "task": hashlib.sha256(repr(rows).encode()).hexdigest(),
        "tasks seen": list(session.seen),
        "strategy": [title(strategy), strategy.settings()],
        "settings": asdict(settings),
        "adapter settings": session.settings.to_json(),
        "seed": session.seed,
    }
