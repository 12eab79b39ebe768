"""`editcl bench learn`: what strategies keep of a stream of tasks, and what learning costs.

Quality: every strategy on the same stream with the same seeds, each with the settings that were
chosen for it on validation rows, beside one training on all data; kinds of adapter under one
strategy. Speed (`learn_speed`): the training loop against a bare loop of peft and PyTorch, and
replay against sequential training. Exactness (`learn_exactness`): logits after a task was learnt
and rolled back, adapters of trainings that were killed and resumed. Trains nothing by itself.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

from editcl.benchmarks.learn_exactness import resume_exact, rollback_exact
from editcl.benchmarks.learn_kinds import KindLine, compare_kinds, kinds_table
from editcl.benchmarks.learn_speed import compare_loops, fresh_session
from editcl.benchmarks.tune import SETTINGS, Tuning, shipped_tuning
from editcl.errors import EditclError
from editcl.learning.comparison import StrategyComparison
from editcl.learning.kinds import AdapterSettings
from editcl.learning.results import StreamResult
from editcl.learning.runs import JOINT, Measures
from editcl.learning.settings import TrainSettings
from editcl.learning.shipped import shipped_stream
from editcl.learning.strategies import STRATEGIES
from editcl.learning.stream import compare_strategies
from editcl.learning.tasks import CLASSIFICATION, Example, Task
from editcl.learning.train import train
from editcl.model import EditableModel
from editcl.progress import progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEFAULT = ("sequential", "per_task", "replay", "olora", "inflora", "color")
#: "joint" is the bound, which is made anyway.
ALL = tuple(name for name in STRATEGIES if name != JOINT)
SEQUENTIAL, DANN = "sequential", "dann"
CHECK_ROWS = 48  # of trainings of which only the bytes count


@dataclass(frozen=True)
class LearnBenchmark:
    """The figures of `editcl bench learn`.

    Attributes:
        model: what was measured.
        settings: of every training of the comparison, but for what was chosen for it.
        comparison: all strategies and the training on all data, in full.
        sequential_task1_before, sequential_task1_after: score of sequential training on the first
            task, right after it and after the last one; None if it was left out.
        throughput_ratio: examples per second of the training loop over those of the bare one.
        examples_per_second: of the training loop and the bare one.
        loop_loss_error: largest difference of a step's loss between the two.
        replay_cost_ratio: seconds of training with replay of 20 % over those without.
        rollback: by strategy, whether rolling back any task gave the bytes of the logits before it.
        resume: by strategy, whether training that was killed and resumed gave the same bytes.
        chosen: by strategy, the learning rate and weight that were chosen on validation rows.
        kinds: of adapter, where they were asked for.
        left_out: strategies that can't work here, and why.
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
    chosen: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    kinds: tuple[KindLine, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def rollback_exact(self) -> bool:
        """Whether that holds of all strategies."""
        return all(self.rollback.values())

    @property
    def resume_exact(self) -> bool:
        """Whether that holds of all strategies."""
        return all(self.resume.values())

    def figures(self) -> dict[str, Any]:
        """Speed and exactness, what sequential training forgot, what DANN's probe found."""
        found = {
            "sequential_task1_before": self.sequential_task1_before,
            "sequential_task1_after": self.sequential_task1_after,
            "throughput_ratio": self.throughput_ratio,
            "examples_per_second": self.examples_per_second,
            "loop_loss_error": self.loop_loss_error,
            "replay_cost_ratio": self.replay_cost_ratio,
            "rollback_exact": self.rollback_exact,
            "resume_exact": self.resume_exact,
        }
        for task, probe in self.domain_probes().items():
            found[f"domain probe of dann before, after {task}"] = probe
        return found

    def domain_probes(self) -> dict[str, tuple[float, float]]:
        """For each later task, how well a probe told tasks apart before and after it (seeds' mean).

        Of DANN, whose aim is that it can't; empty if it was not compared.
        """
        results = [one for one in self.comparison.strategies if one.strategy == DANN]
        each = [run.measured["probes"] for result in results for run in result.runs]
        return {
            task: (fmean(found[task][0] for found in each), fmean(found[task][1] for found in each))
            for task in (each[0] if each else ())
        }

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON-able data; under `runs` every score of every seed."""
        whole = self.comparison.to_dict()
        return {
            "model": self.model,
            "tasks": list(self.comparison.tasks),
            "settings": asdict(self.settings),
            "chosen": {name: dict(found) for name, found in self.chosen.items()},
            "strategies": {r.strategy: self._line(r) for r in self.comparison.strategies},
            "left_out": dict(self.left_out),
            "joint": whole["joint"],
            "kinds": {line.kind: line.to_dict() for line in self.kinds},
            **self.figures(),
            "domain_probes": self.domain_probes(),
            "rollback": dict(self.rollback),
            "resume": dict(self.resume),
            "runs": {name: found["runs"] for name, found in whole["strategies"].items()},
        }

    def kinds_rows(self) -> tuple[list[str], list[list[str]]]:
        """Header and cells of the table of kinds."""
        return kinds_table(self.kinds)

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
    kinds: Sequence[str] = (),
    seeds: Sequence[int] = (0, 1, 2),
    settings: TrainSettings | None = None,
    tuning: Tuning | None = None,
    repeats: int = 5,
    seed: int = 0,
) -> LearnBenchmark:
    """Measures everything; the model and its log are as before afterwards.

    Args:
        model: what to measure, as it is edited now.
        stream: tasks with tests, in the order in which they are learnt; by default the shipped one.
        strategies: names of STRATEGIES; the training on all data is made anyway. Of ALL, those
            that refuse this model are left out, with the reason.
        kinds: of adapter, to be compared too.
        seeds: of the comparison.
        settings: of its trainings; by default those that suit the shipped stream.
        tuning: learning rates and weights by strategy and kind. By default the shipped ones, where
            stream and settings are left at their defaults, and else none: settings and the
            strategies' own defaults then hold.
        repeats: how often each training that is timed is made.
        seed: of what is timed and of what is checked for exactness.

    Raises:
        TaskError: the stream is unfit, before anything is trained.
        EditclError: there is no such strategy, fewer than two tasks, or nothing to repeat.
    """
    if tuning is None:
        plain = stream is None and settings is None
        tuning = (
            shipped_tuning() if plain else Tuning(model.name, (), 0, seed, settings or SETTINGS)
        )
    settings = settings or tuning.settings
    tasks = tuple(shipped_stream() if stream is None else stream)
    if len(tasks) < 2:
        raise EditclError(f"the stream has {len(tasks)} tasks; forgetting takes two or more.")
    if repeats < 1:
        raise EditclError(f"{repeats} repeats time nothing; give 1 or more.")
    for kind in kinds:
        AdapterSettings(kind=kind)  # refuses names that there are not
    checked = [replace(task, train=task.train[:CHECK_ROWS], test=()) for task in tasks]
    left_out = refusals(model, checked, strategies) if tuple(strategies) == ALL else {}
    names = [name for name in strategies if name not in left_out]
    chosen = {name: found for name in (*names, JOINT) if (found := tuning.of(name)) is not None}
    comparison = compare_strategies(
        model,
        tasks,
        {name: tuning.maker(name) for name in names},
        settings=settings,
        own={name: replace(settings, lr=found.best.lr) for name, found in chosen.items()},
        seeds=seeds,
        measures=Measures(general=False, survival=False),
    )  # fmt: skip
    lrs = {kind: found.best.lr for kind, found in tuning.kinds.items()}
    by_kind = compare_kinds(model, tasks, kinds, settings=settings, lrs=lrs, seeds=seeds)
    before, after = first_task(comparison)
    rollback, resume = {}, {}
    for name in progress(names, "rollback and resume"):
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
        chosen={name: {"lr": one.best.lr, **one.arguments()} for name, one in chosen.items()},
        kinds=by_kind,
        left_out=left_out,
    )


def refusals(
    model: EditableModel, stream: Sequence[Task], strategies: Sequence[str]
) -> dict[str, str]:
    """Of strategies that can't learn the first two tasks on this model, what they say."""
    one_step, found = TrainSettings(steps=1, batch_size=1, autocast="off"), {}
    for name in progress(list(strategies), "what strategies ask for"):
        session, strategy = fresh_session(model, 0), STRATEGIES[name]()
        try:
            for task in stream[:2]:
                train(session, task, strategy, one_step, show=False)
        except EditclError as problem:
            found[name] = str(problem)
    return found


def cut(task: Task, n_train: int | None, n_test: int | None, *, seed: int = 0) -> Task:
    """A task with at most so many examples to learn from and to be judged by, drawn by seed.

    Labels of a classification give equally many, as far as they have them.
    """

    def drawn(part: tuple[Example, ...], n: int | None, name: str) -> tuple[Example, ...]:
        if n is None or n >= len(part):
            return part
        draw = random.Random(f"{seed} {task.name} {name}")
        order = draw.sample(range(len(part)), len(part))
        turn: Counter[str] = Counter()
        place = {}
        for i in order:
            label = part[i].completion if task.kind == CLASSIFICATION else str(i)
            place[i] = turn[label]
            turn[label] += 1
        chosen = sorted(order, key=place.__getitem__)[:n]
        return tuple(part[i] for i in sorted(chosen))

    train_part = drawn(task.train, n_train, "train")
    return replace(task, train=train_part, test=drawn(task.test, n_test, "test"))


def first_task(comparison: StrategyComparison) -> tuple[float | None, float | None]:
    """Sequential training's score on the first task, right after it and in the end."""
    found = [one for one in comparison.strategies if one.strategy == SEQUENTIAL]
    if not found:
        return None, None
    column = found[0].mean()[:, 0].tolist()
    return column[1], column[-1]


__all__ = ["ALL", "DEFAULT", "LearnBenchmark", "bench_learn"]
