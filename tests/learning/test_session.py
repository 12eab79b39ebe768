"""Sessions: forward passes that unembed targets alone, and what strategies choose."""

from __future__ import annotations

import pytest
import tiny
import torch
from lessons import QUICK, answered, labelled, session

import editcl
from editcl.errors import EditclError
from editcl.learning.batches import encode_examples
from editcl.learning.session import Route, kept_logits
from editcl.learning.strategies import PerTask
from editcl.learning.train import train


def rows_of(model, n=5):
    return encode_examples(model, answered("a").train[:n], task="a")


def test_losses_are_those_of_a_naive_masked_cross_entropy_on_every_architecture(any_model) -> None:
    own = session(any_model)
    rows = rows_of(any_model)
    output = own.forward(rows)
    at = 0
    for i, row in enumerate(rows):
        with torch.no_grad():
            logits = any_model.forward(any_model.pad([row.ids]))[0].float()
        for place in range(row.start, len(row.ids)):
            wanted = -logits[place - 1].log_softmax(-1)[row.ids[place]]
            torch.testing.assert_close(output.token_losses[at], wanted, rtol=1e-4, atol=1e-4)
            at += 1
        assert output.row_losses()[i] == pytest.approx(
            float(output.token_losses[output.batch.row == i].mean()), abs=1e-5
        )
    assert at == len(output.token_losses) == sum(row.n_targets for row in rows)
    assert output.loss == output.token_losses.mean()


def test_no_prompt_token_counts_for_the_loss(model) -> None:
    own = session(model)
    own.new_adapter("a")
    own.train_adapter("a")
    (row,) = rows_of(model, 1)
    with own.adapters.using(("a",)):
        output = own.forward([row])
        output.loss.backward()
        gradient = {n: p.grad.clone() for n, p in own.training.items()}
        for p in own.training.values():
            p.grad = None
        ids = torch.tensor([row.ids])
        labels = torch.full_like(ids, -100)
        labels[0, row.start :] = ids[0, row.start :]
        own.adapters.view.hf(input_ids=ids, labels=labels).loss.backward()
    for name, parameter in own.training.items():
        torch.testing.assert_close(parameter.grad, gradient[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3", "prefix", "prompt"])
def test_a_row_goes_through_its_own_adapter_whatever_the_kind(model, kind) -> None:
    own = session(model, kind=kind)
    for name in ("a", "b"):
        own.new_adapter(name)
        with torch.no_grad():
            for i, p in enumerate(own.adapters.trainable(name).values()):
                noise = torch.Generator().manual_seed(ord(name) + i)
                p.add_(0.1 * torch.randn(p.shape, generator=noise))
    rows = rows_of(model, 4)
    names = ("b", "__base__", "a", "b")
    output = own.forward(rows, route=Route(rows=names))
    for i, (row, name) in enumerate(zip(rows, names, strict=True)):
        alone = own.forward([row], route=Route(() if name == "__base__" else (name,)))
        mine = output.batch.row == i
        torch.testing.assert_close(output.logits[mine], alone.logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            output.hidden[i, : len(row.ids)], alone.hidden[0], rtol=1e-4, atol=1e-4
        )
    different = own.forward(rows).logits
    assert not torch.allclose(output.logits, different, atol=1e-3)
    with pytest.raises(EditclError, match="2 adapters for 4 rows"):
        kept_logits(own.adapters, own.batch(rows), ("a", "b"))


def test_pooled_states_are_means_of_real_positions_only(model) -> None:
    own = session(model)
    rows = rows_of(model, 3)
    output = own.forward(rows)
    for i, row in enumerate(rows):
        alone = own.forward([row]).hidden[0]
        torch.testing.assert_close(output.pooled()[i], alone.mean(0), rtol=1e-4, atol=1e-5)
        prompt = alone[: row.start].mean(0)
        torch.testing.assert_close(output.pooled(prompt_only=True)[i], prompt, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        own.features(rows), output.pooled(prompt_only=True).detach(), rtol=1e-4, atol=1e-5
    )


def test_another_route_leaves_what_is_active_and_what_trains(model) -> None:
    own = session(model)
    for name in ("old", "new"):
        own.new_adapter(name)
    own.train_adapter("new")
    rows = rows_of(model, 2)
    with own.adapters.using(("old", "new")):
        own.mark_training()
        flags = {n: p.requires_grad for n, p in own.adapters.trainable("old").items()}
        assert not any(flags.values())
        first = own.forward(rows)
        with torch.no_grad():
            own.forward(rows, route=Route())
        assert own.adapters.active == ("old", "new")
        assert all(p.requires_grad for p in own.training.values())
        assert not any(p.requires_grad for p in own.adapters.trainable("old").values())
        first.loss.backward()
        assert torch.equal(own.forward(rows).logits, first.logits)
    assert all(p.grad is not None for p in own.training.values())
    assert all(p.grad is None for p in model.hf.parameters())


def test_an_edit_shows_through_a_trained_adapter(model) -> None:
    own = session(model)
    train(own, labelled("one"), PerTask(), QUICK, show=False)
    rows = rows_of(model, 2)
    before = own.forward(rows, route=Route(("one",))).logits
    editcl.edit(model, "Rome", "Music", prompt="{} is in", method="ft-l", layer=1)
    assert not torch.equal(own.forward(rows, route=Route(("one",))).logits, before)
    model.log.rollback("all")
    assert torch.equal(own.forward(rows, route=Route(("one",))).logits, before)


def test_training_leaves_the_model_as_it_was() -> None:
    model = editcl.wrap(tiny.build("llama"), tiny.byte_tokenizer())
    flags = [p.requires_grad for p in model.hf.parameters()]
    before = model.fingerprint()
    own = session(model)
    train(own, labelled("one"), PerTask(), QUICK, show=False)
    assert model.fingerprint() == before
    assert [p.requires_grad for p in model.hf.parameters()] == flags
