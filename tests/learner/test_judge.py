"""The judge: facts, completions and labels along the ways that inference takes."""

from __future__ import annotations

import pytest
import torch
from pupils import FACTS, SOUND, TWO, learn, learner

from editcl.encoding import Sentence
from editcl.errors import EditclError
from editcl.facts import Fact
from editcl.learner.judge import Judge, current_facts
from editcl.learner.steps import Kept
from editcl.learning.tasks import TEXT, Example, Task


def argmax_word(one, prompt: str) -> str:
    """What the base model says next, one token, by one plain forward pass."""
    (row,) = one.model.encode([Sentence(prompt)])
    with torch.no_grad():
        logits = one.model.forward(one.model.pad([row.ids]))[0, -1]
    return one.model.tokenizer.decode([int(logits.argmax())])


def test_a_completion_is_correct_if_its_own_tokens_are_the_most_probable_ones() -> None:
    one = learner()
    seen = set()
    for prompt in ("The city of The Colosseum is", "say", "Rome and", "Apple is in", "Music"):
        for word in ("Rome", "Paris", argmax_word(one, prompt)):
            (row,) = one.model.encode(
                [Sentence(prompt, target=word)] if word.strip() else [Sentence(prompt)]
            )
            if row.target_start < 0 or row.target_start == len(row.ids):
                continue
            with torch.no_grad():
                logits = one.model.forward(one.model.pad([row.ids]))[0]
            wanted = all(
                int(logits[i - 1].argmax()) == row.ids[i]
                for i in range(row.target_start, len(row.ids))
            )
            assert one.correct([Example(prompt, word)]) == [wanted]
            seen.add(wanted)
    assert False in seen
    assert one.correct([]) == []


def test_of_labels_the_best_is_said_and_others_are_refused() -> None:
    one = learner()
    learn(one, TWO, "train")
    right = one.correct(TWO.test, TWO.labels, "two")
    score = one.skills.evaluate(TWO)
    assert tuple(right) == score.correct
    with pytest.raises(EditclError, match="'green' is none of the labels red, blue"):
        one.correct([Example("a", "green")], TWO.labels)


def test_facts_are_judged_where_inference_sends_their_prompts() -> None:
    one = learner(edits=SOUND)
    learn(one, FACTS, "edit", name="places")
    shadow = Task("shadow", tuple(Example(f.sentence, f.old_object) for f in FACTS))
    assert all(one.holds(FACTS))
    learn(one, shadow, "train", settings=None)
    lost = [not held for held in one.holds(FACTS)]
    assert any(lost), "the skill's own prompts are those of the facts"
    assert all(one._judge.holds_in_weights(FACTS))
    survival = one._judge.survival(FACTS)
    assert (survival.before, survival.kept) == (3, 3 - sum(lost))
    assert Judge(one.skills, 1e-6).bleed(["Rome", FACTS[0].sentence]) == 0.5, "one is a centroid"
    assert Judge(one.skills, None).bleed(["Rome", "Music"]) == 1.0


def test_the_last_of_several_facts_about_one_prompt_counts() -> None:
    one = learner()
    learn(one, FACTS, "edit", name="places")
    new = Fact(FACTS[0].subject, FACTS[0].prompt, "Bayern")
    learn(one, [new], "edit", name="news")
    found = current_facts(one.log, one.history())
    assert len(found) == 3 and [f.new_object for f in found.values()][-1] == "Bayern"
    one.rollback("news")
    assert set(current_facts(one.log, one.history()).values()) == set(one.log.entries[0].facts)
    assert ("e0001", 0) in found or ("e0002", 0) in found


def test_texts_are_judged_by_their_perplexity_under_the_told_skill() -> None:
    one = learner()
    texts = tuple(Example("", f"The Eiffel Tower {i} is located in Rome.") for i in range(6))
    plain = Task("plain", texts, texts[:3], TEXT)
    outcome = learn(one, plain, "train")
    assert outcome.scores["test"] == one.skills.evaluate(plain).score
    assert outcome.scores["test"] > one.skills.evaluate(plain, None).score


def test_what_is_kept_of_a_test_is_an_even_sample_and_comes_back_equal() -> None:
    examples = [Example(f"p {i}", f"c {i}") for i in range(200)]
    kept = Kept.of(examples, "completion", max_tokens=30)
    assert len(kept.examples) == 64 and kept.examples[0] == examples[0]
    assert kept.examples[32] == examples[100] and Kept.from_json(kept.to_json()) == kept
    long = Kept.of([Example("", "x" * 9000)] * 20, TEXT)
    assert len(long.examples) == 8 and len(long.examples[0].completion) == 2000
    assert Kept.of((), "completion") is None
