"""In-context editing: what the text says, and that nothing else happens."""

from __future__ import annotations

from collections import Counter

import pytest

from editcl.editing.incontext import Demonstration, draw_demonstrations, in_context
from editcl.encoding import Sentence
from editcl.errors import FactError
from editcl.facts import Fact
from editcl.model import EditableModel, tensor_bytes

EIFFEL = Fact("The Eiffel Tower", "{} is located in the city of", "Rome", "Paris")
CITIES = ("Bonn", "Oslo", "Lima", "Cairo", "Delhi", "Kyoto")
FACTS = tuple(
    Fact(f"Tower {i}", "{} stands in", CITIES[i % 6], CITIES[(i + 1) % 6]) for i in range(12)
)
REWORDED = {fact: ("{} can be found in",) for fact in FACTS}


def test_the_text_states_the_fact_and_ends_where_the_question_goes() -> None:
    assert in_context(EIFFEL) == (
        "New fact: The Eiffel Tower is located in the city of Rome.\nPrompt: "
    )
    shown = Demonstration(FACTS[0], "Tower 0 can be found in", "Bonn", "update")
    assert in_context(EIFFEL, [shown]).split("\n") == [
        "New fact: Tower 0 stands in Bonn.",
        "Prompt: Tower 0 can be found in Bonn.",
        "",
        "New fact: The Eiffel Tower is located in the city of Rome.",
        "Prompt: ",
    ]


def test_scripts_without_spaces_get_none() -> None:
    assert "东京塔位于大阪." in in_context(Fact("东京塔", "{}位于", "大阪"))


def test_it_is_a_context_of_a_sentence_and_leaves_the_weights(model: EditableModel) -> None:
    before = [bytes(tensor_bytes(p)) for p in model.hf.parameters()]
    text = in_context(EIFFEL, draw_demonstrations(EIFFEL, FACTS, count=1))
    asked = Sentence(EIFFEL.prompt, EIFFEL.subject, EIFFEL.new_object, text)
    (row,) = model.encode([asked])
    whole = model.tokenizer.decode(row.ids)
    assert whole == text + "The Eiffel Tower is located in the city of Rome"
    assert model.tokenizer.decode(row.ids[row.target_start :]).strip() == "Rome"
    bare, told = model.score(
        [Sentence(EIFFEL.prompt, EIFFEL.subject, EIFFEL.new_object), asked]
    ).prob.tolist()
    assert told != bare
    assert [bytes(tensor_bytes(p)) for p in model.hf.parameters()] == before and not model.log


@pytest.mark.parametrize("count", [8, 16, 32])
def test_the_kinds_stand_in_the_published_shares(count: int) -> None:
    drawn = draw_demonstrations(EIFFEL, FACTS, count=count, paraphrases=REWORDED)
    kinds = Counter(one.kind for one in drawn)
    assert kinds == {"copy": count // 8, "update": 3 * count // 8, "retain": count // 2}
    assert {one.kind for one in draw_demonstrations(EIFFEL, FACTS, count=count)} == {
        "copy",
        "retain",
    }


def test_each_kind_answers_as_it_should() -> None:
    old = {fact.sentence: fact.old_object for fact in FACTS}
    for one in draw_demonstrations(EIFFEL, FACTS, count=24, paraphrases=REWORDED):
        if one.kind == "copy":
            assert (one.prompt, one.answer) == (one.fact.sentence, one.fact.new_object)
        elif one.kind == "update":
            assert one.prompt == f"{one.fact.subject} can be found in"
            assert one.answer == one.fact.new_object
        else:
            assert one.fact.subject not in one.prompt and one.answer == old[one.prompt]


def test_a_seed_fixes_the_draw_and_facts_are_not_repeated() -> None:
    first = draw_demonstrations(EIFFEL, FACTS, paraphrases=REWORDED, seed=1)
    assert first == draw_demonstrations(EIFFEL, FACTS, paraphrases=REWORDED, seed=1)
    assert first != draw_demonstrations(EIFFEL, FACTS, paraphrases=REWORDED, seed=2)
    for kind in ("update", "retain"):
        facts = [one.fact for one in first if one.kind == kind]
        assert len(set(facts)) == len(facts)


def test_nothing_gives_the_edited_fact_away() -> None:
    near = (
        Fact("the eiffel tower", "{} stands in", "Bonn", "Oslo"),  # its subject
        Fact("Big Ben", "{} stands in", "Rome", "London"),  # its new object
        Fact("The Louvre", "{} stands in", "Bonn", "Paris"),  # its old object
    )
    for one in draw_demonstrations(EIFFEL, near + FACTS, count=60):
        assert one.fact in FACTS
    with pytest.raises(FactError, match="0 of 3 facts"):
        draw_demonstrations(EIFFEL, near)
    with pytest.raises(FactError, match="1 of 1 facts"):
        draw_demonstrations(EIFFEL, FACTS[:1])
