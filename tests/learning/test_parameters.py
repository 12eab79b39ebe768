"""Where parameters of adapters sit, on every architecture."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from editcl.errors import EditclError
from editcl.learning.kinds import AdapterSettings
from editcl.learning.lora import Adapters
from editcl.learning.parameters import adapted, inside, layer_of, move, part_of, positive
from editcl.learning.session import Session


def test_layers_and_parts_are_those_of_the_modules(any_model) -> None:
    parts = {}
    for targets in ("all", "attention", "mlp"):
        bank = Adapters(any_model)
        bank.add("x", AdapterSettings(rank=2, targets=targets), seed=0)
        parts[targets] = set(bank.trainable("x"))
    modules = any_model.map
    for name in parts["all"]:
        layer = layer_of(modules, f"x/{name}")
        path = name.removeprefix("base_model.model.").partition(".lora_")[0]
        owner = any_model.hf.get_submodule(path)
        assert any(owner is module for module in modules.blocks[layer].modules())
        part = part_of(modules, f"x/{name}")
        assert name in parts[part], f"{name} is said to be in {part}"
    assert {layer_of(modules, name) for name in parts["all"]} == set(range(modules.n_layers))


def test_virtual_tokens_are_in_no_layer(model) -> None:
    bank = Adapters(model)
    bank.add("x", AdapterSettings(kind="prompt", virtual_tokens=2), seed=0)
    (name,) = bank.trainable("x")
    assert layer_of(model.map, f"x/{name}") is None and part_of(model.map, f"x/{name}") is None


def test_a_path_counts_by_whole_names() -> None:
    assert inside("x/transformer.h.1.attn.weight", "transformer.h.1")
    assert inside("x/transformer.h.1.attn.weight", "attn")
    assert not inside("x/transformer.h.11.attn.weight", "transformer.h.1")
    assert not inside("h.1/transformer.attn.weight", "h.1")


def test_a_classifier_is_no_adapter(model) -> None:
    own = Session(model, Adapters(model), AdapterSettings(rank=2))
    own.new_adapter("x")
    own.active = ("x",)
    own.train_adapter("x")
    names = set(own.training)
    own.training["classifier"] = nn.Parameter(torch.zeros(3))
    assert set(adapted(own)) == names


def test_only_what_is_held_moves() -> None:
    held = {"a": torch.ones(2)}
    move(held, {"a": nn.Parameter(torch.zeros(2)), "b": nn.Parameter(torch.zeros(2))})
    assert list(held) == ["a"]


@pytest.mark.parametrize("value", [0, -1.0, math.inf, math.nan, True])
def test_numbers_that_are_not_positive_are_refused(value) -> None:
    with pytest.raises(EditclError, match="give a number above 0"):
        positive("it", value)
