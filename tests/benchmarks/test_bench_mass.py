"""`editcl bench mass` measures what it names; small here, whole on the command line."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import editcl
from editcl.benchmarks.growth import Cost, Growth, fit_law
from editcl.benchmarks.mass import SHARES, bench_mass
from editcl.errors import EditclError
from editcl.evaluation.compare import weight_checksums

KEYS = {
    "memit", "sequential", "values_speedup", "values_loss_error", "memory_ratio",
    "covariance_overhead", "covariance_score_drop", "rollback_one_seconds", "rollback_exact",
    "evaluation_speedup", "growth",
}  # fmt: skip


@pytest.fixture(scope="module")
def embedded() -> editcl.EditableModel:
    return editcl.load()


def test_it_measures_what_it_names_and_leaves_the_model_as_it_was(embedded) -> None:
    before = weight_checksums(embedded)
    found = bench_mass(
        embedded,
        n_facts=4,
        batches=2,
        others=(),
        methods=("alphaedit",),
        sizes=(),
        repeats=1,
        covariance_tokens=(2, 1),
    )
    figures = json.loads(json.dumps(found.to_dict()))
    assert set(figures) >= KEYS
    assert figures["base"]["efficacy"] == 0.0
    assert figures["memit"]["efficacy"] == figures["sequential"]["alphaedit"]["efficacy"] == 1.0
    assert set(figures["memit"]) == set(SHARES)
    assert figures["values_loss_error"] < 1e-3
    assert figures["evaluation_error"] < 1e-9
    assert figures["rollback_exact"] is True
    assert figures["rollback_efficacy_change"] == 0.0
    assert figures["growth"] is None and figures["memory_ratio"] is None
    assert weight_checksums(embedded) == before


def test_a_size_is_measured_in_a_process_of_its_own(embedded) -> None:
    from editcl.benchmarks.growth import measure_growth

    found = measure_growth(embedded, (1, 2, 3))
    assert [cost.n_facts for cost in found.costs] == [1, 2, 3]
    assert all(cost.seconds > 0 for cost in found.costs)
    assert "n" in str(found.seconds)


def test_a_process_that_fails_is_told_with_what_it_said(embedded) -> None:
    from editcl.benchmarks.growth import measure_growth

    with pytest.raises(EditclError, match="only .* facts to edit together"):
        measure_growth(embedded, (10**6,))


@pytest.mark.parametrize(
    ("name", "law"),
    [
        ("linear", lambda n: 3.0 + 0.2 * n),
        ("quadratic", lambda n: 3.0 + 0.002 * n**2),
        ("power", lambda n: 0.5 * n**1.4),
        ("logarithmic", lambda n: 3.0 + 2.0 * np.log(n)),
    ],
)
def test_a_law_is_found_again(name, law) -> None:
    n = [10, 100, 1000, 2000]
    found = fit_law(n, [law(x) for x in n])
    assert found.name == name
    assert found.error < 1e-6
    assert np.isclose(found.at(500), law(500))


def test_what_fits_no_law_says_by_how_much() -> None:
    assert fit_law([1, 2, 3, 4], [1.0, 9.0, 1.0, 9.0]).error > 0.3


def test_the_growth_is_drawn(tmp_path) -> None:
    costs = [Cost(n, 0.1 * n, 0.2 * n, 1.0, 700.0, 50.0 + 0.1 * n) for n in (10, 100, 1000)]
    law = fit_law([10, 100, 1000], [cost.seconds for cost in costs])
    growth = Growth(tuple(costs), law, replace(law, name="linear"))
    growth.plot(path=tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 10_000


def test_a_model_with_logged_edits_is_refused(embedded) -> None:
    editcl.edit(embedded, "Eiffel Tower", "Rome")
    with pytest.raises(EditclError, match="log must be empty"):
        bench_mass(embedded, n_facts=2, sizes=())
