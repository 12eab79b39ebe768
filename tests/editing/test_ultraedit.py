"""UltraEdit: one pass over a batch, against the same thing one token at a time."""

from __future__ import annotations

from dataclasses import replace

import batches
import pytest
import tiny
import torch
from batches import CONTROL, FACTS, leads, plan_for, state
from torch import Tensor

import editcl
from editcl.editing import ultraedit as module
from editcl.editing.plan import Plan
from editcl.editing.trial import tried
from editcl.editing.ultraedit import (
    Features,
    UltraEditSettings,
    features,
    normalised,
    shift,
    ultraedit,
    ultraedit_with,
)
from editcl.editing.values import ValueSettings
from editcl.encoding import Sentence
from editcl.errors import NonFiniteError
from editcl.facts import Fact
from editcl.log import EditLog
from editcl.model import EditableModel

LONG = Fact("東京タワー", "{}は", "パリにあります", "東京にあります")
LARGE = UltraEditSettings(eta=6.0)  # a tiny random model needs a larger step than a trained one


def plan(layers: tuple[int, ...] = (0, 1), **changes) -> Plan:
    """There is nothing to measure beforehand."""
    return replace(Plan(layers, ValueSettings(), {}, ()), **changes)


def naive_features(
    model: EditableModel, fact: Fact, layer: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """h, g, |residual| at the tokens that predict the object, and their loss; no batch, no mask."""
    (row,) = model.encode([Sentence(fact.prompt, fact.subject, fact.new_object)])
    kept: dict[str, Tensor] = {}

    def keep(value: Tensor, hook) -> Tensor:
        # A hook may see a view that the gradient does not pass; what it returns is on the way.
        kept[hook.name] = value.clone()
        kept[hook.name].retain_grad()
        return kept[hook.name]

    names = ("mlp.hook_post", "mlp.out.hook_out", "hook_resid_post")
    with model.hooks({f"blocks.{layer}.{name}": keep for name in names}):
        log_probs = model.forward(model.pad([row.ids])).log_softmax(-1)[0]
        taken = [log_probs[i - 1, row.ids[i]] for i in range(row.target_start, len(row.ids))]
        loss = -torch.stack(taken).sum()
        loss.backward()
    at = slice(row.target_start - 1, len(row.ids) - 1)
    h, out, residual = (kept[f"blocks.{layer}.{name}"] for name in names)
    assert out.grad is not None
    model.hf.zero_grad()
    return h[0, at].detach(), out.grad[0, at], residual[0, at].detach().norm(dim=-1), loss.detach()


def naive_normalised(rows: list[list[float]], prior: float) -> list[list[float]]:
    """Feature by feature, with the prior's tokens at plus and minus the root of the power."""
    power = sum(x * x for row in rows for x in row) / len(rows) / len(rows[0])
    columns = []
    for column in zip(*rows, strict=True):
        count = len(column) + prior
        mean = sum(column) / count
        variance = sum((x - mean) ** 2 for x in column) + prior * (power + mean**2)
        columns.append([(x - mean) / (variance / count) ** 0.5 for x in column])
    return [list(row) for row in zip(*columns, strict=True)]


# -- features --------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [0, 2])
def test_features_are_those_of_a_plain_backward_pass_of_each_fact(
    any_model: EditableModel, layer: int, monkeypatch
) -> None:
    monkeypatch.setattr(module, "TOKENS_PER_BATCH", 24)
    facts = (*FACTS, LONG)
    found, loss = features(any_model, facts, [layer])
    expected = [naive_features(any_model, fact, layer) for fact in facts]
    for name, place in (("h", 0), ("g", 1), ("residual", 2)):
        wanted = torch.cat([e[place] for e in expected]).double()
        got = getattr(found[layer], name)
        assert float((got - wanted).norm() / wanted.norm()) < 1e-4, name
    lengths = [len(e[0]) for e in expected]
    assert lengths[-1] > 2, "an object of several tokens"
    assert found[layer].fact.tolist() == [i for i, n in enumerate(lengths) for _ in range(n)]
    assert loss == pytest.approx(float(sum(e[3] for e in expected)) / sum(lengths), rel=1e-4)


def test_one_pass_serves_all_layers(model: EditableModel) -> None:
    count = []
    handle = model.hf.register_forward_pre_hook(lambda *_: count.append(1))
    together, _ = features(model, FACTS, [0, 1, 2])
    handle.remove()
    assert len(count) == 1
    for layer in (0, 1, 2):
        alone, _ = features(model, FACTS, [layer])
        assert torch.allclose(together[layer].g, alone[layer].g, atol=1e-7)
        assert torch.equal(together[layer].h, alone[layer].h)


def test_the_model_and_its_gradient_flags_are_as_before(model: EditableModel) -> None:
    before = state(model)
    next(model.hf.parameters()).requires_grad_(False)
    flags = [p.requires_grad for p in model.hf.parameters()]
    ultraedit(model, FACTS, plan())
    assert state(model) == before
    assert [p.requires_grad for p in model.hf.parameters()] == flags
    assert all(p.grad is None for p in model.hf.parameters())


def test_it_runs_where_gradients_are_off(model: EditableModel) -> None:
    expected = ultraedit(model, FACTS, plan())
    with torch.no_grad():
        found = ultraedit(model, FACTS, plan())
    assert torch.equal(found.updates[0].right, expected.updates[0].right)


def test_a_model_with_nan_is_refused(model: EditableModel) -> None:
    with torch.no_grad():
        model.hf.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="not finite"):
        ultraedit(model, FACTS, plan())


