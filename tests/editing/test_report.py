"""The report of a table: rows, frame, files, and a summary for people."""

from __future__ import annotations

import csv
import json
import sys

import pytest

from editcl.editing.guards import Health
from editcl.editing.report import COLUMNS, BatchReport, RowResult, check_results_path
from editcl.errors import EditclError
from editcl.facts import Fact
from editcl.log import Probability

ROWS = (
    RowResult(2, "-1", Fact("=HYPERLINK(1)", "{} is in", "@Rome", "+Paris"), "edited",
              Probability(0.5, 0.1), Probability(0.1, 0.9), "e0001", 0),
    RowResult(3, "b", Fact("Beats <Music>", "{} is owned by", "Rome", "Apple"), "edited",
              Probability(0.5, 0.1), Probability(0.6, 0.4), "e0001", 1),
    RowResult(4, "c", Fact("X", "{} in", "Y"), "edited", Probability(None, 0.1),
              Probability(None, 0.9), "e0001", 2),
    RowResult(5, "d", Fact("東京", "{}は", "München"), "taken back", Probability(None, 0.1)),
)  # fmt: skip
HEALTH = Health("e0001", 3, 0.1, 0.01, 3.0, None)
REPORT = BatchReport(
    "facts.csv", "memit", (1, 2), ROWS, health=(HEALTH,), warnings=("w",) * 7, stopped="too far",
    seconds=3.0,
)  # fmt: skip


def test_a_row_holds_where_the_new_object_is_likelier_than_the_old() -> None:
    assert [row.holds for row in ROWS] == [True, False, None, None]
    assert REPORT.efficacy == 0.5
    assert BatchReport("x", "memit", (1,), ROWS[2:]).efficacy is None


def test_the_frame_has_a_line_for_each_row() -> None:
    frame = REPORT.to_frame()
    assert list(frame.columns) == list(COLUMNS) and len(frame) == 4
    assert frame["subject"].tolist()[0] == "=HYPERLINK(1)"
    assert frame["p_new_after"].tolist()[:2] == [0.9, 0.4]
    assert list(BatchReport("x", "memit", (1,), ()).to_frame().columns) == list(COLUMNS)


def test_the_frame_needs_pandas_and_says_so(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(EditclError, match="pip install pandas"):
        REPORT.to_frame()


def test_a_spreadsheet_runs_no_cell_of_the_file(tmp_path) -> None:
    REPORT.to_csv(tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["edited", "edited", "edited", "taken back"]
    first = rows[0]
    assert (first["id"], first["subject"]) == ("'-1", "'=HYPERLINK(1)")
    assert (first["new_object"], first["old_object"]) == ("'@Rome", "'+Paris")
    assert (first["p_new_after"], first["holds"]) == ("0.9", "True")
    assert rows[3]["subject"] == "東京" and rows[3]["p_new_after"] == ""
    assert not [cell for row in rows for cell in row.values() if cell[:1] in tuple("=+-@\t\r")]


def test_results_are_written_whole_or_not_at_all(tmp_path, monkeypatch) -> None:
    path = tmp_path / "out.csv"
    REPORT.to_csv(path)
    before = path.read_bytes()
    monkeypatch.setattr("editcl.editing.report._safe", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        REPORT.to_csv(path)
    assert path.read_bytes() == before and [*tmp_path.iterdir()] == [path]


def test_results_go_only_where_they_do_no_harm(tmp_path) -> None:
    source, log = tmp_path / "facts.csv", tmp_path / "log"
    source.write_text("subject,new_object\nA,B\n")
    log.mkdir()
    (tmp_path / "link.csv").symlink_to(source)
    for path, said in {
        source: "is the table itself",
        tmp_path / "link.csv": "is the table itself",
        log: "in the folder of the log",
        log / "log.sqlite3": "in the folder of the log",
        tmp_path / "nowhere" / "out.csv": "no folder that can be written",
        tmp_path: "holds no earlier results",
    }.items():
        with pytest.raises(EditclError, match=said):
            check_results_path(path, source, log)
    out = tmp_path / "out.csv"
    check_results_path(out, source, log)
    REPORT.to_csv(out)
    check_results_path(out, source, log)  # earlier results are replaced
    out.write_text("row,id\n")
    with pytest.raises(EditclError, match="holds no earlier results"):
        check_results_path(out, source, log)


def test_everything_goes_through_json() -> None:
    data = json.loads(json.dumps(REPORT.to_dict()))
    assert data["health"][0]["growth"] == 0.1 and data["stopped"] == "too far"
    assert [row["status"] for row in data["rows"]] == [row.status for row in ROWS]


def test_the_summary_counts_and_shortens() -> None:
    text = repr(REPORT)
    assert "4 facts by memit: 3 edited, 1 taken back" in text
    assert "efficacy 50.0%" in text and "stopped: too far" in text and "2 more warnings" in text
    page = REPORT._repr_html_()
    assert "Beats &lt;Music&gt;" in page and "<Music>" not in page
