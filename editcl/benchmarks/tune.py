"""`editcl bench learn --tune`: each strategy's learning rate and own weight, chosen on validation.

    1. every learning rate of LRS with the strategy's usual weight
    2. at the best of them, the other values of the weight

judged by OP on validation rows after the first tasks of the stream, with one seed: a learner that
meets tasks one after another can't tune on those to come (A-GEM, arXiv:1812.00420, does likewise).
Every strategy gets the same rates and as many values, whoever is the favourite, the training on
all data included. Kinds of adapter get a rate each, judged by how well the first task is learnt.
Of equals the first stays, which is the usual one. Tests are never looked at.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from editcl.embedded import data_folder
from editcl.errors import EditclError
from editcl.learning.kinds import KINDS, AdapterSettings
from editcl.learning.parameters import ATTENTION, MLP
from editcl.learning.runs import JOINT, Bench, Measures, joint_run, one_run
from editcl.learning.settings import TrainSettings
from editcl.learning.shipped import shipped_stream
from editcl.learning.strategies import STRATEGIES, Sequential, Strategy
from editcl.learning.stream import Maker
from editcl.learning.tasks import CLASSIFICATION, Task, TaskError, split_examples
from editcl.model import EditableModel
from editcl.progress import progress

#: Enough for the shipped stream to be learnt whole; numbers of the same bits on every processor.
SETTINGS = TrainSettings(steps=80, batch_size=8, lr=1.5e-3, autocast="off")
LRS = (SETTINGS.lr, 2 * SETTINGS.lr)  # the usual one first, as in all grids
KIND_LRS = (SETTINGS.lr, 1e-2, 5e-2, 0.2)  # (IA)^3 and virtual tokens take large ones
N_TASKS = 2  # of the stream, from its beginning
VALID_SHARE = 0.2  # of the rows to learn from, where a stream has no validation of its own
LEARNER = "sequential"  # what kinds of adapter are compared under

#: Of each strategy that has one: its weight by the name of its argument, and the values tried.
WEIGHTS: Mapping[str, tuple[str, tuple[Any, ...]]] = MappingProxyType(
    {
        "replay": ("ratio", (0.2, 0.1, 0.3)),
        "l2sp": ("strength", (0.1, 0.01, 0.001)),
        "l1sp": ("strength", (0.1, 0.03, 0.3)),
        "modular_l2sp": (
            "strengths",
            tuple({ATTENTION: w, MLP: 10 * w} for w in (0.03, 0.003, 0.0003)),
        ),
        "ewc": ("strength", (100.0, 1000.0, 10000.0)),
        "lwf": ("strength", (1.0, 0.3, 0.1)),
        "progressive_unfreezing": ("share", (0.5, 0.25, 0.75)),
        "bottom_freezing": ("share", (0.5, 0.25, 0.75)),
        "reptile": ("rate", (0.5, 0.25, 0.75)),
        "dapt": ("share", (0.3, 0.1, 0.5)),
        "mixed": ("ratio", (0.2, 0.1, 0.5)),
        "olora": ("weight", (0.5, 0.1, 5.0)),
        "inflora": ("energy", (0.95, 0.9, 0.98)),
        "osf": ("kept", (0.5, 0.8, 0.95)),
        "color": ("centroids", (5, 2, 20)),
        "contrastive": ("weight", (0.1, 0.01, 1.0)),
        "control": ("weight", (1.0, 0.1, 10.0)),
        "dann": ("weight", (0.1, 0.01, 1.0)),
    }
)

#: What varies another strategy in how it keeps things, and takes the settings chosen for that.
VARIANTS: Mapping[str, str] = MappingProxyType({"replay_quota": "replay", "ewc_online": "ewc"})
TUNED = tuple(name for name in STRATEGIES if name not in VARIANTS)


@dataclass(frozen=True)
class Trial:
    """One point of a grid.

    Attributes:
        lr: the learning rate.
        value: of the weight; None if there is none.
        score: on validation rows.
        seconds: of the trainings.
    """

    lr: float
    value: Any
    score: float
    seconds: float


@dataclass(frozen=True)
class Tuned:
    """What was tried of one strategy or kind of adapter.

    Attributes:
        name: of it.
        argument: the weight's; None if it has none.
        trials: in the order in which they were made.
    """

    name: str
    argument: str | None
    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial:
        """The first of those that scored highest."""
        return max(self.trials, key=lambda trial: trial.score)

    def arguments(self) -> dict[str, Any]:
        """The chosen weight, as a strategy takes it."""
        return {} if self.argument is None else {self.argument: self.best.value}


@dataclass(frozen=True, repr=False)
class Tuning:
    """Chosen settings, and all that was tried.

    Attributes:
        model: what learnt.
        tasks: those that were learnt, the first of the stream.
        n_valid: validation rows of them all.
        seed: of every training.
        settings: what all trainings share; the learning rate is each one's own.
        strategies, kinds: by name.
    """

    model: str
    tasks: tuple[str, ...]
    n_valid: int
    seed: int
    settings: TrainSettings
    strategies: Mapping[str, Tuned] = field(default_factory=dict)
    kinds: Mapping[str, Tuned] = field(default_factory=dict)

    def of(self, name: str) -> Tuned | None:
        """What was tried of a strategy, or of the one that it varies; None if nothing was."""
        return self.strategies.get(VARIANTS.get(name, name))

    def maker(self, name: str) -> Maker:
        """What makes a strategy with the weight chosen for it; its name if none was."""
        found = self.of(name)
        if found is None:
            return name
        return partial(cast(Callable[..., Strategy], STRATEGIES[name]), **found.arguments())

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Header and cells of a table: each point that was tried, the chosen ones marked."""
        cells = []
        for one in (*self.strategies.values(), *self.kinds.values()):
            for trial in one.trials:
                weight = "–" if one.argument is None else f"{one.argument} {shown(trial.value)}"
                mark = "chosen" if trial is one.best else ""
                cells.append([one.name, f"{trial.lr:g}", weight, f"{trial.score:.3f}", mark])
        return ["", "lr", "weight", "validation", ""], cells

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able data; `from_dict` reads it."""
        return {
            "model": self.model,
            "tasks": list(self.tasks),
            "n_valid": self.n_valid,
            "seed": self.seed,
            "settings": asdict(self.settings),
            "strategies": {name: asdict(one) for name, one in self.strategies.items()},
            "kinds": {name: asdict(one) for name, one in self.kinds.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Tuning:
        """The tuning that `to_dict` told of."""
        found = {
            part: {
                name: Tuned(
                    one["name"], one["argument"], tuple(Trial(**trial) for trial in one["trials"])
                )
                for name, one in data[part].items()
            }
            for part in ("strategies", "kinds")
        }
        return cls(
            data["model"],
            tuple(data["tasks"]),
            data["n_valid"],
            data["seed"],
            TrainSettings(**data["settings"]),
            **found,
        )

    def save(self, path: Path) -> None:
        """Writes `to_dict` as JSON."""
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n"
        path.write_text(text, encoding="utf-8", newline="\n")

    def __repr__(self) -> str:
        names = ", ".join([*self.strategies, *self.kinds])
        return f"Tuning({names}; {len(self.tasks)} tasks, {self.n_valid} validation rows)"


def shown(value: Any) -> str:
    """A weight, which may be one for each kind of module."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {one:g}" for name, one in value.items())
    return f"{value:g}"


