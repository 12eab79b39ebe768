"""Files that can't be read, or change meanwhile."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from editcl.errors import TableError
from editcl.readers import files, read_table

TEXT = "subject,prompt,new_object\na,{} is,b\n"


def test_reading_leaves_the_folder_as_it_is(write) -> None:
    path = write(TEXT)
    before = path.stat()
    read_table(path)
    after = path.stat()
    assert (after.st_mtime_ns, after.st_size) == (before.st_mtime_ns, before.st_size)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "source, said",
    [
        ("https://example.org/facts.csv", "download it first"),
        (Path("s3://bucket/facts.csv"), "download it first"),
        ("", "a directory"),
        ("missing.csv", "can't be opened"),
        ("a\0b.csv", "can't be opened"),
        ("x" * 5000 + ".csv", "can't be opened"),
        ("\udcff.csv", "can't be opened"),
        ("\ud800.csv", "can't be opened"),
    ],
)
def test_what_is_no_file_is_refused(source, said: str) -> None:
    with pytest.raises(TableError) as caught:
        read_table(source)
    assert said in str(caught.value)
    str(caught.value).encode("utf-8")


def test_a_directory_is_refused(tmp_path, refused) -> None:
    folder = tmp_path / "facts.csv"
    folder.mkdir()
    assert "this is a directory" in refused(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, refused) -> None:
    os.mkfifo(tmp_path / "facts.csv")
    assert "no regular file" in refused(tmp_path / "facts.csv")


@pytest.mark.parametrize("name", ["facts.txt", "facts", "facts.csv.gz", "facts.xlsx"])
def test_other_endings_are_refused(write, refused, name: str) -> None:
    assert "convert it to one of .csv, .tsv, .json, .jsonl" in refused(write(TEXT, name))


def test_an_ending_in_capitals_is_read(write) -> None:
    assert len(read_table(write(TEXT, "FACTS.CSV")).rows) == 1


def test_too_large_a_file_is_refused_unread(write, refused, monkeypatch) -> None:
    monkeypatch.setattr(files, "MAX_BYTES", 10)
    assert f"has {len(TEXT)} bytes, more than the 10" in refused(write(TEXT))


@pytest.mark.parametrize("change", ["append", "truncate", "rewrite", "replace", "remove"])
def test_a_file_that_changes_while_it_is_read_is_refused(
    write, refused, monkeypatch, change: str
) -> None:
    path = write(TEXT)
    real, calls = files._chunks, []

    def between(handle: int) -> list[bytes]:
        found = real(handle)
        calls.append(handle)
        if len(calls) == 1:
            before = path.stat()
            if change == "append":
                path.write_text(TEXT + "c,{} is,d\n")
            elif change == "truncate":
                path.write_text(TEXT[:-2])
            elif change == "rewrite":  # the same size and, so it seems, the same time
                path.write_text(TEXT.replace(",b", ",c"))
                os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
            elif change == "replace":
                path.unlink()
                (path.parent / "new").write_text(TEXT)
                (path.parent / "new").rename(path)
            else:
                path.unlink()
        return found

    monkeypatch.setattr(files, "_chunks", between)
    text = refused(path)
    assert "changed while it was read" in text or (change == "remove" and "can't be read" in text)
