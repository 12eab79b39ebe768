"""JSON and JSON Lines that are broken, hostile or not what was meant."""

from __future__ import annotations

import json

import pytest

from editcl.readers import read_table

GOOD = '{"subject": "a", "prompt": "{} is", "new_object": "b"}'


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "the file is empty"),
        ("\ufeff", "the file is empty"),
        ("{", "no valid JSON"),
        ("7", "the file holds a number; write a list"),
        ("null", "the file holds null"),
        ('"x"', "the file holds a text"),
        (GOOD, "the file holds an object; write a list"),
        (f"{GOOD}\n{GOOD}", "name the file .jsonl"),
        ("[]", "no facts"),
        ("[{}]", "no record has a field 'subject'"),
        ("[7]", "record 0: the record is a number"),
        ("\0", "no valid JSON"),
        (f"[{GOOD}, {GOOD[:-1]}]", "record 1: this is no valid JSON"),
        (f"[{GOOD}\n, {{'a': 1}}]", "line 2, character 4"),
        (f'[{GOOD}, {{"subject": NaN}}]', "record 1: NaN is no JSON"),
        (f'[{GOOD}, {{"subject": -Infinity}}]', "record 1: -Infinity is no JSON"),
        (f'[{GOOD}, {{"id": {"9" * 5000}}}]', "record 1: the JSON holds a number of too many"),
        (f"[{GOOD}, {'[' * 100_000}]", "record 1: the JSON is nested too deeply"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        (f'[{GOOD}, {{"id": 1, "id": 2}}]', "record 1: the key 'id' stands twice"),
        (f"[{GOOD}", "no valid JSON"),
    ],
)
def test_json_that_is_no_table(write, refused, text: str, said: str) -> None:
    message = refused(write(text, "facts.json"))
    assert said in message and len(message) < 2000


@pytest.mark.parametrize(
    "text, said",
    [
        (f"[{GOOD}]", "name it .json"),
        ("{", "record 0 (line 1): this is no valid JSON"),
        (f"{GOOD}\n\n{{]\n7\n", "record 1 (line 3): this is no valid JSON"),
        (f"{GOOD}\n\n{{]\n7\n", "record 2 (line 4): the record is a number"),
        (f"{GOOD} {GOOD}", "Extra data"),
        (f'{GOOD}\n{{"id": {"9" * 5000}}}', "record 1 (line 2): the JSON holds a number"),
        (f"{GOOD}\n{'[' * 100_000}", "record 1 (line 2): the JSON is nested too deeply"),
    ],
)
def test_json_lines_that_are_no_table(write, refused, text: str, said: str) -> None:
    assert said in refused(write(text, "facts.jsonl"))


def test_lone_surrogates_are_told(write, refused) -> None:
    text = refused(write('[{"subject": "\\ud83d", "new_object": "b\\udc80"}]', "facts.json"))
    assert "record 0, column 'subject': it is not valid Unicode" in text
    text.encode("utf-8")
    message = refused(write('[{"subject": "a", "new_object": "b", "\\ud83d": 1}]', "facts.json"))
    message.encode("utf-8")


def test_a_huge_text_is_refused_and_the_limit_told(write, refused) -> None:
    records = [{"subject": "x" * 10_000_000, "new_object": "b"}, {"subject": "c"}]
    text = refused(write(json.dumps(records), "facts.json"))
    assert "record 0, column 'subject': it has 10,000,000 characters, 100,000 are the limit" in text
    assert "record 1, column 'new_object'" in text and len(text) < 1000


def test_separators_of_lines_within_texts_split_no_record(write) -> None:
    record = json.dumps({"subject": "a\u2028b\x85c", "new_object": "d"}, ensure_ascii=False)
    assert read_table(write(record + "\r\n", "facts.jsonl")).rows[0].subject == "a\u2028b\x85c"


def test_deep_values_where_texts_belong_are_told(write, refused) -> None:
    deep = "[" * 500 + "]" * 500
    record = f'{{"subject": {deep}, "new_object": "b", "paraphrase": {deep}}}'
    assert "expected a text" in refused(write(f"[{record}]", "facts.json"))


def test_a_record_of_very_many_fields_is_refused_at_once(write, refused) -> None:
    record = {"subject": "a", **{f"x{i}": i for i in range(200_000)}}
    assert "record 0: it has 200,001 fields" in refused(write(json.dumps([record]), "facts.json"))