# -- the closed form -------------------------------------------------------------------------------


@pytest.fixture
def seen() -> Features:
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return Features(
        randn(7, 12) + 1, 1e-3 * randn(7, 5), randn(7).abs(), torch.tensor([0, 0, 1, 2, 2, 2, 3])
    )


@pytest.mark.parametrize("prior", [0.5, 1.0, 20.0])
def test_normalising_is_by_feature_and_free_of_scale(seen: Features, prior: float) -> None:
    found = normalised(seen.h, seen.h, prior)
    expected = torch.tensor(naive_normalised(seen.h.tolist(), prior), dtype=torch.float64)
    assert torch.allclose(found, expected)
    assert torch.allclose(normalised(1e6 * seen.h, 1e6 * seen.h, prior), found)


def test_without_a_prior_features_have_mean_zero_and_deviation_one(seen: Features) -> None:
    found = normalised(seen.h, seen.h, 0.0)
    assert torch.allclose(found.mean(0), torch.zeros(12).double(), atol=1e-12)
    assert torch.allclose(found.var(0, correction=0), torch.ones(12).double())


def test_features_that_are_all_zero_stay_zero() -> None:
    zeros = torch.zeros(3, 4, dtype=torch.float64)
    assert torch.equal(normalised(zeros, zeros, 1.0), zeros)


def test_delta_is_the_ridge_regression_of_the_values_on_the_keys(seen: Features) -> None:
    settings, preservation = UltraEditSettings(eta=0.7), 0.3
    left, right = shift(seen, None, settings, preservation)
    h_hat = torch.tensor(naive_normalised(seen.h.tolist(), settings.prior), dtype=torch.float64)
    g_hat = torch.tensor(naive_normalised(seen.g.tolist(), settings.prior), dtype=torch.float64)
    values = torch.stack(
        [
            -0.7 * seen.residual.mean() / 5**0.5 * (h_hat[i] @ h_hat[i]) / 12 * g_hat[i]
            for i in range(7)
        ]
    )
    assert torch.allclose(right.T, values)
    ridge = preservation * torch.stack([h @ h for h in seen.h]).mean()
    system = seen.h.T @ seen.h + ridge * torch.eye(12).double()
    delta = left @ right.T
    assert torch.allclose(delta, torch.linalg.inv(system) @ seen.h.T @ values, atol=1e-10)

    def objective(change: Tensor) -> float:
        missed = (seen.h @ change - values).square().sum()
        return float(missed + ridge * change.square().sum())

    generator = torch.Generator().manual_seed(1)
    for size in (1e-4, 1e-2, 1.0):
        step = size * torch.randn(delta.shape, generator=generator, dtype=torch.float64)
        assert objective(delta + step) > objective(delta)


def test_one_token_gets_its_value_up_to_one_over_one_plus_preservation(seen: Features) -> None:
    one = Features(*(getattr(seen, n)[:1] for n in ("h", "g", "residual", "fact")))
    left, right = shift(one, None, UltraEditSettings(), 0.25)
    assert float(right.norm()) > 0
    assert torch.allclose(one.h @ left @ right.T, right.T / 1.25)
    assert float((one.g * right.T).sum()) < 0, "down the gradient"


