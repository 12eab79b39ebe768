"""Averages over facts: roles, intervals, what is skipped, which layers they name."""

from __future__ import annotations

import json

import numpy as np
import pytest

from editcl.errors import EditclError
from editcl.facts import Fact
from editcl.tracing import LayerEvidence, Location, locate, trace, trace_many
from editcl.tracing.average import LAST, ROLES, SUBJECT_LAST, average, roles


@pytest.fixture
def facts(model) -> list[Fact]:
    subjects = ["The Eiffel Tower", "Rome", "the Colosseum"]
    return [Fact(subject, "{} is located in", "nowhere") for subject in subjects]


def test_each_token_has_one_role() -> None:
    found = roles(8, (1, 4))
    assert list(found.values()) == [[1], [2], [3], [4], [5, 6], [7]]
    assert list(roles(3, (0, 1)).values()) == [[], [], [0], [1], [], [2]]
    assert list(roles(3, (1, 3)).values()) == [[1], [], [2], [], [], []]
    assert list(roles(2, (0, 1)).values()) == [[], [], [0], [], [], [1]]


def test_the_average_of_one_fact_is_its_trace(model, facts) -> None:
    one = trace_many(model, facts[:1], samples=2)
    found = trace(model, facts[0].subject, facts[0].prompt, samples=2)
    row = one.roles.index(SUBJECT_LAST)
    for kind in one.kinds:
        effect = found.indirect_effect(kind)[found.span[1] - 1]
        np.testing.assert_allclose(one.effect[kind][row], effect, atol=1e-6)
    assert one.total_effect == pytest.approx(found.total_effect)
    assert np.isnan(one.half_width["mlp"]).all()


def test_intervals_are_those_of_a_mean(model, facts) -> None:
    traces = [trace(model, f.subject, f.prompt, samples=2, noise=0.5) for f in facts]
    mean = average(traces)
    rows = np.stack([t.indirect_effect("mlp")[-1] for t in traces])
    at = mean.roles.index(LAST)
    np.testing.assert_allclose(mean.effect["mlp"][at], rows.mean(0))
    half = 1.96 * rows.std(0, ddof=1) / np.sqrt(len(rows))
    np.testing.assert_allclose(mean.half_width["mlp"][at], half)
    assert mean.counts[at] == len(facts)


def test_facts_with_another_answer_are_skipped_and_counted(model, facts) -> None:
    known = facts[0]  # without an old object, the model's own answer is traced
    wrong = Fact(facts[1].subject, facts[1].prompt, "nowhere", old_object="🗼🗼")
    found = trace_many(model, [known, wrong], samples=1, kinds="hidden")
    assert (found.n_facts, found.n_skipped) == (1, 1)
    with pytest.raises(EditclError, match="none of 1 facts"):
        trace_many(model, [wrong], samples=1, kinds="hidden")
    with pytest.raises(EditclError, match="no facts"):
        trace_many(model, [])


def test_averages_print_and_are_jsonable(model, facts) -> None:
    found = trace_many(model, facts, samples=1, kinds=("mlp", "attn"))
    assert "3 facts" in repr(found)
    assert json.loads(json.dumps(found.to_dict()))["roles"] == list(ROLES)
    with pytest.raises(EditclError, match="no 'hidden'"):
        found.peak("hidden")


def test_the_trace_names_the_layer_with_the_largest_effect(model, facts) -> None:
    found = locate(model, facts, samples=2)
    assert found.average is not None
    effect = found.average.effect["mlp"][ROLES.index(SUBJECT_LAST)]
    assert found.layer == int(effect.argmax())
    assert sorted(found.layers) == list(range(model.n_layers))
    again = locate(model, [], average=found.average, layers=[1, 2])
    assert set(again.layers) == {1, 2}
    json.dumps(found.to_dict())


def test_a_sweep_names_the_layer_with_the_best_trial(model) -> None:
    tried: list[int] = []

    def try_layer(layer: int) -> dict[str, float]:
        tried.append(layer)
        return {"score": float(layer == 1), "efficacy": 0.5}

    found = locate(model, [], by="sweep", try_layer=try_layer)
    assert tried == [0, 1, 2]
    assert found.layers == (1, 0, 2)
    assert found.evidence[1] == LayerEvidence(1, 1.0, {"efficacy": 0.5})
    assert "* layer 1" in repr(found) and isinstance(found, Location)
    assert locate(model, [], by="sweep", try_layer=lambda layer: -layer).layer == 0


def test_locating_refuses_what_it_cannot_do(model) -> None:
    with pytest.raises(EditclError, match="by must be"):
        locate(model, [], by="guess")
    with pytest.raises(EditclError, match="needs try_layer"):
        locate(model, [], by="sweep")
    with pytest.raises(EditclError, match="layers must be"):
        locate(model, [], by="sweep", try_layer=float, layers=[7])
    with pytest.raises(EditclError, match="no finite"):
        locate(model, [], by="sweep", try_layer=lambda layer: float("nan"))


def test_a_progress_bar_appears_once_a_while_has_passed(model, facts, capsys, monkeypatch) -> None:
    trace_many(model, facts, samples=1, kinds="hidden")
    assert "tracing" not in capsys.readouterr().err
    monkeypatch.setattr("editcl.progress.SHOW_AFTER_SECONDS", -1.0)
    monkeypatch.setenv("FORCE_COLOR", "1")
    trace_many(model, facts, samples=1, kinds="hidden")
    assert "tracing" in capsys.readouterr().err
    trace_many(model, facts, samples=1, kinds="hidden", progress=False)
    assert capsys.readouterr().err == ""
