"""C = E[k k^T]: one pass, every token once, base weights, a complete cache key."""

from __future__ import annotations

import pytest
import torch

from editcl.editing import covariance as module
from editcl.editing.covariance import Covariance, covariances, measure
from editcl.errors import EditclError
from editcl.facts import Fact
from editcl.update import WeightUpdate

TEXTS = ["The Eiffel Tower is in Paris.", "Rome", "Beats Music is owned by Apple; so they say."]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("EDITCL_CACHE", str(tmp_path / "cache"))


def naive(model, layer: int, rows) -> torch.Tensor:
    keys = []
    for row in rows:
        name = f"blocks.{layer}.mlp.hook_post"
        _, cache = model.run_with_cache(model.pad([row]), [name])
        keys += list(cache[name][0].double())
    return sum(torch.outer(k, k) for k in keys) / len(keys)


def test_one_pass_over_padded_rows_equals_the_mean_over_single_tokens(any_model) -> None:
    rows = [list(r.ids) for r in any_model.encode([module.Sentence(t) for t in TEXTS])]
    found = measure(any_model, [0, 2], rows, tokens_per_batch=24)
    for layer in (0, 2):
        expected = naive(any_model, layer, rows)
        assert torch.allclose(found[layer].moment.double(), expected, rtol=1e-4, atol=1e-5)
        assert found[layer].tokens == sum(map(len, rows))


def test_only_the_asked_number_of_tokens_counts(model) -> None:
    rows = [list(r.ids) for r in model.encode([module.Sentence(t) for t in TEXTS])]
    found = measure(model, [1], rows, tokens=5)[1]
    assert found.tokens == 5
    assert torch.allclose(found.moment.double(), naive(model, 1, [rows[0][:5]]), atol=1e-5)


def test_solve_inverts_the_moment(model) -> None:
    found = covariances(model, [1], tokens=2000)[1]
    keys = torch.randn(found.moment.shape[0], 3, dtype=torch.float64)
    assert torch.allclose(found.moment.double() @ found.solve(keys), keys, rtol=1e-3, atol=1e-3)


def test_too_little_text_is_refused_or_solved_but_never_wrong(model) -> None:
    matrix = Covariance(0, torch.full((4, 4), float("nan")), 1, "x")
    with pytest.raises(EditclError, match="singular"):
        matrix.solve(torch.ones(4, 1))


def test_the_cache_is_found_again_and_knows_what_it_depends_on(model, monkeypatch) -> None:
    first = covariances(model, [1], texts=TEXTS)[1]
    model.memo.clear()
    monkeypatch.setattr(module, "measure", None)  # measuring again would fail
    assert torch.equal(covariances(model, [1], texts=TEXTS)[1].moment, first.moment)
    with torch.no_grad():  # weights above the layer don't matter, weights below do
        model.hf.transformer.h[2].mlp.c_fc.weight.add_(1.0)
    model.memo.clear()
    assert torch.equal(covariances(model, [1], texts=TEXTS)[1].moment, first.moment)
    with torch.no_grad():
        model.hf.transformer.h[1].mlp.c_fc.weight.add_(1.0)
    model.memo.clear()
    with pytest.raises(TypeError):
        covariances(model, [1], texts=TEXTS)
    with pytest.raises(TypeError):
        covariances(model, [1], texts=TEXTS[:2])


def test_a_damaged_cache_file_is_measured_again(model, tmp_path) -> None:
    first = covariances(model, [1], texts=TEXTS)[1]
    (file,) = (tmp_path / "cache").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:100])
    model.memo.clear()
    assert torch.equal(covariances(model, [1], texts=TEXTS)[1].moment, first.moment)


def test_edits_in_the_log_do_not_change_it(model) -> None:
    before = covariances(model, [2], tokens=200, cache=False)[2].moment
    name = model.down_projection(1).name
    update = WeightUpdate(name, torch.randn(model.d_mlp, 1), torch.randn(model.d_model, 1))
    model.log.append([update], [Fact("a", "{} is", "b")], method="test", layers=[1])
    edited = model.down_projection(1).parameter.detach().clone()
    model.memo.clear()
    assert torch.equal(covariances(model, [2], tokens=200, cache=False)[2].moment, before)
    assert torch.equal(model.down_projection(1).parameter, edited), "and the edit is back"


def test_an_edited_model_finds_what_was_measured_before_the_edit(model, monkeypatch) -> None:
    before = covariances(model, [2], texts=TEXTS)[2].moment
    update = WeightUpdate(
        model.down_projection(0).name, torch.randn(model.d_mlp, 1), torch.randn(model.d_model, 1)
    )
    model.log.append([update], [Fact("a", "{} is", "b")], method="test", layers=[0])
    model.memo.clear()
    monkeypatch.setattr(module, "measure", None)  # measuring again would fail
    assert torch.equal(covariances(model, [2], texts=TEXTS)[2].moment, before)


def test_an_empty_corpus_is_refused(model) -> None:
    with pytest.raises(EditclError, match="empty"):
        covariances(model, [0], texts=["  "])


def test_the_spectrum_is_that_of_the_decomposition() -> None:
    rows = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    one, other = (Covariance(0, rows.T @ rows / 40, 40, "random") for _ in range(2))
    values = one.spectrum()
    assert torch.allclose(values, other.eigen()[0]) and torch.equal(
        other.spectrum(), other.eigen()[0]
    )
    assert float(values.sum()) == pytest.approx(float(one.moment.trace()), rel=1e-6)