def read_tuning(path: Path) -> Tuning:
    """What `Tuning.save` wrote.

    Raises:
        EditclError: there is no such file, or it holds something else.
    """
    if not path.is_file():
        raise EditclError(f"there is no file {path}; `editcl bench learn --tune` writes one.")
    try:
        return Tuning.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise EditclError(
            f"{path} holds no chosen settings ({type(problem).__name__}: {problem}); write it anew "
            "by `editcl bench learn --tune --out FILE`."
        ) from problem


def shipped_tuning() -> Tuning:
    """The settings chosen for the shipped stream on the embedded model."""
    return read_tuning(data_folder() / "streams" / "kinds-settings.json")


def validation(stream: Sequence[Task], *, seed: int = 0) -> tuple[Task, ...]:
    """The tasks with a share of what is learnt from in the stead of their tests."""
    found = []
    for task in stream:
        by_label = task.kind == CLASSIFICATION
        train, valid = split_examples(task.train, VALID_SHARE, seed=seed, by_label=by_label)
        if not valid:
            raise TaskError(
                f"task {task.name!r}",
                [f"{len(task.train)} examples leave none to choose settings on; give more."],
            )
        found.append(replace(task, train=train, test=valid))
    return tuple(found)


def tune(
    model: EditableModel,
    *,
    stream: Sequence[Task] | None = None,
    strategies: Sequence[str] = TUNED,
    kinds: Sequence[str] = KINDS,
    settings: TrainSettings = SETTINGS,
    n_tasks: int = N_TASKS,
    seed: int = 0,
) -> Tuning:
    """Tries the grids; the model is as before afterwards.

    Args:
        model: what learns.
        stream: tasks, whose tests are left alone; by default the shipped ones with the validation
            rows that ship.
        strategies: names of STRATEGIES; "joint" is the one training on all data, and VARIANTS
            are what they vary.
        kinds: of adapter.
        settings: what all trainings share.
        n_tasks: how many tasks are learnt, from the first on.
        seed: of all trainings.

    Raises:
        TaskError: a task is unfit, before anything is trained.
        EditclError: there is no such strategy or kind, or fewer than two tasks.
    """
    for name in strategies:
        if name not in STRATEGIES:
            raise EditclError(
                f"there is no strategy {name!r}; choose some of {', '.join(STRATEGIES)}."
            )
    adapters = [AdapterSettings(kind=kind) for kind in kinds]
    whole = shipped_stream(judged_by="valid") if stream is None else validation(stream, seed=seed)
    tasks = whole[:n_tasks]
    if len(tasks) < 2:
        raise EditclError(f"settings are chosen on {len(tasks)} tasks; forgetting takes two.")
    measures = Measures(general=False, survival=False)
    bench = Bench.of(model, tasks, settings, None, (seed,), measures)
    names = list(dict.fromkeys(VARIANTS.get(name, name) for name in strategies))
    found = {name: tune_strategy(bench, name) for name in progress(names, "tuning")}
    by_kind = {one.kind: tune_kind(bench, one) for one in progress(adapters, "tuning kinds")}
    n_valid = sum(len(task.test) for task in tasks)
    return Tuning(model.name, bench.names, n_valid, seed, settings, found, by_kind)


