"""Damage: nothing where nothing changed, the naive sums where something did, within a bound."""

from __future__ import annotations

import copy

import pytest
import torch

import editcl
from editcl.errors import EditclError
from editcl.evaluation import damage as module
from editcl.evaluation.damage import damage, divergence, general_texts, predictions
from editcl.update import WeightUpdate

TEXTS = ("The Eiffel Tower is located in Paris.", "Beats Music is owned by Apple", "x", "München")


def edit(model, seed: int = 0, size: float = 0.5) -> None:
    """A logged change of one matrix by random factors."""
    generator = torch.Generator().manual_seed(seed)
    left = size * torch.randn(model.d_mlp, 1, generator=generator)
    right = torch.randn(model.d_model, 1, generator=generator)
    update = WeightUpdate(model.down_projection(1).name, left, right)
    fact = editcl.Fact("The Eiffel Tower", "{} is in", "Rome", "Paris")
    model.log.append([update], [fact], method="test", layers=[1])


def naive(before, now, model) -> tuple[float, float, float, int]:
    """Sums over tokens of texts run one at a time."""
    sums = [0.0, 0.0, 0.0, 0]
    for text in TEXTS:
        ids = model.tokenizer(text)["input_ids"]
        with torch.no_grad():
            logits = [
                m(torch.tensor([ids])).logits[0].double().log_softmax(-1) for m in (before, now)
            ]
        for i in range(len(ids) - 1):
            p, q = logits[0][i], logits[1][i]
            sums[0] -= float(q[ids[i + 1]])
            sums[1] -= float(p[ids[i + 1]])
            sums[2] += float((p.exp() * (p - q)).sum())
            sums[3] += 1
    n = sums[3]
    return sums[0] / n, sums[1] / n, sums[2] / n, n


def test_an_unedited_model_has_none(model) -> None:
    found = damage(model, TEXTS)
    assert found.kl == 0.0 and found.increase == 0.0
    assert damage(model, before=predictions(model, TEXTS)) == found


@pytest.mark.parametrize("tokens_per_batch, kept", [(2048, 1 << 28), (12, 1 << 28), (12, 1)])
def test_figures_equal_naive_sums(model, monkeypatch, tokens_per_batch: int, kept: int) -> None:
    monkeypatch.setattr(module, "BYTES_KEPT", kept)
    before = copy.deepcopy(model.hf)
    earlier = predictions(model, TEXTS, tokens_per_batch=tokens_per_batch)
    edit(model)
    now, then, kl, count = naive(before, model.hf, model)
    assert kl > 0.01
    weights = [p.clone() for p in model.hf.parameters()]
    for found in (
        damage(model, TEXTS, tokens_per_batch=tokens_per_batch),
        damage(model, before=earlier, tokens_per_batch=tokens_per_batch),
    ):
        assert found.cross_entropy == pytest.approx(now, abs=1e-5)
        assert found.base_cross_entropy == pytest.approx(then, abs=1e-5)
        assert found.kl == pytest.approx(kl, abs=1e-5)
        assert found.n_tokens == count
    assert all(torch.equal(a, b) for a, b in zip(weights, model.hf.parameters(), strict=True))
    model.log.rollback("all")
    assert damage(model, TEXTS).kl == 0.0


def test_a_larger_change_does_more_damage(model) -> None:
    found = []
    for size in (0.1, 1.0, 10.0):
        edit(model, size=size)
        found.append(damage(model, TEXTS).kl)
        model.log.rollback("all")
    assert 0 < found[0] < found[1] < found[2]


def test_breaking_the_embedded_model_raises_its_loss_on_general_text() -> None:
    model = editcl.load()
    assert damage(model).kl == 0.0
    edit(model, size=1.0)
    broken = damage(model)
    assert broken.increase > 1.0 and broken.kl > 1.0
    assert broken.n_tokens > 100
    assert "nats per token" in repr(broken)
    assert broken.to_dict()["increase"] == broken.increase


def test_the_embedded_model_predicts_the_general_texts_well() -> None:
    """Text that it predicts badly would gain from damage."""
    assert len(set(general_texts())) == len(general_texts()) > 50
    assert damage(editcl.load()).cross_entropy < 1.0


def test_divergence_is_not_negative() -> None:
    log_p = torch.randn(50, 7).log_softmax(-1)
    assert torch.equal(divergence(log_p, log_p), torch.zeros(50))
    assert bool((divergence(log_p, log_p.roll(1, 0)) > 0).all())


def test_texts_that_predict_nothing_are_refused(model) -> None:
    with pytest.raises(EditclError, match="two tokens"):
        damage(model, ["x"])
    with pytest.raises(EditclError, match="either texts or predictions"):
        damage(model, TEXTS, before=predictions(model, TEXTS))
