"""Streams: a strategy learns tasks one after another and is judged on all of them after each.

For each seed a fresh bank, session and strategy; row 0 of the score matrix is the base model, row t
the state after task t. Seconds, parameters, memory, general text and logged facts are recorded
beside the scores. Knows nothing of what strategies do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from editcl.errors import EditclError
from editcl.learning.comparison import StrategyComparison
from editcl.learning.kinds import AdapterSettings
from editcl.learning.results import StreamResult, StreamRun
from editcl.learning.runs import JOINT, Bench, Measures, joint_run, one_run, single_scores
from editcl.learning.settings import TrainSettings
from editcl.learning.strategies import STRATEGIES, Strategy, title
from editcl.learning.tasks import Task
from editcl.model import EditableModel
from editcl.progress import progress

#: A name in STRATEGIES, or what makes a fresh strategy.
Maker: TypeAlias = str | Callable[[], Strategy]


def evaluate_stream(
    model: EditableModel,
    stream: Sequence[Task],
    strategy: Maker,
    *,
    settings: TrainSettings | None = None,
    adapter: AdapterSettings | None = None,
    seeds: Sequence[int] = (0,),
    measures: Measures | None = None,
    show_progress: bool = True,
) -> StreamResult:
    """Runs a strategy over a stream, once for each seed.

    Args:
        model: what learns; it is as before afterwards.
        stream: tasks with tests, in the order in which they are learnt.
        strategy: its name, or what makes a fresh one (such as `lambda: Replay(0.3)`).
        settings: of every training; the seed is that of the run.
        adapter: settings of the adapters.
        seeds: of the runs.
        measures: what is measured beside scores.
        show_progress: show a progress bar once two seconds have passed.

    Raises:
        TaskError: the stream is empty or unfit, before anything is trained.
        EditclError: there is no such strategy, or no seeds.
    """
    bench = Bench.of(model, stream, settings, adapter, seeds, measures)
    make = _makers([strategy])
    ((name, maker),) = make.items()
    single = single_scores(bench, show_progress=show_progress)
    runs = []
    for seed in progress(bench.seeds, f"{name} on {len(stream)} tasks", show=show_progress):
        runs.append(one_run(bench, maker, seed, single.get(seed)))
    return bench.result(name, runs, maker().must_be_told)


def compare_strategies(
    model: EditableModel,
    stream: Sequence[Task],
    strategies: Sequence[Maker] | Mapping[str, Maker],
    *,
    settings: TrainSettings | None = None,
    own: Mapping[str, TrainSettings] | None = None,
    adapter: AdapterSettings | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    joint: bool = True,
    measures: Measures | None = None,
    show_progress: bool = True,
) -> StrategyComparison:
    """Runs several strategies over the same stream with the same seeds.

    Args:
        model: what learns; it is as before afterwards.
        stream: tasks with tests, in the order in which they are learnt.
        strategies: names or makers, or makers by name.
        settings: of every training; the seed is that of the run.
        own: settings in the stead of those, by the name of the strategy or "joint".
        adapter: settings of the adapters.
        seeds: of the runs.
        joint: trains once on the data of all tasks, in as many steps as the stream takes: the
            upper bound.
        measures: what is measured beside scores.
        show_progress: show a progress bar once two seconds have passed.

    Raises:
        TaskError: the stream is empty or unfit, before anything is trained.
        EditclError: there is no such strategy, two have one name, or there are no seeds; or
            settings are for a strategy that isn't compared.
    """
    makers, own = _makers(strategies), own or {}
    for name in own:
        if name not in makers and name != JOINT:
            raise EditclError(
                f"there are settings for {name!r}, which is not compared; compared are "
                f"{', '.join(makers)}."
            )
    if joint and JOINT in makers:
        raise EditclError(
            "the joint training is made anyway, once for each seed: leave it out of the "
            "strategies, or pass joint=False."
        )
    bench = Bench.of(model, stream, settings, adapter, seeds, measures)
    by_name = {name: replace(bench, settings=found) for name, found in own.items()}
    single = single_scores(bench, show_progress=show_progress)
    work = [(name, seed) for name in makers for seed in bench.seeds]
    runs: dict[str, list[StreamRun]] = {name: [] for name in makers}
    for name, seed in progress(work, f"{len(makers)} strategies", show=show_progress):
        bench_of = by_name.get(name, bench)
        runs[name].append(one_run(bench_of, makers[name], seed, single.get(seed)))
    found = [bench.result(name, runs[name], make().must_be_told) for name, make in makers.items()]
    wanted = bench.seeds if joint else ()
    at_once = by_name.get(JOINT, bench)
    bound = [joint_run(at_once, seed) for seed in progress(wanted, "joint", show=show_progress)]
    return StrategyComparison(model.name, bench.names, tuple(found), tuple(bound))


# -- names --------------------------------------------------------------------------------------


def _makers(strategies: Sequence[Maker] | Mapping[str, Maker]) -> dict[str, Callable[[], Strategy]]:
    """Makers by the name under which results stand."""
    if isinstance(strategies, str) or not strategies:
        raise EditclError("give a list of at least one strategy, or makers by name.")
    if isinstance(strategies, Mapping):
        return {name: _maker(one) for name, one in strategies.items()}
    found: dict[str, Callable[[], Strategy]] = {}
    for one in strategies:
        maker = _maker(one)
        name = one if isinstance(one, str) else title(maker())
        if name in found:
            raise EditclError(
                f"two strategies are called {name!r}: pass a mapping from names to makers."
            )
        found[name] = maker
    return found


def _maker(one: Maker) -> Callable[[], Strategy]:
    if isinstance(one, Strategy):
        raise EditclError(
            f"{title(one)} is a strategy object, which remembers what it has learnt; every seed "
            "needs a fresh one. Pass what makes it: its name, its class or a lambda."
        )
    if not isinstance(one, str):
        return one
    if one not in STRATEGIES:
        raise EditclError(f"there is no strategy {one!r}; choose one of {', '.join(STRATEGIES)}.")
    return STRATEGIES[one]
