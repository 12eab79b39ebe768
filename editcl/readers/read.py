"""From a file, a data frame or a list to a validated table of facts.

Steps: (1) records with their places, (2) the format, told by their keys, (3) a row from each, (4)
what rows say of each other: duplicates are merged, contradictions refused. All errors are collected
before any is raised. Reading writes nothing and runs nothing.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from editcl.evaluation.cases import Case
from editcl.facts import Fact
from editcl.readers.columns import NEEDED, check_header, known, rows_of
from editcl.readers.delimited import read_delimited
from editcl.readers.fields import MAX_COLUMNS, Fields
from editcl.readers.files import decode, read_bytes
from editcl.readers.problems import Place, Problems, printable, shown
from editcl.readers.published import (
    FIELDS,
    counterfact_flat_rows,
    counterfact_rows,
    knowedit_rows,
    mquake_rows,
    recognise,
    zsre_rows,
)
from editcl.readers.records import Record, read_json, read_json_lines
from editcl.readers.rows import FactRow, FactTable
from editcl.readers.settle import settled

OWN = "facts"
KINDS: Mapping[str, Callable[[Fields], list[FactRow]]] = MappingProxyType(
    {
        OWN: rows_of,
        "counterfact": counterfact_rows,
        "counterfact_flat": counterfact_flat_rows,
        "knowedit": knowedit_rows,
        "mquake": mquake_rows,
        "zsre": zsre_rows,
    }
)


@dataclass(frozen=True)
class _Loaded:
    """What was found in a source.

    Attributes:
        records: with their places.
        digest: SHA-256 of a file's bytes.
        header: the names of all columns, where they are given once.
    """

    records: Sequence[Record]
    digest: str | None = None
    header: tuple[str, ...] | None = None


def read_table(source: object, *, kind: str | None = None) -> FactTable:
    """Reads and validates a whole table of facts.

    Args:
        source: the path of a .csv, .tsv, .json or .jsonl file of at most 2 GB, with cells of at
            most 100,000 characters; a pandas DataFrame (NaN is absent); a list of Facts and
            Cases; or a table that has been read, which is given back.
        kind: the format, one of `KINDS`; told by the keys of the records if absent. "facts" has
            the columns subject, new_object and, optionally, prompt (a template with `{}`, a
            sentence start that names the subject, or the name of a relation of the catalogue),
            old_object, id, paraphrase* and neighbourhood*, with neighbourhood*_object (by default
            the old object).

    Raises:
        TableError: anything in it is wrong; lists every problem with its place and remedy.
    """
    if isinstance(source, FactTable):
        return source
    name = _name(source)
    problems = Problems(name)
    if kind is not None and kind not in KINDS:
        problems.fail(None, f"there is no kind {shown(kind)}; choose one of {', '.join(KINDS)}.")
    if isinstance(source, (list, tuple)):
        rows, places = _listed(source, problems)
        kind, digest = OWN, None
    else:
        loaded = _load(source, problems)
        kind = kind or _kind(loaded, problems)
        rows, places = _rows(loaded, kind, problems)
        digest = loaded.digest
    if not rows and not problems.errors:
        problems.fail(None, "there are no facts in it; add at least one row.")
    rows = settled(rows, places, problems, independent=kind != OWN)
    problems.raise_all()
    digest = digest or hashlib.sha256(repr(rows).encode()).hexdigest()
    return FactTable(tuple(rows), name, kind, digest, tuple(problems.warnings))


# -- from sources to records ----------------------------------------------------------------------


def _name(source: object) -> str:
    if isinstance(source, (str, os.PathLike)):
        return printable(os.fsdecode(source)) or "(empty path)"
    return type(source).__name__


def _load(source: object, problems: Problems) -> _Loaded:
    if isinstance(source, (str, os.PathLike)):
        return _load_file(Path(os.fsdecode(source)), problems)
    pandas = sys.modules.get("pandas")  # who has a frame has imported it
    if pandas is not None and isinstance(source, pandas.DataFrame):
        return _load_frame(source, problems)
    problems.fail(None, "this can't be read; give a path, a pandas DataFrame or a list of Facts.")


def _load_file(path: Path, problems: Problems) -> _Loaded:
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        if not os.path.isfile(path):
            read_bytes(path, problems)  # tells what it is instead
        problems.fail(
            None,
            f"files that end in {shown(suffix)} are not read; unpack or convert it to one of "
            f"{', '.join(_READERS)}.",
        )
    data, digest = read_bytes(path, problems)
    if not data or data.isspace():
        problems.fail(None, "the file is empty; give it at least one fact.")
    text = decode(data, problems)
    del data
    records, header = _READERS[suffix](text, problems)
    return _Loaded(records, digest, header)


def _delimited(text: str, problems: Problems) -> tuple[Sequence[Record], tuple[str, ...]]:
    header, records = read_delimited(text, known, problems)
    return records, header


_READERS: Mapping[str, Callable[[str, Problems], tuple[Sequence[Record], Any]]] = MappingProxyType(
    {
        ".csv": _delimited,
        ".tsv": _delimited,
        ".json": lambda text, problems: (read_json(text, problems), None),
        ".jsonl": lambda text, problems: (read_json_lines(text, problems), None),
    }
)


def _load_frame(frame: Any, problems: Problems) -> _Loaded:
    header = tuple(str(name).strip() for name in frame.columns)
    if len(header) > MAX_COLUMNS:
        problems.fail(None, f"it has {len(header):,} columns, {MAX_COLUMNS:,} are the limit.")
    for name in {name for name in header if header.count(name) > 1}:
        problems.add("the header", "the column is there twice; rename or delete one.", name)
    problems.raise_all()
    absent = frame.isna().to_numpy()
    values = frame.itertuples(index=False, name=None)
    records = [
        (
            Place(problems.source, i),
            {n: None if gone else v for n, v, gone in zip(header, row, absent[i], strict=True)},
        )
        for i, row in enumerate(values)
    ]
    return _Loaded(records, None, header)


# -- from records to rows -------------------------------------------------------------------------


def _kind(loaded: _Loaded, problems: Problems) -> str:
    """The format of the records; notes what can't be a table of facts at all."""
    keys = dict.fromkeys(loaded.header or (key for _, r in loaded.records for key in r))
    lists = any(isinstance(r.get("requested_rewrite"), list) for _, r in loaded.records)
    kind = recognise(keys, lists) or OWN
    if kind == OWN and loaded.header is None and loaded.records:
        if {"attribute", "template"} <= set(keys):
            problems.fail(
                None,
                "these are known facts, for tracing: they have no new object to edit to. Add a "
                "field new_object, and drop those that aren't columns.",
            )
        if not set(NEEDED) & {key.strip().lower() for key in keys}:
            found = ", ".join(printable(key)[:40] for key in list(keys)[:8]) or "none"
            problems.fail(
                None,
                f"no record has a field 'subject' or 'new_object' (fields found: {found}); name "
                "the fields so, or give the file in a published format.",
            )
    return kind


