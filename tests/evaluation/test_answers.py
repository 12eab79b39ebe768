"""Many answers at once are those of one prompt at a time, free running included."""

from __future__ import annotations

import pytest

from editcl.encoding import Sentence
from editcl.errors import FactError
from editcl.evaluation.answers import answers, begins_with, may_begin_with
from editcl.evaluation.reference import says

PROMPTS = ("The Eiffel Tower is in", "The Eiffel Tower stands in", "Beats Music is owned by", "東")


def own_words(model, prompts=PROMPTS, n_tokens: int = 3) -> list[Sentence]:
    """What the model says, as targets: they have to count as said."""
    texts = model.generate(prompts, n_tokens)
    pairs = zip(prompts, texts, strict=True)
    return [
        Sentence(p, target=t.strip()) for p, t in pairs if t.strip().isprintable() and t.strip()
    ]


def test_scores_are_those_of_one_sentence_at_a_time(any_model) -> None:
    sentences = [Sentence(p, target=t) for p in PROMPTS for t in ("Rome", "Paris", "Apple Inc.")]
    sentences += [Sentence(PROMPTS[0], target="Rome", context="Beats Music is owned by Apple.")]
    found = answers(any_model, sentences, sentences[:3])
    for sentence in sentences:
        scores = any_model.score([sentence])
        assert found[sentence].log_prob == pytest.approx(float(scores.log_prob[0]), abs=1e-5)
        assert found[sentence].token_accuracy == float(scores.token_accuracy[0])
        assert found[sentence].exact == bool(scores.exact[0])


def test_free_running_is_that_of_generation(any_model) -> None:
    sentences = own_words(any_model) + [Sentence(p, target="Rome") for p in PROMPTS]
    found = answers(any_model, [], sentences)
    assert {s: found[s].said for s in sentences} == {s: says(any_model, s) for s in sentences}


def test_what_the_model_says_counts_as_said(model) -> None:
    """The positive control: some target is said, and a shortened word is not."""
    sentences = [s for n in (1, 2, 3, 4) for s in own_words(model, n_tokens=n)]
    found = answers(model, [], sentences)
    assert any(answer.said for answer in found.values())
    assert found == answers(model, sentences, sentences)


def test_a_text_spelled_with_other_tokens_is_generated_to_the_end(model, monkeypatch) -> None:
    """Greedy may spell the object with other tokens than the tokenizer: that decides nothing."""
    (sentence,) = own_words(model, PROMPTS[:1], 1)
    row = model.encode([sentence])[0]
    asked = []
    monkeypatch.setattr("editcl.evaluation.answers.may_begin_with", lambda *_: True)
    generate = model.generate_ids

    def recording(rows, count, **options):
        asked.append((list(rows), count))
        return generate(rows, count, **options)

    monkeypatch.setattr(model, "generate_ids", recording)
    wrong = Sentence(sentence.prompt, target="zebra crossing")
    assert answers(model, [], [wrong])[wrong].said is False
    assert asked[0][0] == [row.ids[: row.target_start]]


def test_said_is_none_where_nobody_asked_and_a_target_is_needed(model) -> None:
    sentence = Sentence("The Eiffel Tower is in", target="Rome")
    assert answers(model, [sentence])[sentence].said is None
    assert answers(model, []) == {}
    with pytest.raises(FactError, match="no object to score"):
        answers(model, [Sentence("The Eiffel Tower is in")])


@pytest.mark.parametrize(
    "text, said, open_",
    [
        (" Rome. It", True, True),
        ("Rome", True, True),
        (" Romeo", False, False),
        (" in Rome", False, False),
        ("", False, True),
        (" Ro", False, True),
        (" Ro\ufffd", False, True),
        ("\n", False, True),
        (" Rob", False, False),
    ],
)
def test_a_continuation_begins_with_the_object_as_whole_words(text, said, open_) -> None:
    assert begins_with(text, "Rome") is said
    assert may_begin_with(text, "Rome") is open_
