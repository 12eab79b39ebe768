"""Settings of adapters are checked and kept; targets are those of the architecture."""

from __future__ import annotations

import json
from typing import Any

import pytest
import tiny
import torch
from transformers.pytorch_utils import Conv1D

import editcl
from editcl.errors import EditclError, UnsupportedModel
from editcl.learning.kinds import KINDS, AdapterSettings, peft_config, target_paths
from editcl.model import EditableModel


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"kind": "lokr"}, "unknown kind"),
        ({"rank": 0}, "rank must be"),
        ({"alpha": 0.0}, "alpha must be"),
        ({"alpha": float("nan")}, "alpha must be"),
        ({"dropout": 1.0}, "dropout must be"),
        ({"virtual_tokens": 0}, "virtual_tokens must be"),
        ({"targets": "q_proj"}, r"unknown targets.*\('q_proj',\)"),
        ({"targets": ()}, "names of modules"),
        ({"targets": ("",)}, "names of modules"),
        ({"init": "xavier"}, "unknown init"),
        ({"init": "orthogonal", "rank": 3}, "even rank"),
        ({"init": "orthogonal", "kind": "dora"}, "is for lora"),
        ({"kind": "ia3", "dropout": 0.1}, "neither dropout"),
        ({"kind": "prompt", "init": "gaussian"}, "neither dropout nor"),
        ({"kind": "prefix", "targets": "mlp"}, "no target modules"),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any], match: str) -> None:
    with pytest.raises(EditclError, match=match):
        AdapterSettings(**wrong)


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "kasa"])
def test_initialisations_that_change_the_base_are_refused(init: str) -> None:
    with pytest.raises(EditclError, match="changes the base weights"):
        AdapterSettings(init=init)


def test_settings_come_back_from_json_equal() -> None:
    for settings in (
        AdapterSettings(),
        AdapterSettings("dora", 3, 6.0, 0.1, ("mlp.c_proj", "c_attn")),
        AdapterSettings("prefix", virtual_tokens=3),
    ):
        assert AdapterSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings


@pytest.mark.parametrize(
    "change", [{"rank": "8"}, {"rank": True}, {"more": 1}, {"targets": 3}, {"init": None}]
)
def test_json_that_is_no_settings_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(EditclError):
        AdapterSettings.from_json(AdapterSettings().to_json() | change)
    with pytest.raises(EditclError, match="missing"):
        AdapterSettings.from_json({"kind": "lora"})


def test_targets_are_those_of_the_architecture(any_model: EditableModel) -> None:
    find, n_layers = any_model.map.path, any_model.n_layers
    blocks = tuple(f"{find(f'blocks.{i}')}." for i in range(n_layers))
    naive = [
        name
        for name, module in any_model.hf.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and name.startswith(blocks)
    ]
    paths = {
        where: target_paths(any_model.hf, any_model.map, AdapterSettings(targets=where))
        for where in ("all", "attention", "mlp")
    }
    assert sorted(paths["all"]) == sorted(naive) and len(naive) >= 4 * n_layers
    assert sorted(paths["attention"] + paths["mlp"]) == sorted(naive)
    assert {find(f"blocks.{i}.mlp.out") for i in range(n_layers)} <= set(paths["mlp"])
    assert {find(f"blocks.{i}.attn.o") for i in range(n_layers)} <= set(paths["attention"])
    # (IA)^3: keys and values, fused or two, and what goes into the down-projection.
    config = peft_config(any_model, AdapterSettings("ia3"))
    down = {find(f"blocks.{i}.mlp.out") for i in range(n_layers)}
    assert set(config.feedforward_modules) == down
    rest = set(config.target_modules) - down
    assert len(rest) in (n_layers, 2 * n_layers) and rest <= set(paths["attention"])
    # Prefixes have the shape of what a layer keeps.
    config = peft_config(any_model, AdapterSettings("prefix", virtual_tokens=3))
    _, cache = any_model.forward_caching(any_model.pad([[5]]))
    _, n_heads, _, d_head = cache.layers[0].keys.shape
    assert (config.num_attention_heads, config.token_dim) == (n_heads, n_heads * d_head)


def test_names_of_modules_are_ends_of_their_paths(model: EditableModel) -> None:
    paths = target_paths(model.hf, model.map, AdapterSettings(targets=("mlp.c_proj",)))
    assert paths == [f"transformer.h.{i}.mlp.c_proj" for i in range(model.n_layers)]
    with pytest.raises(EditclError, match="ends in 'proj'; its blocks have 'c_attn', 'c_proj'"):
        target_paths(model.hf, model.map, AdapterSettings(targets=("proj",)))
    with pytest.raises(EditclError, match="'lm_head'"):
        target_paths(model.hf, model.map, AdapterSettings(targets=("c_fc", "lm_head")))


def test_targets_that_train_nothing_name_the_architecture(model: EditableModel) -> None:
    with pytest.raises(UnsupportedModel, match="train nothing on a GPT2LMHeadModel"):
        map_without_parts = type("Map", (), {"n_layers": 0, "path": lambda *_: None})()
        target_paths(model.hf, map_without_parts, AdapterSettings("ia3"))


def test_every_kind_has_a_configuration(model: EditableModel) -> None:
    for kind in KINDS:
        assert peft_config(model, AdapterSettings(kind)).task_type == "CAUSAL_LM"


def test_conv1d_is_told_apart_by_the_class(tokenizer: Any) -> None:
    for architecture, stored_in_out in (("gpt2", True), ("llama", False), ("gpt_neo", False)):
        model = editcl.wrap(tiny.build(architecture), tokenizer)
        assert peft_config(model, AdapterSettings()).fan_in_fan_out is stored_in_out
