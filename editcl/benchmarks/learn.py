"""`editcl bench learn`: what strategies keep of a stream of tasks, and what learning costs.

Quality: every strategy on the same stream with the same seeds, beside one training on all data.
Speed: the training loop against a bare loop of peft and PyTorch, and replay against sequential
training, alternating in this run, as ratios of medians. Exactness: logits after a task was learnt
and rolled back, adapters of trainings that were killed and resumed. Trains nothing by itself but in
the bare loop. Long because all that one command measures is here.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from editcl.architecture import twin
from editcl.errors import EditclError
from editcl.learning.batches import collate
from editcl.learning.callbacks import Callback
from editcl.learning.checkpoint import Checkpoint
from editcl.learning.comparison import StrategyComparison
from editcl.learning.kinds import AdapterSettings, peft_config
from editcl.learning.lora import Adapters
from editcl.learning.plan import Plan
from editcl.learning.results import StreamResult
from editcl.learning.runs import Measures, encode_rows
from editcl.learning.session import Session
from editcl.learning.settings import TrainResult, TrainSettings
from editcl.learning.shipped import shipped_stream
from editcl.learning.skills import Skills
from editcl.learning.strategies import STRATEGIES, Replay, Sequential, Strategy
from editcl.learning.stream import compare_strategies
from editcl.learning.tasks import Task
from editcl.learning.train import precision, train
from editcl.loading import wrap
from editcl.model import EditableModel, tensor_bytes
from editcl.progress import progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Enough for the shipped stream to be learnt whole; numbers of the same bits on every processor.
SETTINGS = TrainSettings(steps=80, batch_size=8, lr=1.5e-3, autocast="off")
DEFAULT = ("sequential", "per_task", "replay", "olora", "inflora", "color")
SEQUENTIAL = "sequential"
SPEED_STEPS = 12  # of each training that is timed
REPLAYED = 0.2  # rows drawn for each row of the task, where replay is timed
CHECK_ROWS, CHECK_STEPS = 48, 6  # of the trainings of which only the bytes count
KILLED_AT = (0, 2, 5)  # before the first checkpoint, after it, at the last step


@dataclass(frozen=True)
class LearnBenchmark:
    """The figures of `editcl bench learn`.

    Attributes:
        model: what was measured.
        settings: of every training of the comparison.
        comparison: all strategies and the training on all data, in full.
        sequential_task1_before, sequential_task1_after: score of sequential training on the first
            task, right after it and after the last one; None if it was left out.
        throughput_ratio: examples per second of the training loop over those of the bare one.
        examples_per_second: of the training loop and the bare one.
        loop_loss_error: largest difference of a step's loss between the two.
        replay_cost_ratio: seconds of training with replay of 20 % over those without.
        rollback: by strategy, whether rolling back any task gave the bytes of the logits before it.
        resume: by strategy, whether training that was killed and resumed gave the same bytes.
    """

    model: str
    settings: TrainSettings
    comparison: StrategyComparison
    sequential_task1_before: float | None
    sequential_task1_after: float | None
    throughput_ratio: float
    examples_per_second: tuple[float, float]
    loop_loss_error: float
    replay_cost_ratio: float
    rollback: Mapping[str, bool]
    resume: Mapping[str, bool]

    @property
    def rollback_exact(self) -> bool:
        """Whether that holds of all strategies."""
        return all(self.rollback.values())

    @property
    def resume_exact(self) -> bool:
        """Whether that holds of all strategies."""
        return all(self.resume.values())

    def figures(self) -> dict[str, Any]:
        """Speed and exactness, and what sequential training forgot."""
        return {
            "sequential_task1_before": self.sequential_task1_before,
            "sequential_task1_after": self.sequential_task1_after,
            "throughput_ratio": self.throughput_ratio,
            "examples_per_second": self.examples_per_second,
            "loop_loss_error": self.loop_loss_error,
            "replay_cost_ratio": self.replay_cost_ratio,
            "rollback_exact": self.rollback_exact,
            "resume_exact": self.resume_exact,
        }

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON-able data; under `runs` every score of every seed."""
        whole = self.comparison.to_dict()
        return {
            "model": self.model,
            "tasks": list(self.comparison.tasks),
            "settings": asdict(self.settings),
            "strategies": {r.strategy: self._line(r) for r in self.comparison.strategies},
            "joint": whole["joint"],
            **self.figures(),
            "rollback": dict(self.rollback),
            "resume": dict(self.resume),
            "runs": {name: found["runs"] for name, found in whole["strategies"].items()},
        }

    def plot(self) -> Figure:
        """Metrics by strategy, with deviations over seeds."""
        return self.comparison.plot()

    def _line(self, result: StreamResult) -> dict[str, Any]:
        """Metrics and costs of one strategy; `behind_joint` is in points of OP."""
        metrics, bound = result.metrics(), self.comparison.bound
        assert bound is not None, "the comparison has no joint training"
        line: dict[str, Any] = {n: asdict(v) for n, v in (metrics | result.costs()).items()}
        line["behind_joint"] = 100 * (bound.mean - metrics["OP"].mean)
        line["must_be_told"] = result.must_tell
        if result.routes:
            line["told"] = {n: asdict(v) for n, v in result.metrics(told=True).items()}
        return line


