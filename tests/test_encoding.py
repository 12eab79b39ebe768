from __future__ import annotations

from typing import TypeAlias

import pytest
import tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from editcl.encoding import Row, Sentence, encode, pad
from editcl.errors import FactError, UnsupportedModel

Tokenizer: TypeAlias = PreTrainedTokenizerFast


def subject_text(tokenizer: Tokenizer, row: Row) -> str:
    return tokenizer.decode(row.ids[row.subject_first : row.subject_last + 1])


def target_text(tokenizer: Tokenizer, row: Row) -> str:
    return tokenizer.decode(row.ids[row.target_start :])


TOKENIZERS = {
    "plain": tiny.byte_tokenizer(),
    "with a start token": tiny.byte_tokenizer(bos=True),
    "sentencepiece": tiny.sentencepiece_tokenizer(),
}

CASES = [
    ("{} is in the city of", "The Eiffel Tower", "Rome"),
    ("In the city of Rome stands {}, built in", "the Colosseum", "the year 80"),
    ("Everybody knows {}", "The Eiffel Tower", "of Paris"),
    ("{}", "Beats Music", "is owned by Apple"),
    ("{}位于", "埃菲尔铁塔", "罗马市"),
    ("{} يقع في مدينة", "برج إيفل", "روما"),
    ("מי גר ב{}? זה", "תל אביב", "דן"),
    ("{} is built of", "🗼🏛️", "🧱👩‍🚀"),
    ("{} liegt in", "Mu\u0308nchen", "O\u0308sterreich"),
    ("{}'s owner is", "Beats Music", "Apple"),
    ("the {}s of Paris are", "Tower", "two"),
    ("un{}able", "bear", "pain"),
    ("{} is in", "x" * 300, "y" * 300),
]


@pytest.mark.parametrize("context", ["", "It rained all night.", "东京很大。"])
@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize(("prompt", "subject", "target"), CASES)
def test_subject_and_target_are_found(
    kind: str, prompt: str, subject: str, target: str, context: str
) -> None:
    tokenizer = TOKENIZERS[kind]
    (row,) = encode(tokenizer, [Sentence(prompt, subject, target, context)])
    assert subject in subject_text(tokenizer, row)
    # The narrowest span: without its last or its first token the subject is not whole.
    first, last = row.subject_first, row.subject_last
    assert subject not in tokenizer.decode(row.ids[first:last])
    if tokenizer.decode(row.ids[first]):  # a "▁" at the start of a text counts to its first word
        assert subject not in tokenizer.decode(row.ids[first + 1 : last + 1])
    assert target_text(tokenizer, row).strip() == target
    assert row.n_target == len(row.ids) - row.target_start > 0
    whole = tokenizer.decode(row.ids, skip_special_tokens=True)
    assert prompt.replace("{}", subject) in whole


def test_the_last_subject_token_is_not_found_by_counting_a_prefix() -> None:
    """ " Towers" may be one token: it is the subject's last one, though it holds more."""
    tokenizer = TOKENIZERS["plain"]
    (row,) = encode(tokenizer, [Sentence("the {}is is", "To", "x")])
    merged = tokenizer.convert_ids_to_tokens(row.ids[row.subject_last])
    prefix = tokenizer("the To")["input_ids"]
    assert subject_text(tokenizer, row).strip().startswith("To")
    assert row.ids[: len(prefix)] == tuple(prefix) or merged not in prefix


def test_a_subject_that_merges_with_what_follows_ends_in_the_merged_token() -> None:
    tokenizer = TOKENIZERS["plain"]
    assert "Ġcity" in tokenizer.get_vocab()
    (row,) = encode(tokenizer, [Sentence("the {}y of", "cit", "Rome")])
    assert tokenizer.convert_ids_to_tokens(row.ids[row.subject_last]) == "Ġcity"
    assert row.subject_first == row.subject_last


def test_a_start_token_moves_everything_by_one() -> None:
    sentence = Sentence("{} is in the city of", "The Eiffel Tower", "Rome")
    (plain,) = encode(TOKENIZERS["plain"], [sentence])
    (started,) = encode(TOKENIZERS["with a start token"], [sentence])
    assert started.ids == (1, *plain.ids)
    assert started.subject_first == plain.subject_first + 1
    assert started.subject_last == plain.subject_last + 1
    assert started.target_start == plain.target_start + 1


def test_tokens_added_behind_the_text_are_left_out() -> None:
    from tokenizers import processors

    tokenizer = tiny.byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    assert tokenizer("a b")["input_ids"][-1] == 0
    (row,) = encode(tokenizer, [Sentence("{} is in", "The Tower", "Rome")])
    assert target_text(tokenizer, row).strip() == "Rome"


def test_a_tokenizer_that_truncates_and_pads_is_asked_for_neither() -> None:
    tokenizer = tiny.byte_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=64)
    sentence = Sentence("{} is in the city of", "The Eiffel Tower", "Rome")
    assert encode(tokenizer, [sentence]) == encode(TOKENIZERS["plain"], [sentence])


def test_text_without_subject_and_target() -> None:
    (row,) = encode(TOKENIZERS["plain"], [Sentence("The Eiffel Tower")])
    assert (row.subject_first, row.subject_last, row.n_target) == (-1, -1, 0)
    assert encode(TOKENIZERS["plain"], []) == []


