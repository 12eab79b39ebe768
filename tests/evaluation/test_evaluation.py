"""Cases and shares: against a naive count, with a positive control for each measure."""

from __future__ import annotations

import json
import random

import pytest
import torch

from editcl.catalogue import facts_by_relation, known_facts, relation_of, relations
from editcl.errors import FactError
from editcl.evaluation import Case, Probe, catalogue_cases, counterfact_cases, evaluate
from editcl.evaluation.edits import begins_with
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


def test_every_measure_turns_on_where_it_should(model) -> None:
    """The positive control: what the model says and prefers now counts as success."""
    said = model.generate([FACT.sentence], 4)[0].strip().split(" ")[0]
    if not said or not said.isalnum():
        pytest.skip("this random model says no word here")
    case = Case(Fact(FACT.subject, FACT.prompt, said, "Eiffel Tower Brücke"), (FACT.sentence,))
    found = evaluate(model, [case]).results[0]
    assert (found.efficacy, found.paraphrase) == (1.0, 1.0)
    assert (found.free_running, found.free_paraphrase) == (1.0, 1.0)
    swapped = Case(Fact(FACT.subject, FACT.prompt, "Eiffel Tower Brücke", said), (FACT.sentence,))
    found = evaluate(model, [swapped]).results[0]
    assert (found.efficacy, found.free_running) == (0.0, 0.0)


def test_same_subject_probes_count_exact_answers(model) -> None:
    prompt = "The Eiffel Tower is a"
    said = model.generate([prompt], 1)[0].strip()
    if not said:
        pytest.skip("this random model says no word here")
    right = Case(FACT, same_subject=(Probe(prompt, said),))
    wrong = Case(FACT, same_subject=(Probe(prompt, "zebra crossing"),))
    shares = [r.same_subject for r in evaluate(model, [right, wrong]).results]
    assert shares[1] == 0.0
    assert shares[0] in (0.0, 1.0)  # a word may be several tokens


def test_measures_without_prompts_stay_unmeasured(model) -> None:
    found = evaluate(model, [Case(FACT)])
    assert found.results[0].paraphrase is None
    assert found.summary()["specificity"] is None
    assert found.score is None
    assert "paraphrase" not in repr(found)


@pytest.mark.parametrize(
    "text, said",
    [(" Rome. It", True), ("Rome", True), (" Romeo", False), (" in Rome", False), ("", False)],
)
def test_a_continuation_begins_with_the_object_as_whole_words(text: str, said: bool) -> None:
    assert begins_with(text, "Rome") is said


def test_catalogue_cases_are_true_before_and_false_after() -> None:
    truth = {(f.subject, f.relation): f.object for f in known_facts()}
    for case in catalogue_cases(60, seed=1):
        relation = relation_of(case.fact.prompt)
        assert relation is not None
        assert truth[case.fact.subject, relation.name] == case.fact.old_object
        assert case.fact.new_object != case.fact.old_object
        assert case.fact.new_object in {f.object for f in facts_by_relation()[relation.name]}
        assert all(n.object != case.fact.new_object for n in case.neighbours)
        assert FACT.prompt not in case.paraphrases
        assert all(case.fact.subject in prompt for prompt in case.paraphrases)


def test_cases_repeat_with_their_seed() -> None:
    assert catalogue_cases(20, seed=3) == catalogue_cases(20, seed=3)
    assert catalogue_cases(20, seed=3) != catalogue_cases(20, seed=4)


def test_counterfact_records_are_read(shared) -> None:
    cases = counterfact_cases(shared("counterfact-lm/records.json"))
    assert len(cases) == 300
    assert all(len(case.paraphrases) == 2 and len(case.neighbours) == 10 for case in cases)
    assert len(counterfact_cases(shared("datasets/counterfact_600.json"))) == 600


@pytest.mark.parametrize("text", ["", "{", "7", '[{"requested_rewrite": {}}]', "[7]", "\x00"])
def test_a_file_that_is_no_counterfact_names_itself(tmp_path, text: str) -> None:
    path = tmp_path / "records.json"
    path.write_text(text)
    with pytest.raises(FactError, match=r"records\.json"):
        counterfact_cases(path)


def test_the_catalogue_is_what_data_readme_says() -> None:
    facts, catalogue = known_facts(), relations()
    assert len(facts) >= 2000
    assert len(catalogue) >= 12
    assert len({(f.subject, f.relation) for f in facts}) == len(facts)
    assert {f.relation for f in facts} == set(catalogue)
    for relation in catalogue.values():
        assert len(set(relation.phrasings)) >= 5
        assert all(p.count("{}") == 1 for p in relation.phrasings)
    phrasings = [p for r in catalogue.values() for p in r.phrasings]
    assert len(set(phrasings)) == len(phrasings)


def test_a_json_record_with_the_wrong_types_is_named(tmp_path) -> None:
    records = [{"requested_rewrite": random.Random(0).random()}]
    path = tmp_path / "records.json"
    path.write_text(json.dumps(records))
    with pytest.raises(FactError, match="record 0"):
        counterfact_cases(path)
