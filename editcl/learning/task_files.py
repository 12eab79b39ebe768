"""Tasks from files: JSON Lines and CSV (or relatives), one task a file or a stream in a folder.

A row is one of

    prompt, completion    an answer to be learnt
    text, label           a text and its class; the template makes a prompt of the text
    text                  plain text to model

All rows are read and all problems collected before any is raised. Knows nothing of models.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from editcl.errors import EditclError
from editcl.learning.tasks import (
    CLASSIFICATION,
    COMPLETION,
    TEXT,
    Example,
    Task,
    TaskError,
    check_stream,
    split_examples,
)
from editcl.readers.delimited import read_delimited
from editcl.readers.files import decode, read_bytes
from editcl.readers.problems import Place, Problems, is_broken, printable, shown
from editcl.readers.records import read_json, read_json_lines

PROMPT = "{text}\nLabel:"
FIELDS = ("prompt", "completion", "text", "label", "task")
MAX_CELL = 100_000  # characters
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")
PARTS = ("train", "test", "valid")
Judge: TypeAlias = Literal["test", "valid"]
_COLUMNS = {
    COMPLETION: ("prompt", "completion"),
    CLASSIFICATION: ("text", "label"),
    TEXT: ("text",),
}


@dataclass(frozen=True)
class _File:
    """What a file holds.

    Attributes:
        kind: told by the columns.
        examples: in order.
        tasks: the names that a column `task` gives.
    """

    kind: str
    examples: tuple[Example, ...]
    tasks: tuple[str, ...]


def read_task(
    path: str | os.PathLike[str],
    *,
    test: str | os.PathLike[str] | None = None,
    name: str | None = None,
    prompt: str = PROMPT,
    test_share: float = 0.2,
    max_tokens: int | None = None,
    seed: int = 0,
) -> Task:
    """Reads a task.

    Args:
        path: .jsonl, .json (a list), .csv or .tsv with the columns prompt and completion, text and
            label, or text; a column `task` may name the task, the others are refused.
        test: a file of the same kind that judges it; without one, a share of the rows does.
        name: of the task; by default as the column `task` has it, or the file's name up to its
            first dot.
        prompt: what becomes of the text of a classification: `{text}` is put in.
        test_share: drawn by seed, of each label alike; equal rows stay together.
        max_tokens: see Task.
        seed: of what is drawn.

    Raises:
        TableError: a file can't be read, or rows of it; lists every problem with its place.
        TaskError: what is read can't be learnt.
    """
    found = _read(path, prompt)
    named = name or _own_name(found, Path(path))
    if test is None:
        by_label = found.kind == CLASSIFICATION
        train, judging = split_examples(found.examples, test_share, seed=seed, by_label=by_label)
    else:
        other = _read(test, prompt)
        if other.kind != found.kind:
            raise TaskError(
                f"task {named!r}",
                [f"{path} is of kind {found.kind}, {test} of kind {other.kind}; make them alike."],
            )
        train, judging = found.examples, other.examples
    return Task(named, train, judging, kind=found.kind, max_tokens=max_tokens)


def read_stream(
    folder: str | os.PathLike[str],
    *,
    order: Sequence[str] | None = None,
    prompt: str = PROMPT,
    test_share: float = 0.2,
    max_tokens: int | None = None,
    seed: int = 0,
    judged_by: Judge = "test",
) -> tuple[Task, ...]:
    """Reads a folder of tasks: `<task>.train.jsonl` with `<task>.test.jsonl`, or `<task>.jsonl`.

    Args:
        folder: its other files are no concern of this; suffixes may be those of `read_task`.
        order: names of the tasks to read, in this order; by default all, by name.
        judged_by: "valid" puts `<task>.valid.jsonl` in the stead of the test.
        prompt, test_share, max_tokens, seed: see `read_task`.

    Raises:
        EditclError: there is no such folder, no task in it, or none of a name in `order`; or a
            task has no validation where it is asked for.
        TableError, TaskError: as `read_task`; or two files make tasks of one name.
    """
    place = Path(folder)
    if not place.is_dir():
        raise EditclError(f"{folder} is no folder; name one that holds files of tasks.")
    files = _files(place)
    if not files:
        raise EditclError(
            f"{folder} holds no tasks; name files <task>.train.jsonl and <task>.test.jsonl, or "
            "<task>.jsonl (or .json, .csv, .tsv)."
        )
    for name in order or ():
        if name not in files:
            raise EditclError(
                f"{folder} holds no task {name!r}; it has {', '.join(sorted(files))}."
            )
    tasks = []
    for name in sorted(files) if order is None else order:
        parts = files[name]
        if judged_by == "valid" and "valid" not in parts:
            raise EditclError(f"{folder} holds no {name}.valid.*, by which {name} is to be judged.")
        tasks.append(
            read_task(
                parts["train"],
                test=parts.get(judged_by),
                name=name,
                prompt=prompt,
                test_share=test_share,
                max_tokens=max_tokens,
                seed=seed,
            )
        )
    check_stream(tasks)
    return tuple(tasks)


def _files(folder: Path) -> dict[str, dict[str, Path]]:
    """The files of each task by PARTS: what is learnt from, and what judges it."""
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in SUFFIXES or not path.is_file():
            continue
        stem = path.name[: -len(path.suffix)]
        part = next((p for p in PARTS if stem.endswith(f".{p}")), None)
        name = stem if part is None else stem.removesuffix(f".{part}")
        parts = found.setdefault(name, {})
        if (part or "train") in parts:
            raise TaskError(
                f"task {name!r}",
                [f"{parts[part or 'train']} and {path} both hold it; rename or delete one."],
            )
        parts[part or "train"] = path
    for name, parts in found.items():
        if "train" not in parts:
            (other, *_) = parts.values()
            raise TaskError(
                f"task {name!r}",
                [f"{other} has no file {name}.train.* beside it; add what is learnt from."],
            )
    return found


# -- one file -------------------------------------------------------------------------------------


def _read(path: str | os.PathLike[str], prompt: str) -> _File:
    if prompt.count("{text}") != 1:
        raise TaskError("the template of prompts", [f"{prompt!r} must hold {{text}} once."])
    problems = Problems(printable(os.fsdecode(path)))
    records = _records(Path(path), problems)
    if not records:
        problems.raise_all()
        problems.fail(None, "there are no examples in it; add some.")
    columns = dict.fromkeys(key for _, record in records for key in record)
    kind = _kind(tuple(columns), problems)
    examples, tasks = [], []
    for place, record in records:
        for key in record:
            if key not in FIELDS and key not in columns:
                problems.add(place, "the column is unknown; delete it.", key)
        texts = [_text(place, record, key, problems) for key in _COLUMNS[kind]]
        if record.get("task") is not None:
            tasks.append(_text(place, record, "task", problems) or "")
        if all(texts):
            examples.append(_example(kind, texts, prompt))  # type: ignore[arg-type]
    problems.raise_all()
    return _File(kind, tuple(examples), tuple(dict.fromkeys(tasks)))


def _records(path: Path, problems: Problems) -> Sequence[tuple[Place, Mapping[str, Any]]]:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES and path.is_file():  # else what it is says `read_bytes`
        problems.fail(
            None,
            f"files that end in {shown(suffix)} are not read; convert it to one of "
            f"{', '.join(SUFFIXES)}.",
        )
    data, _ = read_bytes(path, problems)
    if not data or data.isspace():
        problems.fail(None, "the file is empty; give it at least two examples.")
    text = decode(data, problems)
    if suffix == ".jsonl":
        return read_json_lines(text, problems)
    if suffix == ".json":
        return read_json(text, problems)
    return read_delimited(text, lambda column: column in FIELDS, problems)[1]


def _kind(columns: tuple[str, ...], problems: Problems) -> str:
    """What the columns say; notes those that are none."""
    for column in columns:
        if column not in FIELDS:
            problems.add(
                "the columns",
                f"it is none of {', '.join(FIELDS)}; rename or delete it.",
                printable(column),
            )
    named = set(columns) & set(FIELDS[:-1])
    for kind, needed in _COLUMNS.items():
        if named == set(needed):
            return kind
    found = ", ".join(printable(column) for column in columns[:8]) or "none"
    problems.fail(
        None,
        f"its columns are {found}; give it prompt and completion, text and label, or text alone.",
    )


def _text(place: Place, record: Mapping[str, Any], column: str, problems: Problems) -> str | None:
    """A cell's text; None after an error. White space at its ends stays: prompts may end in it."""
    value = record.get(column)
    if not isinstance(value, str):
        what = "is missing" if value is None else f"is no text but {shown(value)}"
        problems.add(place, f"it {what}; give it a text.", column)
    elif not value.strip():
        problems.add(place, "it is empty; give it some text.", column)
    elif is_broken(value):
        problems.add(place, "it holds a NUL or a lone surrogate; decode its source anew.", column)
    elif len(value) > MAX_CELL:
        problems.add(
            place, f"it has {len(value):,} characters, {MAX_CELL:,} are the limit.", column
        )
    else:
        return value
    return None


def _example(kind: str, texts: Sequence[str], prompt: str) -> Example:
    if kind == TEXT:
        return Example("", texts[0])
    if kind == COMPLETION:
        return Example(texts[0], texts[1])
    return Example(prompt.replace("{text}", texts[0].strip()), texts[1].strip())


def _own_name(found: _File, path: Path) -> str:
    if len(found.tasks) > 1:
        raise TaskError(
            f"{path}",
            [
                f"its rows are of several tasks ({', '.join(found.tasks[:5])}); give each task a "
                "file of its own, or a name to read all as one."
            ],
        )
    return found.tasks[0] if found.tasks else path.name.split(".")[0]
