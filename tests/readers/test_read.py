"""What every source has in common: one error for all problems, duplicates, contradictions."""

from __future__ import annotations

import csv
import hashlib

import pandas as pd
import pytest

from editcl.errors import FactError, TableError
from editcl.evaluation import Case, Probe
from editcl.facts import Fact
from editcl.readers import KINDS, FactRow, read_table

HEADER = "subject,prompt,new_object,old_object\n"
FACT = Fact("The Eiffel Tower", "{} is in", "Rome", "Paris")


def test_a_row_gives_its_fact_and_case(write) -> None:
    path = write(HEADER + "The Eiffel Tower,{} is in,Rome,Paris\n")
    table = read_table(path)
    assert (table.source, table.kind, table.warnings) == (str(path), "facts", ())
    assert table.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    (row,) = table.rows
    assert row == FactRow(1, "1", "The Eiffel Tower", "{} is in", "Rome", "Paris", line=2)
    assert row.fact() == FACT
    assert row.case() == row.case(FACT) == Case(FACT, id="1")
    assert read_table(str(path)) == table
    assert "1 rows of kind 'facts'" in repr(table)


def test_a_row_without_a_prompt_takes_the_fact_that_was_inferred(write) -> None:
    (row,) = read_table(write("subject,new_object\nThe Eiffel Tower,Rome\n")).rows
    assert row.prompt is None and row.old_object is None
    with pytest.raises(FactError, match="no prompt"):
        row.fact()
    with pytest.raises(FactError, match="no prompt"):
        row.case()
    assert row.case(FACT).fact == FACT


def test_open_neighbours_become_probes_with_what_the_model_says(write) -> None:
    text = (
        "subject,new_object,neighbourhood_1,neighbourhood_2\na,b,The Louvre is in,Big Ben is in\n"
    )
    (row,) = read_table(write(text)).rows
    assert row.neighbours == ()
    case = row.case(FACT, answers=["Paris", "London"])
    assert case.neighbours == (Probe("The Louvre is in", "Paris"), Probe("Big Ben is in", "London"))
    assert row.case(FACT).neighbours == ()
    with pytest.raises(FactError, match="2 open neighbours, got 1"):
        row.case(FACT, answers=["Paris"])


def test_all_errors_are_collected_and_twenty_shown(write, refused) -> None:
    path = write(HEADER + "a,{} is,,\n" * 30 + "b,{},b,b\n")
    text = refused(path)
    assert "31 problems; nothing was read" in text
    assert "row 20 (line 21), column 'new_object': it is empty; give it some text" in text
    assert "row 21" not in text and "and 11 more" in text
    with pytest.raises(TableError) as caught:
        read_table(path)
    assert len(caught.value.problems) == 31
    assert "row 31 (line 32)" in caught.value.problems[-1]


def test_errors_of_several_columns_and_kinds_come_in_the_order_of_rows(write, refused) -> None:
    text = refused(write(HEADER + ",no subject,,\na,{} is,b\nc,{} is,d,d\n"))
    where = [line.split(": ")[0].split("facts.csv, ")[-1] for line in text.splitlines()[1:]]
    assert where == [
        "row 1 (line 2), column 'subject'",
        "row 1 (line 2), column 'new_object'",
        "row 2 (line 3)",
        "row 3 (line 4), column 'new_object'",
    ]


def test_a_duplicate_is_kept_once_with_a_warning(write) -> None:
    text = "subject,prompt,new_object,old_object,paraphrase\n"
    table = read_table(write(text + "a,{} is,b,,A says\nc,{} is,d,,\na,a is,b,e,A tells\n"))
    assert [row.subject for row in table.rows] == ["a", "c"]
    assert table.rows[0].paraphrases == ("A says", "A tells")
    assert table.rows[0].old_object == "e"
    (warning,) = table.warnings
    assert "row 3 (line 4): says the same as row 1 (line 2); kept once" in warning


def test_a_contradiction_names_both_rows(write, refused) -> None:
    text = refused(write(HEADER + "a,{} is,b,\nc,{} is,d,\na,{} is,z,\n"))
    assert "row 3 (line 4), column 'new_object'" in text
    assert "row 1 (line 2)" in text and "'z' here and 'b' there" in text


def test_unicode_forms_of_one_subject_contradict_each_other(write, refused) -> None:
    text = refused(write(HEADER + "Z\u00fcrich,{} is,b,\nZu\u0308rich,{} is,z,\n"))
    assert "'z' here and 'b' there" in text


