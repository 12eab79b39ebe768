"""`editcl edit-csv`: what it prints and writes, and what it refuses before a model is loaded."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

HEADER = "subject,prompt,new_object,old_object\n"
ROWS = "The Eiffel Tower,The city of {},Rome,Paris\nThe Colosseum,The city of {},Apple,Rome\n"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "facts.csv"
    path.write_text(HEADER + ROWS)
    return path


def arguments(table: Path, model: Path, log: Path, *more: object) -> list[object]:
    return ["edit-csv", table, "--model", model, "--log", log, "--layer", 1, *more]


def test_a_table_is_edited_and_its_results_are_written(run, folder, table, tmp_path) -> None:
    log, out = tmp_path / "log", tmp_path / "out.csv"
    status, text, err = run(*arguments(table, folder, log, "--out", out, "--no-guard"))
    assert status == 0, err
    assert "2 edited" in text and "all rows in" in text
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["row"], row["status"], row["entry"]) for row in rows] == [
        ("1", "edited", "e0001"), ("2", "edited", "e0001"),
    ]  # fmt: skip
    status, text, _ = run("log", "rollback", "all", "--model", folder, "--log", log)
    assert status == 0


def test_a_dry_run_makes_no_log(run, folder, table, tmp_path) -> None:
    log = tmp_path / "log"
    status, text, err = run(*arguments(table, folder, log, "--dry-run", "--json"))
    assert status == 0, err
    assert [row["status"] for row in json.loads(text)["rows"]] == ["checked"] * 2
    assert not log.exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--method", "memti"), "did you mean 'memit'?"),
        (("--batch-size", 0), "at least 1"),
        (("--preservation", 0), "preservation must be positive"),
        (("--out", "facts.csv"), "is the table itself"),
        (("--out", "log/log.sqlite3"), "in the folder of the log"),
        (("--out", "nowhere/out.csv"), "no folder that can be written"),
    ],
)
def test_a_bad_call_is_refused_before_the_model_is_loaded(
    run, table, tmp_path, monkeypatch, more, said
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "log").mkdir()
    status, _, err = run(*arguments(table, tmp_path / "no model", tmp_path / "log", *more))
    assert status == 1 and said in " ".join(err.split())
    assert not [*(tmp_path / "log").iterdir()]
    assert table.read_text() == HEADER + ROWS


def test_a_bad_table_is_refused_before_the_model_is_loaded(run, table, tmp_path) -> None:
    table.write_text(HEADER + "The Eiffel Tower,The city of {}\n")
    status, _, err = run(*arguments(table, tmp_path / "no model", tmp_path / "log"))
    assert status == 1 and "row 1 (line 2): the row has 2 cells, the header 4" in err
    assert "add those that are missing" in " ".join(err.split())
    assert not (tmp_path / "log").exists()


def test_results_that_can_not_be_written_are_printed(
    run, folder, table, tmp_path, monkeypatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("editcl.editing.report.BatchReport.to_csv", full)
    out = tmp_path / "out.csv"
    status, text, err = run(*arguments(table, folder, tmp_path / "log", "--dry-run", "--out", out))
    assert status == 1 and "2 checked" in text
    assert "could not be written" in err and "in the log" not in err
