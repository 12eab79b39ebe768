"""Tokens read well whatever bytes they hold."""

from __future__ import annotations

import tiny

from editcl.tracing.text import readable_tokens


def test_pieces_of_a_character_are_numbered(tokenizer) -> None:
    ids = tokenizer("A 🗼 in Rome")["input_ids"]
    texts = readable_tokens(tokenizer, ids)
    assert len(texts) == len(ids)
    assert all("\ufffd" not in text for text in texts)
    pieces = [text for text in texts if "🗼" in text]
    assert pieces[0].endswith(f"(1/{len(pieces)})")
    assert pieces[-1].endswith(f"({len(pieces)}/{len(pieces)})")


def test_plain_tokens_are_their_text(tokenizer) -> None:
    ids = tokenizer("The Eiffel Tower")["input_ids"]
    assert "".join(readable_tokens(tokenizer, ids)) == "The Eiffel Tower"


def test_bytes_that_are_no_character_end_the_search(tokenizer) -> None:
    broken = tokenizer("🗼")["input_ids"][:1] * 3
    assert len(readable_tokens(tokenizer, broken)) == 3
    assert readable_tokens(tokenizer, []) == ()


def test_sentencepiece_tokens_read_well() -> None:
    tokenizer = tiny.sentencepiece_tokenizer()
    ids = tokenizer("The Tower 塔 is")["input_ids"]
    texts = readable_tokens(tokenizer, ids)
    assert texts[0] == "<s>" and any("塔" in text for text in texts)
