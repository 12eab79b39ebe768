from __future__ import annotations

import pytest
import tiny
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM

from editcl.architecture import ModuleMap, is_bridge, model_behind, twin
from editcl.errors import UnsupportedModel
from editcl.model import EditableModel

IDS = torch.tensor([[5, 90, 300, 17, 44, 260], [9, 8, 7, 6, 5, 4]], device=tiny.DEVICE)


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        out = model(IDS)
    return out if isinstance(out, torch.Tensor) else out.logits


def change(model: EditableModel, layer: int = 1) -> None:
    """An edit that every model's logits show (norms behind the MLP would hide a mere scaling)."""
    weight = model.down_projection(layer).weight
    weight.add_(0.3 * torch.randn_like(weight))


def test_every_layer_has_its_down_projection(any_model: EditableModel) -> None:
    assert any_model.n_layers == tiny.N_LAYERS
    assert any_model.d_model == tiny.D_MODEL
    names = dict(any_model.hf.named_parameters())
    for layer in range(any_model.n_layers):
        projection = any_model.down_projection(layer)
        assert projection.layer == layer
        assert names[projection.name] is projection.parameter
        assert f".{layer}." in projection.name
        assert projection.weight.shape == (any_model.d_mlp, any_model.d_model)
        assert projection.weight.data_ptr() == projection.parameter.data_ptr()
        assert not projection.weight.requires_grad


def test_the_orientation_is_told_by_class_even_where_the_matrix_is_square() -> None:
    gpt2 = ModuleMap(tiny.build("gpt2", n_inner=tiny.D_MODEL)).projections[0]
    llama = ModuleMap(tiny.build("llama", intermediate_size=tiny.D_MODEL)).projections[0]
    assert gpt2.weight.shape == llama.weight.shape == (tiny.D_MODEL, tiny.D_MODEL)
    assert torch.equal(gpt2.weight, gpt2.parameter.data)
    assert torch.equal(llama.weight, llama.parameter.data.T)


def test_an_edit_is_saved_and_loaded_like_any_weight(
    any_model: EditableModel, tmp_path: object
) -> None:
    before = logits(any_model.hf)
    change(any_model)
    after = logits(any_model.hf)
    assert not torch.allclose(before, after, atol=1e-3)
    any_model.hf.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation=_attention(any_model)
    )
    assert torch.equal(logits(again.to(tiny.DEVICE)), after)


def _attention(model: EditableModel) -> str:
    return model.hf.config._attn_implementation


def test_a_bridge_sees_edits_and_leaves_the_model_clean(
    any_model: EditableModel, tmp_path: object
) -> None:
    names = list(any_model.hf.state_dict())
    bridge = any_model.bridge()
    torch.testing.assert_close(logits(bridge), logits(any_model.hf), rtol=1e-4, atol=1e-5)
    change(any_model)
    torch.testing.assert_close(logits(bridge), logits(any_model.hf), rtol=1e-4, atol=1e-5)
    assert list(any_model.hf.state_dict()) == names
    any_model.hf.save_pretrained(tmp_path)


def test_a_bridge_leads_back_to_a_clean_model(any_model: EditableModel) -> None:
    bridge = any_model.bridge()
    assert is_bridge(bridge)
    assert not is_bridge(any_model.hf)
    twin = model_behind(bridge)
    assert type(twin) is type(any_model.hf)
    own = dict(any_model.hf.named_parameters())
    assert {name: id(p) for name, p in twin.named_parameters()} == {
        name: id(p) for name, p in own.items()
    }
    torch.testing.assert_close(logits(twin), logits(any_model.hf), rtol=1e-5, atol=1e-5)


def test_a_bridge_leaves_the_tokenizer_alone(model: EditableModel) -> None:
    before = (model.tokenizer.bos_token, model.tokenizer.padding_side, model.tokenizer("a b"))
    bridge = model.bridge()
    assert bridge.tokenizer is not model.tokenizer
    assert (model.tokenizer.bos_token, model.tokenizer.padding_side) == before[:2]
    assert model.tokenizer("a b") == before[2]


def test_a_bridge_takes_a_tokenizer_with_a_start_token_that_was_made_in_memory(
    bos_tokenizer: transformers.PreTrainedTokenizerFast,
) -> None:
    bridge = EditableModel(tiny.build("llama"), bos_tokenizer).bridge()
    assert bridge.tokenizer("a b")["input_ids"] == bos_tokenizer("a b")["input_ids"]


def test_a_bridge_with_processed_weights_is_refused(model: EditableModel) -> None:
    bridge = model.bridge()
    bridge.compatibility_mode = True
    with pytest.raises(UnsupportedModel, match="compatibility mode.*Pass one without"):
        model_behind(bridge)


def test_mixtures_of_experts_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match="mixture of experts.*Use a dense model"):
        ModuleMap(tiny.mixture())


def test_classes_that_transformer_lens_does_not_know_are_refused() -> None:
    class Mine(transformers.GPT2LMHeadModel):
        pass

    with pytest.raises(UnsupportedModel, match="Mine is not an architecture"):
        ModuleMap(Mine(transformers.GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=9)))


def test_a_wrapped_down_projection_is_refused() -> None:
    hf = tiny.build("llama")

    class Wrapped(nn.Module):
        pass

    hf.model.layers[1].mlp.down_proj = Wrapped()
    with pytest.raises(UnsupportedModel, match="is a Wrapped; editcl writes Linear and Conv1D"):
        ModuleMap(hf)


def test_a_quantised_down_projection_is_refused() -> None:
    hf = tiny.build("llama")
    down = hf.model.layers[1].mlp.down_proj
    down.weight = nn.Parameter(down.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(UnsupportedModel, match="is quantised.*float32, bfloat16 or float16"):
        ModuleMap(hf)


def test_a_twin_computes_the_same_on_the_same_memory_with_flags_of_its_own(
    any_model: EditableModel,
) -> None:
    hf = any_model.hf
    flags = [i % 3 > 0 for i, _ in enumerate(hf.parameters())]
    for parameter, flag in zip(hf.parameters(), flags, strict=True):
        parameter.requires_grad_(flag)
    other = twin(hf)
    assert type(other) is type(hf) and torch.equal(logits(other), logits(hf))
    assert [p.requires_grad for p in hf.parameters()] == flags
    assert not any(p.requires_grad for p in other.parameters())
    ours, theirs = dict(hf.named_parameters()), dict(other.named_parameters())
    assert list(ours) == list(theirs)  # so that what is tied in one is tied in the other
    assert all(ours[n].data_ptr() == theirs[n].data_ptr() for n in ours)
    assert not {id(m) for m in hf.modules()} & {id(m) for m in other.modules()}
    before = logits(hf)
    change(any_model)
    assert torch.equal(logits(other), logits(hf)) and not torch.equal(logits(hf), before)


def test_a_map_follows_modules_that_were_put_around_others(any_model: EditableModel) -> None:
    class Around(nn.Module):
        def __init__(self, base: nn.Module) -> None:
            super().__init__()
            self.base = base

    other = twin(any_model.hf)
    found = ModuleMap(other)
    path = found.path("blocks.1.mlp.out")
    wrapped = Around(found.down[1])
    other.set_submodule(str(path), wrapped)
    found.refresh(other)
    assert found.down[1] is wrapped and found.find("blocks.1.mlp.out") is wrapped
    projection = any_model.map.projections[1]
    assert found.projections[1].parameter.data_ptr() == projection.parameter.data_ptr()