def test_earlier_tokens_count_in_the_statistics_alone(seen: Features) -> None:
    generator = torch.Generator().manual_seed(2)
    h = torch.randn(9, 12, generator=generator).double()
    g = torch.randn(9, 5, generator=generator).double()
    before = Features(h, g, torch.ones(9).double(), torch.zeros(9, dtype=torch.long))
    settings = UltraEditSettings(eta=1.0)
    plain, shifted = shift(seen, None, settings, 0.1), shift(seen, before, settings, 0.1)
    assert torch.equal(plain[0], shifted[0]), "H is this batch"
    both = torch.cat([before.g, seen.g])
    g_hat = torch.tensor(naive_normalised(both.tolist(), 1.0), dtype=torch.float64)[9:]
    both = torch.cat([before.h, seen.h])
    h_hat = torch.tensor(naive_normalised(both.tolist(), 1.0), dtype=torch.float64)[9:]
    unit = seen.residual.mean() / 5**0.5
    expected = -unit * h_hat.square().mean(1, keepdim=True) * g_hat
    assert torch.allclose(shifted[1].T, expected)


# -- on a model ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [(1,), (1, 2)])
def test_the_new_objects_lead(model: EditableModel, layers: tuple[int, ...]) -> None:
    batches.assert_it_edits(model, layers, ultraedit_with(LARGE))


def test_a_single_fact_is_edited(model: EditableModel) -> None:
    facts = batches.leaning(model, CONTROL[:1])
    solution = ultraedit_with(LARGE)(model, facts, plan((1,)))
    with tried(model, solution.updates):
        assert leads(model, facts) == [True]


def test_columns_belong_to_tokens_and_tokens_to_facts(model: EditableModel) -> None:
    facts = (*FACTS, LONG)
    solution = ultraedit(model, facts, plan())
    rows = model.encode([Sentence(f.prompt, f.subject, f.new_object) for f in facts])
    owner = tuple(i for i, row in enumerate(rows) for _ in range(row.n_target))
    assert [u.owner for u in solution.updates] == [owner, owner]
    assert solution.details["tokens"] == len(owner) > len(facts)
    assert solution.values is None


def test_layers_share_the_step(model: EditableModel) -> None:
    (alone,) = ultraedit(model, FACTS, plan((1,))).updates
    _, shared = ultraedit(model, FACTS, plan((0, 1))).updates
    assert torch.allclose(shared.right, alone.right / 2)
    assert torch.allclose(shared.left, alone.left)


def test_one_fact_of_a_batch_can_be_taken_out(tokenizer) -> None:
    model, twin = (editcl.wrap(tiny.build("gpt2"), tokenizer) for _ in range(2))
    batches.assert_one_fact_comes_out(model, twin, (*FACTS, LONG), (0, 1), ultraedit, taken=3)


def test_earlier_facts_are_seen_on_the_base_weights(tokenizer) -> None:
    edited, fresh = (editcl.wrap(tiny.build("gpt2"), tokenizer) for _ in range(2))
    first = ultraedit_with(LARGE)(edited, FACTS, plan())
    EditLog(edited).append(first.updates, FACTS, method="ultraedit", layers=[0, 1])
    now = state(edited)
    second = ultraedit(edited, CONTROL, plan(earlier=FACTS))
    assert state(edited) == now
    assert second.details["earlier_facts"] == len(FACTS)
    for layer, update in zip((0, 1), second.updates, strict=True):
        ours = features(edited, CONTROL, [layer])[0][layer]
        theirs = features(fresh, FACTS, [layer])[0][layer]
        _, right = shift(ours, theirs, UltraEditSettings(), plan().preservation)
        assert torch.allclose(update.right, right.float() / 2, atol=1e-6)


def test_it_works_on_every_architecture(any_model: EditableModel) -> None:
    before = state(any_model)
    settings = UltraEditSettings(eta=0.02)  # small: a step down the gradient, to first order
    solution = ultraedit_with(settings)(any_model, FACTS, plan((1,), preservation=0.01))
    assert state(any_model) == before
    sentences = [Sentence(f.prompt, f.subject, f.new_object) for f in FACTS]
    start = any_model.score(sentences).log_prob.mean()
    with tried(any_model, solution.updates):
        assert float(any_model.score(sentences).log_prob.mean()) > float(start)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_models_get_float32_factors(tokenizer, dtype) -> None:
    model = editcl.wrap(tiny.build("llama").to(dtype), tokenizer)
    (update,) = ultraedit(model, FACTS, plan((1,))).updates
    assert update.left.dtype == update.right.dtype == torch.float32
    assert update.norm() > 0


def test_the_plan_of_the_other_batch_editors_will_do(model: EditableModel) -> None:
    (ours,) = ultraedit(model, FACTS, plan_for(model, FACTS, (1,))).updates
    (plain,) = ultraedit(model, FACTS, plan((1,), preservation=0.01)).updates
    assert torch.equal(ours.left, plain.left)