def test_braces_in_plain_text_are_text() -> None:
    (row,) = encode(TOKENIZERS["plain"], [Sentence("a {} b")])
    assert TOKENIZERS["plain"].decode(row.ids) == "a {} b"


def test_many_sentences_are_encoded_as_one_by_one() -> None:
    sentences = [Sentence(*case) for case in CASES]
    for tokenizer in TOKENIZERS.values():
        together = encode(tokenizer, sentences)
        assert together == [encode(tokenizer, [sentence])[0] for sentence in sentences]


@pytest.mark.parametrize(
    ("sentence", "complaint"),
    [
        (Sentence("{} is in", "The Louvre", "Rome"), "can't encode the subject 'The Louvre'"),
        (Sentence("{} is in", "The Eiffel Tower", "Oslo"), "can't encode the object 'Oslo'"),
    ],
)
def test_words_that_the_tokenizer_does_not_know_are_refused(
    word_tokenizer: Tokenizer, sentence: Sentence, complaint: str
) -> None:
    with pytest.raises(FactError, match=f"{complaint}.*words that are in its vocabulary"):
        encode(word_tokenizer, [sentence])
    (row,) = encode(word_tokenizer, [Sentence("{} is in", "The Eiffel Tower", "Rome")])
    assert (row.subject_last, row.n_target) == (2, 1)


def test_an_end_token_that_is_also_the_unknown_one_is_no_complaint() -> None:
    tokenizer = tiny.byte_tokenizer(unk_token="<|endoftext|>")
    assert encode(tokenizer, [Sentence("{} is in", "Ωmega ☃", "Rome")])


@pytest.mark.parametrize(
    ("sentence", "complaint"),
    [
        (Sentence("{} is in", "\u200b", "Rome"), "leaves nothing of the subject"),
        (Sentence("{} is in", "Rome", "\u200b"), "leaves nothing of the object"),
        (Sentence("\u200b"), "leaves nothing of the text"),
    ],
)
def test_text_that_the_tokenizer_drops_is_refused(sentence: Sentence, complaint: str) -> None:
    from tokenizers import normalizers

    tokenizer = tiny.byte_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    with pytest.raises(FactError, match=complaint):
        encode(tokenizer, [sentence])


def test_a_target_without_anything_before_it_is_refused() -> None:
    with pytest.raises(FactError, match="nothing stands before the object"):
        encode(TOKENIZERS["plain"], [Sentence("", target="Rome")])
    (row,) = encode(TOKENIZERS["with a start token"], [Sentence("", target="Rome")])
    assert row.target_start == 1


def test_a_tokenizer_without_offsets_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(UnsupportedModel, match="Slow gives no character offsets.*fast version"):
        encode(Slow(), [Sentence("a")])


characters = st.sampled_from(
    "aeTo wer ß é e\u0301 中 東 ب م א 🗼 👩‍🚀 {x} ' - 7 .".replace(" ", "")
)
phrase = st.text(characters, min_size=1, max_size=12).map(str.strip).filter(bool)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    before=st.one_of(st.just(""), phrase),
    subject=phrase,
    after=st.one_of(st.just(""), phrase),
    glue=st.sampled_from(["", " "]),
    target=phrase,
    kind=st.sampled_from(["plain", "with a start token"]),
)
def test_decoding_gives_back_what_was_encoded(
    before: str, subject: str, after: str, glue: str, target: str, kind: str
) -> None:
    if "{}" in before + glue or "{}" in glue + after:
        return
    tokenizer = TOKENIZERS[kind]
    prompt = f"{before}{glue}{{}}{glue}{after}"
    if prompt.count("{}") != 1:
        return
    (row,) = encode(tokenizer, [Sentence(prompt, subject, target)])
    assert subject in subject_text(tokenizer, row)
    assert target_text(tokenizer, row).strip() == target
    assert row.subject_last < row.target_start


def test_padding_at_either_side() -> None:
    rows = [(1, 2, 3), (4,), ()]
    right, left = (pad(rows, 9, "cpu", left=side) for side in (False, True))
    assert right.ids.tolist() == [[1, 2, 3], [4, 9, 9], [9, 9, 9]]
    assert right.mask.tolist() == [[1, 1, 1], [1, 0, 0], [0, 0, 0]]
    assert left.ids.tolist() == [[1, 2, 3], [9, 9, 4], [9, 9, 9]]
    assert left.mask.tolist() == [[1, 1, 1], [0, 0, 1], [0, 0, 0]]
    assert torch.equal(pad([], 0, "cpu").ids, torch.zeros(0, 0, dtype=torch.long))


def test_a_space_that_is_a_token_of_its_own_belongs_to_the_object() -> None:
    """Its offsets are empty where a tokenizer trims them (GPT-2's does)."""
    tokenizer = tiny.byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    alone = [word for word in ("qzx", "Zürich", "xkcd", "ß") if _starts_with_a_space(word)]
    assert alone, "the tokenizer should split the space off some word"
    for word in alone:
        (row,) = encode(tokenizer, [Sentence("the label:", "", word)])
        assert tokenizer.decode(row.ids[: row.target_start]) == "the label:"
        assert target_text(tokenizer, row) == f" {word}"


def _starts_with_a_space(word: str) -> bool:
    tokenizer = TOKENIZERS["plain"]
    ids = tokenizer(f"a {word}", add_special_tokens=False)["input_ids"]
    return " " in [tokenizer.decode([i]) for i in ids]
