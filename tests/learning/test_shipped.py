"""The shipped stream is what its generator writes, and is fit for what it is for."""

from __future__ import annotations

from editcl.embedded import data_folder
from editcl.learning import shipped
from editcl.learning.runs import encode_rows
from editcl.learning.shipped import (
    KINDS,
    TASKS,
    TEST,
    TRAIN,
    VALID,
    shipped_stream,
    write_stream,
)
from editcl.loading import load


def test_the_files_are_what_the_generator_writes(tmp_path) -> None:
    write_stream(tmp_path)
    own = data_folder() / "streams" / "kinds"
    names = sorted(path.name for path in own.iterdir())
    assert names == sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 3 * len(TASKS)
    for name in names:
        assert (own / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_it_has_four_tasks_in_the_order_of_the_folder() -> None:
    stream = shipped_stream()
    assert [task.name for task in stream] == list(TASKS) == sorted(TASKS) and len(stream) == 4
    for task in stream:
        assert len(task.train) == len(KINDS) * TRAIN and len(task.test) == len(KINDS) * TEST
        answers = TASKS[task.name][1]
        assert {example.completion for example in (*task.train, *task.test)} == set(answers)


def test_no_subject_of_test_or_validation_is_learnt_from_in_any_task() -> None:
    stream = shipped_stream()
    pool = {subject for subjects in shipped.subjects_by_kind().values() for subject in subjects}

    def subjects(task, part) -> set[str]:
        before, after = TASKS[task.name][0].split("{}")
        found = {example.prompt[len(before) :] for example in part}
        return {text.removesuffix(after) for text in found}

    chosen_on = shipped_stream(judged_by="valid")
    assert [task.train for task in chosen_on] == [task.train for task in stream]
    learnt = {subject for task in stream for subject in subjects(task, task.train)}
    judged = {subject for task in stream for subject in subjects(task, task.test)}
    valid = {subject for task in chosen_on for subject in subjects(task, task.test)}
    assert not learnt & judged and not valid & (learnt | judged)
    assert learnt | judged | valid <= pool
    assert len(valid) == len(KINDS) * VALID
    assert len(learnt) == len(KINDS) * TRAIN and len(judged) == len(KINDS) * TEST


def test_answers_of_different_tasks_are_different_and_prompts_tell_tasks_apart() -> None:
    answers = [answer for _, own in TASKS.values() for answer in own]
    assert len(set(answers)) == len(answers) == len(KINDS) * len(TASKS)
    prompts = [example.prompt for task in shipped_stream() for example in task.test]
    assert len(set(prompts)) == len(prompts)


def test_rows_are_short() -> None:
    model = load()
    assert max(len(row.ids) for task in shipped_stream() for row in encode_rows(model, task)) <= 16


def test_subjects_are_of_one_kind() -> None:
    found = shipped.subjects_by_kind()
    assert "Marie Curie" in found["person"] and "Mombasa" in found["city"]
    assert all(len(subjects) >= TRAIN + TEST for subjects in found.values())
    seen = [subject for subjects in found.values() for subject in subjects]
    assert len(set(seen)) == len(seen)
