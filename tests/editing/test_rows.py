"""Rows become facts with relation and old object, or every problem is told at once."""

from __future__ import annotations

import json

import pytest
import tiny
from batches import CONTROL
from tables import FAST, snapshot, table

import editcl
from editcl.editing import relation
from editcl.editing import rows as module
from editcl.editing.choices import ask_objects
from editcl.editing.rows import settle_rows
from editcl.errors import TableError
from editcl.facts import Fact
from editcl.readers import read_table


@pytest.fixture
def sure(monkeypatch) -> None:
    """Every relation is told, however narrowly."""
    monkeypatch.setattr(relation, "MARGIN", 0.0)
    monkeypatch.setattr(relation, "MARGIN_UNKNOWN", 0.0)


@pytest.fixture
def unsure(monkeypatch) -> None:
    """No relation is told."""
    monkeypatch.setattr(relation, "MARGIN", 1e9)
    monkeypatch.setattr(relation, "MARGIN_UNKNOWN", 1e9)


def settled(model, rows):
    return settle_rows(model, read_table(rows))


def test_what_a_row_states_is_kept_and_what_it_lacks_is_asked(model) -> None:
    open_ = Fact("The Colosseum", "The city of {}", "Apple")
    (said,) = ask_objects(model, [open_.sentence])
    stated, asked = settled(model, [CONTROL[0], open_])
    assert stated.fact == CONTROL[0] and stated.inferred is None
    assert asked.fact == Fact("The Colosseum", "The city of {}", "Apple", said)
    assert not stated.said_already and not asked.said_already


def test_a_row_that_the_model_says_already_in_any_case_is_marked(model) -> None:
    open_ = Fact("The Colosseum", "The city of {}", "x")
    (said,) = ask_objects(model, [open_.sentence])
    for object_ in (said, said.upper(), said.swapcase()):
        (found,) = settled(model, [Fact(open_.subject, open_.prompt, object_)])
        assert found.said_already is (object_.casefold() == said.casefold())
    assert settled(model, [Fact(open_.subject, open_.prompt, said)])[0].said_already


def test_a_model_that_says_nothing_leaves_the_old_object_open(model, monkeypatch) -> None:
    monkeypatch.setattr(module, "ask_objects", lambda _, sentences: [None] * len(sentences))
    (found,) = settled(model, [Fact("The Colosseum", "The city of {}", "Apple")])
    assert found.fact.old_object is None and not found.said_already
    report = editcl.edit_csv(model, [found.fact], **FAST)
    assert report.rows[0].status == "edited" and report.rows[0].holds is None
    assert report.efficacy is None


def test_a_missing_relation_is_inferred(model, sure, tmp_path) -> None:
    path = table(tmp_path / "facts.csv", CONTROL, prompt=["", "", CONTROL[2].prompt])
    first, second, third = settled(model, path)
    assert first.fact.prompt == relation.infer_relation(model, "The Eiffel Tower", "Rome").prompt
    assert first.inferred and second.inferred and third.inferred is None


def test_every_problem_is_listed_with_its_row_and_nothing_changes(model, unsure, tmp_path) -> None:
    before = snapshot(model)
    path = tmp_path / "facts.csv"
    path.write_text(
        "subject,prompt,new_object,old_object\n"
        "The Eiffel Tower,,Rome,Paris\n"  # 1: ambiguous
        "The Colosseum,The city of {},Apple,Rome\n"  # 2: fine
        f"Beats Music,The owner of {{}},{'word ' * 200},\n"  # 3: the object is too long
        f"{'word ' * 200},{{}} is,Rome,\n"  # 4: the subject is too long
        f"Louvre,{'a ' * 40}{{}} is,Rome,\n"  # 5: no room for the model's answer
    )
    with pytest.raises(TableError) as caught:
        editcl.edit_csv(model, path, **FAST)
    problems = caught.value.problems
    assert [line.split("row ")[1].split()[0] for line in problems] == ["1", "3", "4", "5"]
    assert "row 1 (line 2) ('The Eiffel Tower')" in problems[0]
    assert all(len(line) < 1000 for line in problems)
    assert all("\n" not in line and line.startswith(str(path)) for line in problems)
    assert "fits several relations: '" in problems[0]
    assert "write the one that you mean into the row as its prompt" in problems[0]
    assert "takes at most" in problems[1] and "takes at most" in problems[2]
    assert "can't be asked for the old object; give it" in problems[3]
    assert all(line in str(caught.value) for line in problems)
    assert str(caught.value).count("Nothing was changed.") == 1
    assert snapshot(model) == before


def test_of_many_problems_the_message_shows_the_first_and_counts_the_rest(model, unsure) -> None:
    import pandas

    n = module.SHOWN_PROBLEMS + 3
    frame = pandas.DataFrame({"subject": [f"S{i}" for i in range(n)], "new_object": ["Rome"] * n})
    with pytest.raises(TableError, match=r"\.\.\. and 3 more\nNothing was changed\.$") as caught:
        settled(model, frame)
    assert len(caught.value.problems) == n


def test_an_object_outside_the_vocabulary_is_a_problem_of_its_row(word_tokenizer) -> None:
    model = editcl.wrap(tiny.build("gpt2"), word_tokenizer)
    facts = [Fact("Eiffel", "{} is in", "Paris", "Rome"), Fact("Tower", "{} is in", "Oslo", "Rome")]
    with pytest.raises(TableError, match="row 1.*can't encode the object 'Oslo'") as caught:
        editcl.edit_csv(model, facts, **FAST)
    assert len(caught.value.problems) == 1


def test_rows_that_contradict_each_other_once_inferred_are_refused(model, sure, tmp_path) -> None:
    path = table(tmp_path / "facts.csv", CONTROL[:1] * 2, prompt=["", ""], new_object=["a", "b"])
    before = snapshot(model)
    with pytest.raises(
        TableError, match=r"row 2 .*goes on with 'b' here and with 'a' in row 1 \(line 2"
    ):
        for _ in range(2):  # if the two objects lead to different relations, state one of them
            found = relation.infer_relation(model, CONTROL[0].subject, "a").prompt
            editcl.edit_csv(model, path, **FAST)
            table(path, CONTROL[:1] * 2, prompt=["", found], new_object=["a", "b"])
    assert snapshot(model)[0] == before[0]


def test_contradictory_records_of_a_published_file_are_not_edited_at_once(model, tmp_path) -> None:
    path = tmp_path / "zsre.json"
    records = [
        {"subject": "Beats", "src": "Who owns Beats?", "alt": new, "answers": ["Apple"], "loc": "",
         "loc_ans": "", "rephrase": "Whose is Beats?", "pred": "Apple"}
        for new in ("Rome", "Paris")
    ]  # fmt: skip
    path.write_text(json.dumps(records))
    read = read_table(path)
    assert read.contradictions
    with pytest.raises(TableError, match="'Paris' here and with 'Rome' in row 0"):
        settle_rows(model, read)
