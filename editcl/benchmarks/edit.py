"""`editcl bench edit`: how well and how fast single edits and traces work on a model.

Quality: single edits by ROME at default settings, each on the unedited model, evaluated and taken
back. Speed: tracing and editing against the published procedures, both in this run, as ratios of
medians. Exactness: rollback of many edits in random order, in three number formats.
"""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from editcl.benchmarks.published_rome import PublishedEdit, published_rome
from editcl.editing.calibrate import calibrate, known_cases
from editcl.editing.contexts import sample_contexts
from editcl.editing.covariance import Covariance, covariances
from editcl.editing.edit import edit
from editcl.editing.essence import PUBLISHED
from editcl.editing.methods import METHODS, PUBLISHED_SETTINGS, preset_of
from editcl.editing.plan import Plan
from editcl.errors import EditclError
from editcl.evaluation import Case, Evaluation, catalogue_cases, evaluate
from editcl.evaluation.results import COMPARISONS
from editcl.facts import Fact
from editcl.loading import wrap
from editcl.log import EditLog
from editcl.model import EditableModel, tensor_bytes
from editcl.progress import progress
from editcl.tracing.causal import Settings, corrupt, trace
from editcl.tracing.cells import KINDS, cell
from editcl.tracing.reference import published_cells
from editcl.tracing.runs import NOISE_MULTIPLE, ask
from editcl.update import WeightUpdate


@dataclass(frozen=True)
class EditBenchmark:
    """The figures of `editcl bench edit`.

    Attributes:
        model: what was measured.
        layer: where it was edited.
        n_edits: single edits made.
        efficacy, paraphrase, specificity, same_subject: means over cases, None if not measurable.
        free_running: greedy continuations of edit prompts that are the new object.
        free_paraphrase: the same over paraphrases.
        score: harmonic mean of efficacy, paraphrase and specificity.
        base: the same measures before any edit.
        seconds_per_edit: median, default settings, covariance ready, receipt included.
        trace_speedup: published over ours, all cells of three kinds.
        trace_max_error: largest difference of a cell's probability between the two.
        edit_speedup: published over ours, published hyperparameters on both sides.
        update_relative_error: largest ||ours - published|| / ||published|| of an update.
        value_relative_error: the same of v*.
        rollback_exact: whether every byte came back, by number format.
        import_seconds: median of `import editcl` in fresh processes.
    """

    model: str
    layer: int
    n_edits: int
    efficacy: float | None
    paraphrase: float | None
    specificity: float | None
    same_subject: float | None
    free_running: float | None
    free_paraphrase: float | None
    score: float | None
    base: dict[str, float | None]
    seconds_per_edit: float
    trace_speedup: float
    trace_max_error: float
    edit_speedup: float
    update_relative_error: float
    value_relative_error: float
    rollback_exact: dict[str, bool]
    import_seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON-able data; `rollback_exact` is one answer over all formats."""
        return {
            **asdict(self),
            "rollback_exact": all(self.rollback_exact.values()),
            "rollback_by_dtype": dict(self.rollback_exact),
        }


def bench_edit(
    model: EditableModel,
    *,
    cases: Sequence[Case] | None = None,
    n_edits: int = 200,
    repeats: int = 12,
    seed: int = 0,
) -> EditBenchmark:
    """Measures everything; the model is as before afterwards.

    Args:
        model: what to measure; its log must be empty.
        cases: facts with probes; by default catalogue facts that the model knows.
        n_edits: how many cases to edit at most.
        repeats: facts that are traced and edited by either side of a comparison, one run each.
        seed: of the draw and of the noise.

    Raises:
        EditclError: the log has entries, or too few facts are known.
    """
    if len(model.log):
        raise EditclError("benchmark a model without logged edits: its log must be empty.")
    chosen = list(cases) if cases is not None else _own_cases(model, n_edits, seed)
    chosen = chosen[:n_edits]
    base = _shares(evaluate(model, chosen))
    preset = preset_of(model)
    layer = (
        preset.layer
        if preset is not None
        else calibrate(model, cases=cases and chosen[:CALIBRATION_CASES]).layer
    )
    covariance = covariances(model, [layer], seed=seed)[layer]
    evaluation, seconds = _quality(model, chosen, layer, seed)
    facts = [case.fact for case in chosen[:: max(1, len(chosen) // repeats)][:repeats]]
    trace_speedup, trace_error = _compare_traces(model, facts)
    edit_speedup, update_error, value_error = _compare_edits(model, facts, layer, covariance, seed)
    return EditBenchmark(
        model=model.name,
        layer=layer,
        n_edits=len(evaluation.results),
        **_shares(evaluation),
        base=base,
        seconds_per_edit=seconds,
        trace_speedup=trace_speedup,
        trace_max_error=trace_error,
        edit_speedup=edit_speedup,
        update_relative_error=update_error,
        value_relative_error=value_error,
        rollback_exact={str(d).removeprefix("torch."): _rollback_exact(model, d) for d in _DTYPES},
        import_seconds=_import_seconds(repeats),
    )


CALIBRATION_CASES = 24  # of given cases; fewer rank neighbouring layers by chance
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_SHARES = (*COMPARISONS, "same_subject", "free_running", "free_paraphrase", "score")


def _shares(evaluation: Evaluation) -> dict[str, float | None]:
    """The shares that the benchmark reports; None for what could not be measured."""
    summary = evaluation.summary()
    return {name: summary.get(name) for name in _SHARES}


def _own_cases(model: EditableModel, count: int, seed: int) -> list[Case]:
    """Catalogue cases whose fact the model knows; probes that it doesn't know stay in."""
    from editcl.encoding import Sentence

    drawn = catalogue_cases(2 * count, seed=seed)
    known = model.score(
        [Sentence(c.fact.prompt, c.fact.subject, c.fact.old_object or "") for c in drawn]
    ).exact.tolist()
    cases = [case for case, right in zip(drawn, known, strict=True) if right]
    if not cases:
        return known_cases(model, count, seed)  # raises with the remedy
    return cases


