"""Pools of plain texts."""

from __future__ import annotations

import pytest
import torch

from editcl.errors import EditclError
from editcl.evaluation.damage import general_texts
from editcl.learning.texts import Texts, plain_texts


def test_plain_texts_are_none_of_those_that_damage_is_measured_on() -> None:
    assert len(plain_texts()) > 50
    assert not set(plain_texts()) & set(general_texts())


def test_texts_are_learnt_whole_and_forgotten(model) -> None:
    texts = ("The city of Paris", "Beats Music is owned by Apple " * 30)
    pool = Texts(texts)
    pool.encode(model)
    assert all(row.start == 1 and len(row.ids) <= model.max_tokens for row in pool.rows)
    assert len(pool.rows) > 2, "the long text comes in pieces"
    drawn = pool.draw(100, torch.Generator().manual_seed(0))
    assert set(drawn) == set(pool.rows) and len(drawn) == 100
    assert pool.n_bytes == sum(map(len, texts))
    pool.forget()
    assert pool.rows == [] and pool.digest == Texts(texts).digest != Texts(texts[:1]).digest


@pytest.mark.parametrize("texts", [(), "one text"])
def test_no_texts_are_refused(texts) -> None:
    with pytest.raises(EditclError, match="no list of texts"):
        Texts(texts)
