from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from functools import partial

import pytest
import tiny
import torch
from torch import Tensor, nn

from editcl.errors import EditclError
from editcl.hooks import Hook
from editcl.model import EditableModel

ROWS = [[5, 90, 300, 17, 44], [9, 8, 7], [3, 200, 100, 4]]
POINTS = ("hook_resid_pre", "hook_attn_out", "mlp.hook_post", "mlp.out.hook_out", "hook_resid_post")


def all_names(model: EditableModel) -> list[str]:
    layers = [f"blocks.{i}.{point}" for i in range(model.n_layers) for point in POINTS]
    return ["hook_embed", *layers]


def hooks_left(model: EditableModel) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in _modules(model))


def _modules(model: EditableModel) -> Iterable[nn.Module]:
    return model.hf.modules()


def test_value_is_key_times_weight_plus_bias(any_model: EditableModel) -> None:
    names = [name for name in all_names(any_model) if ".mlp." in name]
    _, cache = any_model.run_with_cache(any_model.pad(ROWS), names)
    for layer in range(any_model.n_layers):
        key = cache[f"blocks.{layer}.mlp.hook_post"]
        value = cache[f"blocks.{layer}.mlp.out.hook_out"]
        assert key.shape == (3, 5, any_model.d_mlp)
        assert value.shape == (3, 5, any_model.d_model)
        bias = getattr(any_model.map.down[layer], "bias", None)
        expected = key @ any_model.down_projection(layer).weight
        expected = expected if bias is None else expected + bias
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)
        assert float(value.abs().max()) > 0.01


def test_every_name_is_a_point_of_its_layer(any_model: EditableModel) -> None:
    names = all_names(any_model)
    inputs = any_model.pad(ROWS)
    logits, cache = any_model.run_with_cache(inputs, names)
    assert list(cache) != []
    assert set(cache) == set(names)
    hidden = any_model.hf(**inputs, output_hidden_states=True).hidden_states
    for layer in range(any_model.n_layers):
        assert torch.equal(cache[f"blocks.{layer}.hook_resid_pre"], hidden[layer])
        if layer:
            below = cache[f"blocks.{layer - 1}.hook_resid_post"]
            assert torch.equal(cache[f"blocks.{layer}.hook_resid_pre"], below)
        assert cache[f"blocks.{layer}.hook_attn_out"].shape == hidden[0].shape
    assert torch.equal(logits, any_model.hf(**inputs).logits)