def _quality(
    model: EditableModel, cases: Sequence[Case], layer: int, seed: int
) -> tuple[Evaluation, float]:
    """Single edits, each on the unedited model; and the median seconds of one."""
    parts, seconds = [], []
    for case in progress(cases, "single edits"):
        fact = case.fact
        started = time.perf_counter()
        receipt = edit(
            model,
            fact.subject,
            fact.new_object,
            prompt=fact.prompt,
            old_object=fact.old_object,
            layer=layer,
            seed=seed,
        )
        seconds.append(time.perf_counter() - started)
        parts.append(evaluate(model, [case]))
        model.log.rollback(receipt, remeasure=False)
    return Evaluation.join(parts), statistics.median(seconds)


def _compare_traces(model: EditableModel, facts: Sequence[Fact]) -> tuple[float, float]:
    """Ratio of medians over facts, and the largest difference of any cell."""
    ours: list[float] = []
    published: list[float] = []
    error = 0.0
    for fact in progress(facts, "traces against the published procedure"):
        fast, seconds = _timed(partial(trace, model, fact.subject, fact.prompt, samples=10))
        ours.append(seconds)
        slow, seconds = _timed(partial(_published_trace, model, fact, samples=10))
        published.append(seconds)
        found = torch.stack([torch.from_numpy(fast.probability[kind]) for kind in KINDS])
        error = max(error, float((found - slow).abs().max()))
    return statistics.median(published) / statistics.median(ours), error


def _published_trace(model: EditableModel, fact: Fact, samples: int) -> Tensor:
    """[n_kinds, n_tokens, n_layers] of the same question, one forward pass a cell."""
    settings = Settings.of(model, None, None, NOISE_MULTIPLE, samples, None, 0)
    question = ask(model, fact.subject, fact.prompt)
    corruption, _ = corrupt(model, question, settings)
    inputs = {"input_ids": torch.tensor([question.ids], device=model.device)}
    with torch.no_grad():
        answer = int(model.forward(inputs)[0, -1].argmax())
    shape = (len(KINDS), len(question.ids), model.n_layers)
    cells = [
        cell(kind, token, layer, settings.window, model.n_layers)
        for kind in KINDS
        for token in range(shape[1])
        for layer in range(shape[2])
    ]
    values = published_cells(model, question, corruption, answer, cells)
    return values.double().mean(-1).cpu().reshape(shape)


