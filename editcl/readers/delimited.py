"""Delimited text (CSV, TSV and relatives): from text to rows of named cells.

The delimiter is the one under which most names in the header are known; quoting is that of the csv
module, strict. Cells stay text. What the columns mean is told by others.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator

from editcl.readers.fields import MAX_COLUMNS
from editcl.readers.problems import Place, Problems, shown

DELIMITERS = (",", "\t", ";", "|")


def read_delimited(
    text: str, known: Callable[[str], bool], problems: Problems
) -> tuple[tuple[str, ...], list[tuple[Place, dict[str, str]]]]:
    """The header, and every row as its place and its cells by column; rows that break are noted.

    Args:
        text: the whole file.
        known: whether a name is that of a column; decides between delimiters.
        problems: where errors are noted.

    Raises:
        TableError: there is no header, or it can't be read.
    """
    if "\0" in text.partition("\n")[0]:
        problems.fail(
            "line 1",
            "the header holds NUL bytes; this is no text, or UTF-16 without its byte order mark. "
            "Save the file as UTF-8.",
        )
    delimiter = _delimiter(text, known, problems)
    rows = _rows(text, delimiter, problems)
    _, first, header = next(rows, (0, 0, []))
    problems.raise_all()
    if not header:
        problems.fail(None, "the file is empty; begin it with a line of column names.")
    names = tuple(cell.strip() for cell in header)
    _check_names(names, first, problems)
    found = []
    for number, line, cells in rows:
        place = Place(problems.source, number, line)
        if len(cells) != len(names):
            remedy = f"put a cell that holds {_NAMES[delimiter]} or a line break in double quotes"
            if len(cells) < len(names):
                remedy = f"add those that are missing, {_NAMES[delimiter]} between each two"
            problems.add(
                place, f"the row has {len(cells)} cells, the header {len(names)}; {remedy}."
            )
        else:
            found.append((place, dict(zip(names, cells, strict=True))))
    return names, found


_NAMES = {",": "a comma", "\t": "a tab", ";": "a semicolon", "|": "a bar"}


def _delimiter(text: str, known: Callable[[str], bool], problems: Problems) -> str:
    """The delimiter under which the header line has most known names, then most names."""

    def score(delimiter: str) -> tuple[int, int]:
        silent = Problems(problems.source)
        _, _, header = next(_rows(text, delimiter, silent), (0, 0, []))
        if silent.errors:
            return -1, 0
        return sum(known(cell.strip()) for cell in header[:MAX_COLUMNS]), len(header)

    return max(DELIMITERS, key=score)


def _check_names(names: tuple[str, ...], line: int, problems: Problems) -> None:
    if len(names) > MAX_COLUMNS:
        problems.fail(
            f"line {line}",
            f"the header has {len(names):,} columns, {MAX_COLUMNS:,} are the limit; delete some.",
        )
    for number, name in enumerate(names, start=1):
        if not name:
            problems.add(
                f"line {line}",
                f"column {number} of the header has no name; name or delete it (pandas: "
                "to_csv(index=False)).",
            )
        elif name in names[: number - 1]:
            problems.add(
                f"line {line}", f"the header names {shown(name)} twice; rename or delete one."
            )
    problems.raise_all()


def _rows(text: str, delimiter: str, problems: Problems) -> Iterator[tuple[int, int, list[str]]]:
    """(number, line, cells) of every row that isn't blank, the header's number being 0.

    A row that breaks is noted and passed over: the csv module goes on with the next line.
    """
    lines = io.StringIO(text, newline="")
    # Cells are stripped later: a space before a quote must not hide the quote.
    reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)
    number = 0
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            where = Place(problems.source, number, line) if number else f"line {line} (the header)"
            problems.add(where, _remedy(str(error), delimiter))
            number += 1
            continue
        if cells is None:
            return
        if any(cell and not cell.isspace() for cell in cells):
            yield number, line, cells
            number += 1


def _remedy(error: str, delimiter: str) -> str:
    if "field limit" in error:
        limit = csv.field_size_limit()  # asked, not set: it is one for the whole process
        return (
            f"a cell is longer than {limit:,} characters; shorten it, or close a quote that is "
            "left open."
        )
    if "NUL" in error:
        return "the row holds a NUL byte; delete it, or save the file as text."
    if "expected after" in error:
        return (
            f"a closing quote is followed by more text, {shown(delimiter)} was expected; double "
            'the quotes within a quoted cell ("").'
        )
    if "end of data" in error:
        return "a quote is opened here and never closed; close or delete it."
    return f"the row can't be read ({error}); check its quotes."