def bench_learn(
    model: EditableModel,
    *,
    stream: Sequence[Task] | None = None,
    strategies: Sequence[str] = DEFAULT,
    seeds: Sequence[int] = (0, 1, 2),
    settings: TrainSettings | None = None,
    repeats: int = 5,
    seed: int = 0,
) -> LearnBenchmark:
    """Measures everything; the model and its log are as before afterwards.

    Args:
        model: what to measure, as it is edited now.
        stream: tasks with tests, in the order in which they are learnt; by default the shipped one.
        strategies: names of STRATEGIES; the training on all data is made anyway.
        seeds: of the comparison.
        settings: of its trainings; by default those that suit the shipped stream.
        repeats: how often each training that is timed is made.
        seed: of what is timed and of what is checked for exactness.

    Raises:
        TaskError: the stream is unfit, before anything is trained.
        EditclError: there is no such strategy, fewer than two tasks, or nothing to repeat.
    """
    tasks = tuple(shipped_stream() if stream is None else stream)
    settings = settings or SETTINGS
    if len(tasks) < 2:
        raise EditclError(f"the stream has {len(tasks)} tasks; forgetting takes two or more.")
    if repeats < 1:
        raise EditclError(f"{repeats} repeats time nothing; give 1 or more.")
    bare = Measures(general=False, survival=False)
    comparison = compare_strategies(
        model, tasks, strategies, settings=settings, seeds=seeds, measures=bare
    )
    before, after = first_task(comparison)
    checked = [replace(task, train=task.train[:CHECK_ROWS], test=()) for task in tasks]
    rollback, resume = {}, {}
    for name in progress(list(strategies), "rollback and resume"):
        rollback[name] = rollback_exact(model, checked, name, settings, seed=seed)
        resume[name] = resume_exact(model, checked, name, settings, seed=seed)
    return LearnBenchmark(
        model=model.name,
        settings=settings,
        comparison=comparison,
        sequential_task1_before=before,
        sequential_task1_after=after,
        **compare_loops(model, tasks, settings, repeats=repeats, seed=seed),
        rollback=rollback,
        resume=resume,
    )


def first_task(comparison: StrategyComparison) -> tuple[float | None, float | None]:
    """Sequential training's score on the first task, right after it and in the end."""
    found = [one for one in comparison.strategies if one.strategy == SEQUENTIAL]
    if not found:
        return None, None
    column = found[0].mean()[:, 0].tolist()
    return column[1], column[-1]


# -- speed ----------------------------------------------------------------------------------------


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
        ours = train(_session(model, seed), second, Sequential(), own, show=False)
        pairs = zip(losses, ours.losses, strict=True)
        error = max(error, *(abs(a - b) for a, b in pairs))
        times["bare"].append(seconds)
        times["ours"].append(ours.seconds)
        for name, strategy in (("sequential", Sequential()), ("replay", Replay(REPLAYED))):
            done = _second(_session(model, seed), (first, second), strategy, own)
            times[name].append(done.seconds)
    median = {name: statistics.median(found[1:]) for name, found in times.items()}
    n_rows = ours.examples
    return {
        "throughput_ratio": median["bare"] / median["ours"],
        "examples_per_second": (n_rows / median["ours"], n_rows / median["bare"]),
        "loop_loss_error": error,
        "replay_cost_ratio": median["replay"] / median["sequential"],
    }


