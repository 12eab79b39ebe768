"""Our own columns: prompts of every form, paraphrases, neighbours, and names that are wrong."""

from __future__ import annotations

import json
from fractions import Fraction

import pandas as pd
import pytest

from editcl.catalogue import relations
from editcl.evaluation import Probe
from editcl.facts import Fact
from editcl.readers import read_table


def row_of(write, **cells: str):
    """The one row of a CSV file with these cells."""
    quoted = ['"' + text.replace('"', '""') + '"' for text in cells.values()]
    (row,) = read_table(write(",".join(cells) + "\n" + ",".join(quoted) + "\n")).rows
    return row


@pytest.mark.parametrize(
    "prompt, template",
    [
        ("{} is located in", "{} is located in"),
        ("The Eiffel Tower is located in", "{} is located in"),
        ("Where is The Eiffel Tower?", "Where is {}?"),
        ("located_in_city", relations()["located_in_city"].prompt),
        ("Located in city", relations()["located_in_city"].prompt),
        ("", None),
        ("  ", None),
    ],
)
def test_a_prompt_may_be_written_in_many_ways(write, prompt: str, template: str | None) -> None:
    row = row_of(write, subject="The Eiffel Tower", prompt=prompt, new_object="Rome")
    assert row.prompt == template


def test_a_subject_in_other_capitals_is_taken_from_the_prompt(write) -> None:
    table = read_table(write("subject,prompt,new_object\nthe IAAF cup,When was The IAAF Cup?,1\n"))
    assert table.rows[0].fact() == Fact("The IAAF Cup", "When was {}?", "1")
    assert "'the IAAF cup' is taken as the prompt has it: 'The IAAF Cup'" in table.warnings[0]


@pytest.mark.parametrize(
    "prompt, said",
    [
        ("capitol", "no relation is called 'capitol'; the nearest is 'capital'"),
        ("is located in the city of", "A sentence start needs {} where the subject stands"),
        ("It is located in", "subject 'Rome City' is not in the prompt"),
        ("Rome City, that is Rome City, is in", "occurs 2 times"),
        ("{} and {} are in", "exactly one {}"),
        ("{}, Rome City, is in", "Name the subject once"),
    ],
)
def test_a_prompt_that_can_not_be_used(write, refused, prompt: str, said: str) -> None:
    text = refused(write(f'subject,prompt,new_object\nRome City,"{prompt}",x\n'))
    assert "row 1 (line 2), column 'prompt': " in text or "column 'subject': " in text
    assert said in text and len(text.splitlines()) == 1


def test_unicode_forms_that_differ_are_told(write, refused) -> None:
    text = refused(write("subject,prompt,new_object\nZ\u00fcrich,Zu\u0308rich is,x\n"))
    assert "different Unicode forms" in text


def test_paraphrases_are_filled_and_keep_their_order(write) -> None:
    row = row_of(
        write,
        subject="Ann",
        prompt="{} is",
        new_object="x",
        paraphrase="You call {}",
        paraphrase_2="Ann, a",
        Paraphrase1="",
    )
    assert row.paraphrases == ("You call Ann", "Ann, a")


@pytest.mark.parametrize("word", ["neighbourhood", "neighborhood", "Neighbour", "neighbors"])
def test_a_neighbour_has_the_old_object_unless_it_has_its_own(write, word: str) -> None:
    cells = {"subject": "Ann", "prompt": "{} is", "new_object": "x", "old_object": "y"}
    row = row_of(
        write,
        **cells,
        **{word: "Bob is", f"{word}_2": "Cat is", f"{word}_2_object": "z", f"{word}_3": ""},
    )
    assert row.neighbours == (Probe("Bob is", "y"), Probe("Cat is", "z"))
    del cells["old_object"]
    row = row_of(write, **cells, **{word: "Bob is", f"{word}_2": "Cat is", f"{word}_2_object": "z"})
    assert (row.neighbours, row.open_neighbours) == ((Probe("Cat is", "z"),), ("Bob is",))


@pytest.mark.parametrize(
    "columns, cells, said",
    [
        ("neighbourhood_1_object", "z", "without a neighbourhood column"),
        ("neighbourhood,neighbourhood_object", ",z", "an object without a neighbour"),
        ("neighbourhood", "{} is", "name the other subject"),
        ("paraphrase", "{} {}", "more than one {}"),
        ("neighbourhood,neighborhood", "a,b", "means the same as column 'neighbourhood'"),
    ],
)
def test_probes_that_can_not_be_used(write, refused, columns, cells, said) -> None:
    path = write(f"subject,prompt,new_object,{columns}\nAnn,{{}} is,x,{cells}\n")
    assert said in refused(path)


@pytest.mark.parametrize(
    "name, meant",
    [
        ("promt", "prompt"),
        ("new_objct", "new_object"),
        ("target_new", "new_object"),
        ("ground_truth", "old_object"),
        ("paraphrasing", "paraphrase"),
        ("neighbourhod_1", "neighbourhood"),
    ],
)
def test_an_unknown_column_is_told_the_nearest(write, refused, name: str, meant: str) -> None:
    text = refused(write(f"subject,new_object,{name}\na,b,c\n"))
    assert f"the header, column '{name}': unknown column; did you mean '{meant}'?" in text


