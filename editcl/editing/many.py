"""edit_csv(): a table of facts, from a file to logged changes with a result for each row.

Steps: (1) read and validate the whole table; (2) settle each row: infer a missing relation, ask the
model for a missing old object, see that everything can be encoded, all problems collected before
anything changes; (3) solve, batch by batch; (4) append each batch to the log, atomically; (5) check
the model's health after each batch, and take the batch back that a guard objects to. An error or
an interrupt on the way takes back what this call has done. Knows no method's equation.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from editcl.editing.choices import (
    check_amounts,
    check_contexts,
    choose_method,
    resolve_settings,
)
from editcl.editing.contexts import DEFAULT_CONTEXTS
from editcl.editing.guards import Guard, Health, active_facts, check_health
from editcl.editing.plan import Plan
from editcl.editing.refine import worth_refining
from editcl.editing.repair import lost_facts
from editcl.editing.report import BatchReport, RowResult, Status
from editcl.editing.rows import Settled, settle_rows
from editcl.editing.values import ValueSettings
from editcl.editing.way import Way, plan_for, way_of
from editcl.errors import EditclError, LogError
from editcl.facts import Fact
from editcl.loading import wrap
from editcl.log import Edit, Probability
from editcl.log.weakening import probabilities
from editcl.model import EditableModel
from editcl.readers import read_table

if TYPE_CHECKING:
    from transformers import PreTrainedModel


CHECK_EVERY = 50  # edits, by methods of one fact at a time


def edit_csv(
    model: EditableModel | PreTrainedModel,
    source: object,
    *,
    method: str = "memit",
    kind: str | None = None,
    layers: Sequence[int] | None = None,
    settings: ValueSettings | str | None = None,
    preservation: float = Plan.preservation,
    refine: bool | None = None,
    batch_size: int | None = None,
    guard: Guard | None = Guard(),  # noqa: B008 - frozen, and its values are worth showing
    contexts: Sequence[str] = DEFAULT_CONTEXTS,
    corpus: Sequence[str] | None = None,
    dry_run: bool = False,
    resume: bool = True,
    tokenizer: Any = None,
    seed: int = 0,
) -> BatchReport:
    """Edits a table of facts, in place, and logs it; any fact of it can be rolled back alone.

    Args:
        model: from `editcl.load` or `editcl.wrap`, or a Hugging Face model (with `tokenizer`).
        source: a CSV, TSV, JSON or JSON Lines file, a DataFrame, or a list of Facts; columns
            subject, new_object and prompt (may be left out, or name a relation), old_object, id,
            paraphrase*, neighbourhood*. CounterFact, zsRE, MQuAKE and KnowEdit as published.
        method: a name in METHODS.
        kind: the format of the source, if it can't be told.
        layers: which layers to change; by default the papers' for the family, or those that
            calibration finds.
        settings: how v* is sought; None for the scale-free default, "published" for the papers'.
        preservation: what the model knows against the new facts; higher is more specific, lower
            carries over to more paraphrases.
        refine: seek v* by shorter and more steps, and train what was solved for further, on what
            the edited model says of the facts, of their subjects and of ordinary text (refine.py);
            by methods that can, unless the settings are the published ones. None: for more than
            fifty facts, those of the log counted in. It takes four times as long.
        batch_size: facts solved at once; None: all of them, in one log entry.
        guard: when to stop and take the last batch back; None: never.
        contexts: texts in front of the prompts; first "".
        corpus: texts for the covariance; the model samples its own if absent.
        dry_run: read, settle and measure everything, change nothing.
        resume: keep finished values on disk until they are logged, so that a killed run of the
            same call goes on where it stopped.
        tokenizer: only with a Hugging Face model.
        seed: of everything random.

    Returns:
        A result for each row; `to_frame()`, `to_csv(path)`.

    Raises:
        TableError: the table can't be read or edited as it stands, or contradicts itself; every
            problem is listed.
        EditclError: unknown method, layer or settings, or an amount that makes no sense.
        LogError: the log can't be written.
        NonFiniteError: weights, activations or an update are not finite.
    """
    started = time.perf_counter()
    model = model if isinstance(model, EditableModel) else wrap(model, tokenizer)
    editor = choose_method(method)
    check_contexts(contexts)
    check_amounts(batch_size, preservation)
    resolve_settings(model, editor, settings)  # an unknown name is told before files are read
    table = read_table(source, kind=kind)
    model.check_finite()
    settled = settle_rows(model, table)
    todo = [i for i, one in enumerate(settled) if not one.said_already]
    n_facts = len(todo) + len(active_facts(model.log))
    way = way_of(
        model,
        method,
        layers=layers,
        settings=settings,
        contexts=contexts,
        preservation=preservation,
        corpus=corpus,
        resume=resume,
        seed=seed,
        refine=worth_refining(n_facts) if refine is None else refine,
    )
    if refine and way.refinement is None:
        raise EditclError(
            f"{method} can't be refined with these settings; memit, alphaedit and emmet can, but "
            "not with the published ones. Leave refine out."
        )
    before = probabilities(model, [one.fact for one in settled])
    size = 1 if way.editor.single else batch_size or max(1, len(todo))
    batches = [todo[k : k + size] for k in range(0, len(todo), size)] if not dry_run else []
    status: list[Status] = ["already said" if one.said_already else "checked" for one in settled]
    for i in todo if not dry_run else []:
        status[i] = "not reached"
    done = _run(model, settled, batches, before, way, guard, status)
    results = tuple(
        RowResult(one.row.number, one.row.id, one.fact, status[i], before[i], *done.at(i))
        for i, one in enumerate(settled)
    )
    return BatchReport(
        source=table.source,
        method=method,
        layers=way.layers,
        rows=results,
        entries=tuple(done.entries),
        health=tuple(done.health),
        warnings=table.warnings,
        stopped=done.stopped,
        seconds=time.perf_counter() - started,
        dry_run=dry_run,
    )


@dataclass
class _Done:
    """What a run has got to."""

    entries: list[Edit]
    health: list[Health]
    place: dict[int, tuple[str, int]]
    after: list[Probability]
    stopped: str | None = None

    def at(self, row: int) -> tuple[Probability | None, str | None, int | None]:
        """Of a row: what is measured at the end, and where the log has it."""
        return (self.after[row] if self.after else None, *self.place.get(row, (None, None)))


def _run(
    model: EditableModel,
    settled: Sequence[Settled],
    batches: Sequence[Sequence[int]],
    before: Sequence[Probability],
    way: Way,
    guard: Guard | None,
    status: list[Status],
) -> _Done:
    """Batch after batch; on an error or an interrupt everything that this run did is taken back."""
    done, logged = _Done([], [], {}, []), len(model.log)
    unchecked: list[tuple[Edit, Sequence[int]]] = []
    try:
        for number, batch in enumerate(batches):
            facts = [settled[i].fact for i in batch]
            entry = edit_batch(model, facts, way, [before[i] for i in batch], number)
            done.entries.append(entry)
            unchecked.append((entry, batch))
            for index, i in enumerate(batch):
                status[i], done.place[i] = "edited", (entry.id, index)
            # One fact after the other would spend more on checks than on edits.
            last = number + 1 == len(batches)
            if guard is None or (way.editor.single and not last and (number + 1) % CHECK_EVERY):
                continue
            health = check_health(model, guard)
            done.health.append(health)
            verdict = health.verdict(guard)
            if verdict is not None:
                model.log.rollback([entry for entry, _ in unchecked], remeasure=False)
                for i in (i for _, batch in unchecked for i in batch):
                    status[i] = "taken back"
                done.stopped = f"{verdict}; {_named([e for e, _ in unchecked])} taken back"
                break
            unchecked = []
        if done.entries:
            done.after += probabilities(model, [one.fact for one in settled])
    except BaseException as error:
        # By the log, not by `done`: an interrupt may have come between the two.
        _take_back(model, model.log.entries[logged:], error)
        raise
    return done


def _named(entries: Sequence[Edit]) -> str:
    """Entries since the last check, for a sentence that goes on with "taken back"."""
    if len(entries) == 1:
        return f"the last batch ({entries[0].id}) was"
    return f"the last {len(entries)} batches ({entries[0].id} to {entries[-1].id}) were"


def _take_back(model: EditableModel, entries: Sequence[Edit], error: BaseException) -> None:
    """Rolls back what is active of the entries; LogError if the log can't be written."""
    active = [entry for entry in entries if model.log.active(entry)]
    try:
        if active:
            model.log.rollback(active, remeasure=False)
    except LogError as failed:
        names = ", ".join(entry.id for entry in active)
        raise LogError(
            f"{str(error).rstrip('.') or type(error).__name__}; and the batches before ({names}) "
            f"could not be taken back: {str(failed).rstrip('.')}. They are in the model and in its "
            "log; once that is mended, roll them back (model.log.rollback, `editcl log rollback`)."
        ) from error


def edit_batch(
    model: EditableModel,
    facts: Sequence[Fact],
    way: Way,
    before: Sequence[Probability],
    number: int = 0,
) -> Edit:
    """Solves one batch on the model as it is now, and logs it.

    With a refinement, facts of earlier edits that the model has lost are edited again beside it, at
    the end of the entry's facts.
    """
    started = time.perf_counter()
    lost = lost_facts(model, active_facts(model.log), facts) if way.refinement else []
    if lost:
        facts, before = [*facts, *lost], [*before, *probabilities(model, lost)]
    plan = plan_for(model, facts, way)
    solution = way.editor(model, facts, plan)
    details = {
        **solution.details,
        "settings": asdict(way.settings),
        "preservation": way.preservation,
        "seed": way.seed,
        "contexts": len(way.contexts),
        "batch": number,
        "repaired": len(lost),
    }
    entry = model.log.append(
        solution.updates,
        facts,
        method=way.method,
        layers=way.layers,
        before=before,
        seconds=time.perf_counter() - started,
        details=details,
        measure=lambda: probabilities(model, facts),
    )
    if plan.checkpoint is not None:
        plan.checkpoint.clear()
    return entry
