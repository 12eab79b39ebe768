"""CoLoR: centroids, routing without being told the task, abstaining; and who must be told."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lessons import QUICK, answered, labelled, session

from editcl.errors import EditclError
from editcl.learning.batches import encode_examples, visible
from editcl.learning.lora import BASE
from editcl.learning.predict import encode_test, score_with
from editcl.learning.session import Route
from editcl.learning.strategies import (
    STRATEGIES,
    CoLoR,
    PerTask,
    Replay,
    combine,
)
from editcl.learning.strategies.color import kmeans
from editcl.learning.tasks import Example, Task
from editcl.learning.train import train

TEXTS = tuple(Example("", f"The Colosseum is located in the city of Rome {i}") for i in range(8))
TASKS = (labelled("one"), answered("two"), Task("towers", TEXTS, TEXTS[:3], "text"))


@pytest.fixture(scope="module")
def learnt():
    own, strategy = session(), CoLoR()
    for task in TASKS:
        train(own, task, strategy, QUICK, show=False)
    return own, strategy


def naive_features(own, rows) -> np.ndarray:
    """The mean of what the base model unembeds, over the prompt, one row at a time."""
    found = []
    for row in rows:
        states = []
        handle = own.model.map.unembed.register_forward_pre_hook(
            lambda _, args, states=states: states.append(args[0])
        )
        with torch.no_grad():
            own.model.forward({"input_ids": torch.tensor([row.ids[: row.start]])})
        handle.remove()
        found.append(states[0][0].double().mean(0).numpy())
    return np.stack(found)


def test_rows_go_to_the_task_of_the_nearest_centroid(learnt) -> None:
    own, strategy = learnt
    kept = strategy.tensors()
    assert kept["centroids"].shape == (15, 32)
    for task in TASKS:
        rows = visible(encode_test(own.model, task), task.kind)
        features = naive_features(own, rows)
        away = np.linalg.norm(features[:, None] - kept["centroids"].double().numpy(), axis=2)
        expected = [TASKS[int(kept["owner"][i])].name for i in away.argmin(1)]
        route = strategy.adapters_for(own, None, rows)
        assert route.rows == tuple(expected)
        assert expected.count(task.name) >= 0.75 * len(rows), "prompts of tasks are told apart"


def test_it_is_judged_as_with_the_task_told_where_the_choice_is_right(learnt) -> None:
    own, strategy = learnt
    for task in TASKS:
        rows = visible(encode_test(own.model, task), task.kind)
        told, free = (score_with(own, strategy, task, known=known) for known in (True, False))
        right = strategy.adapters_for(own, None, rows).rows == (task.name,) * len(rows)
        if right:
            assert free.log_prob == pytest.approx(told.log_prob, abs=1e-4)
    assert strategy.adapters_for(own, "one", rows) == Route(("one",))
    assert strategy.adapters_for(own, "unknown", rows) == Route()
    assert CoLoR().adapters_for(own, None, rows) == Route()


def test_what_is_far_from_everything_goes_to_the_base(learnt) -> None:
    own, strategy = learnt
    far = encode_examples(own.model, [Example("埃菲尔铁塔位于巴黎市。 東京タワーは", "x")] * 2)
    near = encode_examples(own.model, TASKS[0].train, kind=TASKS[0].kind)
    assert BASE not in strategy.adapters_for(own, None, [*far, *near]).rows
    careful = CoLoR(abstain=1.001)
    careful.load(strategy.tensors(), strategy.state())
    names = careful.adapters_for(own, None, [*far, *near]).rows
    assert names[:2] == (BASE, BASE)
    assert BASE not in names[2:], "no training prompt is beyond the radius that it is in"
    assert CoLoR(abstain=1e-9).abstain == 1e-9


def test_completions_are_not_looked_at(learnt) -> None:
    own, strategy = learnt
    rows = [
        encode_examples(own.model, [Example("two 3: say Tower", answer)])[0]
        for answer in ("Paris", "one: the city is Rome")
    ]
    distance, nearest = strategy.nearest(own, rows)
    assert nearest[0] == nearest[1] and float(distance[0]) == pytest.approx(
        float(distance[1]), 1e-4
    )


def test_kmeans_finds_what_is_there_and_each_centroid_is_the_mean_of_its_points() -> None:
    generator = torch.Generator().manual_seed(1)
    middles = 10 * torch.randn(4, 6, generator=generator)
    points = middles.repeat_interleave(10, 0) + 0.1 * torch.randn(40, 6, generator=generator)
    found = kmeans(points, 4, generator=generator)
    expected = points.reshape(4, 10, 6).mean(1)
    order = torch.cdist(expected, found).argmin(1)
    torch.testing.assert_close(found[order], expected)
    cloud = torch.randn(50, 3, generator=generator)
    found = kmeans(cloud, 5, generator=generator)
    nearest = torch.cdist(cloud, found).argmin(1)
    for c in range(5):
        torch.testing.assert_close(found[c], cloud[nearest == c].mean(0), atol=1e-5, rtol=0)
    assert len(kmeans(torch.ones(6, 3), 5, generator=generator)) == 1
    assert len(kmeans(torch.tensor([[0.0], [1.0], [1.0]]), 5, generator=generator)) == 2


def test_old_adapters_are_untouched_and_memory_is_told(learnt) -> None:
    own, strategy = learnt
    assert own.adapters.names == tuple(task.name for task in TASKS)
    assert strategy.memory() >= 15 * 32 * 4


def test_a_strategy_says_whether_it_must_be_told() -> None:
    told = {name for name, make in STRATEGIES.items() if make().must_be_told}
    assert told == {"per_task"}
    assert combine(Replay(), PerTask()).must_be_told
    assert not combine(Replay(), CoLoR()).must_be_told


@pytest.mark.parametrize("make, message", [
    (lambda: CoLoR(0), "0 centroids"),
    (lambda: CoLoR(abstain=0.0), "abstains always"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(make, message) -> None:
    with pytest.raises(EditclError, match=message):
        make()
