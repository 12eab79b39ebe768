"""Metrics of continual learning: pure functions of the score matrix.

R[t, j] is the score on task j after training on task t, higher is better; row 0 is the base model,
so R has one row more than columns. With tasks counted from 1 to T:

    overall performance   OP  = mean_j R[T, j]
    learning accuracy     LA  = mean_j R[j, j]
    backward transfer     BWT = 1/(T-1) sum_{j<T}  (R[T, j] - R[j, j])
    forward transfer      FWT = 1/(T-1) sum_{j>=2} (R[j-1, j] - R[0, j])
    forgetting            F   = 1/(T-1) sum_{j<T}  (max_{1<=t<T} R[t, j] - R[T, j])
    intransigence         I   = mean_j (R*[j] - R[j, j]), R*[j] of a run on task j alone

OP, BWT, FWT: Lopez-Paz and Ranzato (arXiv:1706.08840); forgetting and intransigence: Chaudhry et
al. (arXiv:1801.10112). A matrix with holes is refused: zeros in them flatter some of these and
punish others. Of perplexities take `scores_of_perplexity` first, for lower is better there. Knows
nothing of models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from editcl.errors import EditclError

#: What `summary` gives, in the order in which tables show it.
METRICS = ("OP", "LA", "BWT", "FWT", "forgetting", "intransigence")
#: Those of which less is better.
LOWER_IS_BETTER = ("forgetting", "intransigence")


@dataclass(frozen=True)
class Spread:
    """One figure over several seeds.

    Attributes:
        mean: over the seeds.
        deviation: the sample's standard deviation; None of one seed, which tells nothing of it.
        n: how many seeds.
    """

    mean: float
    deviation: float | None
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + ("" if self.deviation is None else f" ± {self.deviation:.3f}")


@dataclass(frozen=True)
class Triangles:
    """A matrix over time steps, by what each state had seen of the step that it is judged on.

    Attributes:
        in_distribution: mean of the diagonal: the step that was just trained on.
        backward: mean of the lower triangle: earlier steps; None of one step.
        forward: mean of the upper triangle: later steps; None of one step.
    """

    in_distribution: float
    backward: float | None
    forward: float | None


def overall_performance(R: Float[np.ndarray, "n_states n_tasks"]) -> float:
    """OP: the mean score in the end."""
    return float(_checked(R)[-1].mean())


def learning_accuracy(R: Float[np.ndarray, "n_states n_tasks"]) -> float:
    """LA: the mean score on each task right after it was learnt."""
    return float(_learnt(_checked(R)).mean())


def backward_transfer(R: Float[np.ndarray, "n_states n_tasks"]) -> float:
    """BWT: what later tasks did to earlier ones; negative where they were forgotten."""
    R = _several(_checked(R), "backward transfer")
    return float((R[-1] - _learnt(R))[:-1].mean())


def forward_transfer(R: Float[np.ndarray, "n_states n_tasks"]) -> float:
    """FWT: what earlier tasks did to a task before it was learnt, against the base model."""
    R = _several(_checked(R), "forward transfer")
    # Row j of R[1:-1], from 0, is the state after task j + 1: just before column j + 1 is learnt.
    before = np.diagonal(R[1:-1, 1:])
    return float((before - R[0, 1:]).mean())


def forgetting(R: Float[np.ndarray, "n_states n_tasks"]) -> float:
    """F: how far each earlier task fell below its best after any training but the last.

    As published the base model does not count: what it knew before is not the stream's merit.
    """
    R = _several(_checked(R), "forgetting")
    return float((R[1:-1].max(0) - R[-1])[:-1].mean())


def intransigence(
    R: Float[np.ndarray, "n_states n_tasks"], single: Float[np.ndarray, " n_single"]
) -> float:
    """I: what a task's score lacks, right after it was learnt, to that of a run on it alone.

    Args:
        R: the matrix.
        single: the score on each task after training on that task alone, from the base model.
    """
    R = _checked(R)
    if single.shape != (R.shape[1],) or not np.isfinite(single).all():
        raise EditclError(
            f"the scores of runs on single tasks are {single.tolist()}; give one finite number for "
            f"each of the {R.shape[1]} tasks."
        )
    return float((single - _learnt(R)).mean())


def summary(
    R: Float[np.ndarray, "n_states n_tasks"], single: Float[np.ndarray, " n_single"] | None = None
) -> dict[str, float]:
    """Every metric by its name in `METRICS`; those that need two tasks, or `single`, if there."""
    found = {"OP": overall_performance(R), "LA": learning_accuracy(R)}
    if R.shape[1] > 1:
        found |= {
            "BWT": backward_transfer(R),
            "FWT": forward_transfer(R),
            "forgetting": forgetting(R),
        }
    if single is not None:
        found["intransigence"] = intransigence(R, single)
    return found


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample deviation over seeds.

    Raises:
        EditclError: there are none, or one is not finite.
    """
    if not values or not all(math.isfinite(value) for value in values):
        raise EditclError(f"no mean can be taken of {list(values)}: give finite numbers.")
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Spread(mean, None, 1)
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    return Spread(mean, math.sqrt(variance), n)