def tune_strategy(bench: Bench, name: str) -> Tuned:
    """All rates with the usual weight, then the other weights at the best rate."""
    argument, values = WEIGHTS.get(name, (None, (None,)))
    trials = [_tried(bench, name, argument, lr, values[0]) for lr in LRS]
    lr = Tuned(name, argument, tuple(trials)).best.lr
    trials += [_tried(bench, name, argument, lr, value) for value in values[1:]]
    return Tuned(name, argument, tuple(trials))


def tune_kind(bench: Bench, adapter: AdapterSettings) -> Tuned:
    """All rates, on the first task."""
    trials = []
    first = replace(
        bench, stream=bench.stream[:1], base=bench.base[:1], asked=bench.asked[:1], adapter=adapter
    )
    for lr in KIND_LRS:
        own = replace(first, settings=replace(bench.settings, lr=lr))
        run = one_run(own, Sequential, bench.seeds[0], None)
        trials.append(Trial(lr, None, run.metrics()["LA"], sum(run.seconds)))
    return Tuned(adapter.kind, None, tuple(trials))


def _tried(bench: Bench, name: str, argument: str | None, lr: float, value: Any) -> Trial:
    own, (seed,) = replace(bench, settings=replace(bench.settings, lr=lr)), bench.seeds
    if name == JOINT:
        joint = joint_run(own, seed)
        return Trial(lr, value, sum(joint.scores) / len(joint.scores), joint.seconds)
    make = cast(Callable[..., Strategy], STRATEGIES[name])
    arguments = {} if argument is None else {argument: value}
    run = one_run(own, partial(make, **arguments), seed, None)
    return Trial(lr, value, run.metrics()["OP"], sum(run.seconds))


__all__ = ["Tuning", "read_tuning", "shipped_tuning", "tune"]