def test_a_block_adds_its_attention_and_its_value_to_the_stream(any_model: EditableModel) -> None:
    """The outputs are those that the residual stream gets: behind the norms of Gemma and OLMo 2."""
    normed: list[Tensor] = []
    norm = any_model.map.find("blocks.1.ln2_post")
    if norm is not None:
        norm.register_forward_hook(lambda _m, _a, output: normed.append(output))
    points = ("hook_resid_pre", "hook_attn_out", "mlp.out.hook_out", "hook_resid_post")
    names = [f"blocks.1.{point}" for point in points]
    _, cache = any_model.run_with_cache(any_model.pad(ROWS), names)
    before, attention, value, after = (cache[name] for name in names)
    added = normed[0] if normed else value
    torch.testing.assert_close(after, before + attention + added, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("point", POINTS)
def test_a_returned_tensor_replaces_the_activation(any_model: EditableModel, point: str) -> None:
    inputs = any_model.pad(ROWS)
    name = f"blocks.1.{point}"
    clean, cache = any_model.run_with_cache(inputs, [name])

    def change(activation: Tensor, _hook: Hook) -> Tensor:
        new = activation.clone()
        new[0, 2, 0] += 3.0  # one axis only: a norm would not see a shift of all
        return new

    with torch.no_grad(), any_model.hooks({name: change}):
        changed = any_model.forward(inputs)
    assert torch.equal(changed[1:], clean[1:])
    assert torch.equal(changed[0, :2], clean[0, :2])
    assert not torch.allclose(changed[0, 2], clean[0, 2], atol=1e-3)
    with torch.no_grad(), any_model.hooks({name: lambda _a, _h: cache[name]}):
        restored = any_model.forward(inputs)
    assert torch.equal(restored, clean)


def test_the_embedding_can_be_replaced(any_model: EditableModel) -> None:
    inputs = any_model.pad(ROWS)
    with torch.no_grad():
        clean = any_model.forward(inputs)
        with any_model.hooks({"hook_embed": lambda a, _h: a + 0.5 * torch.randn_like(a)}):
            noisy = any_model.forward(inputs)
        assert not torch.allclose(noisy, clean, atol=1e-3)
        assert torch.equal(any_model.forward(inputs), clean)


def test_several_hooks_at_one_time(model: EditableModel) -> None:
    seen = []
    names = all_names(model)
    with model.hooks(dict.fromkeys(names, lambda _a, hook: seen.append(hook.name))):
        model.forward(model.pad(ROWS))
    assert sorted(seen) == sorted(names)


def test_hooks_are_gone_afterwards(any_model: EditableModel) -> None:
    inputs = any_model.pad(ROWS)
    before = hooks_left(any_model)
    with any_model.hooks(dict.fromkeys(all_names(any_model), lambda _a, _h: None)):
        assert hooks_left(any_model) > before
    assert hooks_left(any_model) == before

    def fail(_activation: Tensor, _hook: Hook) -> None:
        raise RuntimeError("from the hook")

    for name in all_names(any_model):
        with pytest.raises(RuntimeError, match="from the hook"), any_model.hooks({name: fail}):
            any_model.forward(inputs)
        assert hooks_left(any_model) == before


@pytest.mark.parametrize(
    "name",
    [
        "blocks.3.hook_resid_pre",
        "blocks.-1.hook_resid_pre",
        "blocks.x.hook_resid_pre",
        "blocks.0.hook_resid_mid",
        "blocks.0.",
        "hook_embedding",
        "",
    ],
)
def test_unknown_names_are_refused_and_nothing_stays_hooked(
    model: EditableModel, name: str
) -> None:
    before = hooks_left(model)
    good = {"blocks.0.hook_resid_pre": lambda _a, _h: None}
    with (
        pytest.raises(EditclError, match=r"unknown hook point .* for a model of 3 layers"),
        model.hooks({**good, name: lambda _a, _h: None}),
    ):
        pass
    assert hooks_left(model) == before


# -- skipping parts of the forward pass ---------------------------------------------------------


@pytest.mark.parametrize("layer", range(tiny.N_LAYERS))
def test_starting_at_a_layer_is_exact(any_model: EditableModel, layer: int) -> None:
    inputs = any_model.pad(ROWS)
    name = f"blocks.{layer}.hook_resid_pre"
    clean, cache = any_model.run_with_cache(inputs, [name])
    with torch.no_grad():
        with any_model.start_at(layer, cache[name]):
            assert torch.equal(any_model.forward(inputs), clean)
            assert torch.equal(any_model.forward(inputs), clean)
        with any_model.start_at(layer, cache[name] + 1.0):
            other = any_model.forward(inputs)
        with any_model.hooks({name: lambda activation, _hook: activation + 1.0}):
            assert torch.equal(any_model.forward(inputs), other)
        assert torch.equal(any_model.forward(inputs), clean)


def test_blocks_below_the_start_do_not_run(any_model: EditableModel) -> None:
    inputs = any_model.pad(ROWS)
    name = "blocks.2.hook_resid_pre"
    _, cache = any_model.run_with_cache(inputs, [name])
    ran: list[int] = []
    for layer in range(any_model.n_layers):
        any_model.map.down[layer].register_forward_hook(lambda *_, at=layer: ran.append(at))
    with torch.no_grad(), any_model.start_at(2, cache[name]):
        any_model.forward(inputs)
    assert ran == [2]


def test_gradients_are_the_same_from_a_start_on(any_model: EditableModel) -> None:
    inputs = any_model.pad(ROWS)
    name, value = "blocks.1.hook_resid_pre", "blocks.1.mlp.out.hook_out"
    _, cache = any_model.run_with_cache(inputs, [name])
    gradients = []
    for skip in (False, True):
        delta = torch.zeros(any_model.d_model, requires_grad=True, device=any_model.device)
        start = any_model.start_at(1, cache[name]) if skip else nullcontext()
        with any_model.hooks({value: partial(_add, delta)}), start:
            logits = any_model.forward(inputs)
        (gradient,) = torch.autograd.grad(logits.log_softmax(-1)[0, 2, 7], delta)
        gradients.append(gradient)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-6)
    assert float(gradients[0].abs().max()) > 1e-4


