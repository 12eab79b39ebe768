"""Shares and magnitudes: against a naive count, with a positive control for each measure."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import editcl
from editcl.errors import FactError
from editcl.evaluation import Case, Probe, catalogue_cases, evaluate
from editcl.evaluation.reference import evaluate_one_by_one
from editcl.evaluation.results import MEASURES
from editcl.facts import Fact

FACT = Fact("The Eiffel Tower", "{} is located in the city of", "Rome", "Paris")
CASE = Case(
    FACT,
    ("The Eiffel Tower stands in", "Go and see the Eiffel Tower in"),
    (Probe("The Louvre is located in the city of", "Paris"), Probe("X is in", "Apple")),
    (Probe("The Eiffel Tower is a", "tower"),),
)


def naive_log_p(model, prompt: str, target: str) -> float:
    ids = model.tokenizer(prompt)["input_ids"]
    full = model.tokenizer(f"{prompt} {target}")["input_ids"]
    with torch.no_grad():
        log_probs = model.hf(torch.tensor([full])).logits[0].log_softmax(-1)
    taken = [float(log_probs[i - 1, full[i]]) for i in range(len(ids), len(full))]
    return sum(taken) / len(taken)


def test_shares_equal_a_naive_count(model) -> None:
    result = evaluate(model, [CASE]).results[0]

    def new_wins(prompt: str) -> bool:
        return naive_log_p(model, prompt, "Rome") > naive_log_p(model, prompt, "Paris")

    assert result.efficacy == float(new_wins(FACT.sentence))
    assert result.paraphrase == sum(map(new_wins, CASE.paraphrases)) / 2
    kept = [
        naive_log_p(model, p.prompt, p.object) > naive_log_p(model, p.prompt, "Rome")
        for p in CASE.neighbours
    ]
    assert result.specificity == sum(kept) / 2


def test_measures_without_prompts_stay_unmeasured(model) -> None:
    found = evaluate(model, [Case(FACT)])
    assert found.results[0].paraphrase is None
    assert "specificity" not in found.summary()
    assert found.score is None
    assert "paraphrase" not in repr(found)


def same_numbers(one, other) -> None:
    assert len(one.results) == len(other.results)
    for a, b in zip(one.results, other.results, strict=True):
        assert a.fact == b.fact
        for name in MEASURES:
            assert getattr(a, name) == pytest.approx(getattr(b, name), abs=1e-5), name


def test_magnitudes_equal_a_naive_difference(model) -> None:
    found = evaluate(model, [CASE]).results[0]

    def gap(prompt: str, ours: str, theirs: str) -> float:
        p = [torch.tensor(naive_log_p(model, prompt, t)).exp() for t in (ours, theirs)]
        return float(p[0] - p[1])

    assert found.efficacy_magnitude == pytest.approx(gap(FACT.sentence, "Rome", "Paris"), abs=1e-6)
    told = [gap(prompt, "Rome", "Paris") for prompt in CASE.paraphrases]
    assert found.paraphrase_magnitude == pytest.approx(sum(told) / 2, abs=1e-6)
    near = [gap(probe.prompt, probe.object, "Rome") for probe in CASE.neighbours]
    assert found.specificity_magnitude == pytest.approx(sum(near) / 2, abs=1e-6)


def test_batched_numbers_are_those_of_one_prompt_at_a_time(any_model) -> None:
    """Cases that ask the same prompts, with aliases, portability, and a case without old object."""
    probe = Probe("The Louvre is located in the city of", "Paris", ("Rome", "Apple"))
    other = Case(
        Fact("The Colosseum", "{} is located in the city of", "München"),
        CASE.paraphrases,
        (probe, *CASE.neighbours),
        portability=(probe, Probe("The Eiffel Tower is in the country of", "Italy")),
    )
    cases = [CASE, other, CASE, replace(CASE, portability=other.portability)]
    same_numbers(evaluate(any_model, cases), evaluate_one_by_one(any_model, cases))

    def before(case: Case) -> str:
        return f"Beats Music is owned by {case.fact.new_object}." if case is CASE else ""

    found = evaluate(any_model, cases, context_for=before, tokens_per_batch=40)
    same_numbers(found, evaluate_one_by_one(any_model, cases, context_for=before))
    assert found.results[0].efficacy_magnitude == found.results[2].efficacy_magnitude


def test_the_embedded_model_gives_the_same_numbers_either_way(embedded) -> None:
    cases = catalogue_cases(6, seed=2)
    same_numbers(evaluate(embedded, cases), evaluate_one_by_one(embedded, cases))


def test_context_stands_before_every_prompt(model) -> None:
    context = "Beats Music is owned by Apple."
    found = evaluate(model, [CASE], context_for=lambda _: context).results[0]
    fact = Fact(FACT.subject, f"{context} {FACT.prompt}", "Rome", "Paris")
    by_hand = Case(
        fact,
        tuple(f"{context} {prompt}" for prompt in CASE.paraphrases),
        tuple(Probe(f"{context} {p.prompt}", p.object) for p in CASE.neighbours),
        tuple(Probe(f"{context} {p.prompt}", p.object) for p in CASE.same_subject),
    )
    same = replace(evaluate(model, [by_hand]).results[0], fact=found.fact)
    assert same == found
    assert found != evaluate(model, [CASE]).results[0]


def test_without_an_old_object_tokens_count(model) -> None:
    case = replace(CASE, fact=Fact(FACT.subject, FACT.prompt, "Rome"))
    found = evaluate(model, [case])
    assert {"efficacy", "paraphrase", "score"}.isdisjoint(found.summary())
    assert {"efficacy_magnitude", "paraphrase_magnitude"}.isdisjoint(found.magnitudes())
    full = evaluate(model, [CASE])
    for name in ("token_accuracy", "specificity", "locality_accuracy", "free_running"):
        assert found.mean(name) == full.mean(name) is not None


def test_no_cases_are_no_results_and_bad_texts_are_named(model) -> None:
    assert evaluate(model, []).results == ()
    with pytest.raises(FactError, match="takes at most"):
        evaluate(model, [replace(CASE, paraphrases=("word " * 200,))])


@pytest.fixture(scope="module")
def embedded():
    return editcl.load()


CAPITAL = Fact("France", "The capital city of {} is called", "Paris", "Rome")
KNOWN = Probe("The capital city of Italy is called", "Rome")


def test_every_measure_turns_on_where_it_should(embedded) -> None:
    """The positive control: what the model knows counts as success, what is false does not."""
    paraphrase = "France has its capital in the city of"
    true = Case(CAPITAL, (paraphrase,), (KNOWN,), (KNOWN,), (KNOWN,))
    wrong = Probe(KNOWN.prompt, "Paris")
    fact = Fact(CAPITAL.subject, CAPITAL.prompt, "Rome", "Paris")
    false = Case(fact, (paraphrase,), (wrong,), (wrong,), (wrong,))
    right, off = evaluate(embedded, [true, false]).results
    for name in MEASURES:
        good, bad = getattr(right, name), getattr(off, name)
        assert good > 0.9, name
        assert bad < 0.1 or (bad < 0.6 and "accuracy" in name), name


def test_token_accuracy_is_the_share_of_argmax_tokens(embedded) -> None:
    tokens = embedded.tokenizer(" Paris zebra")["input_ids"]
    hits = len(embedded.tokenizer(" Paris")["input_ids"])
    case = Case(Fact(CAPITAL.subject, CAPITAL.prompt, "Paris zebra"), (CAPITAL.sentence,))
    found = evaluate(embedded, [case]).results[0]
    assert found.token_accuracy == found.paraphrase_token_accuracy == hits / len(tokens)
    assert found.free_running == 0.0


def test_aliases_count_as_the_object(embedded) -> None:
    wrong = Probe(KNOWN.prompt, "zebra")
    right = Probe(KNOWN.prompt, "zebra", ("Oslo", "Rome"))
    case = Case(CAPITAL, (), (wrong, right), (wrong, right), (wrong, right))
    found = evaluate(embedded, [case]).results[0]
    assert found.same_subject == found.portability == found.free_portability == 0.5
    assert found.locality_accuracy >= 0.5
    assert evaluate(embedded, [Case(CAPITAL)]).results[0].portability is None