def test_rows_without_prompts_may_state_several_objects(write) -> None:
    assert len(read_table(write("subject,new_object\na,b\na,c\n")).rows) == 2


def test_an_id_that_names_two_rows_is_warned_of(write) -> None:
    table = read_table(write("id,subject,new_object\nx,a,b\nx,c,d\n"))
    assert [row.id for row in table.rows] == ["x", "x"]
    assert "the id 'x' is also that of row 1 (line 2)" in table.warnings[0]


def test_facts_and_cases_are_read_from_a_list() -> None:
    case = Case(
        Fact("a", "{} is", "b"), ("A is",), (Probe("C is", "d"),), with_facts=(FACT,), id="one"
    )
    table = read_table([FACT, case])
    assert table.rows[0].case() == Case(FACT, id="0")
    assert table.rows[1].case() == case
    assert table.digest == read_table((FACT, case)).digest != read_table([FACT]).digest
    with pytest.raises(TableError, match="list, item 1: expected a Fact or a Case"):
        read_table([FACT, "x"])


def test_a_data_frame_is_read_like_a_file(write) -> None:
    text = "subject,prompt,new_object,old_object,paraphrase\na,{} is,1998,,A was\nb,b is,c,d,\n"
    rows = read_table(write(text)).rows
    frame = pd.read_csv(write(text))
    table = read_table(frame)
    assert [(r.subject, r.prompt, r.new_object, r.old_object, r.paraphrases) for r in rows] == [
        (r.subject, r.prompt, r.new_object, r.old_object, r.paraphrases) for r in table.rows
    ]
    assert [row.number for row in table.rows] == [0, 1]
    assert table.digest == read_table(frame.copy()).digest


def test_absent_and_odd_cells_of_a_frame(refused) -> None:
    frame = pd.DataFrame({"subject": ["a", "b"], "new_object": [1998.0, None]})
    assert "DataFrame, row 1, column 'new_object': it is empty" in refused(frame)
    assert read_table(frame[:1]).rows[0].new_object == "1998"
    odd = pd.DataFrame({"subject": ["a", True, "\ud800"], "new_object": [["x"], "c", 10**5000]})
    text = refused(odd)
    assert "row 0, column 'new_object': expected a text, found a value of type list" in text
    assert "row 1, column 'subject': expected a text, found a value of type bool" in text
    assert "row 2, column 'subject': it is not valid Unicode" in text
    assert "row 2, column 'new_object': expected a text, found a value of type int" in text
    assert "'subject'" in refused(pd.DataFrame())
    twice = pd.DataFrame([["a", "b", "c"]], columns=["subject", "subject", "new_object"])
    assert "is there twice" in refused(twice)
    assert "unknown column" in refused(pd.DataFrame([[1, 2]], columns=["subject", 7]))


@pytest.mark.parametrize("source", [None, 7, b"facts.csv", {"subject": "a"}, object(), iter([])])
def test_other_sources_are_refused(source: object, refused) -> None:
    assert "give a path, a pandas DataFrame or a list" in refused(source)


def test_nothing_in_it_is_an_error(refused) -> None:
    assert "no facts" in refused([])


def test_an_unknown_kind_is_refused(write, refused) -> None:
    text = refused(write(HEADER), kind="counterfacts")
    assert all(kind in text for kind in KINDS)


def test_a_kind_that_is_named_overrules_what_the_keys_say(write, refused) -> None:
    path = write(HEADER + "a,{} is,b,\n")
    assert "column 'requested_rewrite.subject': it is missing" in refused(path, kind="counterfact")


def test_ten_thousand_rows_are_read_in_their_order(tmp_path) -> None:
    path = tmp_path / "facts.csv"
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["subject", "prompt", "new_object", "old_object", "paraphrase"])
        for i in range(10_000):
            out.writerow([f"Person {i} of Town", "{} lives, now, in", f"City {i % 7}", "", "{} is"])
    rows = read_table(path).rows
    assert [row.subject for row in rows] == [f"Person {i} of Town" for i in range(10_000)]


def test_one_malformed_row_among_ten_thousand_is_named(write, refused) -> None:
    rows = [f"Person {i},{{}} is,b,\n" for i in range(10_000)]
    rows[7_776] = "Person,{} is\n"
    assert "facts.csv, row 7777 (line 7778): the row has 2 cells, the header 4" in refused(
        write(HEADER + "".join(rows))
    )
