"""Reading: one forward pass over a sample of a task, from which all probes are computed.

Of every sampled example it keeps the residual stream at the prompt's last token after some blocks,
its mean over the prompt after one block, the distribution over the completion's first token, and
how likely the model finds the completion and the prompt. The model is frozen, with the edits that
are in its weights and without adapters. Knows nothing of decisions.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from editcl.learning.batches import Encoded, collate, encode_examples
from editcl.learning.tasks import COMPLETION, Example
from editcl.model import EditableModel, micro_batches

SAMPLE = 128  # examples that are read
TOKENS_PER_BATCH = 2048


@dataclass(frozen=True, repr=False)
class Reading:
    """What the frozen model makes of a sample of examples.

    Attributes:
        chosen: which examples of the task were read, ascending.
        rows: their tokens; completions as the training would have them.
        states: by name, float32: the state at the prompt's last token after the middle and the
            last block ("middle", "last"), and the mean over the prompt's tokens after the middle
            one ("mean").
        first: log-probabilities of the token behind the prompt (nats), float32.
        exact: whether greedy decoding says the completion's own tokens; the end token aside.
        log_prob: mean log-probability of these tokens.
        prompt_loss: mean cross-entropy of the prompt's tokens but the first (nats); NaN for a
            prompt of one token.
        rest_loss: mean cross-entropy of the completion's tokens behind its first (nats); 0 for a
            completion of one token.
        row_tokens: mean length of a row, padding included.
        seconds_per_token: of the fastest batch, on this machine.
    """

    chosen: tuple[int, ...]
    rows: tuple[Encoded, ...]
    states: dict[str, Float[Tensor, "n_rows d_model"]]
    first: Float[Tensor, "n_rows d_vocab"]
    exact: tuple[bool, ...]
    log_prob: Float[Tensor, " n_rows"]
    prompt_loss: Float[Tensor, " n_rows"]
    rest_loss: Float[Tensor, " n_rows"]
    row_tokens: float
    seconds_per_token: float

    @property
    def answers(self) -> Int[Tensor, " n_rows"]:
        """The first token of each completion."""
        return torch.tensor([row.ids[row.start] for row in self.rows])


def sample(n: int, *, seed: int = 0, at_most: int = SAMPLE) -> list[int]:
    """Indices of all examples, or of as many as allowed, drawn by seed, ascending."""
    if n <= at_most:
        return list(range(n))
    return sorted(random.Random(f"read {seed}").sample(range(n), at_most))


def read(
    model: EditableModel,
    examples: Sequence[Example],
    *,
    max_tokens: int | None = None,
    seed: int = 0,
    at_most: int = SAMPLE,
) -> Reading:
    """Runs a sample of examples once.

    Args:
        model: not changed.
        examples: with prompts, at least one.
        max_tokens: prompts of longer rows lose their middle; by default the model's longest row.
        seed: of what is drawn.
        at_most: how many are read.

    Raises:
        TaskError: some can't be encoded, or a completion is longer than a row.
    """
    chosen = sample(len(examples), seed=seed, at_most=at_most)
    rows = encode_examples(
        model,
        [examples[i] for i in chosen],
        kind=COMPLETION,
        max_tokens=max_tokens or model.max_tokens,
    )
    n = len(rows)
    states = {name: torch.zeros(n, model.d_model) for name in ("middle", "last", "mean")}
    first = torch.zeros(n, model.d_vocab)
    log_prob, rest_loss, prompt_loss = torch.zeros(n), torch.zeros(n), torch.full((n,), torch.nan)
    exact, tokens, fastest = [False] * n, 0, float("inf")
    for part in micro_batches([len(row.ids) for row in rows], TOKENS_PER_BATCH):
        own = [rows[i] for i in part]
        started = time.perf_counter()
        logits, middle, last = _run(model, own)
        size = logits.shape[0] * logits.shape[1]
        tokens += size
        fastest = min(fastest, (time.perf_counter() - started) / size)
        for k, i in enumerate(part):
            row, at = rows[i], rows[i].start - 1
            states["middle"][i], states["last"][i] = middle[k, at], last[k, at]
            states["mean"][i] = middle[k, : at + 1].mean(0)
            logs = logits[k, : len(row.ids) - 1].log_softmax(-1)
            first[i] = logs[at]
            taken = logs.gather(1, torch.tensor(row.ids[1:], device=logs.device)[:, None])[:, 0]
            end = row.start + _own(model, row)
            log_prob[i] = taken[at : end - 1].mean()
            if end - 1 > at + 1:
                rest_loss[i] = -taken[at + 1 : end - 1].mean()
            said = logs[at : end - 1].argmax(-1).tolist()
            exact[i] = tuple(said) == row.ids[row.start : end]
            if at > 0:
                prompt_loss[i] = -taken[:at].mean()
    return Reading(
        chosen=tuple(chosen),
        rows=tuple(rows),
        states=states,
        first=first,
        exact=tuple(exact),
        log_prob=log_prob,
        prompt_loss=prompt_loss,
        rest_loss=rest_loss,
        row_tokens=tokens / n,
        seconds_per_token=fastest,
    )


def _run(
    model: EditableModel, rows: Sequence[Encoded]
) -> tuple[
    Float[Tensor, "n_rows n_tokens d_vocab"],
    Float[Tensor, "n_rows n_tokens d_model"],
    Float[Tensor, "n_rows n_tokens d_model"],
]:
    """Logits, and the residual stream after the middle and after the last block, on the CPU."""
    batch = collate(rows, model.pad_id, model.device)
    names = [f"blocks.{i}.hook_resid_post" for i in (model.n_layers // 2, model.n_layers - 1)]
    logits, cache = model.run_with_cache({"input_ids": batch.ids}, list(dict.fromkeys(names)))
    return logits.float().cpu(), cache[names[0]].float().cpu(), cache[names[1]].float().cpu()


def _own(model: EditableModel, row: Encoded) -> int:
    """Tokens of the completion without the end token behind it."""
    ended = row.n_targets > 1 and row.ids[-1] == model.tokenizer.eos_token_id
    return row.n_targets - ended
