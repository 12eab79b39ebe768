"""`editcl report`, as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

WORDS = ("Paris", "Rome", "Apple", "Tower", "Music", "city", "Bayern", "Berlin")


def lines(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_a_log_is_reported_on_as_table_page_and_json(run, folder, tmp_path) -> None:
    task = lines(
        tmp_path / "colours.jsonl",
        [{"text": f"{WORDS[i % 8]} {i}", "label": ("red", "blue")[i % 2]} for i in range(16)],
    )
    known = lines(
        tmp_path / "known.jsonl",
        [{"subject": w, "prompt": "Of {} we say", "new_object": "Paris"} for w in WORDS[2:5]],
    )
    where = ["--model", folder, "--log", tmp_path / "log"]
    assert run("learn", task, *where, "--steps", 3)[0] == 0
    page = tmp_path / "report.html"
    status, out, err = run("report", task, *where, "--facts", known, "--out", page)
    assert status == 0, err
    assert "task colours" in out and "instruction drift" in out and str(page) in out
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    status, out, _ = run("report", task, *where, "--facts", known, "--json")
    body = json.loads(out)
    assert status == 0 and body["tasks"][0]["name"] == "colours"
    assert body["knowledge"]["n"] == 3 and body["timeline"][-1]["id"]


def test_bad_places_are_told_before_anything_is_measured(run, folder, tmp_path) -> None:
    where = ["--model", folder, "--log", tmp_path / "log"]
    status, out, err = run("report", *where, "--out", tmp_path)
    assert status == 1 and out == "" and "is a directory" in err
    status, out, err = run("report", *where)
    assert status == 1 and out == "" and "there is no log" in err
