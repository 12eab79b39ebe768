"""Streams are scored as the definitions say, with real forgetting and real bounds."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import streams
import torch

import editcl
from editcl.errors import EditclError
from editcl.learning.comparison import StrategyComparison
from editcl.learning.kinds import AdapterSettings
from editcl.learning.lora import Adapters
from editcl.learning.predict import score_task
from editcl.learning.results import TOLD, StreamResult
from editcl.learning.runs import Measures
from editcl.learning.session import Route, Session
from editcl.learning.settings import TrainSettings
from editcl.learning.strategies import PerTask, Sequential, Strategy
from editcl.learning.stream import compare_strategies, evaluate_stream
from editcl.learning.tasks import TaskError
from editcl.learning.train import train
from editcl.model import EditableModel

SETTINGS = TrainSettings(steps=40, batch_size=6, lr=2e-2, autocast="off")
ADAPTER = AdapterSettings(rank=4)
BARE = Measures(general=False, survival=False)


def weights(model: EditableModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.hf.state_dict().items()}


@pytest.fixture(scope="module")
def forgetful(tokenizer, request) -> StreamResult:
    import tiny

    model = editcl.wrap(tiny.build("gpt2"), tokenizer)
    stream = streams.conflicting()
    return evaluate_stream(
        model, stream, "sequential", settings=SETTINGS, adapter=ADAPTER, seeds=(0, 1)
    )


def test_a_sequential_adapter_forgets_what_the_next_task_contradicts(
    forgetful: StreamResult,
) -> None:
    for run in forgetful.runs:
        assert run.scores[1][0] == run.scores[2][1] == 1.0
        assert run.scores[2][0] == 0.0
    assert forgetful.metrics()["BWT"].mean == -1.0
    assert forgetful.metrics()["OP"].mean == 0.5


def test_what_a_run_cost_is_recorded(forgetful: StreamResult) -> None:
    for run in forgetful.runs:
        assert len(run.seconds) == len(run.trained) == len(run.memory) == len(run.general) == 2
        assert min(run.seconds) > 0 and run.trained == run.adapters
        assert run.memory == (0, 0) and run.survival == ()
        assert run.general[0] != 0.0
    assert set(forgetful.costs()) == {"seconds", "trained", "adapters", "memory", "general"}


def test_each_row_is_what_training_by_hand_gives(
    model: EditableModel, forgetful: StreamResult
) -> None:
    session, strategy = Session(model, Adapters(model), settings=ADAPTER, seed=1), Sequential()
    stream = streams.conflicting()
    rows = [tuple(score_task(session, task).score for task in stream)]
    for task in stream:
        train(session, task, strategy, replace(SETTINGS, seed=1), show=False)
        route = strategy.adapters_for(session, None, ())
        rows.append(tuple(score_task(session, one, route).score for one in stream))
    assert forgetful.runs[1].scores == tuple(rows)


def test_a_result_comes_back_equal_from_json_and_reads_well(forgetful: StreamResult) -> None:
    assert StreamResult.from_dict(json.loads(forgetful.to_json())) == forgetful
    assert "after second" in repr(forgetful) and "BWT -1.000" in repr(forgetful)
    assert "<table>" in forgetful._repr_html_()
    frame = forgetful.to_frame()
    assert len(frame) == 2 * 3 * 2 and list(frame.query("after == 0").state) == ["base"] * 4
    assert not forgetful.routes and not forgetful.must_tell
    with pytest.raises(EditclError, match="no figure 'bars'"):
        forgetful.plot("bars")


def test_adapters_by_task_never_change_a_score_once_they_are_learnt(model: EditableModel) -> None:
    before = weights(model)
    result = evaluate_stream(
        model,
        streams.conflicting(),
        PerTask,
        settings=SETTINGS,
        adapter=ADAPTER,
        measures=replace(BARE, single=True, general=True),
    )
    (run,) = result.runs
    metrics = result.metrics()
    assert result.must_tell and metrics["BWT"].mean == metrics["forgetting"].mean == 0.0
    assert metrics["FWT"].mean == 0.0  # a task that isn't learnt is the base model's
    assert run.single == (1.0, 1.0) and metrics["intransigence"].mean == 0.0
    assert run.general == (0.0, 0.0)  # text of no task goes through the base
    assert run.adapters[1] == 2 * run.adapters[0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.hf.state_dict().items())
    assert model.hf.training is False


class FirstAlways(Strategy):
    """Adapters by task, but the first one wherever the task is not told."""

    name = "first_always"
    places = True

    def __init__(self) -> None:
        self.inner = PerTask()

    def place(self, session, task) -> None:
        self.inner.place(session, task)

    def adapters_for(self, session, task_name, rows) -> Route:
        if task_name is None:
            return Route(rows=(session.seen[0],) * len(rows))
        return self.inner.adapters_for(session, task_name, rows)


@pytest.fixture(scope="module")
def comparison(tokenizer) -> StrategyComparison:
    import tiny

    model = editcl.wrap(tiny.build("gpt2"), tokenizer)
    return compare_strategies(
        model,
        streams.conflicting(),
        ["sequential", "per_task", FirstAlways],
        settings=SETTINGS,
        adapter=ADAPTER,
        seeds=(0, 1),
        measures=BARE,
    )


def test_a_strategy_that_infers_the_task_is_judged_without_being_told_and_beside(
    comparison: StrategyComparison,
) -> None:
    result = comparison["first_always"]
    assert result.routes and not result.must_tell
    assert result.metrics()["OP"].mean == 0.5  # all prompts go to the first adapter
    assert result.metrics(told=True)["OP"].mean == 1.0
    names = [name for name, _, _ in comparison.lines()]
    assert names == ["sequential", "per_task" + TOLD, "first_always", "first_always" + TOLD]


def test_the_joint_training_sees_all_tasks_at_once(comparison: StrategyComparison) -> None:
    # The tasks contradict each other, so no single adapter can do both.
    assert comparison.bound is not None and comparison.bound.n == 2
    assert 0.3 <= comparison.bound.mean <= 0.7
    assert comparison.joint[0].trained == comparison["sequential"].runs[0].trained[0]


def test_a_strategy_can_have_settings_of_its_own(model: EditableModel) -> None:
    stream, still = streams.conflicting(), replace(SETTINGS, lr=1e-9)
    found = compare_strategies(
        model,
        stream,
        {"learns": Sequential, "stands": Sequential},
        settings=SETTINGS,
        own={"stands": still, "joint": still},
        adapter=ADAPTER,
        seeds=(0,),
        measures=BARE,
    )
    base = found["stands"].runs[0].scores[0]
    assert found["learns"].metrics()["LA"].mean == 1.0
    assert set(found["stands"].runs[0].scores) == {base}
    assert found.joint[0].scores == base
    with pytest.raises(EditclError, match="settings for 'replay', which is not compared"):
        compare_strategies(model, stream, ["sequential"], own={"replay": still})


def test_what_a_strategy_measures_itself_is_kept_with_the_run(model: EditableModel) -> None:
    found = evaluate_stream(
        model, streams.conflicting(), "dann", settings=SETTINGS, adapter=ADAPTER, measures=BARE
    )
    before, after = found.runs[0].measured["probes"]["second"]
    assert 0 <= after <= 1 and 0 <= before <= 1
    assert StreamResult.from_dict(json.loads(found.to_json())) == found


def test_the_joint_training_reaches_what_no_stream_must_lose(model: EditableModel) -> None:
    stream = (streams.labelling("first", ("red", "blue")),)
    easy = (*stream, replace(stream[0], name="again"))
    found = compare_strategies(
        model,
        easy,
        {"plain": "sequential"},
        settings=SETTINGS,
        adapter=ADAPTER,
        seeds=(0,),
        measures=BARE,
    )
    assert found.bound is not None and found.bound.mean == 1.0
    assert found.bound.deviation is None
    assert found["plain"].metrics()["OP"].mean == 1.0


def test_a_comparison_comes_back_equal_from_json_and_reads_well(
    comparison: StrategyComparison,
) -> None:
    assert StrategyComparison.from_dict(json.loads(comparison.to_json())) == comparison
    data = comparison.to_dict()
    assert data["strategies"]["sequential"]["metrics"]["OP"]["mean"] == 0.5
    assert data["joint"]["OP"]["n"] == 2
    frame = comparison.to_frame()
    assert list(frame.index)[-1] == "joint" and frame.loc["sequential", "BWT"] == -1.0
    assert frame.loc["sequential", "BWT_deviation"] == 0.0
    assert "per_task (task told)" in repr(comparison) and "joint" in comparison.to_markdown()
    assert "<table>" in comparison._repr_html_()
    with pytest.raises(EditclError, match="'ewc' was not compared, only sequential"):
        comparison["ewc"]
    with pytest.raises(EditclError, match="no figure"):
        comparison.plot("bars")


def test_edited_facts_are_watched_where_there_are_any(model: EditableModel) -> None:
    editcl.edit(model, "Eiffel Tower", "Rome", prompt="{} is in", method="rome", layer=1)
    result = evaluate_stream(
        model, streams.conflicting()[:1], "sequential", settings=SETTINGS, adapter=ADAPTER
    )
    assert len(result.runs[0].survival) == 1 and "survival" in result.costs()


def test_what_is_wrong_is_said_before_anything_is_trained(
    model: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    import editcl.learning.runs as runs

    def never(*_, **__):
        raise AssertionError("something was trained")

    monkeypatch.setattr(runs, "train", never)
    stream = streams.conflicting()
    untested = replace(stream[0], test=())
    for tasks, message in (
        ((), "no tasks"),
        ((stream[0], stream[0]), "two tasks are called 'first'"),
        ((untested, stream[1]), "task 'first' has no test"),
    ):
        with pytest.raises(TaskError, match=message):
            evaluate_stream(model, tasks, "sequential")
    with pytest.raises(EditclError, match="no strategy 'ewd'"):
        evaluate_stream(model, stream, "ewd")
    with pytest.raises(EditclError, match="every seed needs a fresh one"):
        evaluate_stream(model, stream, Sequential())  # type: ignore[arg-type]
    for seeds in ((), (1, 1)):
        with pytest.raises(EditclError, match="distinct ones"):
            evaluate_stream(model, stream, "sequential", seeds=seeds)
    with pytest.raises(EditclError, match="two strategies are called 'sequential'"):
        compare_strategies(model, stream, ["sequential", Sequential])
    with pytest.raises(EditclError, match="at least one strategy"):
        compare_strategies(model, stream, [])
    with pytest.raises(EditclError, match="joint=False"):
        compare_strategies(model, stream, ["joint"])