def _compare_edits(
    model: EditableModel,
    facts: Sequence[Fact],
    layer: int,
    covariance: Covariance,
    seed: int,
) -> tuple[float, float, float]:
    """Ratio of medians, and the largest relative errors of update and v*; covariance ready."""
    preset = preset_of(model)
    settings = replace(PUBLISHED_SETTINGS if preset is None else preset.settings, stop=0.05)
    contexts = sample_contexts(model, seed=seed)
    inverse = torch.linalg.inv(covariance.moment.double()).float()
    plan = Plan((layer,), settings, {layer: covariance}, [PUBLISHED], contexts)
    covariance.solve(torch.ones(model.d_mlp, 1))  # the factor is part of "covariance ready"
    ours: list[float] = []
    published: list[float] = []
    update_error = value_error = 0.0
    for fact in progress(facts, "edits against the published procedure"):
        solution, seconds = _timed(partial(METHODS["rome-published"], model, [fact], plan))
        ours.append(seconds)
        slow, seconds = _timed(
            partial(published_rome, model, fact, layer, contexts, PUBLISHED, settings, inverse)
        )
        published.append(seconds)
        update = solution.updates[0]
        update_error = max(update_error, _relative_error(update, slow))
        value = solution.values.bare[0] + solution.values.delta[0]
        value_error = max(value_error, float((value - slow.value).norm() / slow.value.norm()))
    return statistics.median(published) / statistics.median(ours), update_error, value_error


def _relative_error(update: WeightUpdate, slow: PublishedEdit) -> float:
    exact = torch.outer(slow.left, slow.right)
    return float((update.dense() - exact).norm() / exact.norm())


def _rollback_exact(model: EditableModel, dtype: torch.dtype, n_edits: int = 100) -> bool:
    """Random rank-one edits on a copy, half taken back in random order, then all of them."""
    import copy

    rng = random.Random(0)
    generator = torch.Generator().manual_seed(0)
    base = copy.deepcopy(model.hf).to(dtype)
    twin = wrap(base, model.tokenizer, name=model.name)
    other = wrap(copy.deepcopy(base), model.tokenizer, name=model.name)
    projections = twin.map.projections
    before = {p.name: bytes(tensor_bytes(p.parameter)) for p in projections}
    drawn = []
    for i in range(n_edits):
        projection = projections[i % len(projections)]
        left = torch.randn(model.d_mlp, 1, generator=generator)
        right = 0.01 * torch.randn(model.d_model, 1, generator=generator)
        drawn.append((WeightUpdate(projection.name, left, right), Fact(f"s{i}", "{} is", "x")))
    entries = [_append(twin.log, *pair, i) for i, pair in enumerate(drawn)]
    order = rng.sample(range(n_edits), n_edits)
    gone = set(order[: n_edits // 2])
    for i in order[: n_edits // 2]:
        twin.log.rollback(entries[i], remeasure=False)
    for i, pair in enumerate(drawn):
        if i not in gone:
            _append(other.log, *pair, i)
    half = all(
        tensor_bytes(a.parameter) == tensor_bytes(b.parameter)
        for a, b in zip(projections, other.map.projections, strict=True)
    )
    for i in order[n_edits // 2 :]:
        twin.log.rollback(entries[i], remeasure=False)
    return half and all(bytes(tensor_bytes(p.parameter)) == before[p.name] for p in projections)


def _append(log: EditLog, update: WeightUpdate, fact: Fact, layer: int) -> Any:
    return log.append([update], [fact], method="random", layers=[layer])


def _import_seconds(repeats: int) -> float:
    code = "import time; t = time.perf_counter(); import editcl; print(time.perf_counter() - t)"
    times = []
    for _ in range(repeats):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        times.append(float(done.stdout))
    return statistics.median(times)


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    result = call()
    return result, time.perf_counter() - started


__all__ = ["EditBenchmark", "bench_edit"]
