"""The embedded model: it knows its facts, reads them at a known site, and can be edited."""

from __future__ import annotations

import random

import pytest
import torch

import editcl
from editcl.catalogue import known_facts, relations
from editcl.demo import run_demo
from editcl.editing.calibrate import calibrate
from editcl.editing.relation import rank_relations
from editcl.embedded import data_folder
from editcl.encoding import Sentence
from editcl.errors import AmbiguousFact, EditclError
from editcl.evaluation import Evaluation, catalogue_cases, evaluate
from editcl.facts import fill
from editcl.model import EditableModel
from editcl.tracing.average import LAST, SUBJECT_LAST


@pytest.fixture(scope="module")
def embedded() -> EditableModel:
    return editcl.load()


def test_it_knows_its_facts_in_every_phrasing(embedded) -> None:
    rng = random.Random(0)
    drawn = rng.sample(known_facts(), 250)
    asked = [
        Sentence(fill(rng.choice(relations()[f.relation].phrasings), f.subject), target=f.object)
        for f in drawn
    ]
    assert float(embedded.score(asked).exact.float().mean()) >= 0.97
    context = "The kettle was still warm when they came home."
    told = [Sentence(s.prompt, target=s.target, context=context) for s in asked]
    assert float(embedded.score(told).exact.float().mean()) >= 0.95


def test_it_fits_in_the_package(embedded) -> None:
    files = list((data_folder() / "model").iterdir())
    assert sum(file.stat().st_size for file in files) <= 24 * 2**20
    assert not [file for file in files if file.suffix in (".bin", ".pt", ".pkl")]
    assert embedded.dtype == torch.float32


def test_facts_are_read_at_the_subjects_last_token_in_early_mlps_and_moved_late(embedded) -> None:
    """The positive control of the tracer: a model whose site is known by construction."""
    drawn = random.Random(1).sample(known_facts(), 16)
    facts = [(f.subject, relations()[f.relation].prompt, f.object) for f in drawn]
    average = editcl.trace_many(embedded, facts, samples=4)
    early = average.peak("mlp", SUBJECT_LAST)
    assert early.layer < embedded.n_layers // 2
    assert early.effect > 0.3 * average.total_effect
    assert early.effect > 1.5 * average.peak("mlp", LAST).effect
    late = average.peak("attn", LAST)
    assert late.layer >= embedded.n_layers // 2


def test_the_control_model_has_no_such_site() -> None:
    """The negative control: trained without the mask, it reads facts at the last token."""
    folder = data_folder() / "control"
    control = editcl.load(folder)
    import json

    subjects = set(json.loads((folder / "subjects.json").read_text(encoding="utf-8"))["subjects"])
    known = [f for f in known_facts() if f.subject in subjects and len(f.subject.split()) > 1]
    drawn = random.Random(0).sample(known, 24)
    facts = [(f.subject, relations()[f.relation].prompt, f.object) for f in drawn]
    average = editcl.trace_many(control, facts, samples=4)
    assert average.n_facts >= 8
    assert average.peak("mlp", SUBJECT_LAST).effect < 0.3 * average.total_effect


def test_single_edits_hold_in_other_phrasings_and_leave_neighbours_alone(embedded) -> None:
    parts = []
    for case in catalogue_cases(8, seed=5):
        receipt = editcl.edit(
            embedded,
            case.fact.subject,
            case.fact.new_object,
            prompt=case.fact.prompt,
            old_object=case.fact.old_object,
        )
        parts.append(evaluate(embedded, [case]))
        embedded.log.rollback(receipt, remeasure=False)
    found = Evaluation.join(parts).summary()
    assert found["efficacy"] == 1.0
    assert found["paraphrase"] >= 0.8
    assert found["specificity"] >= 0.8
    assert found["same_subject"] >= 0.7


def test_the_calibration_that_ships_holds_for_the_model_that_ships(embedded, monkeypatch) -> None:
    monkeypatch.setattr("editcl.editing.calibrate.try_layers", None)  # measuring would fail
    found = calibrate(embedded)
    assert found.fingerprint == embedded.fingerprint()
    assert 0 <= found.layer < embedded.n_layers
    assert len(found.location.evidence) > 1


def test_calibration_leaves_the_weights_as_they_are(embedded) -> None:
    before = embedded.fingerprint()
    found = calibrate(embedded, layers=[0, 1], n_facts=4, refresh=True)
    assert embedded.fingerprint() == before
    assert found.layer in (0, 1)
    assert set(found.location.evidence[0].details) >= {"efficacy", "specificity"}
    assert found.plot() is not None


def test_calibration_says_so_when_the_model_knows_nothing(model) -> None:
    with pytest.raises(EditclError, match="too few to calibrate"):
        calibrate(model)


def test_the_relation_is_inferred_from_subject_and_object(embedded) -> None:
    rng = random.Random(2)
    names = ["located_in_city", "author", "continent", "occupation", "genre", "industry"]
    hits = 0
    for name in names:
        facts = [f for f in known_facts() if f.relation == name]
        fact = rng.choice(facts)
        other = rng.choice([f.object for f in facts if f.object != fact.object])
        hits += rank_relations(embedded, fact.subject, other).relations[0].name == name
    assert hits >= 5


def test_birth_and_death_places_of_a_person_are_not_told_apart_by_a_guess(embedded) -> None:
    drawn = [f for f in known_facts() if f.relation == "death_place"][:12]
    for fact in drawn:
        try:
            editcl.edit(embedded, fact.subject, "London")
        except AmbiguousFact as question:
            assert len(question.candidates) >= 2
            break
    else:
        pytest.fail("at least one of these should be ambiguous")
    assert not any(embedded.log.active(e) for e in embedded.log) or embedded.log.rollback("all")


def test_the_demo_does_what_it_says() -> None:
    outcome = run_demo(quiet=True)
    assert outcome["ok"] is True
    assert outcome["rollback_exact"] is True
    assert outcome["as_wanted"] >= outcome["prompts"] - 2
