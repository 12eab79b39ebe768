"""Answers: what a model says to prompts, through one set of adapters or a mixture of several.

    p(next) = sum_k w_k p_k(next)        over ways k through the adapters, weights summing to one

The mixture is made anew for every token, of distributions and not of logits. A task with labels is
answered by the label with the highest mean log-probability per token, any other greedily up to the
end token. Decoding runs whole rows, so that every kind of adapter can do it: answers are short.
Knows nothing of how ways are chosen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from editcl.encoding import pad
from editcl.errors import EditclError
from editcl.learning.batches import Batch, Encoded, encode_examples
from editcl.learning.predict import TaskScore, encode_test, target_log_probs
from editcl.learning.session import TOKENS_PER_BATCH, Route, Session, kept_logits
from editcl.learning.strategies.base import Strategy
from editcl.learning.tasks import CLASSIFICATION, Example, Task
from editcl.model import micro_batches


@dataclass(frozen=True)
class Way:
    """One way through the adapters.

    Attributes:
        session: with the bank.
        strategy: whose `around` belongs to the adapters; None for the base model.
        route: the adapters; one for all rows, or one a row.
        weight: in a mixture.
    """

    session: Session
    strategy: Strategy | None
    route: Route
    weight: float = 1.0


@dataclass(frozen=True)
class Answer:
    """What is said to a prompt.

    Attributes:
        prompt: as it was asked.
        text: the label, or the continuation without white space at its ends.
        log_prob: mean log-probability of its tokens (nats).
        task: the skill that answered; None for the base model or a mixture.
    """

    prompt: str
    text: str
    log_prob: float
    task: str | None = None


def mixed_log_probs(
    ways: Sequence[Way], rows: Sequence[Encoded]
) -> list[Float[Tensor, " n_targets"]]:
    """The log-probability of each target of each row under a mixture."""
    parts: list[list[Tensor]] = []
    for way in ways:
        with around(way):
            parts.append(target_log_probs(way.session.adapters, rows, way.route))
    logs = _log_weights(ways)[:, None]
    return [torch.logsumexp(torch.stack(one) + logs, 0) for one in zip(*parts, strict=True)]


def best_labels(
    ways: Sequence[Way],
    prompts: Sequence[str],
    labels: Sequence[str],
    *,
    max_tokens: int | None = None,
) -> list[tuple[str, float]]:
    """For each prompt the best of the labels, and its mean log-probability per token."""
    model = ways[0].session.model
    asked = [Example(prompt, label) for prompt in prompts for label in labels]
    rows = encode_examples(model, asked, kind=CLASSIFICATION, max_tokens=max_tokens)
    spread = [
        Way(w.session, w.strategy, w.route.of(_each(prompts, labels)), w.weight) for w in ways
    ]
    means = [float(values.mean()) for values in mixed_log_probs(spread, rows)]
    table = torch.tensor(means, dtype=torch.float64).reshape(-1, len(labels))
    best = table.max(1)
    found = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [(labels[i], value) for i, value in found]


def greedy(
    ways: Sequence[Way], rows: Sequence[Encoded], max_new_tokens: int
) -> list[tuple[tuple[int, ...], float]]:
    """For each prompt the greedy tokens up to the end token, which is the last one if it came.

    Returns:
        The tokens, and the mean of their log-probabilities.

    Raises:
        EditclError: the rows get longer than the model's positions.
    """
    model = ways[0].session.model
    longest = max((len(row.ids) for row in rows), default=0) + max_new_tokens
    if longest > model.max_tokens:
        raise EditclError(
            f"{longest} tokens with {max_new_tokens} new ones; the model takes at most "
            f"{model.max_tokens}. Shorten the prompt, or ask for fewer."
        )
    end = model.tokenizer.eos_token_id
    said: list[list[int]] = [[] for _ in rows]
    log_probs: list[list[float]] = [[] for _ in rows]
    going = list(range(len(rows)))
    for _ in range(max_new_tokens):
        if not going:
            break
        now = [Encoded(rows[i].ids + tuple(said[i]), len(rows[i].ids)) for i in going]
        best = next_log_probs([_part(way, going) for way in ways], now).max(1)
        found = zip(going, best.indices.tolist(), best.values.tolist(), strict=True)
        for i, token, value in found:
            said[i].append(token)
            log_probs[i].append(value)
        going = [i for i in going if said[i][-1] != end]
    means = (sum(own) / len(own) if own else 0.0 for own in log_probs)
    return [(tuple(ids), mean) for ids, mean in zip(said, means, strict=True)]


def next_log_probs(ways: Sequence[Way], rows: Sequence[Encoded]) -> Float[Tensor, "n_rows d_vocab"]:
    """The logarithm of a mixture's distribution over the token behind each row, in float32."""
    model = ways[0].session.model
    found = torch.zeros(len(rows), model.d_vocab)
    logs = _log_weights(ways).tolist()
    for chosen in micro_batches([len(row.ids) for row in rows], TOKENS_PER_BATCH):
        batch = _behind([rows[i] for i in chosen], model.pad_id, model.device)
        parts = []
        for way, weight in zip(ways, logs, strict=True):
            own, adapters = way.route.of(chosen), way.session.adapters
            with around(way), torch.inference_mode(), adapters.using(own.names):
                logits, _ = kept_logits(adapters, batch, own.rows)
                parts.append(logits.float().log_softmax(-1).cpu() + weight)
        found[chosen] = torch.logsumexp(torch.stack(parts), 0) if len(parts) > 1 else parts[0]
    return found