def _add(delta: Tensor, activation: Tensor, _hook: Hook) -> Tensor:
    return activation + delta


def test_a_start_is_undone_after_an_exception(model: EditableModel) -> None:
    inputs = model.pad(ROWS)
    name = "blocks.2.hook_resid_pre"
    clean, cache = model.run_with_cache(inputs, [name])
    before = hooks_left(model)
    with pytest.raises(RuntimeError, match="inside"), model.start_at(2, cache[name]):
        raise RuntimeError("inside")
    assert hooks_left(model) == before
    assert all("forward" not in vars(block) for block in model.map.blocks)
    with torch.no_grad():
        assert torch.equal(model.forward(inputs), clean)


def test_stopping_before_a_layer_runs_no_more(any_model: EditableModel) -> None:
    inputs = any_model.pad(ROWS)
    names = ["blocks.1.mlp.hook_post", "blocks.0.hook_resid_post"]
    _, cache = any_model.run_with_cache(inputs, names)
    ran: list[int] = []
    for layer in range(any_model.n_layers):
        any_model.map.down[layer].register_forward_hook(lambda *_, at=layer: ran.append(at))
    before = hooks_left(any_model)
    found = any_model.activations(inputs, names)
    assert ran == [0, 1]
    assert all(torch.equal(found[name], cache[name]) for name in names)
    assert hooks_left(any_model) == before


def test_a_narrowed_pass_is_exact_where_it_is_asked(any_model: EditableModel) -> None:
    inputs, at = any_model.pad(ROWS), (torch.tensor([0, 2, 2]), torch.tensor([4, 0, 2]))
    last = f"blocks.{any_model.n_layers - 1}"
    parts = [any_model.map.find(f"{last}.{name}") for name in ("attn.o", "mlp")]
    seen: list[int] = []
    with torch.no_grad():
        clean, before = any_model.forward(inputs, at=at), hooks_left(any_model)
        with any_model.narrowed(at):
            handles = [
                part.register_forward_pre_hook(lambda _m, args: seen.append(args[0].shape[1]))
                for part in parts
                if part is not None
            ]
            found = any_model.forward(inputs, at=at)
        for handle in handles:
            handle.remove()
    torch.testing.assert_close(found, clean, rtol=1e-5, atol=1e-5)
    assert hooks_left(any_model) == before
    # OPT has no module that is its MLP; Bloom's is handed the residual stream beside its input.
    whole = max(map(len, ROWS))
    expected = {"opt": [3], "bloom": [3, whole]}.get(any_model.hf.config.model_type, [3, 3])
    assert sorted(seen) == expected


def test_stopping_hides_no_other_exception(model: EditableModel) -> None:
    before = hooks_left(model)
    with pytest.raises(RuntimeError, match="inside"), model.stop_before(1):
        raise RuntimeError("inside")
    assert hooks_left(model) == before
    with torch.no_grad(), model.stop_before(model.n_layers):
        logits = model.forward(model.pad(ROWS))
    assert logits.shape == (3, 5, tiny.VOCABULARY)


def test_hooks_see_the_callers_own_forward_passes_only(any_model: EditableModel) -> None:
    inputs = any_model.pad(ROWS)
    residual = torch.zeros(3, 5, any_model.d_model, device=any_model.device)
    shapes = []
    hook = {"blocks.0.hook_resid_pre": lambda a, _h: shapes.append(tuple(a.shape))}
    with torch.no_grad(), any_model.hooks(hook), any_model.start_at(1, residual):
        any_model.forward(inputs)
    assert shapes == [(3, 5, any_model.d_model)]
