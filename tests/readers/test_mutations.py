"""Damaged files: whatever happens to the bytes, a valid table or one error that says where."""

from __future__ import annotations

import csv
import io
import json
import random
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from editcl.errors import TableError
from editcl.facts import Fact
from editcl.readers import FactTable, read_table

HEADER = ["subject", "prompt", "new_object", "old_object", "paraphrase_1", "neighbourhood_1"]
ROWS = [
    ["The Eiffel Tower", "{} is in", "Rome", "Paris", "Go to {} in", "The Louvre is in"],
    ["Zürich", "Zürich lies, they say, in", "Peru", "", "", ""],
    ["東京", "{}は", "フランス", "日本", "", ""],
    ['A "B" C', "", "line\nbreak", "=1+1", "", "D is"],
    ["France", "capital", "Lyon", "", "", ""],
]
_BITS = [
    b'"', b",", b"\n", b"\r", b";", b"\t", b"\0", b"{}", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe",
    b"\xed\xa0\x80", b'""', b"\\", b"[", b"]", b"{", b"}", b":", b"NaN", b"1e999", b"null",
    b"9" * 40, b" ", b"\xe2\x80\xa8", b"\xf0\x9f",
]  # fmt: skip


def as_csv(delimiter: str = ",") -> bytes:
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=delimiter).writerows([HEADER, *ROWS])
    return out.getvalue().encode()


def as_records() -> list[dict[str, str]]:
    return [dict(zip(HEADER, row, strict=True)) for row in ROWS]


SEEDS = {
    "a.csv": as_csv(),
    "b.tsv": as_csv("\t"),
    "c.csv": b"\xff\xfe" + as_csv(";").decode().encode("utf-16-le"),
    "d.jsonl": "\n".join(json.dumps(r, ensure_ascii=False) for r in as_records()).encode(),
    "e.json": json.dumps(as_records(), ensure_ascii=False, indent=1).encode(),
}


def damaged(data: bytes, rng: random.Random) -> bytes:
    """The bytes after one to four changes: bits put in, bytes changed, spans cut or doubled."""
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice([1, 1, 2, 5, 30]))
        change = rng.randrange(5)
        if change == 0:
            data = data[:at] + rng.choice(_BITS) + data[at:]
        elif change == 1:
            data = data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
        elif change == 2:
            data = data[:at] + data[end:]
        elif change == 3:
            data = data[:end] + data[at:end] + data[end:]
        else:
            data = data[:at] + rng.choice(_BITS) + data[end:]
    return data


def check(path: Path) -> bool:
    """Whether the file was read; asserts that the outcome is one of the two that are allowed."""
    try:
        table = read_table(path)
    except TableError as error:
        message = str(error)
        message.encode("utf-8")
        assert path.name in message and len(message) < 20_000
        for problem in error.problems:
            assert path.name in problem
            # What is of no row: the header or the whole.
            whole = r"the header(, column|: none of)|the file |no facts|no record|JSON"
            assert re.search(rf"(row|record|line) \d+|{whole}", problem), problem
        return False
    assert_valid(table)
    return True


def assert_valid(table: FactTable) -> None:
    assert table.rows
    assert len({row.key for row in table.rows}) == len(table.rows)
    for row in table.rows:
        if row.prompt is not None:
            fact = row.fact()
            assert (fact.subject, fact.prompt) == (row.subject, row.prompt)
        else:
            Fact(row.subject, "{}", row.new_object, row.old_object)
        for text in (*row.paraphrases, *row.open_neighbours, *(p.object for p in row.neighbours)):
            assert text.strip() == text != ""
            text.encode("utf-8")


def test_the_files_are_read_before_they_are_damaged(tmp_path) -> None:
    for name, data in SEEDS.items():
        (tmp_path / name).write_bytes(data)
        assert len(read_table(tmp_path / name).rows) == len(ROWS)


@pytest.mark.parametrize("name", SEEDS)
def test_two_thousand_damages_of_each_file(tmp_path, name: str) -> None:
    rng = random.Random(name)
    path = tmp_path / name
    outcomes = []
    for _ in range(2000):
        path.write_bytes(damaged(SEEDS[name], rng))
        outcomes.append(check(path))
    assert 0 < sum(outcomes) < len(outcomes)  # both outcomes were put to the test


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from(sorted(SEEDS)), st.binary(max_size=200))
def test_any_bytes_at_all(tmp_path, name: str, data: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    check(path)


@pytest.mark.parametrize("number", range(1, len(ROWS) + 1))
@pytest.mark.parametrize(
    "damage", [b"\0", b'x"y"', b",,,,,,,", b"\xff"], ids=["nul", "quote", "ragged", "encoding"]
)
def test_damage_within_a_row_names_it(tmp_path, number: int, damage: bytes) -> None:
    lines = [",".join(HEADER).encode()] + [b'"A%d",{} is,b,,,' % i for i in range(len(ROWS))]
    lines[number] = lines[number].replace(
        b",b,", b',"b' + damage + b'",' if damage == b'x"y"' else b",b" + damage + b","
    )
    path = tmp_path / "facts.csv"
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(TableError, match=rf"facts\.csv, .*line {number + 1}\b"):
        read_table(path)


text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(text, text, text), min_size=1, max_size=4))
def test_rows_that_are_written_are_read_back_equal(tmp_path, rows) -> None:
    """Arbitrary text in every column, each row made valid by visible letters of its own."""
    wanted = [
        (
            f"s{i}{subject}z".replace("{}", ""),
            "{} ~ q" + paraphrase.replace("{}", "") + "q",
            f"n{new}n",
        )
        for i, (subject, paraphrase, new) in enumerate(rows)
    ]
    path = tmp_path / "facts.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["subject", "prompt", "new_object", "paraphrase", "neighbour"])
        for subject, paraphrase, new in wanted:
            writer.writerow([subject, "{} is", new, paraphrase, new])
    found = read_table(path).rows
    assert [(r.subject, r.new_object, r.open_neighbours) for r in found] == [
        (subject, new, (new,)) for subject, _, new in wanted
    ]
    assert [r.paraphrases for r in found] == [
        (paraphrase.replace("{}", subject, 1),) for subject, paraphrase, _ in wanted
    ]
