"""Tasks: what can't be learnt is refused when the task is made."""

from __future__ import annotations

import pytest

from editcl.errors import EditclError
from editcl.learning.tasks import Example, Task, TaskError, check_stream, split_examples

A, B = Example("a is", "red"), Example("b is", "blue")


def test_labels_are_those_of_the_examples_in_their_order() -> None:
    task = Task("colours", (A, B, A), (B,), "classification")
    assert task.labels == ("red", "blue")
    assert "2 labels" in repr(task)


@pytest.mark.parametrize("arguments, message", [
    ({"train": ()}, "no examples to learn from"),
    ({"train": (A,)}, "one example to learn from"),
    ({"train": (A, Example("c is", "red")), "kind": "classification"}, "have the label 'red'"),
    ({"train": (A, B), "test": (Example("c is", "green"),), "kind": "classification"},
     "label 'green' of the test is in no example"),
    ({"train": (A, B), "kind": "classification", "labels": ("red", "blue", "green")},
     "no example to learn from has the listed label 'green'"),
    ({"train": (A, B), "kind": "classification", "labels": ("red",)}, "not listed in labels"),
    ({"train": (A, B), "labels": ("red",)}, "leave them out"),
    ({"train": (A, B), "kind": "poem"}, "no kind 'poem'"),
    ({"train": (A, B), "kind": "text"}, "2 examples of a text have a prompt"),
    ({"train": (Example("", "x"), B)}, "1 examples have no prompt"),
    ({"train": (A, B), "name": "a.b"}, "names adapters and files"),
    ({"train": (A, B), "name": " "}, "no name"),
    ({"train": (A, B), "max_tokens": 1}, "needs at least 2"),
])  # fmt: skip
def test_a_task_that_cannot_be_learnt_is_refused(arguments, message) -> None:
    with pytest.raises(EditclError, match=message):
        Task(**{"name": "bad"} | arguments)


def test_all_that_is_wrong_is_listed_at_once() -> None:
    with pytest.raises(TaskError) as caught:
        Task(
            "a/b", (Example("x", "red"), B), (Example("c is", "green"),), "classification", ("red",)
        )
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize("prompt, completion, message", [
    (3, "x", "its prompt is of type int"),
    ("x", None, "its completion is of type NoneType"),
    ("x", "  ", "nothing follows"),
    ("x", "\ud800", "lone surrogate"),
    ("x\0", "y", "its prompt has a NUL"),
])  # fmt: skip
def test_an_example_is_two_texts(prompt, completion, message) -> None:
    with pytest.raises(TaskError, match=message):
        Example(prompt, completion)


def test_two_tasks_of_one_name_make_no_stream() -> None:
    task = Task("one", (A, B))
    check_stream([task, Task("two", (A, B))])
    with pytest.raises(TaskError, match="two tasks are called 'one'"):
        check_stream([task, task])
    with pytest.raises(TaskError, match="no tasks"):
        check_stream([])


def test_a_split_takes_its_share_of_each_label_and_parts_no_equal_examples() -> None:
    examples = [Example(f"p{i // 2}", "red" if i < 60 else "blue") for i in range(80)]
    train, test = split_examples(examples, 0.2, seed=1, by_label=True)
    assert not set(train) & set(test)
    assert len(set(train)) + len(test) == 40
    assert [sum(e.completion == label for e in test) for label in ("red", "blue")] == [6, 2]
    assert (train, test) == split_examples(examples, 0.2, seed=1, by_label=True)
    assert test != split_examples(examples, 0.2, seed=2, by_label=True)[1]


def test_a_split_leaves_every_label_an_example_to_learn_from() -> None:
    train, test = split_examples([A, B], 0.9, seed=0, by_label=True)
    assert train == (A, B) and test == ()
    with pytest.raises(TaskError, match=r"not in \[0, 1\)"):
        split_examples([A, B], 1.0, seed=0)
