"""Tokens as people can read them, also where a token is only some bytes of a character."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_UNDECODED = "\ufffd"
_MOST_PIECES = 12


def readable_tokens(tokenizer: Any, ids: Sequence[int]) -> tuple[str, ...]:
    """Each token's text; pieces of one character are numbered: "塔 (1/3)", "塔 (2/3)", ..."""
    texts: list[str] = []
    while len(texts) < len(ids):
        begin = len(texts)
        group, text = 1, decode(tokenizer, ids[begin : begin + 1])
        for size in range(2, min(_MOST_PIECES, len(ids) - begin) + 1):
            if _UNDECODED not in text:
                break
            whole = decode(tokenizer, ids[begin : begin + size])
            if _UNDECODED not in whole:
                group, text = size, whole
        texts += [text] if group == 1 else [f"{text} ({i + 1}/{group})" for i in range(group)]
    return tuple(texts)


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """Tokens' text as it stands, special tokens included."""
    text: str = tokenizer.decode(
        list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return text
