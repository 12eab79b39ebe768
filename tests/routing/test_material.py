"""Material: everything that may be learnt becomes the same; what can't be is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from editcl.errors import EditclError, TableError
from editcl.facts import Fact
from editcl.learning.tasks import CLASSIFICATION, TEXT, Example, Task, TaskError
from editcl.model import EditableModel
from editcl.routing.material import material, train_only, whole_task

PAIRS = [(f"The capital of {a} is", b) for a, b in (("Peru", "Rome"), ("Chad", "Oslo"))]
FACTS = [Fact("Peru", "The capital of {} is", "Rome"), Fact("Chad", "The capital of {} is", "Oslo")]


def test_pairs_examples_facts_and_tasks_say_the_same() -> None:
    examples = [Example(*pair) for pair in PAIRS]
    ways = [PAIRS, examples, FACTS, Task("untitled", tuple(examples))]
    found = [material(way) for way in ways]
    assert {m.examples for m in found} == {tuple(examples)}
    assert {m.facts for m in found} == {tuple(FACTS)}
    assert [m.given for m in found] == [(), (), tuple(FACTS), ()]


def test_one_example_cannot_be_trained() -> None:
    assert material(PAIRS[:1]).task is None
    assert material(PAIRS).task is not None


def test_an_example_that_is_there_twice_counts_once() -> None:
    assert material(PAIRS + PAIRS).examples == material(PAIRS).examples


def test_facts_that_a_task_names_join_its_examples() -> None:
    extra = Fact("Mali", "The river of {} is", "Rhine")
    task = Task("t", tuple(Example(*pair) for pair in PAIRS), facts=(FACTS[0], extra))
    found = material(task)
    assert found.facts == (*FACTS, extra)
    assert found.examples[-1] == Example("The river of Mali is", "Rhine")
    assert found.given == (FACTS[0], extra)


def test_texts_give_the_facts_of_their_sentences_and_are_trained_as_they_are() -> None:
    task = Task("t", (Example("", "The capital of Peru is Rome. It rains."),), kind=TEXT)
    found = material(task)
    assert found.facts == (FACTS[0],)
    assert found.task is task
    assert len(found.unused) == 1


def test_files_are_told_by_what_they_hold(tmp_path: Path) -> None:
    task = tmp_path / "skill.jsonl"
    rows = [{"prompt": p, "completion": c} for p, c in PAIRS]
    task.write_text("\n".join(map(json.dumps, rows)))
    table = tmp_path / "facts.csv"
    table.write_text("subject,prompt,new_object\nPeru,The capital of {} is,Rome\n")
    text = tmp_path / "prose.txt"
    text.write_text("The capital of Peru is Rome.")
    assert material(task).name == "skill" and len(material(task).examples) == 2
    assert material(table).given == (FACTS[0],)
    assert material(text).facts == (FACTS[0],)


def test_a_file_that_is_neither_says_what_is_wrong_with_the_likelier(tmp_path: Path) -> None:
    table = tmp_path / "facts.csv"
    table.write_text("subject,prompt,new_object\nPeru,The capital of {} is,\n")
    with pytest.raises(TableError, match="new_object"):
        material(table)
    other = tmp_path / "other.csv"
    other.write_text("a,b\n1,2\n")
    with pytest.raises(TableError, match="prompt and completion"):
        material(other)


def test_rows_without_a_prompt_need_the_model(tmp_path: Path, model: EditableModel) -> None:
    table = tmp_path / "facts.csv"
    table.write_text("subject,new_object\nPeru,Rome\n")
    with pytest.raises(TaskError, match="pass the model"):
        material(table)


@pytest.mark.parametrize("what", [b"text", 3, None, {"a": "b"}, {1, 2}], ids=repr)
def test_what_is_nothing_to_learn_is_refused(what: object) -> None:
    with pytest.raises(EditclError, match="nothing to learn"):
        material(what)


@pytest.mark.parametrize(
    "what", [[], [1], [("a", 2)], [("a", "")], ["ab"], [("", "b")], ""], ids=repr
)
def test_what_is_empty_or_no_text_is_refused(what: object) -> None:
    with pytest.raises(TaskError):
        material(what)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "prose.txt: the file is empty"),
        (b" \n\n", "prose.txt: the file is empty"),
        (b"He sang.\nThe capital of Peru is Ro\0me.", "prose.txt, line 2: it holds a NUL"),
    ],
)
def test_a_text_file_that_holds_no_text_is_named(tmp_path: Path, body: bytes, message: str) -> None:
    place = tmp_path / "prose.txt"
    place.write_bytes(body)
    with pytest.raises(TableError, match=message):
        material(place)


@pytest.mark.parametrize("text", ["Ro\0me is big.", "Ro\ud800me is big."], ids=ascii)
def test_badly_decoded_text_is_refused(text: str) -> None:
    with pytest.raises(TaskError, match="decode its source"):
        material(text)


@pytest.mark.parametrize("name", ["a/b", "..", "<script>/", "a\0"], ids=ascii)
def test_names_that_no_task_may_have_are_refused_of_single_facts_too(name: str) -> None:
    with pytest.raises(TaskError, match="its name holds"):
        material([FACTS[0]], name=name)
    assert material([FACTS[0]], name="plain").name == "plain"


def test_contradictions_are_listed() -> None:
    with pytest.raises(TaskError, match="contradicts itself") as caught:
        material([("a b", "c"), ("a b", "d"), ("e f", "g"), ("e f", "h")])
    assert len(caught.value.problems) == 2
    with pytest.raises(TableError, match="Rome"):
        material([FACTS[0], Fact("Peru", "The capital of {} is", "Bonn")])


def test_what_is_left_to_train_keeps_its_labels_and_tests() -> None:
    train = (*(Example(f"p{i}", "ab"[i % 2]) for i in range(6)), Example("q", "c"))
    tests = (Example("t", "a"), Example("u", "c"))
    task = Task("t", train, tests, CLASSIFICATION)
    found = train_only(task, train[:6])
    assert found is not None
    assert (found.labels, found.test) == (("a", "b"), tests[:1])
    assert train_only(task, train[:1]) is None
    assert train_only(task, train[::2][:3]) is None, "one label is no classification"


def test_all_of_the_material_can_be_trained_facts_that_no_example_states_too() -> None:
    train = tuple(Example(f"Sort {i}:", ("red", "blue")[i % 2]) for i in range(4))
    fact = Fact("Louvre", "{} is in the city of", "Oslo")
    made = material(Task("colours", train, kind=CLASSIFICATION, facts=(fact,)))
    found = whole_task(made)
    assert found is not None and found.train[:4] == train
    assert found.train[4] == Example(fact.sentence, "Oslo") and "Oslo" in found.labels
    plain = material(Task("colours", train, kind=CLASSIFICATION))
    assert whole_task(plain) is plain.task
    assert whole_task(material([fact])) is None, "one example can't be trained"


def test_facts_beside_plain_texts_are_not_learnt_by_training_the_texts() -> None:
    texts = tuple(Example("", f"The Louvre is in the city of Paris. Number {i}.") for i in range(3))
    fact = Fact("Big Ben", "{} is in the city of", "Oslo")
    assert whole_task(material(Task("news", texts, kind=TEXT, facts=(fact,)))) is None
    alone = material(Task("news", texts, kind=TEXT))
    assert whole_task(alone) is alone.task


def test_a_text_that_is_a_file_name_is_the_file(tmp_path: Path) -> None:
    path = tmp_path / "reviews.jsonl"
    path.write_text('{"prompt": "a b", "completion": "c"}\n{"prompt": "d e", "completion": "f"}\n')
    assert material(str(path)) == material(path)
    with pytest.raises(EditclError, match=r"gone\.csv"):
        material("gone.csv")
    assert material("Peru is in Africa. Read more in facts.csv today.").name == "untitled"
