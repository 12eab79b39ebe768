from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from editcl import Fact
from editcl.errors import EditclError, FactError
from editcl.facts import fill, separator

PROMPT = "{} is located in the city of"

# Words of many scripts, with what is hard about them: combining marks, joiners, braces, quotes.
LETTERS = "aZß éñ Ω я א ب م ह ि क 中 東 あ 한 🏛️ 👩‍🚀 e\u0301 { } \" ' ( ) - . 7"
words = st.lists(st.sampled_from(LETTERS.split()), min_size=1, max_size=6).map("".join)
texts = st.lists(words, min_size=1, max_size=4).map(" ".join)


@pytest.mark.parametrize(
    ("subject", "new_object"),
    [
        ("The Eiffel Tower", "Rome"),
        ("埃菲尔铁塔", "罗马"),
        ("برج إيفل", "روما"),
        ("מגדל אייפל", "רומא"),
        ("🗼", "🇮🇹"),
        ("👩‍🚀 crew", "Mond"),
        ("Cafe\u0301 de Flore", "Zu\u0308rich"),
        ("C++", "C"),
        ("a.b*c(d", "\\d+"),
        ("x" * 5000, "y" * 5000),
    ],
)
def test_subjects_and_objects_of_any_script_are_legal(subject: str, new_object: str) -> None:
    fact = Fact(subject, PROMPT, new_object)
    assert fact.sentence == f"{subject} is located in the city of"
    assert str(fact) == f"{subject} is located in the city of: -> {new_object}"
    assert Fact.from_sentence(subject, fact.sentence, new_object) == fact


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"prompt": "it is in"}, r"exactly one \{\}.*found 0"),
        ({"prompt": "{} is near {} in"}, r"exactly one \{\}.*found 2"),
        ({"prompt": "{}{}"}, r"found 2"),
        ({"subject": ""}, "subject is empty or whitespace"),
        ({"subject": " \t\n "}, "subject is empty or whitespace"),
        ({"subject": "\u200b\u200d"}, "subject is empty or whitespace"),
        ({"prompt": "  "}, "prompt is empty or whitespace"),
        ({"new_object": ""}, "new_object is empty or whitespace"),
        ({"new_object": "\u00a0"}, "new_object is empty or whitespace"),
        ({"old_object": ""}, "old_object is empty or whitespace"),
        ({"subject": None}, "subject must be a string, got NoneType"),
        ({"new_object": 7}, "new_object must be a string, got int"),
        ({"new_object": "\ud800"}, "not valid Unicode.*Decode the source"),
        ({"subject": "{} Tower"}, r"subject must not hold \{\}"),
        ({"old_object": "Rome"}, "nothing to edit"),
        ({"old_object": " Rome "}, "nothing to edit"),
        ({"prompt": "{}, yes, the Tower, is in", "subject": "Tower"}, "Name the subject once"),
    ],
)
def test_bad_fields_are_named_with_a_remedy(fields: dict[str, object], complaint: str) -> None:
    good: dict[str, object] = {"subject": "The Tower", "prompt": PROMPT, "new_object": "Rome"}
    with pytest.raises(FactError, match=complaint):
        Fact(**(good | fields))  # type: ignore[arg-type]


def test_user_errors_are_value_errors() -> None:
    assert issubclass(FactError, EditclError)
    assert issubclass(EditclError, ValueError)


def test_fields_are_stripped() -> None:
    fact = Fact(" The Tower ", f" {PROMPT} ", " Rome\n", "\tParis")
    assert fact == Fact("The Tower", PROMPT, "Rome", "Paris")


def test_a_fact_is_frozen_and_hashable() -> None:
    fact = Fact("The Tower", PROMPT, "Rome")
    with pytest.raises(AttributeError):
        fact.subject = "x"  # type: ignore[misc]
    assert len({fact, Fact("The Tower", PROMPT, "Rome")}) == 1


def test_a_sentence_without_the_subject_is_refused() -> None:
    with pytest.raises(FactError, match=r"is not in the prompt.*Put \{\}"):
        Fact.from_sentence("The Louvre", "The Tower is in", "Rome")


def test_a_sentence_with_the_subject_twice_is_refused() -> None:
    with pytest.raises(FactError, match="occurs 2 times"):
        Fact.from_sentence("The Tower", "The Tower is The Tower in", "Rome")


def test_a_subject_inside_another_word_is_not_the_subject() -> None:
    fact = Fact.from_sentence("Ann", "Anna knows Ann from", "Rome")
    assert fact.prompt == "Anna knows {} from"
    with pytest.raises(FactError, match="is not in the prompt"):
        Fact.from_sentence("Ann", "Anna comes from", "Rome")


def test_a_subject_in_a_script_without_spaces_needs_no_word_edges() -> None:
    assert Fact.from_sentence("铁塔", "埃菲尔铁塔位于", "罗马").prompt == "埃菲尔{}位于"


@pytest.mark.parametrize(
    ("prompt", "complaint"),
    [("", "prompt is empty"), ("   ", "prompt is empty"), (None, "prompt must be a string")],
)
def test_a_sentence_that_is_none_is_refused(prompt: object, complaint: str) -> None:
    with pytest.raises(FactError, match=complaint):
        Fact.from_sentence("The Tower", prompt, "Rome")  # type: ignore[arg-type]


@given(subject=texts, before=texts, after=texts, new_object=texts)
def test_a_fact_or_an_error_whatever_the_text(
    subject: str, before: str, after: str, new_object: str
) -> None:
    """from_sentence finds the subject where it was put, or refuses; it never guesses."""
    sentence = f"{before} {subject} {after}"
    try:
        fact = Fact.from_sentence(subject, sentence, new_object)
    except FactError:
        return
    if "{}" not in sentence:
        assert fact.sentence == sentence.strip()
        assert fact.subject == subject.strip()
    assert fact.prompt.count("{}") == 1
    assert fact.new_object == new_object.strip()


@given(subject=texts, after=texts, new_object=texts)
def test_a_placeholder_is_filled_and_found_again(subject: str, after: str, new_object: str) -> None:
    try:
        fact = Fact(subject, "{} " + after, new_object)
    except FactError:
        return
    assert fact.sentence == f"{subject} {after}".strip()
    if "{}" not in fact.sentence:
        try:
            again = Fact.from_sentence(fact.subject, fact.sentence, fact.new_object)
        except FactError as error:
            assert "occurs" in str(error)
        else:
            assert again == fact


def test_braces_in_the_subject_stay_as_they_are() -> None:
    assert fill("{} is a", "{x: 1}") == "{x: 1} is a"
    assert Fact("struct {int x;}", "{} is written in", "C").sentence.startswith("struct {int x;}")


@pytest.mark.parametrize(
    ("prompt", "target", "gap"),
    [
        ("in the city of", "Rome", " "),
        ("", "Rome", ""),
        ("the city ", "Rome", ""),
        ("in the city of", " Rome", ""),
        ("he said “", "Rome", ""),
        ("(", "Rome", ""),
        ("铁塔位于", "罗马", ""),
        ("铁塔位于", "Rome", " "),
        ("the tower is in", "罗马", " "),
        ("برج إيفل في", "روما", " "),
        ("타워는", "로마", " "),
        ("東京タワーがあるのはヨーロッパー", "東京", ""),
        ("很大。", "埃菲尔铁塔", ""),
        ("หอไอเฟลอยู่ใน", "โรม", ""),
    ],
)
def test_a_space_stands_before_the_object_where_the_script_has_one(
    prompt: str, target: str, gap: str
) -> None:
    assert separator(prompt, target) == gap
