"""Runs: one seed of a strategy on a stream, and what it is held against.

A strategy is judged as it would be used: it isn't told which task a prompt belongs to, unless it
can't do without. Held against it are the base model, one training on the data of all tasks at once
(the upper bound), and each task on its own. Knows nothing of several strategies and seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, final

from editcl.errors import EditclError
from editcl.learning.batches import Encoded, encode_examples, visible
from editcl.learning.comparison import JointRun
from editcl.learning.drift import general_change
from editcl.learning.kinds import AdapterSettings
from editcl.learning.lora import BASE, Adapters
from editcl.learning.predict import encode_test, score_task
from editcl.learning.results import Row, StreamResult, StreamRun
from editcl.learning.session import Route, Session
from editcl.learning.settings import TrainSettings
from editcl.learning.strategies import Sequential, Strategy
from editcl.learning.survival import active_facts, edit_survival
from editcl.learning.tasks import Task, TaskError, check_stream
from editcl.learning.train import train
from editcl.model import EditableModel
from editcl.progress import progress

JOINT = "joint"


@dataclass(frozen=True)
class Measures:
    """What is measured beside scores.

    Attributes:
        general: cross-entropy of general text.
        survival: of logged facts, where there are any.
        single: each task on its own, for intransigence: one more training for each task and seed.
    """

    general: bool = True
    survival: bool = True
    single: bool = False


@dataclass(frozen=True)
class Bench:
    """What all runs share.

    Attributes:
        model, stream, settings, adapter, seeds, measures: as given.
        base: the base model's scores.
        asked: of each task, what a strategy may look at to choose adapters.
    """

    model: EditableModel
    stream: tuple[Task, ...]
    settings: TrainSettings
    adapter: AdapterSettings
    seeds: tuple[int, ...]
    measures: Measures
    base: Row
    asked: tuple[tuple[Encoded, ...], ...]

    @classmethod
    def of(
        cls,
        model: EditableModel,
        stream: Sequence[Task],
        settings: TrainSettings | None,
        adapter: AdapterSettings | None,
        seeds: Sequence[int],
        measures: Measures | None,
    ) -> Bench:
        """Checks everything that can be wrong before anything is trained."""
        check_stream(stream)
        bare = [task.name for task in stream if not task.test]
        if bare:
            raise TaskError(
                "a stream", [f"task {name!r} has no test; give it examples." for name in bare]
            )
        if not seeds or len(set(seeds)) < len(seeds):
            raise EditclError(f"the seeds are {list(seeds)}; give distinct ones, at least one.")
        for task in stream:
            encode_rows(model, task)
        asked = [tuple(visible(encode_test(model, task), task.kind)) for task in stream]
        bank = Adapters(model)
        base = tuple(score_task(bank, task).score for task in stream)
        return cls(
            model,
            tuple(stream),
            settings or TrainSettings(),
            adapter or AdapterSettings(),
            tuple(seeds),
            measures or Measures(),
            base,
            tuple(asked),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Of the tasks."""
        return tuple(task.name for task in self.stream)

    def session(self, seed: int) -> Session:
        """A fresh one with a fresh bank."""
        return Session(self.model, Adapters(self.model), settings=self.adapter, seed=seed)

    def training(self, seed: int) -> TrainSettings:
        """The settings of a run's trainings."""
        return replace(self.settings, seed=seed)

    def result(self, name: str, runs: Sequence[StreamRun], must_tell: bool) -> StreamResult:
        """The runs as a result."""
        kinds = tuple(task.kind for task in self.stream)
        return StreamResult(name, self.model.name, self.names, kinds, tuple(runs), must_tell)


