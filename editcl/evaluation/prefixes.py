"""Targets behind prompts, every shared beginning run once.

Rows are a prompt's tokens and a target's tokens behind them. Three steps, each on copies of the
key-value cache of the one before:

1. heads: beginnings that several prompts share ("The capital city of", an in-context
   demonstration), chosen so that the fewest tokens are run;
2. the rest of each distinct prompt; every target's first token is read off its one last row of
   logits;
3. the targets of several tokens, behind their prompts.

Pieces are padded at the left in 1 and 2, so that the next ones join without a gap where no head is
shared; where one is, the mask hides the gap and positions don't count it. Exact up to rounding.
Knows nothing of texts and cases.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from editcl.encoding import Row
from editcl.kernels import fused_activations
from editcl.model import EditableModel
from editcl.partial import Ids, behind, by_length, heads_worth_sharing, selected


@dataclass
class Followed:
    """A target, token by token, behind its prompt.

    Attributes:
        log_probs: log-probability of each target token (nats).
        hits: whether each is the argmax.
        greedy: the argmax at each target position that was run, and behind the last token where
            all tokens are greedy ones and that was asked; among tokens that may be generated.
    """

    log_probs: list[float]
    hits: list[bool]
    greedy: list[int]


def follow(
    model: EditableModel,
    rows: Sequence[Row],
    *,
    beyond: Collection[int] = (),
    never: Sequence[int] = (),
    tokens_per_batch: int,
) -> list[Followed]:
    """Runs all rows.

    Args:
        model: the model as it is now.
        rows: with targets.
        beyond: the rows for which the greedy token behind the target is wanted too.
        never: tokens that greedy decoding does not say.
        tokens_per_batch: bounds the padded tokens of a forward pass, cached ones included.
    """
    by_prompt: dict[Ids, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        by_prompt[row.ids[: row.target_start]].append(i)
    n_behind = max((row.n_target for row in rows), default=0)
    heads = heads_worth_sharing(model, sorted(by_prompt), n_behind)
    with fused_activations(model.hf):
        found = _follow(model, rows, by_prompt, heads, frozenset(beyond), never, tokens_per_batch)
    return [found[i] for i in range(len(rows))]


def _follow(
    model: EditableModel,
    rows: Sequence[Row],
    by_prompt: Mapping[Ids, Sequence[int]],
    heads: Mapping[Ids, int],
    beyond: Collection[int],
    never: Sequence[int],
    tokens_per_batch: int,
) -> dict[int, Followed]:
    """Steps 1 to 3, batch by batch of prompts."""
    found: dict[int, Followed] = {}
    for prompt, index, state, logits in _prompts(model, heads, tokens_per_batch):
        own = [i for p in prompt for i in by_prompt[p]]
        parent = [n for n, p in enumerate(prompt) for _ in by_prompt[p]]
        targets = {i: rows[i].ids[rows[i].target_start :] for i in own}
        read = _read(logits, parent, [target[0] for target in targets.values()], never)
        for i, log_prob, hit, greedy in zip(own, *read, strict=True):
            found[i] = Followed([log_prob], [hit], [greedy])
        tails = {}
        for n, i in zip(parent, own, strict=True):
            # The last token is run only where greedy may have come that far.
            goes_on = i in beyond and found[i].greedy[0] == targets[i][0]
            tail = targets[i] if goes_on else targets[i][:-1]
            if tail:
                tails[i] = (n, tail)
        longer = list(tails)
        lengths = [len(tails[i][1]) for i in longer]
        for group in by_length(model, lengths, state.mask.shape[1], tokens_per_batch):
            chosen = [longer[g] for g in group]
            run = [tails[i][1] for i in chosen]
            at = index[[tails[i][0] for i in chosen]]
            _, behind = _step(model, state, at, run)
            _extend([found[i] for i in chosen], [targets[i] for i in chosen], run, behind, never)
    return found


# -- forward passes -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _State:
    """What has been run: the mask [n_rows, n_tokens] of its tokens, and its cache."""

    mask: Tensor
    cache: Any


def _step(
    model: EditableModel,
    state: _State | None,
    index: Tensor | None,
    pieces: Sequence[Ids],
    *,
    last_only: bool = False,
) -> tuple[_State, Tensor]:
    """Runs pieces behind rows `index` of a state; logits at all their tokens or at the last.

    With `last_only` the pieces are padded at the left, else at the right.
    """
    mask, past = torch.zeros(len(pieces), 0, dtype=torch.long, device=model.device), None
    if state is not None and index is not None:
        mask, past = state.mask[index], selected(state.cache, index)
    inputs, mask = behind(model, mask, pieces, left=last_only)
    with torch.inference_mode():
        logits, cache = model.forward_caching(inputs, last_only=last_only, cache=past)
    return _State(mask, cache), logits


def _prompts(
    model: EditableModel, heads: Mapping[Ids, int], tokens_per_batch: int
) -> Iterator[tuple[list[Ids], Tensor, _State, Tensor]]:
    """Batches of prompts, their rows in the state behind them, and their next tokens' logits."""
    by_head: dict[Ids, list[Ids]] = defaultdict(list)
    for prompt, length in heads.items():
        by_head[prompt[:length]].append(prompt)
    plain = by_head.pop((), [])
    names = list(by_head)
    batches: list[tuple[list[Ids], list[Ids]]] = [([], plain)] if plain else []
    for chosen in by_length(model, list(map(len, names)), 0, tokens_per_batch):
        some = [names[i] for i in chosen]
        batches.append((some, [prompt for head in some for prompt in by_head[head]]))
    for some, prompts in batches:
        state = _step(model, None, None, some, last_only=True)[0] if some else None
        row = {head: n for n, head in enumerate(some)}
        width = max(map(len, some), default=0)
        rests = [prompt[heads[prompt] :] for prompt in prompts]
        for chosen in by_length(model, list(map(len, rests)), width, tokens_per_batch):
            own = [prompts[i] for i in chosen]
            index = None
            if state is not None:
                index = torch.tensor([row[p[: heads[p]]] for p in own], device=model.device)
            there, logits = _step(model, state, index, [rests[i] for i in chosen], last_only=True)
            yield own, torch.arange(len(own), device=model.device), there, logits[:, -1]


