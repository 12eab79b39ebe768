"""CSV and relatives: delimiters, quotes, encodings, and rows that break."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from editcl.readers import read_table
from editcl.readers.columns import known
from editcl.readers.delimited import DELIMITERS, read_delimited
from editcl.readers.problems import Problems

HEADER = "subject,prompt,new_object,old_object\n"
cell = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12
) | st.sampled_from(['"', '""', ",", ";", "\t", "|", "\r\n", "\n", "\r", "=1+1", " x ", "\ufeff"])


@settings(max_examples=500, deadline=None)
@given(
    st.lists(st.tuples(cell, cell, cell), min_size=1, max_size=5),
    st.sampled_from(DELIMITERS),
    st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_what_the_csv_module_writes_is_read_back(rows, delimiter: str, end: str) -> None:
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerows([("subject", "prompt", "new_object"), *rows])
    problems = Problems("x")
    names, found = read_delimited(out.getvalue(), known, problems)
    assert names == ("subject", "prompt", "new_object")
    assert not problems.errors
    kept = [row for row in rows if any(c and not c.isspace() for c in row)]
    assert [tuple(c.strip() for c in cells.values()) for _, cells in found] == [
        tuple(c.strip() for c in row) for row in kept
    ]
    assert [place.row for place, _ in found] == list(range(1, len(kept) + 1))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(cell, cell, cell), min_size=1, max_size=5), st.sampled_from(DELIMITERS))
def test_minimal_quoting_is_read_back(rows, delimiter: str) -> None:
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerows([("subject", "prompt", "new_object"), *rows])
    _, found = read_delimited(out.getvalue(), known, Problems("x"))
    kept = [row for row in rows if any(c and not c.isspace() for c in row)]
    assert [tuple(c.strip() for c in cells.values()) for _, cells in found] == [
        tuple(c.strip() for c in row) for row in kept
    ]


@pytest.mark.parametrize("delimiter", DELIMITERS)
def test_the_header_tells_the_delimiter(write, delimiter: str) -> None:
    header = delimiter.join(["subject", "prompt", "new_object"])
    row = delimiter.join(["a", '"{} is, or; was|\tnot"', "b"])
    (found,) = read_table(write(f"{header}\n{row}\n", "facts.tsv")).rows
    assert (found.subject, found.prompt, found.new_object) == ("a", "{} is, or; was|\tnot", "b")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_tells_the_encoding(write, encoding: str) -> None:
    data = (HEADER + "Zürich,{} 是,Köln,\n").encode(encoding)
    assert read_table(write(data)).rows[0].subject == "Zürich"


def test_big_endian_is_read(write) -> None:
    data = b"\xfe\xff" + (HEADER + "Zürich,{} is,Köln,\n").encode("utf-16-be")
    assert read_table(write(data)).rows[0].new_object == "Köln"


def test_another_encoding_names_its_first_wrong_byte(write, refused) -> None:
    data = (HEADER + "a,{} is,b,\nZürich,{} is,Köln,\n").encode("latin-1")
    text = refused(write(data))
    assert f"line 3: byte 0xfc at position {data.index(0xFC)} is not UTF-8" in text


@pytest.mark.parametrize("data", [b"\xff\xfes\0u", b"\xff\xfe\x00\xd8a\0", b"\xff\xfe\0\0abc"])
def test_broken_wide_encodings_are_refused(write, refused, data: bytes) -> None:
    assert "facts.csv" in refused(write(data))


def test_wide_text_without_its_mark_is_told_from_text(write, refused) -> None:
    assert "UTF-16 without its byte order mark" in refused(write(HEADER.encode("utf-16-le")))


def test_line_breaks_within_quotes_count_as_lines(write, refused) -> None:
    path = write(HEADER + '"Multi\nline",{} is,b,\n\n  \n,,,\nc,{} is,,\n')
    assert "row 2 (line 7), column 'new_object'" in refused(path)


def test_a_space_before_a_quote_does_not_hide_it(write) -> None:
    assert read_table(write(HEADER + 'a, "{} is, was", b, \n')).rows[0].prompt == "{} is, was"


def test_formulas_and_paths_are_text(write) -> None:
    rows = read_table(write(HEADER + '=1+1,{} is,../../etc/passwd,\n@x,{} is,"=cmd|A1",\n')).rows
    assert [(r.subject, r.new_object) for r in rows] == [
        ("=1+1", "../../etc/passwd"),
        ("@x", "=cmd|A1"),
    ]


@pytest.mark.parametrize("text", ["", " ", "\n\n", "\ufeff"])
def test_an_empty_file_is_refused(write, refused, text: str) -> None:
    assert "the file is empty" in refused(write(text))


def test_a_header_alone_is_refused(write, refused) -> None:
    assert "no facts" in refused(write(HEADER))


@pytest.mark.parametrize(
    "row, said",
    [
        ("a,{} is,b", "the row has 3 cells, the header 4"),
        ("a,{} is,b,,,", "the row has 6 cells, the header 4"),
        ('a,{} is,"b" c,', "a closing quote is followed by more text"),
        ('a,{} is,"b,', "a quote is opened here and never closed"),
        ("a,{} is,b\0c,", "NUL byte"),
    ],
)
def test_a_broken_row_names_itself_and_the_next_is_read(write, refused, row, said) -> None:
    text = refused(write(HEADER + "x,{} is,y,\n" + row + "\n"))
    assert "facts.csv, row 2 (line 3)" in text and said in text
    if not row.startswith('a,{} is,"b,'):
        more = refused(write(HEADER + "x,{} is,y,\n" + row + "\nz,{} is,,\n"))
        assert "row 3 (line 4), column 'new_object'" in more


def test_a_huge_cell_is_refused_and_the_limit_told(write, refused) -> None:
    before = csv.field_size_limit()
    text = refused(write(HEADER + "a,{} is," + "x" * 100_000_000 + ",\nb,{} is,,\n"))
    assert f"row 1 (line 2): a cell is longer than {before:,} characters" in text
    assert "row 2 (line 3)" in text
    assert len(text) < 1000
    assert csv.field_size_limit() == before
    middling = refused(write(HEADER + "a,{} is," + "x" * 110_000 + ",\n"))
    assert "it has 110,000 characters, 100,000 are the limit" in middling


def test_a_quote_left_open_in_a_large_file_is_found(write, refused) -> None:
    rows = [f"Person {i},{{}} is,b,\n" for i in range(7_000)]
    rows[3] = 'Person 3,{} is,"b,\n'
    assert "row 4 (line 5): a cell is longer than" in refused(write(HEADER + "".join(rows)))


@pytest.mark.parametrize(
    "header, said",
    [
        ("subject,subject,new_object", "names 'subject' twice"),
        ("subject,,new_object", "column 2 of the header has no name"),
        ('subject,"new_object', "the header"),
    ],
)
def test_a_broken_header_is_refused(write, refused, header: str, said: str) -> None:
    assert said in refused(write(header + "\na,b,c\n"))


@pytest.mark.parametrize("name", ["a", "", "subject"])
def test_a_million_columns_are_refused_at_once(write, refused, name: str) -> None:
    text = refused(write(",".join([name] * 1_000_000) + "x\na,b\n"))
    assert "the header has 1,000,000 columns, 1,000 are the limit" in text