def _rows(loaded: _Loaded, kind: str, problems: Problems) -> tuple[list[FactRow], list[Place]]:
    if loaded.header is not None and kind == OWN:
        check_header(loaded.header, problems)
    if kind != OWN:
        keys = dict.fromkeys(key for _, record in loaded.records for key in record)
        for key in [key for key in keys if key not in FIELDS[kind].split()][:MAX_COLUMNS]:
            problems.warn(None, f"the field {shown(key)} is none of {kind}'s; it is left out.")
    rows: list[FactRow] = []
    places: list[Place] = []
    for place, record in loaded.records:
        found = KINDS[kind](Fields(place, record, problems))
        rows += found
        places += [place] * len(found)
    return rows, places


def _listed(source: Sequence[object], problems: Problems) -> tuple[list[FactRow], list[Place]]:
    rows, places = [], []
    for number, item in enumerate(source):
        place = Place(problems.source, number, None, "item")
        case = Case(item) if isinstance(item, Fact) else item
        if not isinstance(case, Case):
            problems.add(place, f"expected a Fact or a Case, found {shown(item)}.")
            continue
        fact = case.fact
        rows.append(
            FactRow(
                number=number,
                id=case.id or str(number),
                subject=fact.subject,
                prompt=fact.prompt,
                new_object=fact.new_object,
                old_object=fact.old_object,
                paraphrases=case.paraphrases,
                neighbours=case.neighbours,
                same_subject=case.same_subject,
                portability=case.portability,
                generation=case.generation,
                with_facts=case.with_facts,
            )
        )
        places.append(place)
    return rows, places