def test_a_table_without_a_header_is_told_so(refused, write) -> None:
    text = refused(write("Louvre,{} is in,Oslo\nBig Ben,{} is in,Rome\n"))
    assert "the header: none of 'Louvre', '{} is in', 'Oslo' is a column's name" in text
    assert "is the line of names missing?" in text and "delete" not in text


def test_a_column_near_to_none_is_told_all(write, refused) -> None:
    assert "delete it, or use one of subject" in refused(write("subject,new_object,qqq\na,b,c\n"))


def test_missing_columns_are_named_and_what_may_be_meant(write, refused) -> None:
    text = refused(write("subjekt,prompt\na,b\n"))
    assert "column 'subject': the column is missing; rename column 'subjekt'?" in text
    assert "column 'new_object': the column is missing; add it" in text


def test_broken_rows_are_told_beside_a_broken_header(write, refused) -> None:
    text = refused(write("subject,new_object,qqq\na,b\n"))
    assert "2 problems" in text and "row 1 (line 2): the row has 2 cells" in text


@pytest.mark.parametrize("name", ["facts.json", "facts.jsonl"])
def test_json_has_the_same_names_and_lists(write, name: str) -> None:
    record = {
        "id": 7,
        "subject": "Ann",
        "prompt": "Ann is",
        "new_object": 1998,
        "old_object": None,
        "paraphrases": ["{}, a", None, "You call Ann"],
        "neighbourhood": ["Bob is", "Cat is"],
        "neighbourhood_object": ["y", "z"],
        "neighbours_2": [{"prompt": "Dan is", "object": "d", "aliases": ["D"]}, {"prompt": "Eve"}],
        "portability": [{"prompt": "Her son is", "object": "s"}],
        "same_subject": {"prompt": "Ann likes", "object": "t"},
        "generation": ["Ann said"],
        "with_facts": [{"subject": "Bob", "prompt": "{} has", "new_object": "q"}],
    }
    text = json.dumps([record]) if name == "facts.json" else "\n" + json.dumps(record) + "\n"
    (row,) = read_table(write(text, name)).rows
    assert row.number == 0
    assert row.place == ("row 0" if name == "facts.json" else "row 0 (line 2)")
    assert (row.id, row.prompt, row.new_object, row.old_object) == ("7", "{} is", "1998", None)
    assert row.paraphrases == ("Ann, a", "You call Ann")
    near = (Probe("Bob is", "y"), Probe("Cat is", "z"), Probe("Dan is", "d", ("D",)))
    assert (row.neighbours, row.open_neighbours) == (near, ("Eve",))
    assert row.portability == (Probe("Her son is", "s"),)
    assert row.same_subject == (Probe("Ann likes", "t"),)
    assert (row.generation, row.with_facts) == (("Ann said",), (Fact("Bob", "{} has", "q"),))


def test_json_records_with_wrong_values_are_named(write, refused) -> None:
    records = [
        {"subject": "a", "new_object": "b"},
        {"subject": ["a"], "new_object": {"str": "b"}},
        {"subject": "a", "new_object": "b", "portability": [{"prompt": "x"}, 7]},
        {"subject": "a", "new_objekt": True},
        {"subject": "a", "new_object": False, "with_facts": [{"subject": "q"}]},
        {"subject": "a", "new_object": 1e999},
    ]
    text = refused(write(json.dumps(records).replace("Infinity", "1e999"), "facts.json"))
    for part in [
        "record 1, column 'subject': expected a text, found a value of type list",
        "record 1, column 'new_object': expected a text, found a value of type dict",
        "record 2, column 'portability[0].object': it is missing",
        "record 2, column 'portability[1]': expected an object",
        "record 3, column 'new_objekt': unknown column; did you mean 'new_object'?",
        "record 3, column 'new_object': it is missing",
        "record 4, column 'new_object': expected a text, found a value of type bool",
        "record 4, column 'with_facts[0].prompt': it is missing",
        "record 5, column 'new_object': expected a text, found a value of type float",
    ]:
        assert part in text


def test_lists_of_neighbours_and_objects_stay_in_step(write, refused) -> None:
    record = {"subject": "a", "new_object": "b", "old_object": "o"}
    near = {"neighbours": ["A", None, "B"], "neighbours_object": [None, None, "x"]}
    (row,) = read_table(write(json.dumps([{**record, **near}]), "facts.json")).rows
    assert row.neighbours == (Probe("A", "o"), Probe("B", "x"))
    near["neighbours_object"] = "y"
    near["neighbours"] = ["A", "B"]
    (row,) = read_table(write(json.dumps([{**record, **near}]), "facts.json")).rows
    assert row.neighbours == (Probe("A", "y"), Probe("B", "y"))
    near["neighbours_object"] = ["y"]
    text = refused(write(json.dumps([{**record, **near}]), "facts.json"))
    assert "1 objects for 2 neighbours" in text


def test_numbers_that_no_float_can_hold_are_refused(refused) -> None:
    frame = pd.DataFrame({"subject": ["a"], "new_object": [Fraction(10**400)]})
    assert "expected a text, found a value of type Fraction" in refused(frame)
