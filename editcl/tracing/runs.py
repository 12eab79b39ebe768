"""What every cell of a trace shares: the sentence, its clean run, its corrupted runs.

One forward pass of 1 + n_samples rows: row 0 is clean; in the others the embeddings of the
subject's tokens are corrupted, by Gaussian noise or by another subject's embeddings:

    e'_s = e_s + sigma * eps_s,   s in the subject,   eps ~ N(0, 1)

(Meng et al., "Locating and Editing Factual Associations in GPT", arXiv:2202.05262, section 2.1).
The draw is numpy's `RandomState(seed).randn(n_samples, n_subject, d_model)`, that of the authors'
code. This module knows nothing of restoring.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from editcl.encoding import Row, Sentence
from editcl.errors import EditclError, FactError, NonFiniteError
from editcl.facts import Fact
from editcl.hooks import Hook
from editcl.model import EditableModel

NOISE_MULTIPLE = 3.0
"""Noise level in standard deviations of the subjects' embeddings, as in the paper."""


@dataclass(frozen=True)
class Question:
    """An encoded prompt, its subject's span and the token whose probability is measured.

    Attributes:
        prompt: template with one `{}`.
        subject: what stands in it.
        ids: token ids of the filled prompt, special tokens in front included.
        span: first subject token and the one after the last.
        answer: token id that is measured; None for the model's own argmax.
    """

    prompt: str
    subject: str
    ids: tuple[int, ...]
    span: tuple[int, int]
    answer: int | None

    @property
    def n_subject(self) -> int:
        """How many tokens the subject has."""
        return self.span[1] - self.span[0]


@dataclass(frozen=True)
class Corruption:
    """How the subject's embeddings are corrupted in each sample.

    Attributes:
        values: [n_samples, n_subject, d_model] added to the embeddings, or put in their place.
        replaces: whether they take the embeddings' place.
    """

    values: Float[Tensor, "n_samples n_subject d_model"]
    replaces: bool = False

    @property
    def n_samples(self) -> int:
        """How many corrupted runs there are."""
        return len(self.values)

    def hook(self, span: tuple[int, int]) -> Any:
        """A hook function for `hook_embed` that leaves row 0 clean and corrupts the others."""

        def corrupt(embedded: Tensor, _hook: Hook) -> Tensor:
            out = embedded.clone()
            values = self.values.to(out)
            out[1:, span[0] : span[1]] = (
                values if self.replaces else out[1:, span[0] : span[1]] + values
            )
            return out

        return corrupt


@dataclass(frozen=True)
class Runs:
    """The clean run and the corrupted runs of one question, with all that restoring needs.

    Attributes:
        model: what was run.
        question: the sentence.
        answer: the token measured.
        predicted: the clean run's argmax.
        clean: p(answer) of the clean run.
        corrupted: [n_samples] p(answer) of each corrupted run.
        states: clean activations by kind ("hidden", "mlp", "attn"), [n_layers, n_tokens, d].
        noisy: the same of the corrupted runs, [n_layers, n_samples, n_tokens, d].
        entry: [n_samples, n_tokens, d] the corrupted runs' input of the first block.
        keys_values: per layer, the corrupted runs' keys and values [n_samples, heads, n_tokens, d];
            empty where the model keeps no key-value cache.
    """

    model: EditableModel
    question: Question
    answer: int
    predicted: int
    clean: float
    corrupted: Float[Tensor, " n_samples"]
    states: Mapping[str, Float[Tensor, "n_layers n_tokens d_model"]]
    noisy: Mapping[str, Float[Tensor, "n_layers n_samples n_tokens d_model"]]
    entry: Float[Tensor, "n_samples n_tokens d_model"]
    keys_values: tuple[tuple[Tensor, Tensor], ...]

    @property
    def n_samples(self) -> int:
        """How many corrupted runs there are."""
        return len(self.corrupted)

    @property
    def n_tokens(self) -> int:
        """How many tokens the sentence has."""
        return len(self.question.ids)

    def first_sample(self) -> Runs:
        """The same with the first corrupted run only."""
        return replace(
            self,
            corrupted=self.corrupted[:1],
            noisy={kind: value[:, :1] for kind, value in self.noisy.items()},
            entry=self.entry[:1],
            keys_values=tuple((k[:1], v[:1]) for k, v in self.keys_values),
        )


def ask(model: EditableModel, subject: str, prompt: str, answer: str | None = None) -> Question:
    """Encodes a prompt (with `{}`, or a sentence that names the subject) and the answer.

    Raises:
        FactError: the subject is not in the prompt, or a text can't be encoded.
    """
    if answer is not None and (not isinstance(answer, str) or not answer.strip()):
        raise FactError(f"answer is empty: {answer!r}. Leave it out to trace the model's own.")
    fact = Fact.from_sentence(subject, prompt, answer or "?")
    return questions(model, [(fact.subject, fact.prompt, answer.strip() if answer else None)])[0]


def questions(model: EditableModel, facts: Sequence[tuple[str, str, str | None]]) -> list[Question]:
    """Encodes (subject, template, answer) triples in one call of the tokenizer."""
    rows = model.encode([Sentence(p, s, target=a or "") for s, p, a in facts])
    return [
        _question(subject, prompt, answer, row)
        for (subject, prompt, answer), row in zip(facts, rows, strict=True)
    ]


