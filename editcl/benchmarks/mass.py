"""`editcl bench mass`: thousands of facts at once and in sequence, and what they cost.

Quality: one batch by MEMIT through `edit_csv` and the log, and the same facts batch after batch by
several methods, measured after the last one. Speed: v*, covariance and evaluation against the
plain procedures, in this run. Memory and growth: each number of facts in a process of its own.
Every comparison is of two things in one run; ratios are of medians where there are repeats.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch

from editcl.benchmarks.growth import Growth, measure_growth
from editcl.benchmarks.published_rome import published_value
from editcl.editing.arms import compare_methods
from editcl.editing.contexts import sample_contexts
from editcl.editing.covariance import covariances, measure, sample_rows
from editcl.editing.essence import PUBLISHED
from editcl.editing.many import edit_csv
from editcl.editing.methods import METHODS, PUBLISHED_SETTINGS
from editcl.editing.trial import tried
from editcl.editing.values import Values, ValueSettings, optimise_values
from editcl.editing.way import Way, plan_for, way_of
from editcl.errors import EditclError
from editcl.evaluation import Case, Evaluation, catalogue_cases, evaluate
from editcl.evaluation.compare import Comparison, weight_checksums
from editcl.evaluation.reference import evaluate_one_by_one
from editcl.facts import Fact
from editcl.model import EditableModel
from editcl.progress import progress

SHARES = ("efficacy", "paraphrase", "specificity", "same_subject", "free_running", "score")
FIXED_STEPS = 20  # of both sides where v* is compared
PUBLISHED_CONTEXTS = ((10, 5),)  # MEMIT's: five texts of ten tokens beside the bare prompt

Shares = dict[str, float | None]
Result = TypeVar("Result")


@dataclass(frozen=True)
class MassBenchmark:
    """The figures of `editcl bench mass`.

    Attributes:
        model: what was measured.
        n_facts: edited together.
        layers: where MEMIT edited.
        base: shares of the unedited model.
        memit: shares after one batch of all facts.
        one_batch: the same of other methods.
        memit_seconds: of that call of `edit_csv`, covariance ready, receipts included.
        sequential: shares after the last of several batches, by method.
        comparison: the same in full.
        values_speedup: facts per second of v* against the published procedure, fixed steps.
        values_per_second: facts per second, ours and the published procedure's.
        values_loss_error: largest difference of a fact's loss between the two.
        memory_ratio: peak memory of a process that edits all facts, over one that edits a fifth.
        memory_added_ratio: the same of what the edit added to the peak.
        covariance_overhead: seconds of one pass for all layers over those of a plain forward pass.
        covariance_score_drop: points of score that edits lose with a tenth of the tokens.
        rollback_one_seconds: one fact out of the batch.
        rollback_efficacy_change: points of efficacy that the others moved by.
        rollback_exact: whether everything taken back gave the base's bytes.
        evaluation_speedup: the plain evaluation's seconds over ours.
        evaluation_error: largest difference of a share between the two.
        growth: costs by number of facts.
    """

    model: str
    n_facts: int
    layers: tuple[int, ...]
    base: Shares
    memit: Shares
    one_batch: Mapping[str, Shares]
    memit_seconds: float
    sequential: Mapping[str, Shares]
    comparison: Comparison | None
    values_speedup: float
    values_per_second: tuple[float, float]
    values_loss_error: float
    memory_ratio: float | None
    memory_added_ratio: float | None
    covariance_overhead: float
    covariance_score_drop: float | None
    rollback_one_seconds: float
    rollback_efficacy_change: float
    rollback_exact: bool
    evaluation_speedup: float
    evaluation_error: float
    growth: Growth | None

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON-able data; of the comparison only what `sequential` says."""
        return {
            **{name: getattr(self, name) for name in self.__dataclass_fields__},
            "one_batch": dict(self.one_batch),
            "sequential": dict(self.sequential),
            "growth": None if self.growth is None else self.growth.to_dict(),
            "comparison": None,
        }


