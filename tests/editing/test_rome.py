"""Rank-one updates: theorems, and parity with the authors' code."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import editcl
from editcl.benchmarks.published_rome import published_rome
from editcl.editing.covariance import Covariance, measure
from editcl.editing.essence import PUBLISHED
from editcl.editing.keys import subject_keys
from editcl.editing.methods import METHODS, PUBLISHED_SETTINGS
from editcl.editing.plan import Plan
from editcl.editing.rome import (
    context_direction,
    mean_direction,
    published_direction,
    rank_one,
)
from editcl.editing.values import optimise_values
from editcl.errors import EditclError
from editcl.facts import Fact

D_MLP, D_MODEL = 12, 5


@pytest.fixture
def problem() -> SimpleNamespace:
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(4, D_MLP, generator=generator) + 2
    sample = torch.randn(200, D_MLP, generator=generator)
    covariance = Covariance(0, sample.T @ sample / 200, 200, "random")
    weight = torch.randn(D_MLP, D_MODEL, generator=generator)
    delta = torch.randn(D_MODEL, generator=generator)
    projection = SimpleNamespace(name="w")
    return SimpleNamespace(**locals())


@pytest.mark.parametrize("direction", [context_direction, mean_direction])
def test_the_edited_matrix_maps_the_mean_key_to_the_new_value(problem, direction) -> None:
    update = rank_one(
        problem.projection, direction(problem.covariance, problem.keys), problem.delta
    )
    k_star = problem.keys.mean(0)
    after = k_star @ (problem.weight + update.dense())
    assert torch.allclose(after, k_star @ problem.weight + problem.delta, atol=1e-4)


def test_the_published_direction_meets_the_first_key_and_misses_the_mean(problem) -> None:
    u = published_direction(problem.covariance, problem.keys).float()
    assert float(u @ problem.keys[0]) == pytest.approx(1, abs=1e-4)
    assert abs(float(u @ problem.keys.mean(0)) - 1) > 1e-3


def test_the_mean_direction_is_the_smallest_change_in_the_metric_of_c(problem) -> None:
    u = mean_direction(problem.covariance, problem.keys)
    moment, k_star = problem.covariance.moment.double(), problem.keys.double().mean(0)
    for _ in range(20):
        other = u + 0.1 * torch.randn(D_MLP, dtype=torch.float64)
        other = other / (other @ k_star)
        assert float(other @ moment @ other) >= float(u @ moment @ u)


def test_a_vanishing_ridge_meets_every_key_and_a_large_one_gives_the_mean_direction(
    problem,
) -> None:
    tight = context_direction(problem.covariance, problem.keys, ridge=1e-9)
    assert torch.allclose(problem.keys.double() @ tight, torch.ones(4).double(), atol=1e-5)
    loose = context_direction(problem.covariance, problem.keys, ridge=1e9)
    mean = mean_direction(problem.covariance, problem.keys)
    assert torch.allclose(loose, mean, atol=1e-6)


def test_one_key_makes_all_directions_agree(problem) -> None:
    one = problem.keys[:1]
    mean = mean_direction(problem.covariance, one)
    for direction in (context_direction, published_direction):
        assert torch.allclose(direction(problem.covariance, one), mean, atol=1e-9)


def test_rome_edits_one_fact_at_one_layer(model) -> None:
    facts = [Fact("a", "{} is", "b"), Fact("c", "{} is", "d")]
    plan = Plan((1,), PUBLISHED_SETTINGS, {}, [(), ()])
    with pytest.raises(EditclError, match="one fact at one layer"):
        METHODS["rome"](model, facts, plan)


# -- parity with the authors' code ----------------------------------------------------------------


@pytest.fixture(scope="module")
def parity(shared) -> SimpleNamespace:
    folder = shared("parity")
    cases = json.loads((folder / "cases.json").read_text())
    model = editcl.load(folder / "model")
    facts = [Fact(r["subject"], r["prompt"], r["target_new"]["str"]) for r in cases["requests"]]
    stored = load_file(folder / "covariance.safetensors")
    return SimpleNamespace(
        model=model,
        facts=facts,
        contexts=[c.replace("{}", "").strip() for c in cases["contexts_rome"]],
        stored=stored,
        covariance=measure(model, [0, 1, 2, 3], stored["token_ids"].tolist()),
        rome=load_file(folder / "rome.safetensors"),
    )


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_the_covariance_is_that_of_the_authors_code(parity) -> None:
    for layer in range(4):
        expected = parity.stored[f"C.{layer}"]
        assert relative(parity.covariance[layer].moment, expected) < 1e-5


def test_keys_values_and_updates_are_those_of_the_authors_code(parity) -> None:
    keys = subject_keys(parity.model, parity.facts, [1], parity.contexts)[1]
    essence = [PUBLISHED for _ in parity.facts]
    values = optimise_values(
        parity.model, parity.facts, 1, parity.contexts, essence, PUBLISHED_SETTINGS
    )
    for i in range(len(parity.facts)):
        expected = {name: parity.rome[f"{i}.{name}"] for name in _NAMES}
        assert relative(keys[i, 0], expected["k_bare"]) < 1e-5
        assert relative(values.bare[i], expected["v_bare"]) < 1e-5
        assert relative(values.bare[i] + values.delta[i], expected["v_star"]) < 1e-2
        u = published_direction(parity.covariance[1], keys[i]).float()
        assert relative(u / u.norm(), expected["u"]) < 1e-3
        # The closed form alone, given the authors' v*.
        given = rank_one(
            parity.model.down_projection(1), u, expected["v_star"] - expected["v_bare"]
        )
        update = torch.outer(expected["u"], expected["right"])
        assert relative(given.dense(), update) < 1e-3
        solved = rank_one(parity.model.down_projection(1), u, values.delta[i])
        assert relative(solved.dense(), update) < 1e-2


_NAMES = ("u", "right", "k_bare", "v_bare", "v_star")


def test_the_plain_procedure_of_the_benchmark_is_the_authors_code(parity) -> None:
    inverse = torch.linalg.inv(parity.covariance[1].moment.double()).float()
    found = published_rome(
        parity.model,
        parity.facts[0],
        1,
        parity.contexts,
        PUBLISHED,
        PUBLISHED_SETTINGS,
        inverse,
    )
    assert relative(found.value, parity.rome["0.v_star"]) < 1e-2
    assert relative(found.right, parity.rome["0.right"]) < 1e-2
