"""METHODS: every editing method by name, each a function from a plan to weight updates.

A method gets the model, the facts and the plan (layers, contexts, essence prompts, settings,
covariances) and returns frozen updates with what it found; it never writes a weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from editcl.editing.contexts import DEFAULT_CONTEXTS
from editcl.editing.covariance import Covariance
from editcl.editing.keys import subject_keys
from editcl.editing.rome import (
    context_direction,
    mean_direction,
    published_direction,
    rank_one,
)
from editcl.editing.values import Values, ValueSettings, optimise_values
from editcl.errors import EditclError
from editcl.facts import Fact
from editcl.model import EditableModel
from editcl.update import WeightUpdate


@dataclass(frozen=True)
class Plan:
    """Everything a method needs beside the model and the facts.

    Attributes:
        layers: which down-projections to change.
        settings: how v* is sought.
        contexts: texts in front of the prompt, the first one "".
        essence: per fact, the prompts whose predictions are held.
        covariances: C by layer.
    """

    layers: tuple[int, ...]
    settings: ValueSettings
    covariances: Mapping[int, Covariance]
    essence: Sequence[Sequence[str]]
    contexts: Sequence[str] = DEFAULT_CONTEXTS


@dataclass(frozen=True)
class Solution:
    """The updates a method found, the values behind them, and figures for the receipt."""

    updates: tuple[WeightUpdate, ...]
    values: Values
    details: Mapping[str, Any] = field(default_factory=dict)


Method = Callable[[EditableModel, Sequence[Fact], Plan], Solution]
Direction = Callable[[Covariance, Tensor], Tensor]


def rome_with(direction: Direction) -> Method:
    """ROME with one of the key directions of rome.py; one fact at one layer."""

    def solve(model: EditableModel, facts: Sequence[Fact], plan: Plan) -> Solution:
        if len(facts) != 1 or len(plan.layers) != 1:
            raise EditclError(
                f"rome edits one fact at one layer, got {len(facts)} facts and layers "
                f"{list(plan.layers)}. Edit the facts one after the other."
            )
        (layer,) = plan.layers
        keys = subject_keys(model, facts, plan.layers, plan.contexts)[layer][0]
        values = optimise_values(model, facts, layer, plan.contexts, plan.essence, plan.settings)
        u = direction(plan.covariances[layer], keys)
        update = rank_one(model.down_projection(layer), u, values.delta[0])
        size = float(values.delta[0].norm()) / float(values.residual_norm[0])
        details = {
            "steps": int(values.steps[0]),
            "loss": round(float(values.loss[0]), 6),
            "object_loss": round(float(values.object_loss[0]), 6),
            "delta_over_residual": round(size, 6),
        }
        return Solution((update,), values, details)

    return solve


METHODS: Mapping[str, Method] = {
    "rome": rome_with(context_direction),
    "r-rome": rome_with(mean_direction),
    "rome-published": rome_with(published_direction),
}


@dataclass(frozen=True)
class Preset:
    """The papers' hyperparameters for one family: a layer and the published objective."""

    layer: int
    settings: ValueSettings


_PUBLISHED = ValueSettings(
    steps=20,
    lr=0.5,
    clamp=4.0,
    kl=0.0625,
    decay=0.5,
    scale="absolute",
    stop_on="total",
    essence_at="subject",
)
_PUBLISHED_LLAMA = replace(_PUBLISHED, steps=25, decay=1e-3)

#: (model_type, n_layers, d_model) -> what the papers and their code use there.
PRESETS: Mapping[tuple[str, int, int], Preset] = {
    ("gpt2", 24, 1024): Preset(8, replace(_PUBLISHED, clamp=3.0)),
    ("gpt2", 36, 1280): Preset(12, _PUBLISHED),
    ("gpt2", 48, 1600): Preset(17, _PUBLISHED),
    ("gptj", 28, 4096): Preset(5, _PUBLISHED),
    ("llama", 32, 4096): Preset(5, _PUBLISHED_LLAMA),
    ("mistral", 32, 4096): Preset(5, _PUBLISHED_LLAMA),
    ("qwen2", 28, 3584): Preset(5, _PUBLISHED_LLAMA),
}

PUBLISHED_SETTINGS = _PUBLISHED


def preset_of(model: EditableModel) -> Preset | None:
    """The papers' preset for a model's family and size, if they give one."""
    kind = str(getattr(model.hf.config, "model_type", ""))
    return PRESETS.get((kind, model.n_layers, model.d_model))
