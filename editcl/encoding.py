"""Sentences to token rows: where the subject ends and the object begins, by character offsets.

Subject positions come from the tokenizer's offsets, never from counting the tokens of a prefix:
tokens may merge across the subject's edge, and special tokens may stand in front.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from editcl.errors import FactError, UnsupportedModel
from editcl.facts import PLACEHOLDER, fill, separator


@dataclass(frozen=True)
class Sentence:
    """A text to encode: context + prompt with its subject, and the object to follow.

    Attributes:
        prompt: with one `{}` for the subject, or without if `subject` is empty.
        subject: the subject, or "" for plain text.
        target: the object after the prompt, or "".
        context: text before the prompt, or "".
    """

    prompt: str
    subject: str = ""
    target: str = ""
    context: str = ""


@dataclass(frozen=True)
class Row:
    """One encoded sentence.

    Attributes:
        ids: token ids, special tokens in front included, the target's too.
        subject_first: index of the subject's first token (-1 without subject).
        subject_last: index of the subject's last token (-1 without subject).
        target_start: index of the target's first token; len(ids) without target.
    """

    ids: tuple[int, ...]
    subject_first: int
    subject_last: int
    target_start: int

    @property
    def n_target(self) -> int:
        """How many tokens the target has."""
        return len(self.ids) - self.target_start


@dataclass(frozen=True)
class Batch:
    """Right- or left-padded rows on a device."""

    ids: Int[Tensor, "n_rows n_tokens"]
    mask: Int[Tensor, "n_rows n_tokens"]


def encode(tokenizer: Any, sentences: Sequence[Sentence]) -> list[Row]:
    """Encodes sentences in one call of the tokenizer.

    Raises:
        FactError: the tokenizer can't encode a text (unknown tokens, or nothing left of it).
        UnsupportedModel: the tokenizer gives no character offsets.
    """
    if not sentences:
        return []
    texts, spans = zip(*(_layout(s) for s in sentences), strict=True)
    if not getattr(tokenizer, "is_fast", False):
        raise UnsupportedModel(
            f"{type(tokenizer).__name__} gives no character offsets. Load the fast version "
            "(AutoTokenizer.from_pretrained(..., use_fast=True))."
        )
    encoded = tokenizer(list(texts), return_offsets_mapping=True, verbose=False)
    return [
        _row(tokenizer, sentence, span, ids, offsets)
        for sentence, span, ids, offsets in zip(
            sentences, spans, encoded["input_ids"], encoded["offset_mapping"], strict=True
        )
    ]


def _layout(sentence: Sentence) -> tuple[str, tuple[int, int, int, int]]:
    """The text; the characters where subject starts and ends, prompt ends and target starts."""
    context, prompt = sentence.context, sentence.prompt
    head = context + separator(context, fill(prompt, sentence.subject))
    start = end = -1
    if sentence.subject:
        start = len(head) + prompt.index(PLACEHOLDER)
        end = start + len(sentence.subject)
        prompt = fill(prompt, sentence.subject)
    text = head + prompt
    gap = separator(text, sentence.target)
    return text + gap + sentence.target, (start, end, len(text), len(text) + len(gap))


def _row(
    tokenizer: Any,
    sentence: Sentence,
    span: tuple[int, int, int, int],
    ids: list[int],
    offsets: list[tuple[int, int]],
) -> Row:
    start, end, prompt_end, target_char = span
    # Tokens added behind the text (T5-like end tokens) would stand after the object; special
    # tokens have empty offsets, and only those in front belong to the sentence.
    last = max((i for i, (a, b) in enumerate(offsets) if b > a), default=-1)
    ids, offsets = ids[: last + 1], offsets[: last + 1]
    subject = [i for i, (a, b) in enumerate(offsets) if a < end and b > start and b > a]
    # A space token of its own in front of the object belongs to the object: the model must say it.
    # Tokenizers that trim offsets (GPT-2's) give it an empty one, behind the prompt's end.
    first = next((i for i, (_, b) in enumerate(offsets) if b > prompt_end), len(ids))
    has_object = any(b > target_char and b > a for a, b in offsets[first:])
    target = list(range(first, len(ids))) if sentence.target and has_object else []
    if sentence.subject and not subject:
        raise FactError(f"the tokenizer leaves nothing of the subject {sentence.subject!r}.")
    if not ids:
        raise FactError(f"the tokenizer leaves nothing of the text {sentence.prompt!r}.")
    if sentence.target and not target:
        raise FactError(f"the tokenizer leaves nothing of the object {sentence.target!r}.")
    _check_known(tokenizer, sentence, [ids[i] for i in subject], [ids[i] for i in target])
    if sentence.target and target[0] == 0:
        raise FactError(f"nothing stands before the object {sentence.target!r}; give a prompt.")
    return Row(
        tuple(ids),
        subject[0] if sentence.subject else -1,
        subject[-1] if sentence.subject else -1,
        target[0] if sentence.target else len(ids),
    )


def _check_known(tokenizer: Any, sentence: Sentence, subject: list[int], target: list[int]) -> None:
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown == tokenizer.eos_token_id:
        return  # byte-level tokenizers name their end token as unknown token and never need it
    for what, text, ids in (
        ("subject", sentence.subject, subject),
        ("object", sentence.target, target),
    ):
        if text and unknown in ids:
            raise FactError(
                f"the tokenizer can't encode the {what} {text!r} (unknown token "
                f"{tokenizer.unk_token!r}). Use words that are in its vocabulary."
            )


def pad(
    rows: Sequence[Sequence[int]], pad_id: int, device: torch.device | str, *, left: bool = False
) -> Batch:
    """Rows of token ids as one batch, padded at the right (or at the left)."""
    width = max((len(row) for row in rows), default=0)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        where = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, where] = torch.tensor(tuple(row), dtype=torch.long)
        mask[i, where] = 1
    return Batch(ids.to(device), mask.to(device))