def _second(
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
    number = precision(_session(model, seed), settings)
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


# -- exactness ------------------------------------------------------------------------------------


def rollback_exact(
    model: EditableModel,
    stream: Sequence[Task],
    strategy: str,
    settings: TrainSettings,
    *,
    seed: int,
) -> bool:
    """Whether taking back each task, the last first, gives the logits' bytes from before it.

    Works on a twin, which shares the weights and has a log of its own. The logits are those of the
    base and of every adapter on the first prompts of the first task.
    """
    own = replace(settings, steps=CHECK_STEPS, patience=None, seed=seed)
    on = wrap(twin(model.hf), model.tokenizer, name=model.name)
    skills = Skills(on)
    inputs = on.pad([row.ids for row in encode_rows(on, stream[0])[:8]])
    before = []
    for task in stream:
        before.append(_logits(skills, inputs))
        skills.learn(task, strategy, settings=own, seed=seed, show=False)
        if _logits(skills, inputs) == before[-1]:
            raise EditclError(f"{strategy} learnt nothing of {task.name!r}: nothing to take back.")
    held = []
    for task, then in zip(reversed(stream), reversed(before), strict=True):
        skills.rollback(task.name)
        held.append(_logits(skills, inputs) == then)
    return all(held)


def _logits(skills: Skills, inputs: Mapping[str, Tensor]) -> dict[str, bytes]:
    """Bytes of the logits of the base ("") and through each adapter."""
    bank = skills.adapters
    found = {}
    for name in ("", *bank.names):
        with torch.no_grad(), bank.using((name,) if name else ()):
            found[name] = bank.logits(inputs).float().cpu().numpy().tobytes()
    return found


class _KilledError(Exception):
    """What ends a training in the middle."""


class _Kill(Callback):
    """Ends a training after a step."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step(self, step: int, values: Mapping[str, float]) -> None:
        """At the step."""
        if step == self._step:
            raise _KilledError


def resume_exact(
    model: EditableModel,
    stream: Sequence[Task],
    strategy: str,
    settings: TrainSettings,
    *,
    seed: int,
) -> bool:
    """Whether a training that dies at several steps ends with the bytes of one that doesn't.

    It is the training of the second task, with dropout, so that the random state counts. Whoever
    goes on has a session and a strategy that know of nothing, as in a new process.
    """
    own = replace(settings, steps=CHECK_STEPS, patience=None, seed=seed)
    make = STRATEGIES[strategy]
    whole, one = _session(model, seed, dropout=0.1), make()
    _second(whole, (stream[0], stream[1]), one, own)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Checkpoint(Path(folder), every=2)
        session, other = _session(model, seed, dropout=0.1), make()
        train(session, stream[0], other, replace(own, steps=1), show=False)
        for step in KILLED_AT:
            try:
                train(
                    session,
                    stream[1],
                    other,
                    own,
                    callbacks=[_Kill(step)],
                    checkpoint=checkpoint,
                    show=False,
                )
            except _KilledError:
                session, other = _session(model, seed, dropout=0.1), make()
                session.seen.append(stream[0].name)
        train(session, stream[1], other, own, checkpoint=checkpoint, show=False)
    return _bytes(session, other) == _bytes(whole, one)


def _bytes(session: Session, strategy: Strategy) -> dict[str, bytes]:
    """Of all adapters, and of what the strategy keeps."""
    bank = session.adapters
    tensors = {f"{name}/{key}": t for name in bank.names for key, t in bank.state(name).items()}
    tensors |= {f" strategy/{name}": tensor for name, tensor in strategy.tensors().items()}
    return {name: bytes(tensor_bytes(tensor)) for name, tensor in tensors.items()}


def _session(model: EditableModel, seed: int, *, dropout: float = 0.0) -> Session:
    """A new one, as every run of a comparison gets."""
    return Session(model, Adapters(model), AdapterSettings(dropout=dropout), seed=seed)


__all__ = ["LearnBenchmark", "bench_learn"]
