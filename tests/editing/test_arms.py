"""compare_methods(): every method on the same facts, each from the same weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
from batches import CONTROL, leaning

import editcl
from editcl.editing import arms
from editcl.editing.arms import compare_methods, in_context_arm, weights_arm
from editcl.editing.methods import METHODS
from editcl.editing.trial import tried
from editcl.editing.values import ValueSettings
from editcl.editing.way import way_of
from editcl.errors import EditclError
from editcl.evaluation.cases import Case, Probe
from editcl.evaluation.compare import weight_checksums
from editcl.facts import Fact

QUICK = {"layers": [1], "settings": ValueSettings(steps=3, scale="absolute")}
CASES = [Case(fact, ("Go and see the",), (Probe("The Louvre is in", "Paris"),)) for fact in CONTROL]
#: In-context editing demonstrates each of them by others with other objects.
MANY = [Case(Fact(f"City {i}", "{} lies in", f"Land {i}", f"Old {i}")) for i in range(4)]


@pytest.fixture(params=["gpt2", "llama"])
def model(request):
    """With room for the demonstrations of in-context editing."""
    room = {"gpt2": "n_positions", "llama": "max_position_embeddings"}[request.param]
    return editcl.wrap(tiny.build(request.param, **{room: 1024}), tiny.byte_tokenizer())


def test_each_method_is_a_row_and_the_model_is_as_before(model) -> None:
    before = weight_checksums(model)
    names = ["memit", "rome", "ultraedit", "ft-l", "ike"]
    found = compare_methods(model, MANY, names, **QUICK)
    assert weight_checksums(model) == before and len(model.log) == 0
    assert [method.name for method in found.methods] == ["unedited", *names]
    assert list(found.to_frame().index) == ["unedited", *names]
    kl = {method.name: method.damage.kl for method in found.methods}
    assert kl["unedited"] == kl["ike"] == 0.0
    assert all(kl[name] > 0 for name in names if name != "ike")


def test_a_method_that_edits_is_seen_to_edit(model) -> None:
    cases = [Case(fact) for fact in leaning(model, CONTROL)]
    settings = ValueSettings(steps=40, clamp=6.0, stop=0.05)
    found = compare_methods(
        model, cases, ["memit"], layers=[1], settings=settings, preservation=0.01
    )
    assert found["unedited"].evaluation.summary()["efficacy"] == 0.0
    assert found["memit"].evaluation.summary()["efficacy"] == 1.0


@pytest.mark.parametrize("method, batch_size, calls", [
    ("memit", None, [3]), ("memit", 2, [2, 1]), ("rome", 2, [1, 1, 1]),
])  # fmt: skip
def test_an_arm_goes_batch_after_batch_and_leaves_no_trace(
    model, monkeypatch, method, batch_size, calls
) -> None:
    facts, seen, earlier = list(CONTROL), [], []
    way = way_of(model, method, **QUICK)
    before = weight_checksums(model)

    def solve(model, batch, plan):
        seen.append(len(batch))
        earlier.append(list(plan.earlier))
        return METHODS[method].solve(model, batch, plan)

    object.__setattr__(way, "editor", type(way.editor)(**(vars(way.editor) | {"solve": solve})))
    with weights_arm(facts, way, batch_size)(model):
        assert weight_checksums(model) != before
    assert weight_checksums(model) == before
    assert seen == calls
    assert earlier == [facts[: sum(calls[:i])] for i in range(len(calls))]
    with pytest.raises(RuntimeError), weights_arm(facts, way, batch_size)(model):
        raise RuntimeError
    assert weight_checksums(model) == before


def test_an_arm_of_one_batch_is_the_methods_own_solution(model) -> None:
    from editcl.editing.way import plan_for

    facts, way = list(CONTROL), way_of(model, "memit", **QUICK)
    solution = way.editor(model, facts, plan_for(model, facts, way))
    with tried(model, solution.updates):
        wanted = weight_checksums(model)
    with weights_arm(facts, way, None)(model):
        assert weight_checksums(model) == wanted


def test_the_in_context_arm_puts_each_fact_in_front_of_its_prompts(model) -> None:
    before = weight_checksums(model)
    with in_context_arm(MANY, 0)(model) as context_for:
        assert context_for is not None
        for case in MANY:
            assert case.fact.new_object in context_for(case)
        assert weight_checksums(model) == before


def test_the_in_context_arm_has_as_many_demonstrations_as_the_model_has_room_for(
    model, monkeypatch
) -> None:
    with in_context_arm(MANY, 0)(model) as context_for:
        whole = {case: len(model.tokenizer(context_for(case))["input_ids"]) for case in MANY}
    room = max(whole.values()) - 1
    question = arms._longest_question
    monkeypatch.setattr(arms, "_longest_question", lambda m, c: m.max_tokens - room)
    with in_context_arm(MANY, 0)(model) as context_for:
        for case, before in whole.items():
            now = len(model.tokenizer(context_for(case))["input_ids"])
            assert now <= room and (now == before or before > room)
            assert case.fact.new_object in context_for(case).splitlines()[-2]
    (case,) = MANY[:1]
    probe = Probe("A much longer question than that of the fact itself is what is asked of", "him")
    for asked in (replace(case, neighbours=(probe,)), replace(case, same_subject=(probe,))):
        assert question(model, asked) > len(model.tokenizer(probe.prompt)["input_ids"])
        assert question(model, asked) > question(model, case)


@pytest.mark.parametrize("methods, bad, message", [
    (["memit", "magic"], {}, "unknown method 'magic'"),
    (["memit"], {"batch_size": 0}, "batch_size must be a whole number of at least 1"),
    (["memit"], {"batch_size": -1}, "batch_size must be a whole number of at least 1"),
    (["memit"], {"preservation": 0.0}, "preservation must be positive"),
    (["memit"], {"layers": [9]}, "out of range"),
    (["memit"], {"settings": "fast"}, "unknown settings"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused_before_anything_runs(
    model, monkeypatch, methods, bad, message
) -> None:
    monkeypatch.setattr(model, "forward", lambda *_, **__: pytest.fail("the model was run"))
    with pytest.raises(EditclError, match=message):
        compare_methods(model, CASES, methods, **(QUICK | bad))


def test_no_cases_are_refused(model) -> None:
    with pytest.raises(EditclError, match="no cases"):
        compare_methods(model, [], ["memit"], **QUICK)