def _question(subject: str, prompt: str, answer: str | None, row: Row) -> Question:
    ids = row.ids[: row.target_start]
    if row.subject_last >= len(ids):
        raise FactError(
            f"the last token of the subject {subject!r} and the first of the answer {answer!r} "
            "are one token. Put a word or a space between them."
        )
    span = (row.subject_first, row.subject_last + 1)
    return Question(prompt, subject, ids, span, None if answer is None else row.ids[len(ids)])


def embeddings(
    model: EditableModel, ids: Sequence[Sequence[int]]
) -> list[Float[Tensor, "n_tokens d_model"]]:
    """Token embeddings of rows, before positions."""
    inputs = model.pad(ids)
    cache = model.activations(inputs, ["hook_embed"])["hook_embed"]
    return [row[: len(tokens)] for row, tokens in zip(cache, ids, strict=True)]


def embedding_spread(model: EditableModel, asked: Sequence[Question]) -> float:
    """Standard deviation of all embedding entries over the questions' subject tokens."""
    ids = [q.ids[slice(*q.span)] for q in asked]
    value = float(torch.cat(embeddings(model, ids)).double().std())
    if not np.isfinite(value):
        raise NonFiniteError("token embeddings hold NaN or infinite values. Reload the model.")
    return value


def gaussian(
    model: EditableModel, question: Question, sigma: float, n_samples: int, seed: int
) -> Corruption:
    """Noise of standard deviation sigma, drawn as in the authors' code."""
    draw = np.random.RandomState(seed).randn(n_samples, question.n_subject, model.d_model)
    return Corruption(torch.from_numpy(draw * sigma).to(model.device, torch.float32))


def other_subjects(model: EditableModel, question: Question, others: Sequence[str]) -> Corruption:
    """Embeddings of other subjects in the same sentence, one sample each.

    Raises:
        EditclError: a subject has another number of tokens than the one it stands in for.
    """
    asked = questions(model, [(other, question.prompt, None) for other in others])
    for other, q in zip(others, asked, strict=True):
        if q.n_subject != question.n_subject:
            raise EditclError(
                f"corruption {other!r} has {q.n_subject} tokens, the subject "
                f"{question.subject!r} {question.n_subject}. Choose one of as many tokens."
            )
    values = torch.stack(embeddings(model, [q.ids[slice(*q.span)] for q in asked]))
    return Corruption(values, replaces=True)


def names(model: EditableModel) -> dict[str, tuple[str, ...]]:
    """Hook points of each kind of state, by layer."""
    points = {"hidden": "hook_resid_post", "mlp": "mlp.out.hook_out", "attn": "hook_attn_out"}
    return {
        kind: tuple(f"blocks.{i}.{point}" for i in range(model.n_layers))
        for kind, point in points.items()
    }


def probabilities(
    logits: Float[Tensor, "n_rows d_vocab"],
) -> Float[Tensor, "n_rows d_vocab"]:
    """Softmax, in single precision at least."""
    return (logits.float() if logits.dtype.itemsize < 4 else logits).softmax(-1)


def run(model: EditableModel, question: Question, corruption: Corruption) -> Runs:
    """Runs the clean and the corrupted rows once and keeps what restoring needs.

    Raises:
        NonFiniteError: the model's output is not finite.
    """
    from transformers import DynamicCache

    saved: dict[str, Tensor] = {}

    def save(activation: Tensor, hook: Hook) -> None:
        saved[hook.name] = activation.clone()

    points = names(model)
    first = "blocks.0.hook_resid_pre"
    hooks = dict.fromkeys((first, *(n for kind in points.values() for n in kind)), save)
    ids = torch.tensor(question.ids, device=model.device).expand(1 + corruption.n_samples, -1)
    cache = DynamicCache()
    keep = torch.tensor([ids.shape[1] - 1], device=model.device)
    with model.hooks({"hook_embed": corruption.hook(question.span), **hooks}):
        logits = model.forward({"input_ids": ids}, keep=keep, cache=cache)[:, -1]
    probability = probabilities(logits)
    if not bool(torch.isfinite(probability).all()):
        raise NonFiniteError(
            "the model gives NaN or infinite logits for "
            f"{question.prompt!r}. Its weights are broken: reload it from its source."
        )
    predicted = int(probability[0].argmax())
    answer = predicted if question.answer is None else question.answer
    stacked = {kind: torch.stack([saved[n] for n in points[kind]]) for kind in points}
    return Runs(
        model,
        question,
        answer,
        predicted,
        float(probability[0, answer]),
        probability[1:, answer],
        {kind: value[:, 0] for kind, value in stacked.items()},
        {kind: value[:, 1:] for kind, value in stacked.items()},
        saved[first][1:],
        _keys_values(cache, ids.shape[1], model.n_layers),
    )


def _keys_values(cache: Any, n_tokens: int, n_layers: int) -> tuple[tuple[Tensor, Tensor], ...]:
    """The corrupted rows of a filled cache; nothing where it is not one entry a block and token."""
    pairs: list[tuple[Tensor, Tensor]] = []
    for layer in getattr(cache, "layers", []):
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is None or values is None or keys.ndim != 4 or keys.shape[2] != n_tokens:
            return ()
        pairs.append((keys[1:], values[1:]))
    return tuple(pairs) if len(pairs) == n_layers else ()