def scores_of_perplexity(
    perplexity: Float[np.ndarray, "*shape"],
) -> Float[np.ndarray, "*shape"]:
    """-log perplexity: the mean log-probability per token, of which more is better.

    Differences of it are the same for a hard domain and an easy one when a token's probability
    changes by the same factor; differences of perplexity are ruled by the hardest domain.

    Raises:
        EditclError: one is no perplexity (a finite number of at least 1).
    """
    if not (np.isfinite(perplexity).all() and (perplexity >= 1).all()):
        raise EditclError(
            "a perplexity below 1, or none at all, is among these; leave out what was not measured."
        )
    return -np.log(perplexity)


def triangles(matrix: Float[np.ndarray, "n_steps n_columns"]) -> Triangles:
    """Means of diagonal, lower and upper triangle; row i is the state after time step i.

    TiC-LM (arXiv:2504.02107): of regrets, which may be negative, or of scores.

    Raises:
        EditclError: it is not square or has a hole.
    """
    n, width = matrix.shape
    if n != width or not n or not np.isfinite(matrix).all():
        raise EditclError(
            f"a matrix over time steps has a row and a column for each and no holes; this one is "
            f"{n} by {width} with {int((~np.isfinite(matrix)).sum())} holes."
        )
    below, above = matrix[np.tril_indices(n, -1)], matrix[np.triu_indices(n, 1)]
    return Triangles(
        float(np.diagonal(matrix).mean()),
        float(below.mean()) if n > 1 else None,
        float(above.mean()) if n > 1 else None,
    )


# -- parts --------------------------------------------------------------------------------------


def _checked(R: Float[np.ndarray, "n_states n_tasks"]) -> Float[np.ndarray, "n_states n_tasks"]:
    """The matrix itself, if it is whole."""
    n_states, n_tasks = R.shape
    if n_tasks == 0 or n_states != n_tasks + 1:
        raise EditclError(
            f"the matrix has {n_states} rows for {n_tasks} tasks; it needs {n_tasks + 1}: the base "
            "model in row 0, then one after each task."
        )
    holes = np.argwhere(~np.isfinite(R))
    if len(holes):
        t, j = (int(i) for i in holes[0])
        raise EditclError(
            f"{len(holes)} scores of the matrix are missing or infinite, the first in row {t}, "
            f"task {j + 1}. Measure every task in every state: filling in zeros falsifies metrics."
        )
    return R


def _learnt(R: Float[np.ndarray, "n_states n_tasks"]) -> Float[np.ndarray, " n_tasks"]:
    """R[j, j]: each task right after it was learnt."""
    return np.diagonal(R[1:])


def _several(
    R: Float[np.ndarray, "n_states n_tasks"], what: str
) -> Float[np.ndarray, "n_states n_tasks"]:
    if R.shape[1] < 2:
        raise EditclError(f"{what} needs at least two tasks; there is one.")
    return R