def _extend(
    found: Sequence[Followed],
    targets: Sequence[Ids],
    run: Sequence[Ids],
    logits: Tensor,
    never: Sequence[int],
) -> None:
    """Adds what stands behind each token that was run: the next one's figures, the greedy one."""
    row_of = [n for n, tail in enumerate(run) for _ in tail]
    column = [at for tail in run for at in range(len(tail))]
    # Behind a target's last token nothing is scored: any id does there.
    following = [
        token
        for target, tail in zip(targets, run, strict=True)
        for token in (*target[1:], 0)[: len(tail)]
    ]
    read = _read(logits[row_of, column], range(len(row_of)), following, never)
    for n, at, log_prob, hit, greedy in zip(row_of, column, *read, strict=True):
        found[n].greedy.append(greedy)
        if at + 1 < len(targets[n]):
            found[n].log_probs.append(log_prob)
            found[n].hits.append(hit)


def _read(
    logits: Tensor, rows: Sequence[int], targets: Sequence[int], never: Sequence[int]
) -> tuple[list[float], list[bool], list[int]]:
    """log p of targets under rows of the logits, whether they are the argmax, what greedy says."""
    logits = logits.float()
    index = torch.tensor(list(rows), device=logits.device)
    wanted = torch.tensor(list(targets), device=logits.device)
    norm = logits.logsumexp(-1).double()
    log_probs = (logits[index, wanted].double() - norm[index]).tolist()
    best = logits.argmax(-1)
    hits = (best[index] == wanted).tolist()
    if never:
        logits = logits.index_fill(1, torch.tensor(list(never), device=logits.device), -torch.inf)
        best = logits.argmax(-1)
    return log_probs, hits, best[index].tolist()
