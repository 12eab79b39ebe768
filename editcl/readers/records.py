"""JSON and JSON Lines: from text to records, each an object with its place.

Stricter than the json module: no NaN, no key twice, no depth beyond Python's. What the keys mean
is told by others.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from typing import Any, NoReturn

from editcl.readers.problems import Place, Problems, printable, shown

Record = tuple[Place, dict[str, Any]]


class _RefusedError(ValueError):
    """Valid JSON that is refused, or JSON that Python can't hold."""


def read_json(text: str, problems: Problems) -> list[Record]:
    """The records of a JSON list, with their index as number.

    Raises:
        TableError: the text is no JSON, or no list; a record that is no object is noted only.
    """
    try:
        found = _loads(text)
    except _RefusedError as error:
        hint = (
            " One record a line? Then name the file .jsonl." if "Extra data" in str(error) else ""
        )
        number = _blamed(text)
        place = None if number is None else Place(problems.source, number, None, "record")
        problems.fail(place, f"{error}{hint}")
    if not isinstance(found, list):
        problems.fail(
            None, f"the file holds {_kind(found)}; write a list of records: [{{...}}, ...]."
        )
    return _objects(
        [(Place(problems.source, i, None, "record"), r) for i, r in enumerate(found)], problems
    )


def read_json_lines(text: str, problems: Problems) -> list[Record]:
    """The records of a file with one JSON object a line; blank lines are passed over.

    Raises:
        TableError: the file is a JSON list; a line that is no object is noted only.
    """
    if text.lstrip().startswith("["):
        problems.fail(None, "the file holds a list, not one object a line; name it .json.")
    found, number = [], 0
    # Not splitlines: it would break lines within strings, at U+2028 for one.
    for line, part in enumerate(text.split("\n"), start=1):
        if not part.strip():
            continue
        place = Place(problems.source, number, line, "record")
        number += 1
        try:
            found.append((place, _loads(part)))
        except _RefusedError as error:
            problems.add(place, str(error))
    return _objects(found, problems)


def _objects(found: list[tuple[Place, Any]], problems: Problems) -> list[Record]:
    good = []
    for place, record in found:
        if isinstance(record, dict):
            good.append((place, record))
        else:
            problems.add(place, f"the record is {_kind(record)}; make it an object: {{...}}.")
    return good


def _loads(text: str) -> Any:
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise _refusal(error, text) from None


def _refusal(error: ValueError | RecursionError, text: str) -> _RefusedError:
    if isinstance(error, _RefusedError):
        return error
    if isinstance(error, RecursionError):
        return _RefusedError("the JSON is nested too deeply to be read; flatten it.")
    if not isinstance(error, json.JSONDecodeError):  # an integer of thousands of digits
        return _RefusedError("the JSON holds a number of too many digits; write it as a text.")
    if not text.strip():
        return _RefusedError("the file is empty; write a list of records: [{...}, ...].")
    line = f"line {error.lineno}, " if "\n" in text.strip() else ""
    return _RefusedError(
        f"this is no valid JSON: {error.msg}, at {line}character {error.colno}; mend it."
    )


def _blamed(text: str) -> int | None:
    """The record of a list that can't be read; None if the trouble is in none."""
    at = _skip(text, 0)
    if text[at : at + 1] != "[":
        return None
    at += 1
    for number in itertools.count():
        at = _skip(text, at)
        if text[at : at + 1] in ("", "]"):
            return None
        try:
            _, at = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):
            return number
    return None


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n,":
        at += 1
    return at


def _no_number(name: str) -> NoReturn:
    raise _RefusedError(f"{name} is no JSON; leave out what is absent, or write null.")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise _RefusedError(
            f"the key {shown(printable(twice))} stands twice in one object; delete one."
        )
    return found


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value"}
    return names.get(type(value), "null" if value is None else "a number")


_DECODER = json.JSONDecoder(parse_constant=_no_number, object_pairs_hook=_object)
