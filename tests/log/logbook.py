"""What the log's tests share: tiny models, random updates, and the bytes of a model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import tiny
import torch

from editcl.facts import Fact
from editcl.log import Edit, EditLog, Skill
from editcl.model import EditableModel, tensor_bytes
from editcl.update import WeightUpdate

SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_layer": 2, "n_embd": 16, "n_inner": 48, "n_head": 2},
    "llama": {
        "num_hidden_layers": 2,
        "hidden_size": 16,
        "intermediate_size": 40,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    },
}


@cache
def tokenizer() -> Any:
    return tiny.byte_tokenizer()


def fresh(
    architecture: str = "gpt2", dtype: torch.dtype = torch.float32, seed: int = 0
) -> EditableModel:
    """A tiny model without a log; the same seed gives the same weights."""
    hf = tiny.build(architecture, seed, **SIZES[architecture]).to(dtype)
    return EditableModel(hf, tokenizer(), name=f"tiny {architecture}")


def facts_of(seed: int, n_facts: int) -> tuple[Fact, ...]:
    return tuple(
        Fact(f"Tower {seed}.{j}", "{} is located in the city of", "Rome", "Paris")
        for j in range(n_facts)
    )


def updates_of(
    model: EditableModel, seed: int, n_facts: int, layers: Sequence[int]
) -> list[WeightUpdate]:
    generator = torch.Generator().manual_seed(seed)
    return [
        WeightUpdate(
            model.down_projection(layer).name,
            torch.randn(model.d_mlp, n_facts, generator=generator) / 4,
            torch.randn(model.d_model, n_facts, generator=generator) / 4,
        )
        for layer in layers
    ]


def add(
    log: EditLog,
    model: EditableModel,
    seed: int = 0,
    n_facts: int = 1,
    layers: Sequence[int] = (0,),
    **options: Any,
) -> Edit:
    """Appends a random edit."""
    updates = updates_of(model, seed, n_facts, layers)
    return log.append(updates, facts_of(seed, n_facts), method="test", layers=layers, **options)


def tensors_of(seed: int) -> dict[str, torch.Tensor]:
    """An adapter's state: any tensors under any names."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"m.lora_A.weight": (2, 16), "m.lora_B.weight": (48, 2), "scale": (3,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def learn(log: EditLog, task: str, seed: int = 0, slot: str | None = None, **options: Any) -> Skill:
    """Appends a random skill."""
    settings = {"kind": "lora", "rank": 2, "targets": ["m"]}
    return log.append_skill(
        tensors_of(seed), task=task, slot=slot or task, settings=settings, strategy="sequential",
        **options,
    )  # fmt: skip


def digest(model: EditableModel) -> str:
    """SHA-256 of all weights."""
    total = hashlib.sha256()
    for _, parameter in sorted(model.hf.named_parameters()):
        total.update(tensor_bytes(parameter))
    return total.hexdigest()


def sample_log(folder: Path) -> str:
    """A small log with edits and events of each kind; gives the digest of its model."""
    model = fresh()
    with EditLog(model, folder) as log:
        add(log, model, 1, 2, (0, 1))
        add(log, model, 2, 1, (1,))
        add(log, model, 3, 3, (0,))
        log.rollback(("e0003", 1))
        log.rollback("e0001")
        log.reapply(("e0001", 0))
        return digest(model)
