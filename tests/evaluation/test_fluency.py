"""Generation entropy: by hand, and on texts that repeat themselves and that don't."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from editcl.errors import EditclError
from editcl.evaluation import Case
from editcl.evaluation.fluency import fluency, generation_entropy, ngram_entropy
from editcl.facts import Fact


def test_entropy_of_pairs_and_triples_by_hand() -> None:
    words = ["a", "b", "a", "b", "c"]  # pairs: ab twice, ba, bc; triples: aba, bab, abc
    assert ngram_entropy(words, 2) == pytest.approx(1.5)
    assert ngram_entropy(words, 3) == pytest.approx(math.log2(3))
    assert generation_entropy("a b a b c") == pytest.approx(
        (1.5 * 2 / 3 + math.log2(3) * 4 / 3) / 2
    )


def test_entropy_equals_a_naive_sum() -> None:
    text = "The rain, the rain in Spain: the rain stays mainly in the plain, the rain."
    words = text.replace(",", " ,").replace(":", " :").replace(".", " .").split()
    total = 0.0
    for n, weight in ((2, 2 / 3), (3, 4 / 3)):
        counts = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
        size = sum(counts.values())
        total -= weight * sum(c / size * math.log2(c / size) for c in counts.values())
    assert generation_entropy(text) == pytest.approx(total / 2)


def test_repetition_has_none_and_variety_the_most() -> None:
    assert generation_entropy("is " * 100) == 0.0
    varied = generation_entropy(" ".join(f"w{i}" for i in range(100)))
    assert varied == pytest.approx((math.log2(99) * 2 / 3 + math.log2(98) * 4 / 3) / 2)
    assert generation_entropy("") == generation_entropy("word") == 0.0


def test_each_distinct_prompt_is_continued(model) -> None:
    fact = Fact("The Eiffel Tower", "{} is in", "Rome")
    cases = [
        Case(fact, generation=("The tower is", "It stands")),
        Case(fact, generation=("It stands",)),
    ]
    found = fluency(model, cases, n_tokens=20)
    assert found.prompts == ("The tower is", "It stands")
    assert found.texts == tuple(model.generate(found.prompts, 20))
    assert found.entropies == tuple(map(generation_entropy, found.texts))
    assert found.entropy == pytest.approx(sum(found.entropies) / 2)
    assert fluency(model, ["The tower is"], n_tokens=20).texts == found.texts[:1]


def test_sampling_repeats_with_its_seed(model) -> None:
    found = [fluency(model, ["The tower is"], n_tokens=20, seed=seed) for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]


def test_no_prompts_are_refused(model) -> None:
    with pytest.raises(EditclError, match="nothing to continue"):
        fluency(model, [Case(Fact("a", "{} is", "b"))])
