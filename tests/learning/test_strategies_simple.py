"""Bounds, replay, and what combining means."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from lessons import QUICK, answered, labelled, session

from editcl.errors import EditclError
from editcl.learning.batches import Encoded, encode_examples
from editcl.learning.predict import score_with
from editcl.learning.session import Route, Session
from editcl.learning.strategies import (
    InstructionReplay,
    Joint,
    PerTask,
    Replay,
    Sequential,
    Strategy,
    combine,
    own_answers,
    title,
)
from editcl.learning.tasks import Example
from editcl.learning.train import train


def seen_rows(strategy: Strategy, tasks, settings=QUICK, own=None):
    """The session, and for each task the (rows of data, all rows) of each of its steps."""
    found: list[list[tuple[int, list]]] = []

    class Watch(Strategy):
        name = "watch"

        def examples(self, session, batch, step):
            found[-1].append((session.n_new, list(batch)))
            return batch

    own, watched = own or session(), combine(strategy, Watch())
    for task in tasks:
        found.append([])
        train(own, task, watched, settings, show=False)
    return own, found


def test_sequential_trains_one_adapter_on() -> None:
    own, strategy = session(), Sequential()
    train(own, labelled("one"), strategy, QUICK, show=False)
    first = own.adapters.state("shared")
    train(own, labelled("two"), strategy, QUICK, show=False)
    second = own.adapters.state("shared")
    assert own.adapters.names == ("shared",) and strategy.memory() == 0
    assert any(not torch.equal(first[name], second[name]) for name in first)
    assert strategy.adapters_for(own, "one", []) == Route(("shared",))
    assert Sequential().adapters_for(session(), "one", []) == Route()


def test_adapters_by_task_forget_nothing() -> None:
    own, strategy, task = session(), PerTask(), labelled("one")
    train(own, task, strategy, QUICK, show=False)
    before, state = score_with(own, strategy, task), own.adapters.state("one")
    train(own, labelled("two", ("red", "blue")), strategy, QUICK, show=False)
    assert score_with(own, strategy, task) == before
    assert all(torch.equal(t, state[name]) for name, t in own.adapters.state("one").items())
    with pytest.raises(EditclError, match="name the task"):
        strategy.adapters_for(own, None, [])


def test_joint_trains_anew_on_everything() -> None:
    tasks = (labelled("one"), answered("two"))
    settings = replace(QUICK, steps=None, epochs=1)
    _, found = seen_rows(Joint(), tasks, settings)
    assert [row.task for _, batch in found[0] for row in batch] == ["one"] * 24
    names = [row.task for _, batch in found[1] for row in batch]
    assert (names.count("one"), names.count("two")) == (24, 12)


def test_joint_starts_from_a_fresh_adapter() -> None:
    starts = []

    class Watch(Strategy):
        name = "watch"

        def begin(self, session, task):
            starts.append([p.detach().clone() for n, p in session.training.items() if "B" in n])

    own, strategy = session(), combine(Joint(), Watch())
    for name in ("one", "two"):
        train(own, labelled(name), strategy, QUICK, show=False)
    assert all(not tensor.any() for start in starts for tensor in start)


@pytest.fixture(scope="module")
def after_one() -> tuple[Session, list[Encoded]]:
    """A session, and rows of a task that it has learnt."""
    own = session()
    train(own, labelled("one"), Sequential(), replace(QUICK, steps=1), show=False)
    task = labelled("one")
    return own, encode_examples(own.model, task.train, kind=task.kind, task="one")


@pytest.mark.parametrize("keeps", ["reservoir", "quota"])
@pytest.mark.parametrize("ratio, size", [(0.2, 4), (0.1, 3), (0.3, 1), (0.25, 16), (1.5, 4)])
def test_the_ratio_is_kept_to_the_row_over_many_batches(after_one, ratio, size, keeps) -> None:
    own, rows = after_one
    replay = Replay(ratio, keeps=keeps)
    batch = [Encoded((1, 2), 1, "two")] * size
    own.n_new = size
    assert replay.examples(own, batch, 0) == batch, "there is nothing to replay yet"
    own.data = rows
    replay.end(own, labelled("one"))
    drawn: list[Encoded] = []
    for step in range(1000):
        found = replay.examples(own, batch, step)
        assert found[:size] == batch
        drawn += found[size:]
        assert len(drawn) == int(Fraction(str(ratio)) * size * (step + 1))
        assert len(found) - size in (int(ratio * size), int(ratio * size) + 1)
    assert set(drawn) == set(rows)


def test_replayed_rows_are_trained_on_with_the_task() -> None:
    _, found = seen_rows(Replay(0.25), (labelled("one"), answered("two", 30)))
    assert all(len(batch) == new for new, batch in found[0])
    for new, batch in found[1]:
        assert [row.task for row in batch] == ["two"] * new + ["one"]


def test_a_memory_is_bounded_and_tells_its_size() -> None:
    replay = Replay(capacity=10)
    seen_rows(replay, (labelled("one"), answered("two")))
    assert len(replay.tensors()["places"]) == 10
    assert replay.memory() > replay.tensors()["ids"].numel() * 4
    again = Replay(capacity=10)
    again.load(replay.tensors(), replay.state())
    assert again.state() == replay.state()
    assert all(torch.equal(t, replay.tensors()[name]) for name, t in again.tensors().items())


def test_instructions_are_replayed_from_the_first_task_on() -> None:
    pool = [Example(f"Who is {i}?", f"It is {i}") for i in range(3)]
    strategy = InstructionReplay(pool, 0.5)
    _, (first,) = seen_rows(strategy, (labelled("one"),))
    assert [len(batch) - new for new, batch in first] == [2] * 6
    assert {row.task for new, batch in first for row in batch[new:]} == {""}
    assert strategy.memory() == sum(len(e.prompt) + len(e.completion) for e in pool)


def test_a_pool_of_own_answers_holds_what_the_model_says(model) -> None:
    pool = own_answers(model, ["The city of", "The Tower is"], max_new_tokens=4)
    assert [example.prompt for example in pool] == ["The city of", "The Tower is"][: len(pool)]
    said = model.generate(["The city of"], 4)[0]
    assert not said.strip() or pool[0].completion == said


def test_ratios_add_up_when_replays_are_combined() -> None:
    pool = [Example("Who is it?", "It is I"), Example("Who?", "I")]
    both = combine(Replay(0.25), InstructionReplay(pool, 0.5))
    _, found = seen_rows(both, (labelled("one"), labelled("two")))
    assert [len(batch) - new for new, batch in found[1]] == [3] * 6
    assert title(both) == "replay + instruction_replay"


def test_combining_runs_every_hook_of_each_in_order() -> None:
    calls = []

    def recorder(mark: str) -> Strategy:
        class Record(Strategy):
            name = mark

            def __getattribute__(self, hook):
                if hook in ("dataset", "begin", "around", "before_step", "examples", "penalty",
                            "after_backward", "after_step", "end"):  # fmt: skip
                    calls.append((hook, mark))
                return super().__getattribute__(hook)

        return Record()

    train(
        session(), labelled("one"), combine(recorder("a"), recorder("b")), replace(QUICK, steps=1),
        show=False,
    )  # fmt: skip
    hooks = ["dataset", "begin", "around", "before_step", "examples", "penalty", "after_backward",
             "after_step", "end"]  # fmt: skip
    assert calls == [(hook, mark) for hook in hooks for mark in "ab"]


def test_terms_of_one_name_are_told_apart() -> None:
    class Weigh(Strategy):
        name = "weigh"

        def penalty(self, session, output):
            return {"weigh": output.loss * 0 + 1.0}

    result = train(
        session(), labelled("one"), combine(Weigh(), Weigh()), replace(QUICK, steps=2), show=False
    )
    assert list(result.penalties.values()) == [(1.0, 1.0), (1.0, 1.0)]


def test_two_strategies_that_choose_adapters_do_not_combine() -> None:
    with pytest.raises(EditclError, match="per_task and joint each choose the adapters"):
        combine(PerTask(), Joint())
    with pytest.raises(EditclError, match="nothing to combine"):
        combine()
    assert isinstance(combine(PerTask()), PerTask)


@pytest.mark.parametrize("make, message", [
    (lambda: Replay(0), r"ratio of 0 is not in \(0, 10\]"),
    (lambda: Replay(capacity=0), "keeps nothing"),
    (lambda: Replay(keeps="all"), "can't keep 'all'"),
    (lambda: InstructionReplay([]), "pool of instructions is empty"),
])  # fmt: skip
def test_strategies_that_make_no_sense_are_refused(make, message) -> None:
    with pytest.raises(EditclError, match=message):
        make()