def one_run(
    bench: Bench, maker: Callable[[], Strategy], seed: int, single: Row | None
) -> StreamRun:
    """One seed."""
    strategy, session = maker(), bench.session(seed)
    scores, told = [bench.base], [bench.base]
    seconds, trained, sizes, memory = [], [], [], []
    general, survival = [], []
    for task in bench.stream:
        done = train(session, task, strategy, bench.training(seed), show=False)
        seconds.append(done.seconds)
        trained.append(done.parameters)
        sizes.append(_n_parameters(session.adapters))
        memory.append(strategy.memory())
        with strategy.around(session):
            lines = [_judged(bench, session, strategy, j) for j in range(len(scores[0]))]
            free = _untold(session, strategy)
            if bench.measures.general:
                general.append(general_change(session.adapters, free).increase)
            if bench.measures.survival and active_facts(bench.model):
                survival.append(edit_survival(session.adapters, free).share)
        scores.append(tuple(line[0] for line in lines))
        told.append(tuple(line[1] for line in lines))
    return StreamRun(
        seed=seed,
        scores=tuple(scores),
        seconds=tuple(seconds),
        trained=tuple(trained),
        adapters=tuple(sizes),
        memory=tuple(memory),
        told=None if told == scores else tuple(told),
        single=single,
        general=tuple(general),
        survival=tuple(survival),
        measured=strategy.measured(),
    )


def _judged(bench: Bench, session: Session, strategy: Strategy, j: int) -> tuple[float, float]:
    """The score on a task as the strategy is used, and with the task told."""
    task, rows = bench.stream[j], bench.asked[j]
    route = strategy.adapters_for(session, task.name, rows)
    told = score_task(session, task, route).score
    if strategy.must_be_told:
        return told, told
    free = strategy.adapters_for(session, None, rows)
    same = _flat(free, len(rows)) == _flat(route, len(rows))
    return (told if same else score_task(session, task, free).score), told


def _untold(session: Session, strategy: Strategy) -> Route | Callable[[list[Encoded]], Route]:
    """The routing of text that belongs to no task: of a strategy that must be told, the base."""
    if strategy.must_be_told:
        return Route()
    return lambda rows: strategy.adapters_for(session, None, rows)


def _flat(route: Route, n_rows: int) -> tuple[tuple[str, ...], ...]:
    """For each row its adapters."""
    if route.rows is None:
        return (route.names,) * n_rows
    return tuple(() if name == BASE else (name,) for name in route.rows)


def encode_rows(model: EditableModel, task: Task) -> list[Encoded]:
    """The rows that a task is learnt from.

    Raises:
        TaskError: some can't be encoded.
    """
    return encode_examples(
        model, task.train, kind=task.kind, task=task.name, max_tokens=task.max_tokens
    )


def _n_parameters(adapters: Adapters) -> int:
    return sum(p.numel() for name in adapters.names for p in adapters.trainable(name).values())


# -- what strategies are held against -----------------------------------------------------------


@final
class _AtOnce(Strategy):
    """One training on the rows of all tasks."""

    name: ClassVar[str] = JOINT

    def __init__(self, stream: Sequence[Task]) -> None:
        self._stream = tuple(stream)

    def dataset(self, session: Session, task: Task, rows: list[Encoded]) -> list[Encoded]:
        """The rows of every task, each under its own name."""
        return [
            row
            for one in self._stream
            for row in (rows if one is task else encode_rows(session.model, one))
        ]


def joint_run(bench: Bench, seed: int) -> JointRun:
    """Trains once on all rows; epochs stay, steps are as many as those of all tasks together.

    Early stopping would judge by the last task alone, so there is none.
    """
    own = replace(bench.training(seed), patience=None)
    if own.steps is not None:
        own = replace(own, steps=own.steps * len(bench.stream))
    session, strategy = bench.session(seed), _AtOnce(bench.stream)
    done = train(session, bench.stream[-1], strategy, own, show=False)
    route = strategy.adapters_for(session, None, ())
    scores = tuple(score_task(session, task, route).score for task in bench.stream)
    return JointRun(seed, scores, done.seconds, done.parameters)


def single_scores(bench: Bench, *, show_progress: bool) -> dict[int, Row]:
    """For each seed, the score on each task after training on it alone."""
    if not bench.measures.single:
        return {}
    found = {}
    for seed in progress(bench.seeds, "each task on its own", show=show_progress):
        scores = []
        for task in bench.stream:
            session, strategy = bench.session(seed), Sequential()
            train(session, task, strategy, bench.training(seed), show=False)
            route = strategy.adapters_for(session, task.name, ())
            scores.append(score_task(session, task, route).score)
        found[seed] = tuple(scores)
    return found