def score_mixed(ways: Sequence[Way], task: Task) -> TaskScore:
    """The score of a mixture."""
    rows = encode_test(ways[0].session.model, task)
    means = [float(values.mean()) for values in mixed_log_probs(ways, rows)]
    truth = [example.completion for example in task.test]
    if task.kind == CLASSIFICATION:
        prompts = [example.prompt for example in task.test]
        best = best_labels(ways, prompts, task.labels, max_tokens=task.max_tokens)
        said = [label for label, _ in best]
        right = [label == own for label, own in zip(said, truth, strict=True)]
    else:
        prompts_only = [Encoded(row.ids[: row.start], row.start) for row in rows]
        longest = max(row.n_targets for row in rows)
        tokens = [ids for ids, _ in greedy(ways, prompts_only, longest)]
        pairs = zip(tokens, rows, strict=True)
        right = [ids[: row.n_targets] == row.ids[row.start :] for ids, row in pairs]
        said = [""] * len(rows)
    return joined_score(list(zip(right, means, said, strict=True)), task)


def joined_score(rows: Sequence[tuple[bool, float, str]], task: Task) -> TaskScore:
    """A score of what is known of each example."""
    correct, log_probs, said = zip(*rows, strict=True)
    return TaskScore(
        sum(correct) / len(correct),
        sum(log_probs) / len(log_probs),
        correct,
        log_probs,
        said if task.kind == CLASSIFICATION else (),
    )


# -- parts ----------------------------------------------------------------------------------------


def _behind(rows: Sequence[Encoded], pad_id: int, device: torch.device) -> Batch:
    """A batch of which the logits at each row's last token are kept."""
    ids = pad([row.ids for row in rows], pad_id, device).ids
    last = torch.tensor([len(row.ids) - 1 for row in rows], device=device)
    number = torch.arange(len(rows), device=device)
    return Batch(tuple(rows), ids, number, last, torch.zeros_like(last))


def _each(prompts: Sequence[str], labels: Sequence[str]) -> list[int]:
    return [i for i in range(len(prompts)) for _ in labels]


def _part(way: Way, chosen: Sequence[int]) -> Way:
    return Way(way.session, way.strategy, way.route.of(chosen), way.weight)


def around(way: Way) -> AbstractContextManager[None]:
    """What the way's strategy has around forward passes."""
    return nullcontext() if way.strategy is None else way.strategy.around(way.session)


def _log_weights(ways: Sequence[Way]) -> Float[Tensor, " n_ways"]:
    total = sum(way.weight for way in ways)
    return torch.tensor([math.log(way.weight / total) for way in ways], dtype=torch.float64)
