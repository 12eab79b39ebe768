"""Rows, batches and orders against the naive ways."""

from __future__ import annotations

import pytest
import tiny
import torch

import editcl
from editcl.learning.batches import (
    TAIL,
    Encoded,
    collate,
    encode_examples,
    encode_prompts,
    epoch_order,
)
from editcl.learning.tasks import Example, TaskError


def test_a_completion_is_what_the_tokenizer_makes_of_it_and_ends(model) -> None:
    (row,) = encode_examples(model, [Example("The city of", "Paris")], task="t")
    ids = model.tokenizer("The city of Paris")["input_ids"]
    prompt = model.tokenizer("The city of")["input_ids"]
    assert row == Encoded((*ids, model.tokenizer.eos_token_id), len(prompt), "t")


def test_a_label_has_no_end_token(model) -> None:
    (row,) = encode_examples(model, [Example("Mood:", "good")], kind="classification")
    assert model.tokenizer.decode(row.ids[row.start :]) == " good"


def test_a_start_token_stands_in_front_and_is_not_learnt(hf_model, bos_tokenizer) -> None:
    model = editcl.wrap(hf_model, bos_tokenizer)
    (row,) = encode_examples(model, [Example("Mood:", "good")])
    assert row.ids[0] == bos_tokenizer.bos_token_id and row.start > 1
    (text,) = encode_examples(model, [Example("", "good mood")], kind="text")
    assert text.ids[0] == bos_tokenizer.bos_token_id and text.start == 1


def test_a_text_is_learnt_whole_in_pieces(model) -> None:
    text = "The Eiffel Tower is located in the city of Paris " * 20
    rows = encode_examples(model, [Example("", text)], kind="text", max_tokens=32)
    assert all(row.start == 1 and len(row.ids) <= 32 for row in rows)
    ids = [token for row in rows for token in row.ids[1:]]
    assert ids == model.tokenizer(text)["input_ids"][: len(ids)]
    assert len(ids) >= len(model.tokenizer(text)["input_ids"]) - 1
    assert all(row.ids[0] == model.tokenizer.eos_token_id for row in rows)


def test_long_prompts_are_refused_or_lose_their_middle(model) -> None:
    example = Example("Music " * 200 + "ends here:", "Paris")
    with pytest.raises(TaskError, match=r"example 0 has \d+ tokens; the model takes at most 96"):
        encode_examples(model, [example])
    whole = model.tokenizer(example.prompt + " Paris")["input_ids"]
    (row,) = encode_examples(model, [example], kind="classification", max_tokens=40)
    assert len(row.ids) == 40
    n_targets = row.n_targets
    assert row.ids[-TAIL - n_targets :] == tuple(whole[-TAIL - n_targets :])
    assert row.ids[: row.start - TAIL] == tuple(whole[: row.start - TAIL])


@pytest.mark.parametrize("max_tokens", [None, 20])
def test_a_completion_longer_than_the_context_is_refused(model, max_tokens) -> None:
    bad = Example("Say:", "Music " * 200)
    with pytest.raises(TaskError, match="example 1: its completion has") as caught:
        encode_examples(model, [Example("a", "b"), bad, bad], task="songs", max_tokens=max_tokens)
    assert len(caught.value.problems) == 2 and "task 'songs'" in str(caught.value)


def test_prompts_are_rows_without_targets(model) -> None:
    (row,) = encode_prompts(model, ["The city of"])
    assert row == Encoded(tuple(model.tokenizer("The city of")["input_ids"]), 3)
    (cut,) = encode_prompts(model, ["Music " * 200], max_tokens=30)
    assert (len(cut.ids), cut.start) == (30, 30)
    with pytest.raises(TaskError, match="prompt 1 is blank"):
        encode_prompts(model, ["a", " "])
    with pytest.raises(TaskError, match="prompt 0 is of type int"):
        encode_prompts(model, [5])  # type: ignore[list-item]


def test_a_tokenizer_of_another_model_is_refused() -> None:
    model = editcl.wrap(tiny.build("gpt2", vocab_size=64), tiny.byte_tokenizer())
    with pytest.raises(TaskError, match="they don't belong together"):
        encode_examples(model, [Example("The city of", "Paris")])


def test_a_batch_lists_exactly_the_targets() -> None:
    rows = [Encoded((5, 6, 7), 2), Encoded((1, 2, 3, 4, 8), 1), Encoded((9, 9), 1)]
    batch = collate(rows, 0, "cpu")
    wanted = [
        (i, at - 1, row.ids[at])
        for i, row in enumerate(rows)
        for at in range(row.start, len(row.ids))
    ]
    assert (
        list(zip(batch.row.tolist(), batch.position.tolist(), batch.targets.tolist(), strict=True))
        == wanted
    )
    assert batch.ids.tolist() == [[5, 6, 7, 0, 0], [1, 2, 3, 4, 8], [9, 9, 0, 0, 0]]
    assert batch.mask().sum(1).tolist() == [3, 5, 2]
    values = torch.arange(float(len(wanted)))
    naive = [[v for v, (r, _, _) in enumerate(wanted) if r == i] for i in range(3)]
    assert batch.row_means(values).tolist() == [sum(own) / len(own) for own in naive]


@pytest.mark.parametrize("n, size", [(1, 4), (7, 4), (200, 4), (64, 64)])
def test_an_epoch_has_every_row_once_in_batches_of_like_lengths(n, size) -> None:
    lengths = [(i * 37) % 90 + 2 for i in range(n)]
    order = epoch_order(lengths, size, seed=1, epoch=0)
    assert sorted(i for batch in order for i in batch) == list(range(n))
    assert sorted(map(len, order), reverse=True)[:-1] == [size] * (len(order) - 1)
    assert order == epoch_order(lengths, size, seed=1, epoch=0)
    if n == 200:
        assert order != epoch_order(lengths, size, seed=1, epoch=1)
        padded = sum(max(lengths[i] for i in batch) * len(batch) for batch in order)
        assert padded < 1.25 * sum(lengths)


def test_a_completion_that_brings_its_space_gets_no_second_one(model) -> None:
    plain, spaced = (
        encode_examples(model, [Example("The tower is", completion)])
        for completion in ("in Paris", " in Paris")
    )
    assert plain == spaced