def bench_mass(
    model: EditableModel,
    *,
    cases: Sequence[Case] | None = None,
    n_facts: int = 1000,
    batches: int = 10,
    others: Sequence[str] = ("memit-published", "ft-m"),
    methods: Sequence[str] = ("alphaedit", "memit", "rome"),
    sizes: Sequence[int] = (10, 100, 200, 1000, 2000),
    repeats: int = 8,
    covariance_tokens: tuple[int, int] = (100, 10),
    seed: int = 0,
) -> MassBenchmark:
    """Measures everything; the model is as before afterwards.

    Args:
        model: what to measure; its log must be empty.
        cases: facts with probes; by default catalogue facts.
        n_facts: how many to edit at most.
        batches: of the sequence.
        others: methods that edit the same facts in one batch, to compare with; () for none.
        methods: of the sequence; () to leave it out.
        sizes: numbers of facts of the growth, three at least; () to leave it out.
        repeats: facts that the published procedure runs on, and runs of what is timed.
        covariance_tokens: per unit of d_mlp, many and few, between which the score may drop.
        seed: of the draw.

    Raises:
        EditclError: the log has entries.
    """
    if len(model.log):
        raise EditclError("benchmark a model without logged edits: its log must be empty.")
    chosen = list(cases) if cases is not None else catalogue_cases(n_facts, seed=seed)
    chosen = chosen[:n_facts]
    facts = [case.fact for case in chosen]
    way = way_of(model, "memit", seed=seed)
    covariances(model, range(model.n_layers), seed=seed)  # "covariance ready"
    overhead = covariance_overhead(model, repeats, seed)  # first: both passes slow down unevenly
    base = _shares(evaluate(model, chosen))
    memit = _one_batch(model, chosen, seed)
    beside = compare_methods(model, chosen, others, seed=seed) if others else None
    sequence = None
    if methods:
        size = -(-len(chosen) // batches)
        sequence = compare_methods(model, chosen, methods, batch_size=size, seed=seed)
    speed = compare_values(model, facts, way.layers[-1], repeats, seed)
    growth = measure_growth(model, sizes, seed=seed) if sizes else None
    total, added = _memory(growth, n_facts)
    evaluation_speedup, evaluation_error = compare_evaluations(model, chosen[: 6 * repeats])
    return MassBenchmark(
        model=model.name,
        n_facts=len(chosen),
        layers=way.layers,
        base=base,
        **memit,
        one_batch=_by_method(beside, others),
        sequential=_by_method(sequence, methods),
        comparison=sequence,
        values_speedup=speed.speedup,
        values_per_second=speed.per_second,
        values_loss_error=max(speed.errors),
        memory_ratio=total,
        memory_added_ratio=added,
        covariance_overhead=overhead,
        covariance_score_drop=covariance_score_drop(model, chosen, way, covariance_tokens),
        evaluation_speedup=evaluation_speedup,
        evaluation_error=evaluation_error,
        growth=growth,
    )


def _shares(evaluation: Evaluation) -> Shares:
    summary = evaluation.summary()
    return {name: summary.get(name) for name in SHARES}


def _by_method(comparison: Comparison | None, methods: Sequence[str]) -> dict[str, Shares]:
    if comparison is None:
        return {}
    return {name: _shares(comparison[name].evaluation) for name in methods}


def _one_batch(model: EditableModel, cases: Sequence[Case], seed: int) -> dict[str, Any]:
    """One batch through the user's door, measured; one fact and then everything taken back."""
    before = weight_checksums(model)
    started = time.perf_counter()
    report = edit_csv(model, [case.fact for case in cases], guard=None, resume=False, seed=seed)
    seconds = time.perf_counter() - started
    (entry,) = report.entries
    edited = evaluate(model, cases)
    middle = len(entry.facts) // 2
    others = [case for case in cases if case.fact != entry.facts[middle]]
    kept = evaluate(model, others).mean("efficacy") or 0.0
    started = time.perf_counter()
    model.log.rollback((entry, middle))
    one = time.perf_counter() - started
    left = evaluate(model, others).mean("efficacy") or 0.0
    model.log.rollback("all", remeasure=False)
    return {
        "memit": _shares(edited),
        "memit_seconds": seconds,
        "rollback_one_seconds": one,
        "rollback_efficacy_change": 100 * (left - kept),
        "rollback_exact": weight_checksums(model) == before,
    }


@dataclass(frozen=True)
class ValuesSpeed:
    """v* in batches against one fact at a time.

    Attributes:
        per_second: facts, ours and the published procedure's.
        losses: at the last step of the facts that both ran on, ours and theirs.
    """

    per_second: tuple[float, float]
    losses: tuple[tuple[float, ...], tuple[float, ...]]

    @property
    def speedup(self) -> float:
        """The ratio."""
        return self.per_second[0] / self.per_second[1]

    @property
    def errors(self) -> list[float]:
        """Differences of the losses, fact by fact."""
        return [abs(a - b) for a, b in zip(*self.losses, strict=True)]


def compare_values(
    model: EditableModel, facts: Sequence[Fact], layer: int, repeats: int, seed: int
) -> ValuesSpeed:
    """v* of all facts in batches, and of a few one at a time by the published procedure.

    Both with the published objective, as many contexts as MEMIT has, and a fixed number of steps;
    both have run once before they are timed.
    """
    settings = replace(PUBLISHED_SETTINGS, stop=0.0, steps=FIXED_STEPS)
    contexts = sample_contexts(model, lengths=PUBLISHED_CONTEXTS, seed=seed)
    few = facts[:: max(1, len(facts) // repeats)][:repeats]

    def published(fact: Fact, steps: int = FIXED_STEPS) -> float:
        own = replace(settings, steps=steps)
        return published_value(model, fact, layer, contexts, PUBLISHED, own).loss

    published(few[0], steps=2)
    # Facts of one subject share a value in a batch: for the losses each is on its own.
    alone = _values(model, few, layer, contexts, settings)
    timed = [
        stopwatch(model, partial(published, fact))
        for fact in progress(few, "v* by the published procedure")
    ]
    values, seconds = stopwatch(model, partial(_values, model, facts, layer, contexts, settings))
    assert bool(torch.isfinite(values.loss).all()), "a loss of v* is not finite"
    theirs = 1 / statistics.median(taken for _, taken in timed)
    losses = tuple(alone.loss.tolist()), tuple(loss for loss, _ in timed)
    return ValuesSpeed((len(facts) / seconds, theirs), losses)


def stopwatch(model: EditableModel, work: Callable[[], Result]) -> tuple[Result, float]:
    """What it returns, and its seconds until the device is done."""
    wait_for(model)
    started = time.perf_counter()
    found = work()
    wait_for(model)
    return found, time.perf_counter() - started


def wait_for(model: EditableModel) -> None:
    """Returns when the model's device has done all that it was given."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


def _values(
    model: EditableModel,
    facts: Sequence[Fact],
    layer: int,
    contexts: Sequence[str],
    settings: ValueSettings,
) -> Values:
    return optimise_values(model, facts, layer, contexts, [PUBLISHED] * len(facts), settings)


def covariance_overhead(model: EditableModel, repeats: int, seed: int) -> float:
    """Median seconds of one pass that measures C of all layers, over those of a plain one."""
    rows = sample_rows(model, 8 * model.d_mlp, seed)
    size = max(1, 4096 // max(map(len, rows)))
    plain, ours = [], []
    for _ in range(repeats):
        started = time.perf_counter()
        with torch.no_grad():
            for begin in range(0, len(rows), size):
                model.forward(model.pad(rows[begin : begin + size]))
        plain.append(time.perf_counter() - started)
        started = time.perf_counter()
        measure(model, range(model.n_layers), rows)
        ours.append(time.perf_counter() - started)
    return statistics.median(ours) / statistics.median(plain)


def covariance_score_drop(
    model: EditableModel, cases: Sequence[Case], way: Way, amounts: tuple[int, int]
) -> float | None:
    """Points of score between the same batch solved with C of many tokens and of few.

    v* is sought once: it doesn't depend on C.
    """
    facts = [case.fact for case in cases]
    plan = plan_for(model, facts, way)
    kept: list[Values] = []
    scores = []
    for tokens in amounts:
        found = covariances(
            model, way.layers, tokens=tokens * model.d_mlp, seed=way.seed, cache=False
        )
        damped = {layer: covariance.damped() for layer, covariance in found.items()}
        own = replace(plan, covariances=damped, values=kept[0] if kept else None)
        solution = METHODS[way.method](model, facts, own)
        assert solution.values is not None, f"{way.method} finds no values"
        kept.append(solution.values)
        with tried(model, solution.updates):
            scores.append(evaluate(model, cases).score)
    many, few = scores
    return None if many is None or few is None else 100 * (many - few)


def compare_evaluations(model: EditableModel, cases: Sequence[Case]) -> tuple[float, float]:
    """Seconds one prompt at a time over ours, and the largest difference of a share."""
    started = time.perf_counter()
    plain = evaluate_one_by_one(model, cases)
    slow = time.perf_counter() - started
    started = time.perf_counter()
    ours = evaluate(model, cases)
    fast = time.perf_counter() - started
    error = max(abs(value - ours.summary()[name]) for name, value in plain.summary().items())
    return slow / fast, error


def _memory(growth: Growth | None, n_facts: int) -> tuple[float | None, float | None]:
    """Peak of all facts over that of a fifth of them, whole and what was added."""
    if growth is None:
        return None, None
    costs = {cost.n_facts: cost for cost in growth.costs}
    many, few = costs.get(n_facts), costs.get(n_facts // 5)
    if many is None or few is None or not (many.peak and few.peak and many.added and few.added):
        return None, None
    return many.peak / few.peak, many.added / few.added


__all__ = ["MassBenchmark", "bench_mass"]
