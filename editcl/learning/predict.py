"""Scores of a task under adapters: labels, completions and texts, batched and sorted by length.

- classification: the label with the highest mean log-probability per token;
- completion: whether greedy decoding gives the completion, token by token, its end included. It
  does exactly if every token is the most probable one after the true ones before it, so that one
  teacher-forced pass tells and nothing is generated;
- text: the negative logarithm of perplexity, that is the mean log-probability of all tokens.

Knows nothing of how adapters came about.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from editcl.encoding import Row
from editcl.evaluation.prefixes import follow
from editcl.learning.batches import Encoded, collate, encode_examples, visible
from editcl.learning.lora import BASE, Adapters
from editcl.learning.session import TOKENS_PER_BATCH, Route, Session, kept_logits
from editcl.learning.strategies.base import Strategy
from editcl.learning.tasks import CLASSIFICATION, TEXT, Example, Task, TaskError
from editcl.model import EditableModel, micro_batches


@dataclass(frozen=True, repr=False)
class TaskScore:
    """How well a task is done.

    Attributes:
        score: accuracy, share of exact completions, or negative log-perplexity; higher is better.
        log_prob: mean over examples of the mean log-probability of the true completion's tokens.
        correct: of each test example, whether it is right; empty for texts.
        log_probs: of each test example (of texts: of each piece).
        predicted: of each test example of a classification, the label.
    """

    score: float
    log_prob: float
    correct: tuple[bool, ...]
    log_probs: tuple[float, ...]
    predicted: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"TaskScore({self.score:.4f}, log-prob {self.log_prob:.3f}, n={len(self.log_probs)})"


def score_task(
    session: Session | Adapters,
    task: Task,
    names: Route | Sequence[str] = (),
    *,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> TaskScore:
    """Judges the test of a task.

    Args:
        session: or the bank of adapters itself.
        task: with a test.
        names: of the adapters whose sum is used (none: the base model), or a route.
        tokens_per_batch: bounds the padded tokens of a forward pass.

    Raises:
        TaskError: the task has no test, or one that can't be encoded.
    """
    if not task.test:
        raise TaskError(f"task {task.name!r}", ["it has no test; give it examples to judge by."])
    adapters = session.adapters if isinstance(session, Session) else session
    route = names if isinstance(names, Route) else Route(tuple(names))
    if task.kind == CLASSIFICATION:
        return _classified(adapters, task, route, tokens_per_batch)
    rows = encode_test(adapters.model, task)
    found = scores_of_rows(adapters, rows, route, tokens_per_batch=tokens_per_batch)
    means = found.log_probs / found.n_targets
    if task.kind == TEXT:
        score = float(found.log_probs.sum() / found.n_targets.sum())
        return TaskScore(score, float(means.mean()), (), tuple(means.tolist()))
    exact = found.hits == found.n_targets
    score = float(exact.double().mean())
    return TaskScore(score, float(means.mean()), tuple(exact.tolist()), tuple(means.tolist()))


def score_with(
    session: Session, strategy: Strategy, task: Task, *, known: bool = True
) -> TaskScore:
    """Judges the test of a task with the adapters that a strategy predicts it with.

    Args:
        session: of the strategy.
        strategy: which has learnt what it has learnt.
        task: learnt or not.
        known: whether the strategy is told which task it is.

    Raises:
        TaskError: the task has no test, or one that can't be encoded.
    """
    rows = visible(encode_test(session.model, task), task.kind)
    with strategy.around(session):
        route = strategy.adapters_for(session, task.name if known else None, rows)
        return score_task(session, task, route)


def encode_test(model: EditableModel, task: Task) -> list[Encoded]:
    """The rows of a task's test: one for each example, of texts one for each piece.

    Raises:
        TaskError: some can't be encoded.
    """
    return encode_examples(
        model, task.test, kind=task.kind, task=task.name, max_tokens=task.max_tokens
    )


# -- labels ---------------------------------------------------------------------------------------


def label_log_probs(
    adapters: Adapters,
    task: Task,
    examples: Sequence[Example],
    route: Route,
    *,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> Float[Tensor, "n_rows n_labels"]:
    """The mean log-probability per token of each label of a task after each prompt.

    Args:
        adapters: the bank.
        task: its labels, and how long a row may be.
        examples: their prompts count.
        route: a route by rows has one adapter for each example.
        tokens_per_batch: bounds the padded tokens of a forward pass.
    """
    n_labels = len(task.labels)
    asked = [Example(example.prompt, label) for example in examples for label in task.labels]
    rows = encode_examples(
        adapters.model, asked, kind=task.kind, task=task.name, max_tokens=task.max_tokens
    )
    own = route.of([i for i in range(len(examples)) for _ in task.labels])
    found = target_log_probs(adapters, rows, own, tokens_per_batch=tokens_per_batch)
    means = torch.stack([values.mean() for values in found])
    return means.reshape(-1, n_labels)


def target_log_probs(
    adapters: Adapters,
    rows: Sequence[Encoded],
    route: Route,
    *,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> list[Float[Tensor, " n_targets"]]:
    """The log-probability of each target of each row.

    What several rows have in front of their targets runs once: prompts, and what prompts begin
    with. Where no cache can stand, only rows that differ in nothing but their last token share.

    Args:
        adapters: the bank.
        rows: with targets.
        route: a route by rows has one adapter for each row.
        tokens_per_batch: bounds the padded tokens of a forward pass.
    """
    if route.rows is None:
        with torch.inference_mode(), adapters.using(route.names):
            if not _may_cache(adapters):
                return _whole_rows(adapters, rows, tokens_per_batch)
            plain = [Row(row.ids, -1, -1, row.start) for row in rows]
            found = follow(adapters.view, plain, tokens_per_batch=tokens_per_batch)
        return [torch.tensor(one.log_probs, dtype=torch.float64) for one in found]
    by_place: dict[int, Tensor] = {}
    for name in dict.fromkeys(route.rows):
        chosen = [i for i, own in enumerate(route.rows) if own == name]
        names = Route(() if name == BASE else (name,))
        part = [rows[i] for i in chosen]
        read = target_log_probs(adapters, part, names, tokens_per_batch=tokens_per_batch)
        by_place |= zip(chosen, read, strict=True)
    return [by_place[i] for i in range(len(rows))]


def _may_cache(adapters: Adapters) -> bool:
    """Whether keys and values can be kept: nothing is put in front, no hook runs a block twice."""
    view = adapters.view
    hooked = (block._forward_hooks or block._forward_pre_hooks for block in view.map.blocks)
    return view.virtual is None and not any(hooked)


def _whole_rows(
    adapters: Adapters, rows: Sequence[Encoded], tokens: int
) -> list[Float[Tensor, " n_targets"]]:
    """The same without a cache, through the adapters that are active now."""
    by_input: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        by_input[row.ids[:-1]].append(i)
    groups = list(by_input.values())
    found: dict[int, Tensor] = {}
    for chosen in micro_batches([len(ids) for ids in by_input], tokens):
        own = [groups[g] for g in chosen]
        places = [(n, i) for n, group in enumerate(own) for i in group]
        read = [(n, at, rows[i].ids[at + 1])
                for n, i in places
                for at in range(rows[i].start - 1, len(rows[i].ids) - 1)]  # fmt: skip
        owners, positions, targets = (
            torch.tensor(column, device=adapters.model.device) for column in zip(*read, strict=True)
        )
        batch = collate([rows[g[0]] for g in own], adapters.model.pad_id, adapters.model.device)
        picked = replace(batch, row=owners, position=positions, targets=targets)
        logits, _ = kept_logits(adapters, picked)
        taken = logits.float().log_softmax(-1).gather(-1, targets[:, None])[:, 0]
        parts = taken.double().cpu().split([rows[i].n_targets for _, i in places])
        found |= zip((i for _, i in places), parts, strict=True)
    return [found[i] for i in range(len(rows))]


def _classified(adapters: Adapters, task: Task, route: Route, tokens: int) -> TaskScore:
    by_label = label_log_probs(adapters, task, task.test, route, tokens_per_batch=tokens)
    number = {label: i for i, label in enumerate(task.labels)}
    truth = torch.tensor([number[example.completion] for example in task.test])
    best = by_label.argmax(1)
    true_log_probs = by_label.gather(1, truth[:, None])[:, 0]
    correct = best == truth
    return TaskScore(
        float(correct.double().mean()),
        float(true_log_probs.mean()),
        tuple(correct.tolist()),
        tuple(true_log_probs.tolist()),
        tuple(task.labels[i] for i in best.tolist()),
    )


# -- rows -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RowScores:
    """Teacher-forced scores of rows.

    Attributes:
        log_probs: sum over each row's targets.
        hits: how many targets are the most probable token.
        n_targets: how many there are.
    """

    log_probs: Float[Tensor, " n_rows"]
    hits: Int[Tensor, " n_rows"]
    n_targets: Int[Tensor, " n_rows"]


def scores_of_rows(
    adapters: Adapters,
    rows: Sequence[Encoded],
    route: Route,
    *,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> RowScores:
    """Runs rows through adapters, each row through its own if the route says so."""
    log_probs = torch.zeros(len(rows), dtype=torch.float64)
    hits = torch.zeros(len(rows), dtype=torch.long)
    model = adapters.model
    for chosen in micro_batches([len(row.ids) for row in rows], tokens_per_batch):
        own = route.of(chosen)
        batch = collate([rows[i] for i in chosen], model.pad_id, model.device)
        with torch.inference_mode(), adapters.using(own.names):
            logits, _ = kept_logits(adapters, batch, own.rows)
            taken = logits.float().log_softmax(-1).gather(-1, batch.targets[:, None])[:, 0]
            right = logits.argmax(-1) == batch.targets
        index = torch.tensor(chosen)[batch.row.cpu()]
        log_probs.index_add_(0, index, taken.double().cpu())
        hits.index_add_(0, index, right.long().cpu())
    return RowScores(log_probs, hits, torch.tensor([row.n_targets for row in rows]))
