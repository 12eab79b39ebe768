"""The page: one well-formed file of which nothing runs or is fetched, written whole or not."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from histories import ASKED, KNOWN, TEXTS, taught
from matplotlib.figure import Figure

from editcl.errors import EditclError
from editcl.reporting import HarnessLine, Report, report
from editcl.reporting.page import page, write_page
from editcl.reporting.pictures import (
    plot_costs,
    plot_harness,
    plot_history,
    plot_knowledge,
    plot_report,
    plot_shares,
)

VOID = {"meta", "img", "br", "link"}


class Reader(HTMLParser):
    """Checks that elements are closed in order, and collects what a browser would see."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def found() -> Report:
    one = report(taught(), facts=KNOWN, texts=TEXTS, instructions=ASKED, show=False)
    line = HarnessLine("local & task", "acc", 0.5, 0.75, 0.1, 8, True)
    assert one.knowledge is not None
    lost = replace(
        one.knowledge, known=2, kept=1, lost=("<script>x</script> is",), groups={"capital": (2, 1)}
    )
    return replace(one, harness=(line,), knowledge=lost, notes=("a <b>note</b>",))


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    return reader


def test_the_page_is_well_formed_and_shows_every_text_as_text(found) -> None:
    reader = read(page(found))
    assert reader.open == []
    names = {tag for tag, _ in reader.tags}
    assert "script" not in names and "b" in names
    for words in ("<script>alert(1)</script>", "<script>x</script> is", "a <b>note</b>"):
        assert words in reader.text
    for section in ("Checklist", "Decisions", "Cost", "Log", "Step by step", "Tasks of lm-eval"):
        assert section in reader.text


def test_the_page_fetches_nothing_and_forbids_it(found) -> None:
    text = page(found)
    reader = read(text)
    assert not re.search(r"https?://|@import|url\(", text)
    assert not {"link", "iframe", "a", "script"} & {tag for tag, _ in reader.tags}
    policies = [a for t, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies and "default-src 'none'" in (policies[0]["content"] or "")
    pictures = [a for tag, a in reader.tags if tag == "img"]
    assert len(pictures) == 5
    for picture in pictures:
        head, _, code = (picture["src"] or "").partition(",")
        assert head == "data:image/png;base64" and picture["alt"]
        assert base64.b64decode(code, validate=True).startswith(b"\x89PNG")


def test_saving_replaces_a_file_in_one_step(found, tmp_path: Path) -> None:
    place = tmp_path / "report.html"
    place.write_text("before")
    assert found.save(place) == place
    assert place.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert [one.name for one in tmp_path.iterdir()] == ["report.html"]
    assert write_page("lone \ud800 surrogate", place).read_text() == "lone \\ud800 surrogate"


def test_a_failed_write_leaves_what_was_there(found, tmp_path: Path, monkeypatch) -> None:
    place = tmp_path / "report.html"
    place.write_text("before")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(EditclError, match="No space left"):
        found.save(place)
    assert place.read_text() == "before"
    assert [one.name for one in tmp_path.iterdir()] == ["report.html"]


def test_places_where_no_file_can_be_are_named(found, tmp_path: Path) -> None:
    with pytest.raises(EditclError, match="is a directory; name a file in it"):
        found.save(tmp_path)
    with pytest.raises(EditclError, match="there is no folder"):
        found.save(tmp_path / "nowhere" / "report.html")
    with pytest.raises(EditclError, match="end in .html"):
        found.save(tmp_path / "report.pdf")


def test_every_plot_draws_what_there_is_and_nothing_else(found) -> None:
    for plot in (plot_shares, plot_costs, plot_history, plot_harness, plot_knowledge):
        assert isinstance(plot(found), Figure)
    assert isinstance(plot_report(found), Figure)
    empty = replace(
        found, tasks=(), knowledge=None, drift=None, survival=None, spent=(), steps=(),
        moments=(), harness=(),
    )  # fmt: skip
    for plot in (plot_shares, plot_costs, plot_history, plot_harness, plot_knowledge):
        assert plot(empty) is None
    assert isinstance(empty.plot(), Figure)
    assert read(page(empty)).open == []


def test_a_plot_is_saved_where_it_is_told_to(found, tmp_path: Path) -> None:
    found.plot(path=tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
