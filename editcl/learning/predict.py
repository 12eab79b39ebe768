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

from editcl.learning.batches import Encoded, collate, encode_examples
from editcl.learning.lora import Adapters
from editcl.learning.session import TOKENS_PER_BATCH, Route, Session, kept_logits
from editcl.learning.strategies.base import Strategy
from editcl.learning.tasks import CLASSIFICATION, TEXT, Example, Task, TaskError
from editcl.model import EditableModel, micro_batches

TEXT_SEEN = 64  # tokens of a text that a strategy may look at to choose adapters


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
    rows = encode_test(session.model, task)
    if task.kind == TEXT:  # all of it is learnt: how it begins may be looked at
        rows = [replace(row, start=min(TEXT_SEEN, len(row.ids))) for row in rows]
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

    Labels that begin alike share a row: only the longest of beginnings is run, and labels of one
    token are all read off the prompt's own row.

    Args:
        adapters: the bank.
        task: its labels, and how long a row may be.
        examples: their prompts count.
        route: a route by rows has one adapter for each example.
        tokens_per_batch: bounds the padded tokens of a forward pass.
    """
    asked = [Example(example.prompt, label) for example in examples for label in task.labels]
    rows = encode_examples(
        adapters.model, asked, kind=task.kind, task=task.name, max_tokens=task.max_tokens
    )
    n_labels = len(task.labels)
    run: list[Encoded] = []
    owner: list[int] = []  # the example of each row that is run
    wanted: list[tuple[int, Encoded, int]] = []  # row that is run, what is read, its place
    for i in range(len(examples)):
        own = rows[i * n_labels : (i + 1) * n_labels]
        for place in sorted(range(n_labels), key=lambda k: -len(own[k].ids)):
            seen = own[place].ids[:-1]
            at = len(run)
            for earlier in range(len(run) - 1, -1, -1):
                if owner[earlier] != i:
                    break
                if run[earlier].ids[: len(seen)] == seen:
                    at = earlier
            if at == len(run):
                run.append(own[place])
                owner.append(i)
            wanted.append((at, own[place], i * n_labels + place))
    return _read(adapters, run, route.of(owner), wanted, tokens_per_batch).reshape(-1, n_labels)


def _read(
    adapters: Adapters,
    run: Sequence[Encoded],
    route: Route,
    wanted: Sequence[tuple[int, Encoded, int]],
    tokens: int,
) -> Float[Tensor, " n_wanted"]:
    """Mean log-probabilities of the targets of `wanted`, each read off one of the rows."""
    model = adapters.model
    by_row: dict[int, list[tuple[Encoded, int]]] = defaultdict(list)
    for at, row, place in wanted:
        by_row[at].append((row, place))
    found = torch.zeros(len(wanted), dtype=torch.float64)
    for chosen in micro_batches([len(row.ids) for row in run], tokens):
        own = route.of(chosen)
        places = [(n, p) for n, i in enumerate(chosen) for p in by_row[i]]
        read = [(n, at, place, 1 / row.n_targets, row.ids[at + 1])
                for n, (row, place) in places
                for at in range(row.start - 1, len(row.ids) - 1)]  # fmt: skip
        owners, positions, slots, weights, tokens_read = zip(*read, strict=True)
        batch = collate([run[i] for i in chosen], model.pad_id, model.device)
        picked = replace(
            batch,
            row=torch.tensor(owners, device=model.device),
            position=torch.tensor(positions, device=model.device),
            targets=torch.tensor(tokens_read, device=model.device),
        )
        with torch.inference_mode(), adapters.using(own.names):
            logits, _ = kept_logits(adapters, picked, own.rows)
            taken = logits.float().log_softmax(-1).gather(-1, picked.targets[:, None])[:, 0]
        weighted = taken.double().cpu() * torch.tensor(weights, dtype=torch.float64)
        found.index_add_(0, torch.tensor(slots), weighted)
    return found


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
