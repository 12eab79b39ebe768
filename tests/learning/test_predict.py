"""Scores against one row at a time, and greedy decoding token by token."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lessons import QUICK, answered, labelled, session

from editcl.learning.batches import encode_examples
from editcl.learning.predict import label_log_probs, score_task, score_with
from editcl.learning.session import Route
from editcl.learning.strategies import Control, PerTask
from editcl.learning.tasks import Example, Task, TaskError
from editcl.learning.train import train
from editcl.model import EditableModel

LABELS = ("very red", "red", "very red wine", "blue", "very")


def naive_log_prob(own, row, names) -> float:
    with torch.no_grad(), own.adapters.using(names):
        logits = own.adapters.view.forward({"input_ids": torch.tensor([row.ids])})[0].float()
    log_probs = logits.log_softmax(-1)
    places = range(row.start, len(row.ids))
    return sum(float(log_probs[at - 1, row.ids[at]]) for at in places) / row.n_targets


@pytest.fixture(scope="module")
def learnt():
    own, strategy = session(), PerTask()
    task = labelled("one", LABELS)
    for each in (task, answered("two")):
        train(own, each, strategy, replace(QUICK, steps=30), show=False)
    return own, strategy, task


@pytest.mark.parametrize("names", [(), ("one",), ("one", "two")])
def test_labels_are_judged_by_their_mean_log_probability(learnt, names) -> None:
    own, _, task = learnt
    found = label_log_probs(own.adapters, task, task.test, Route(names), tokens_per_batch=100)
    for i, example in enumerate(task.test):
        rows = encode_examples(
            own.model, [Example(example.prompt, label) for label in LABELS], kind="classification"
        )
        naive = [naive_log_prob(own, row, names) for row in rows]
        assert found[i].tolist() == pytest.approx(naive, abs=1e-4)
    score = score_task(own, task, names)
    best = [LABELS[i] for i in found.argmax(1)]
    assert score.predicted == tuple(best)
    right = [label == example.completion for label, example in zip(best, task.test, strict=True)]
    assert score.correct == tuple(right) and score.score == sum(right) / len(right)


def test_each_row_is_judged_through_its_own_adapter(learnt) -> None:
    own, _, task = learnt
    names = tuple(("one", "two", "__base__")[i % 3] for i in range(len(task.test)))
    mixed = score_task(own, task, Route(rows=names), tokens_per_batch=60)
    for i, name in enumerate(names):
        single = score_task(own, task, () if name == "__base__" else (name,))
        assert mixed.log_probs[i] == pytest.approx(single.log_probs[i], abs=1e-4)


def greedy(own, ids, n, names) -> list[int]:
    ids = list(ids)
    with torch.no_grad(), own.adapters.using(names):
        for _ in range(n):
            logits = own.adapters.view.forward({"input_ids": torch.tensor([ids])})
            ids.append(int(logits[0, -1].argmax()))
    return ids[-n:]


def test_completions_are_exact_where_greedy_decoding_says_them() -> None:
    own, task = session(), answered("two")
    train(own, task, PerTask(), replace(QUICK, steps=60), show=False)
    score = score_task(own, task, ("two",))
    rows = encode_examples(own.model, task.test)
    said = [greedy(own, row.ids[: row.start], row.n_targets, ("two",)) for row in rows]
    naive = [tuple(new) == row.ids[row.start :] for new, row in zip(said, rows, strict=True)]
    assert score.correct == tuple(naive) and score.score == sum(naive) / len(naive)
    assert score.score > 0
    means = [naive_log_prob(own, row, ("two",)) for row in rows]
    assert list(score.log_probs) == pytest.approx(means, abs=1e-4)
    assert score.log_prob == pytest.approx(sum(means) / len(means), abs=1e-4)
    assert score_task(own, task).score == 0.0


def test_texts_are_judged_by_the_logarithm_of_perplexity() -> None:
    own = session()
    texts = tuple(Example("", "The Eiffel Tower is in " + "Paris " * i) for i in range(1, 5))
    task = Task("towers", texts, texts, "text")
    rows = encode_examples(own.model, texts, kind="text")
    total = sum(naive_log_prob(own, row, ()) * row.n_targets for row in rows)
    wanted = total / sum(row.n_targets for row in rows)
    assert score_task(own.adapters, task).score == pytest.approx(wanted, abs=1e-4)


def test_a_strategy_says_which_adapters_predict(learnt) -> None:
    own, strategy, task = learnt
    assert score_with(own, strategy, task) == score_task(own, task, ("one",))
    assert "TaskScore(" in repr(score_with(own, strategy, task))
    unseen = labelled("unseen")
    assert score_with(own, strategy, unseen) == score_task(own, unseen)


def test_prompts_that_are_too_long_lose_their_middle_in_judging_too() -> None:
    own = session()
    long = tuple(Example("Music " * 99 + str(i), ("red", "blue")[i % 2]) for i in range(4))
    task = Task("long", long, long, "classification", max_tokens=30)
    assert len(score_task(own, task).log_probs) == 4
    with pytest.raises(TaskError, match="the model takes at most"):
        score_task(own, replace(task, max_tokens=None))


def test_a_task_without_a_test_is_not_judged() -> None:
    with pytest.raises(TaskError, match="has no test"):
        score_task(session(), replace(labelled("one"), test=()))


@pytest.mark.parametrize("kind", ["prefix", "prompt", "ia3"])
def test_labels_behind_virtual_tokens_are_judged_without_a_cache(kind) -> None:
    own, task = session(kind=kind), labelled("one", LABELS)
    train(own, task, PerTask(), QUICK, show=False)
    found = label_log_probs(own.adapters, task, task.test[:2], Route(("one",)))
    for i, example in enumerate(task.test[:2]):
        asked = [Example(example.prompt, label) for label in LABELS]
        rows = encode_examples(own.model, asked, kind="classification")
        naive = [naive_log_prob(own, row, ("one",)) for row in rows]
        assert found[i].tolist() == pytest.approx(naive, abs=1e-4)


def test_labels_are_judged_inside_of_what_a_strategy_does_to_the_blocks() -> None:
    own, task = session(), labelled("one", LABELS)
    strategy = Control()
    train(own, task, strategy, replace(QUICK, steps=20), show=False)
    with strategy.around(own):
        found = label_log_probs(own.adapters, task, task.test, Route(("shared",)))
        for i, example in enumerate(task.test):
            asked = [Example(example.prompt, label) for label in LABELS]
            rows = encode_examples(own.model, asked, kind="classification")
            naive = [naive_log_prob(own, row, ("shared",)) for row in rows]
            assert found[i].tolist() == pytest.approx(naive, abs=1e-4)


def test_prompts_run_once_for_all_labels(learnt, monkeypatch) -> None:
    own, _, task = learnt
    n_tokens = []
    forward = EditableModel.forward_caching

    def counting(self, inputs, **options):
        n_tokens.append(inputs["input_ids"].numel())
        return forward(self, inputs, **options)

    monkeypatch.setattr(EditableModel, "forward_caching", counting)
    label_log_probs(own.adapters, task, task.test, Route(("one",)))
    rows = encode_examples(
        own.model, [Example(e.prompt, label) for e in task.test for label in LABELS], kind=task.kind
    )
    assert 0 < sum(n_tokens) < 0.6 * sum(len(row.ids) for row in rows)
