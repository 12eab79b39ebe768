"""Tasks from files: layouts, and every problem with its place."""

from __future__ import annotations

import json

import pytest

from editcl.errors import EditclError, TableError
from editcl.learning.task_files import read_stream, read_task
from editcl.learning.tasks import Example, TaskError


def written(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


ANSWERS = [{"prompt": f"Q{i}?", "completion": f"a{i}"} for i in range(10)]
LABELS = [{"task": "mood", "text": f"day {i} ", "label": ("good", "bad")[i % 2]} for i in range(10)]


def test_prompts_and_completions_are_a_completion_task(tmp_path) -> None:
    task = read_task(written(tmp_path / "quiz.jsonl", ANSWERS), seed=3)
    assert (task.name, task.kind, len(task.train), len(task.test)) == ("quiz", "completion", 8, 2)
    assert Example("Q0?", "a0") in task.train + task.test


def test_texts_and_labels_are_a_classification_named_by_its_column(tmp_path) -> None:
    task = read_task(written(tmp_path / "x.jsonl", LABELS), prompt="{text}. Mood:")
    assert (task.name, task.kind, task.labels) == ("mood", "classification", ("good", "bad"))
    assert Example("day 0. Mood:", "good") in task.train + task.test
    assert sorted(example.completion for example in task.test) == ["bad", "good"]


def test_texts_alone_are_to_be_modelled(tmp_path) -> None:
    task = read_task(written(tmp_path / "t.jsonl", [{"text": f"text {i}"} for i in range(5)]))
    assert task.kind == "text" and all(example.prompt == "" for example in task.train)


def test_csv_and_jsonl_say_the_same(tmp_path) -> None:
    path = tmp_path / "quiz.csv"
    path.write_text("prompt,completion\n" + "\n".join(f"Q{i}?,a{i}" for i in range(10)))
    assert read_task(path) == read_task(written(tmp_path / "quiz.jsonl", ANSWERS))


def test_every_bad_row_is_told_with_its_place(tmp_path) -> None:
    rows = [
        {"prompt": "a", "completion": 7},
        {"prompt": "a", "completion": ""},
        {"completion": "x"},
        {"prompt": "a", "completion": "x\0"},
        {"prompt": "a", "completion": "fine"},
    ]
    with pytest.raises(TableError) as caught:
        read_task(written(tmp_path / "bad.jsonl", rows))
    problems = caught.value.problems
    assert len(problems) == 4
    assert (
        "record 0 (line 1), column 'completion': it is no text but a value of type int"
        in (problems[0])
    )
    assert "record 1 (line 2), column 'completion': it is empty" in problems[1]
    assert "record 2 (line 3), column 'prompt': it is missing" in problems[2]
    assert "record 3 (line 4), column 'completion': it holds a NUL" in problems[3]


@pytest.mark.parametrize("name, text, message", [
    ("a.jsonl", "", "the file is empty"),
    ("a.jsonl", '{"question": "x", "answer": "y"}', "column 'question'"),
    ("a.jsonl", '{"prompt": "x"}', "give it prompt and completion, text and label, or text alone"),
    ("a.jsonl", '{"prompt": "x", "completion": "y"}', "one example to learn from"),
    ("a.jsonl", '{"prompt": "x"', "no valid JSON"),
    ("a.csv", "prompt,completion\nx", "the row has 1 cells, the header 2"),
    ("a.csv", "prompt,completion\n", "no examples in it"),
    ("a.txt", "x", "files that end in '.txt' are not read"),
])  # fmt: skip
def test_files_that_hold_no_task_are_refused(tmp_path, name, text, message) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(EditclError, match=message):
        read_task(tmp_path / name, test_share=0.0)


def test_what_is_no_file_is_called_so_whatever_its_name_ends_in(tmp_path) -> None:
    for place, message in (
        (tmp_path, "this is a directory"),
        ("https://example.org/tasks", "this is a URL"),
        (tmp_path / "none", "can't be opened"),
    ):
        with pytest.raises(TableError, match=message):
            read_task(place)


def test_a_file_of_several_tasks_is_refused_unless_named(tmp_path) -> None:
    rows = LABELS + [row | {"task": "other"} for row in LABELS]
    path = written(tmp_path / "x.jsonl", rows)
    with pytest.raises(TaskError, match="of several tasks"):
        read_task(path)
    assert read_task(path, name="both").name == "both"


def test_a_folder_of_train_and_test_files_is_a_stream(tmp_path) -> None:
    for name in ("b", "a"):
        written(tmp_path / f"{name}.train.jsonl", LABELS)
        written(tmp_path / f"{name}.test.jsonl", LABELS[:4])
    written(tmp_path / "c.jsonl", ANSWERS)
    (tmp_path / "README.md").write_text("no task")
    stream = read_stream(tmp_path)
    assert [(t.name, len(t.train), len(t.test)) for t in stream] == [
        ("a", 10, 4), ("b", 10, 4), ("c", 8, 2),
    ]  # fmt: skip
    assert [task.name for task in read_stream(tmp_path, order=["c", "a"])] == ["c", "a"]
    with pytest.raises(EditclError, match="no task 'd'; it has a, b, c"):
        read_stream(tmp_path, order=["d"])


def test_a_validation_file_judges_where_it_is_asked_for_and_is_no_task(tmp_path) -> None:
    written(tmp_path / "a.train.jsonl", LABELS)
    written(tmp_path / "a.test.jsonl", LABELS[:4])
    written(tmp_path / "a.valid.jsonl", LABELS[4:6])
    (tested,), (judged,) = read_stream(tmp_path), read_stream(tmp_path, judged_by="valid")
    assert tested.name == judged.name == "a" and tested.train == judged.train
    assert tested.test == tested.train[:4] and judged.test == tested.train[4:6]
    written(tmp_path / "b.jsonl", LABELS)
    with pytest.raises(EditclError, match=r"holds no b.valid.\*"):
        read_stream(tmp_path, judged_by="valid")


def test_folders_without_a_stream_are_refused(tmp_path) -> None:
    with pytest.raises(EditclError, match="holds no tasks"):
        read_stream(tmp_path)
    with pytest.raises(EditclError, match="is no folder"):
        read_stream(tmp_path / "absent")
    written(tmp_path / "a.test.jsonl", LABELS)
    with pytest.raises(TaskError, match=r"no file a.train.\* beside it"):
        read_stream(tmp_path)
    written(tmp_path / "a.train.jsonl", LABELS)
    (tmp_path / "a.train.csv").write_text("text,label\nx,y\n")
    with pytest.raises(TaskError, match="both hold it"):
        read_stream(tmp_path)


def test_labels_unseen_in_training_are_refused(tmp_path) -> None:
    written(tmp_path / "a.train.jsonl", LABELS)
    written(tmp_path / "a.test.jsonl", [{"text": "x", "label": "unheard"}])
    with pytest.raises(TaskError, match="label 'unheard' of the test"):
        read_stream(tmp_path)


def test_the_published_stream_is_read(shared) -> None:
    stream = read_stream(shared("datasets/clbench"), order=["dbpedia", "agnews", "yelp"])
    assert [len(task.labels) for task in stream] == [14, 4, 5]
    assert [len(task.train) for task in stream] == [1960, 2000, 2000]
    assert stream[1].train[0].prompt.endswith("\nLabel:")
