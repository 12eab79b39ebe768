"""General damage: what edits did to text that has nothing to do with them.

On fixed plain sentences, per predicted token: the cross-entropy now and before, and KL(before ||
now) = sum_v p_before(v) log(p_before(v) / p_now(v)), which sees changes that leave the loss alone.
A collapse after many edits shows here first (arXiv:2502.11177 and others). In nats. "Before" is
the base model (the log's edits taken out), or predictions that were kept. Knows nothing of facts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from editcl.embedded import data_folder
from editcl.encoding import Sentence
from editcl.errors import EditclError
from editcl.model import EditableModel, micro_batches

# Of general.txt every fourth sentence, so that predictions on all of them can be kept even with a
# large vocabulary, and none of its last ones: the embedded model never trained on these, and
# predicts them so badly that damage can lower the cross-entropy.
EVERY, UNKNOWN = 4, 20
TOKENS_PER_BATCH = 2048
BYTES_KEPT = 1 << 28  # of log-probabilities before the edits, at a time


@dataclass(frozen=True)
class Damage:
    """Cross-entropy and divergence per token on unrelated text, in nats.

    Attributes:
        cross_entropy: of the text now.
        base_cross_entropy: of the text before the edits.
        kl: KL(before || now), mean over predicted tokens; 0 if nothing has changed.
        n_tokens: predicted tokens.
    """

    cross_entropy: float
    base_cross_entropy: float
    kl: float
    n_tokens: int

    @property
    def increase(self) -> float:
        """How much cross-entropy the edits cost."""
        return self.cross_entropy - self.base_cross_entropy

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON-able data."""
        return asdict(self) | {"increase": self.increase}

    def __repr__(self) -> str:
        return (
            f"Damage(KL {self.kl:.4f}, cross-entropy {self.base_cross_entropy:.4f} -> "
            f"{self.cross_entropy:.4f} nats per token, {self.n_tokens} tokens)"
        )


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model predicts on texts, kept to compare with later.

    Attributes:
        log_probs: per batch of texts, [n_predicted, d_vocab] on the CPU.
        texts: the texts.
    """

    log_probs: tuple[Float[Tensor, "_ d_vocab"], ...]
    texts: tuple[str, ...]


@cache
def general_texts() -> tuple[str, ...]:
    """Plain sentences about everyday things; no fact is about any of them."""
    lines = (data_folder() / "general.txt").read_text(encoding="utf-8").splitlines()
    return tuple(lines[:-UNKNOWN:EVERY])


def damage(
    model: EditableModel,
    texts: Sequence[str] | None = None,
    *,
    before: Predictions | None = None,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> Damage:
    """Compares the model as it is now with the base model, or with predictions kept before.

    Memory is bounded: of the base model's predictions a fixed number of bytes is kept at a time,
    and its weights are put in place again for the next ones. Only edits in the log are taken out;
    for others (a trial, a prompt, an adapter) keep `predictions` before and pass them.

    Args:
        model: the model; it is as before afterwards.
        texts: unrelated texts; by default plain sentences of everyday things.
        before: predictions to compare with; their texts count then.
        tokens_per_batch: bounds the padded tokens of a forward pass.

    Raises:
        EditclError: no text has two tokens, or texts are given beside `before`.
    """
    if before is not None:
        if texts is not None:
            raise EditclError("pass either texts or predictions kept before, which have theirs.")
        batches = _batches(model, before.texts, tokens_per_batch)
        blocks = [(batches, before.log_probs)]
        return _total(model, blocks)
    batches = _batches(model, general_texts() if texts is None else texts, tokens_per_batch)
    return _total(model, _at_base(model, batches))


def predictions(
    model: EditableModel,
    texts: Sequence[str] | None = None,
    *,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> Predictions:
    """What the model predicts now, to be passed to `damage` later: d_vocab floats per token.

    Raises:
        EditclError: no text has two tokens.
    """
    chosen = tuple(general_texts() if texts is None else texts)
    batches = _batches(model, chosen, tokens_per_batch)
    return Predictions(tuple(_log_probs(model, batch).cpu() for batch in batches), chosen)


# -- parts --------------------------------------------------------------------------------------

_Rows = list[tuple[int, ...]]


def _batches(model: EditableModel, texts: Sequence[str], tokens_per_batch: int) -> list[_Rows]:
    rows = [row.ids for row in model.encode([Sentence(text) for text in texts])]
    rows = [ids for ids in rows if len(ids) > 1]
    if not rows:
        raise EditclError("no text has two tokens or more: there is nothing to predict.")
    return [[rows[i] for i in c] for c in micro_batches([len(r) for r in rows], tokens_per_batch)]


def _at_base(
    model: EditableModel, batches: Sequence[_Rows]
) -> Iterator[tuple[list[_Rows], list[Tensor]]]:
    """Blocks of batches with the base model's log-probabilities, each block within the bound."""
    n_kept = max(1, BYTES_KEPT // (4 * model.d_vocab))
    blocks: list[list[_Rows]] = [[]]
    held = 0
    for batch in batches:
        count = sum(len(ids) - 1 for ids in batch)
        if blocks[-1] and held + count > n_kept:
            blocks.append([])
            held = 0
        blocks[-1].append(batch)
        held += count
    for block in blocks:
        with model.at_base():
            kept = [_log_probs(model, batch).cpu() for batch in block]
        yield block, kept


def _total(model: EditableModel, blocks: Any) -> Damage:
    now = then = kl = 0.0
    count = 0
    for batches, kept in blocks:
        for batch, base in zip(batches, kept, strict=True):
            current = _log_probs(model, batch)
            target = torch.tensor([token for ids in batch for token in ids[1:]])
            target = target.to(current.device)
            base = base.to(current.device)
            now -= float(current.gather(1, target[:, None]).double().sum())
            then -= float(base.gather(1, target[:, None]).double().sum())
            kl += float(divergence(base, current).double().sum())
            count += len(target)
    return Damage(now / count, then / count, kl / count, count)


def divergence(
    log_p: Float[Tensor, "n_tokens d_vocab"], log_q: Float[Tensor, "n_tokens d_vocab"]
) -> Float[Tensor, " n_tokens"]:
    """KL(p || q) of each row, in nats; never negative by rounding."""
    return (log_p.exp() * (log_p - log_q)).sum(-1).clamp(min=0.0)


def _log_probs(model: EditableModel, batch: _Rows) -> Float[Tensor, "n_predicted d_vocab"]:
    """log p of the next token at every position but the last of each row, rows in a line."""
    inputs = model.pad(batch)
    with torch.inference_mode():
        logits = model.forward(inputs)
        there = inputs["attention_mask"][:, 1:].bool()
        return logits[:, :-1][there].float().log_softmax(-1)
