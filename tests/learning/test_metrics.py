"""Metrics agree with their definitions written out, and refuse matrices with holes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from editcl.errors import EditclError
from editcl.learning import metrics


def random_matrix(n_tasks: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).rand(n_tasks + 1, n_tasks)


def naive(R: np.ndarray) -> dict[str, float]:
    """The definitions with tasks counted from 1, term by term."""
    T = R.shape[1]

    def r(t: int, j: int) -> float:
        return float(R[t, j - 1])

    best = {j: max(r(t, j) for t in range(1, T)) for j in range(1, T)}
    return {
        "OP": sum(r(T, j) for j in range(1, T + 1)) / T,
        "LA": sum(r(j, j) for j in range(1, T + 1)) / T,
        "BWT": sum(r(T, j) - r(j, j) for j in range(1, T)) / (T - 1),
        "FWT": sum(r(j - 1, j) - r(0, j) for j in range(2, T + 1)) / (T - 1),
        "forgetting": sum(best[j] - r(T, j) for j in range(1, T)) / (T - 1),
    }


@pytest.mark.parametrize("n_tasks", [2, 3, 7])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_metric_is_its_definition(n_tasks: int, seed: int) -> None:
    R = random_matrix(n_tasks, seed)
    assert metrics.summary(R) == pytest.approx(naive(R), abs=1e-12)


def test_a_hand_made_matrix_gives_the_figures_that_one_works_out_on_paper() -> None:
    R = np.array(
        [
            [0.1, 0.2, 0.3],  # the base model
            [0.9, 0.3, 0.3],
            [0.5, 0.8, 0.5],
            [0.4, 0.6, 0.7],
        ]
    )
    assert metrics.overall_performance(R) == pytest.approx((0.4 + 0.6 + 0.7) / 3)
    assert metrics.learning_accuracy(R) == pytest.approx(0.8)
    assert metrics.backward_transfer(R) == pytest.approx((-0.5 - 0.2) / 2)
    assert metrics.forward_transfer(R) == pytest.approx((0.1 + 0.2) / 2)
    assert metrics.forgetting(R) == pytest.approx((0.5 + 0.2) / 2)
    single = np.array([0.9, 0.9, 0.9])
    assert metrics.intransigence(R, single) == pytest.approx(0.1)
    assert list(metrics.summary(R, single)) == list(metrics.METRICS)


def test_forgetting_takes_the_best_state_even_if_it_came_later_than_learning() -> None:
    R = np.array([[0.0, 0.0, 0.0], [0.5, 0.0, 0.0], [0.9, 0.5, 0.0], [0.5, 0.5, 0.5]])
    assert metrics.backward_transfer(R) == 0.0
    assert metrics.forgetting(R) == pytest.approx(0.2)


def test_what_the_base_model_knew_is_not_counted_as_forgotten() -> None:
    R = np.array([[1.0, 0.0], [0.5, 0.0], [0.5, 0.5]])
    assert metrics.forgetting(R) == 0.0


def test_a_stream_that_forgets_nothing_has_no_backward_transfer_and_no_forgetting() -> None:
    R = np.tile(np.array([0.25, 0.5, 0.75]), (4, 1))
    found = metrics.summary(R)
    assert found["BWT"] == found["FWT"] == found["forgetting"] == 0.0


def test_one_task_has_only_what_one_task_can_have() -> None:
    R = np.array([[0.1], [0.8]])
    assert metrics.summary(R) == {"OP": 0.8, "LA": 0.8}
    for function in (
        metrics.backward_transfer,
        metrics.forward_transfer,
        metrics.forgetting,
    ):
        with pytest.raises(EditclError, match="at least two tasks"):
            function(R)


@pytest.mark.parametrize("hole", [math.nan, math.inf])
def test_a_hole_is_refused_with_its_place(hole: float) -> None:
    R = random_matrix(3)
    R[1, 2] = hole
    with pytest.raises(EditclError, match="row 1, task 3.*zeros falsifies"):
        metrics.summary(R)


def test_zeros_in_the_upper_triangle_would_have_changed_forward_transfer() -> None:
    R = random_matrix(4)
    padded = np.tril(R, -1)
    assert metrics.forward_transfer(padded) != pytest.approx(metrics.forward_transfer(R))


@pytest.mark.parametrize("shape", [(3, 3), (5, 3), (1, 0)])
def test_a_matrix_without_the_base_model_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(EditclError, match="base model in row 0"):
        metrics.overall_performance(np.zeros(shape))


def test_single_runs_must_be_one_number_for_each_task() -> None:
    for single in (np.array([0.5]), np.array([0.5, math.nan])):
        with pytest.raises(EditclError, match="one finite number for each of the 2 tasks"):
            metrics.intransigence(random_matrix(2), single)


def test_spread_is_mean_and_sample_deviation() -> None:
    found = metrics.spread([0.1, 0.4, 0.7])
    assert (found.mean, found.deviation, found.n) == pytest.approx((0.4, 0.3, 3))
    assert metrics.spread([0.5]) == metrics.Spread(0.5, None, 1)
    assert str(found) == "0.400 ± 0.300" and str(metrics.spread([0.5])) == "0.500"
    for wrong in ([], [0.1, math.nan]):
        with pytest.raises(EditclError, match="no mean"):
            metrics.spread(wrong)


def test_perplexities_become_scores_of_which_more_is_better() -> None:
    perplexity = np.array([[10.0, 100.0], [5.0, 50.0], [20.0, 25.0]])
    R = metrics.scores_of_perplexity(perplexity)
    assert np.array_equal(R, -np.log(perplexity))
    assert metrics.forgetting(R) == pytest.approx(math.log(20 / 5))
    for wrong in (np.array([0.5]), np.array([math.inf])):
        with pytest.raises(EditclError, match="perplexity below 1"):
            metrics.scores_of_perplexity(wrong)


def test_triangles_are_means_of_the_three_parts() -> None:
    matrix = np.array([[1.0, 10.0, 20.0], [2.0, 3.0, 30.0], [4.0, 6.0, 5.0]])
    found = metrics.triangles(matrix)
    assert found == metrics.Triangles(in_distribution=3.0, backward=4.0, forward=20.0)
    assert metrics.triangles(np.array([[2.0]])) == metrics.Triangles(2.0, None, None)
    with pytest.raises(EditclError, match="2 by 3"):
        metrics.triangles(np.zeros((2, 3)))
    matrix[0, 1] = math.nan
    with pytest.raises(EditclError, match="1 holes"):
        metrics.triangles(matrix)
