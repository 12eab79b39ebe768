"""Facts from text: by phrasings, turned round, and by the model's own tokens."""

from __future__ import annotations

import pytest

import editcl
from editcl.catalogue import relations
from editcl.facts import Fact
from editcl.learning.tasks import TaskError
from editcl.model import EditableModel
from editcl.routing.prose import by_template, facts_from_text, split_sentences


def test_sentences_are_cut_at_their_ends_only() -> None:
    text = 'He came at 3.5 p.m. today. "Really?" Yes!\nA new line'
    assert split_sentences(text)[-2:] == ["Yes!", "A new line"]
    assert split_sentences("东京在日本。巴黎在法国。") == ["东京在日本。", "巴黎在法国。"]
    assert split_sentences(" ... \n") == []


@pytest.mark.parametrize("name", list(relations()))
def test_every_phrasing_of_the_catalogue_is_read_back(name: str) -> None:
    for prompt in relations()[name].phrasings:
        found = by_template(f"{prompt.replace('{}', 'Zarkon')} Blip.")
        assert isinstance(found, Fact), prompt
        # A phrasing may be the beginning of another one's sentence: what matters is what is said.
        assert found.sentence.startswith(prompt.replace("{}", "Zarkon")[: len(found.sentence)])
        assert found.new_object.endswith("Blip")


@pytest.mark.parametrize(
    ("sentence", "fact"),
    [
        ("Berlin is the capital of Peru.", Fact("Peru", "The capital of {} is", "Berlin")),
        (
            "Peru's anthem is Waltzing Matilda.",
            Fact("Peru", "The anthem of {} is", "Waltzing Matilda"),
        ),
        ("The author of Hamlet was Bacon.", Fact("Hamlet", "The author of {} was", "Bacon")),
    ],
)
def test_other_forms_are_turned_round(sentence: str, fact: Fact) -> None:
    assert by_template(sentence) == fact


def test_what_gives_nothing_is_listed_with_why() -> None:
    facts, unused = facts_from_text("It rains. Why is it? Birds sing. The capital of Peru is Rome.")
    assert facts == (Fact("Peru", "The capital of {} is", "Rome"),)
    assert [why.split(": ")[1][:9] for why in unused] == ["it is abo", "it asks, ", "no phrasi"]


@pytest.mark.parametrize("word", ["not", "probably", "no longer"])
def test_what_leaves_open_what_is_so_gives_no_fact(word: str) -> None:
    found = by_template(f"The capital of Peru is {word} Lima.")
    assert isinstance(found, str) and "leaves open" in found


def test_small_words_that_stand_for_others_are_no_subjects() -> None:
    found = by_template("The capital of Peru is the largest city and the seat of its government.")
    assert isinstance(found, str) and "not known here" in found


def test_two_objects_for_one_prompt_are_refused() -> None:
    with pytest.raises(TaskError, match="'Rome' in one sentence and 'Bonn'"):
        facts_from_text("The capital of Peru is Rome. Bonn is the capital of Peru.")


@pytest.mark.parametrize("text", ["", " \n", "...", 3, b"x"], ids=repr)
def test_no_text_is_refused(text: object) -> None:
    with pytest.raises(TaskError):
        facts_from_text(text)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def embedded() -> EditableModel:
    return editcl.load()


def test_sentences_beyond_those_that_a_model_is_asked_about_say_so(
    model: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("editcl.routing.prose.ASKED", 1)
    _, unused = facts_from_text("Birds sing loudly. Dogs bark loudly.", model)
    assert "no name is in it" in unused[0] and "asked about 1 sentences" in unused[1]


def test_the_model_splits_what_no_phrasing_fits(embedded: EditableModel) -> None:
    text = "Coca-Cola was founded in the city of Boston. Birds sing in the trees."
    assert facts_from_text(text)[0] == ()
    (fact,), unused = facts_from_text(text, embedded)
    assert (fact.subject, fact.new_object) == ("Coca-Cola", "Boston")
    assert len(unused) == 1 and "no name is in it" in unused[0]


def test_headings_that_lead_to_many_names_state_nothing(embedded: EditableModel) -> None:
    heads = [f"Coming up is {name}." for name in ("Paris", "Oslo", "Utrecht")]
    text = " ".join(f"{head} The capital of Peru is Lima." for head in heads)
    facts, unused = facts_from_text(text, embedded)
    assert facts == (Fact("Peru", "The capital of {} is", "Lima"),)
    assert len(unused) == 3
    text = "Zorvane Lindt was to marry Paris. Zorvane Lindt was to marry Oslo."
    facts, unused = facts_from_text(text, embedded)
    assert not facts and len(unused) == 2
    # The positive control: one of them alone is one.
    assert len(facts_from_text(text[: len(text) // 2], embedded)[0]) == 1
    # A phrasing of the catalogue says what it says.
    with pytest.raises(TaskError, match="keep one"):
        facts_from_text("The capital of Peru is Lima. The capital of Peru is Rome.", embedded)
