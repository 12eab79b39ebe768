"""Where a problem lies and how all of a table's problems become one error.

Every line reads "file, row N (line M), column 'x': what was found; what to do". Knows nothing of
formats.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NoReturn

from editcl.errors import TableError

SHOWN = 20  # problems in the message; all of them are in TableError.problems
_LONGEST = 400  # characters of one problem


@dataclass(frozen=True)
class Place:
    """A row of a table.

    Attributes:
        source: the file's name, or what else was read.
        row: its number; rows of delimited text count from 1, records and data frame rows from 0.
        line: the line of the file on which it begins, if it is a file of lines.
        word: what a row is called there.
    """

    source: str
    row: int
    line: int | None = None
    word: str = "row"

    @property
    def short(self) -> str:
        """The place within its source."""
        return f"{self.word} {self.row}" + ("" if self.line is None else f" (line {self.line})")

    def __str__(self) -> str:
        return f"{self.source}, {self.short}"


@dataclass
class Problems:
    """What was found wrong (errors) or odd (warnings) in one source.

    Attributes:
        source: the file's name, or what else is read.
        errors: (row, line of text) of each; the row is -1 for what concerns no row.
        warnings: a line of text each.
    """

    source: str
    errors: list[tuple[int, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def add(self, where: Place | str | None, message: str, column: str | None = None) -> None:
        """Notes an error; `where` is a row or a part of the source, None all of it."""
        row = where.row if isinstance(where, Place) else -1
        self.errors.append((row, self._line(where, message, column)))

    def warn(self, where: Place | None, message: str, column: str | None = None) -> None:
        """Notes what the reader could settle but the caller should know."""
        self.warnings.append(self._line(where, message, column))

    def fail(self, where: Place | str | None, message: str, column: str | None = None) -> NoReturn:
        """Notes an error after which nothing more can be read, and raises."""
        self.add(where, message, column)
        self.raise_all()
        raise AssertionError("an error was just noted")

    def raise_all(self) -> None:
        """Raises one TableError for all errors in the order of rows, if there are any."""
        if not self.errors:
            return
        found = tuple(line for _, line in sorted(self.errors, key=lambda error: error[0]))
        if len(found) == 1:
            raise TableError(found[0], found)
        lines = [f"{self.source}: {len(found):,} problems; nothing was read."]
        lines += [f"  {line}" for line in found[:SHOWN]]
        if len(found) > SHOWN:
            lines.append(f"  ... and {len(found) - SHOWN:,} more.")
        raise TableError("\n".join(lines), found)

    def _line(self, where: Place | str | None, message: str, column: str | None) -> str:
        place = str(where) if isinstance(where, Place) else self.source
        if isinstance(where, str):
            place += f", {where}"
        if column is not None:
            place += f", column {shown(column)}"
        return f"{place}: {cut(printable(message), _LONGEST)}"


def shown(value: object) -> str:
    """A text in quotes, shortened; of anything else only its kind."""
    if isinstance(value, str):
        return repr(cut(value, 80))
    return f"a value of type {type(value).__name__}"


def cut(text: str, longest: int) -> str:
    """The text without its middle, if it is too long."""
    if len(text) <= longest:
        return text
    half = (longest - 5) // 2
    return f"{text[:half]} ... {text[-half:]}"


def is_broken(text: str) -> bool:
    """Whether a text holds a NUL or a lone surrogate, as badly decoded ones do."""
    return "\0" in text or any("\ud800" <= char <= "\udfff" for char in text)


def printable(text: str) -> str:
    """The text with lone surrogates spelled out, so that any stream can show it."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
