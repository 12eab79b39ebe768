"""Squared gradients against one backward pass for each example."""

from __future__ import annotations

import pytest
import tiny
import torch
from adapters import shake
from lessons import answered, session
from oracles import example_by_example

import editcl
from editcl.learning.batches import encode_examples
from editcl.learning.fisher import squared_gradients


def prepared(architecture: str, kind: str):
    own = session(editcl.wrap(tiny.build(architecture), tiny.byte_tokenizer()), kind=kind)
    own.new_adapter("x")
    shake(own.adapters, "x")
    own.active = ("x",)
    own.train_adapter("x")
    own.mark_training()
    return own, encode_examples(own.model, answered("t").train)


@pytest.mark.parametrize("architecture, kind", [
    ("gpt2", "lora"), ("llama", "lora"), ("gpt2", "dora"), ("llama", "ia3"), ("gpt2", "prefix"),
])  # fmt: skip
def test_squares_are_those_of_each_example(architecture, kind, monkeypatch) -> None:
    monkeypatch.setattr("editcl.learning.fisher.ROWS", 5)
    monkeypatch.setattr("editcl.learning.fisher.TOKENS_PER_BATCH", 200)
    own, rows = prepared(architecture, kind)
    with own.adapters.using(("x",)):
        found = squared_gradients(own, rows, own.training)
        wanted = example_by_example(own, rows, own.training)
    for name, squares in wanted.items():
        assert squares.max() > 0, name
        assert (found[name] - squares).abs().max() <= 1e-5 * squares.max(), name


def test_the_square_of_the_mean_gradient_is_something_else() -> None:
    own, rows = prepared("gpt2", "lora")
    with own.adapters.using(("x",)):
        found = squared_gradients(own, rows, own.training)
        loss = own.forward(rows).token_losses.sum()
        gradients = torch.autograd.grad(loss, list(own.training.values()))
    wrong = sum(float((g**2).sum()) for g in gradients) / len(rows)
    assert abs(wrong / sum(float(f.sum()) for f in found.values()) - 1) > 0.2


def test_nothing_is_left_on_the_model() -> None:
    own, rows = prepared("gpt2", "lora")
    with own.adapters.using(("x",)):
        squared_gradients(own, rows, own.training)
        assert not any(m._forward_hooks for m in own.adapters.view.hf.modules())
    assert all(parameter.grad is None for parameter in own.training.values())
