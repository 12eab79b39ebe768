"""METHODS: every editing method by name, with what it needs; and the papers' presets.

A method gets the model, the facts and the plan (layers, contexts, essence prompts, settings,
covariances) and returns frozen updates with what it found; it never writes a weight lastingly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from editcl.editing.alphaedit import alphaedit
from editcl.editing.covariance import Covariance
from editcl.editing.emmet import emmet
from editcl.editing.finetune import FT_L, FT_M, LORA, fine_tune_with
from editcl.editing.keys import subject_keys
from editcl.editing.memit import memit
from editcl.editing.memit import published as published_memit
from editcl.editing.plan import Method, Plan, Solution
from editcl.editing.pmet import pmet
from editcl.editing.refine import refine
from editcl.editing.rome import (
    context_direction,
    mean_direction,
    published_direction,
    rank_one,
)
from editcl.editing.ultraedit import ultraedit
from editcl.editing.values import ValueSettings, optimise_values
from editcl.errors import EditclError
from editcl.facts import Fact
from editcl.model import EditableModel

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
        keys = subject_keys(model, facts, plan.layers, plan.contexts, plan.rephrased)[layer][0]
        values = optimise_values(
            model,
            facts,
            layer,
            plan.contexts,
            plan.essence,
            plan.settings,
            rephrased=plan.rephrased,
        )
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


@dataclass(frozen=True)
class Editor:
    """A method, and what it needs.

    Attributes:
        solve: the method.
        single: takes one fact at a time.
        one_layer: changes one layer.
        covariance: reads `Plan.covariances`.
        values: optimises v*, so that essence prompts and rephrasings matter.
        refines: its columns each belong to a fact, so that they can be trained further.
        last_layers: by default edits so many of the model's last layers; 0: where facts are read.
        about: what it is for, in a line.
    """

    solve: Method
    about: str
    single: bool = False
    one_layer: bool = False
    covariance: bool = True
    values: bool = True
    refines: bool = False
    last_layers: int = 0

    def __call__(self, model: EditableModel, facts: Sequence[Fact], plan: Plan) -> Solution:
        """Solves; the model is as before afterwards."""
        solution = self.solve(model, facts, plan)
        if plan.refinement is None:
            return solution
        return refine(model, facts, plan, solution)


METHODS: Mapping[str, Editor] = {
    "rome": Editor(
        rome_with(context_direction), "one fact, every context's key", single=True, one_layer=True
    ),
    "r-rome": Editor(rome_with(mean_direction), "one fact, mean key", single=True, one_layer=True),
    "rome-published": Editor(
        rome_with(published_direction), "one fact, the authors' code", single=True, one_layer=True
    ),
    "memit": Editor(memit, "a batch over several layers, earlier ones held", refines=True),
    "memit-published": Editor(
        published_memit, "a batch over several layers, residual divided evenly"
    ),
    "pmet": Editor(pmet, "a batch, attention's part set aside"),
    "emmet": Editor(emmet, "a batch at one layer, every subject met", one_layer=True, refines=True),
    "alphaedit": Editor(
        alphaedit, "batch after batch, where the model's own keys hardly point", refines=True
    ),
    "ultraedit": Editor(
        ultraedit,
        "a batch in one backward pass, without a subject",
        covariance=False,
        values=False,
        last_layers=2,
    ),
    "ft-l": Editor(
        fine_tune_with(FT_L),
        "baseline: bounded fine-tuning of one matrix",
        one_layer=True,
        covariance=False,
        values=False,
    ),
    "ft-m": Editor(
        fine_tune_with(FT_M),
        "baseline: fine-tuning of one matrix",
        one_layer=True,
        covariance=False,
        values=False,
    ),
    "lora": Editor(
        fine_tune_with(LORA), "baseline: low-rank fine-tuning", covariance=False, values=False
    ),
}


@dataclass(frozen=True)
class Preset:
    """The papers' hyperparameters for one family.

    Attributes:
        layer: where ROME edits.
        layers: where MEMIT does; empty where the papers say nothing.
        settings: ROME's objective as published.
        batch: MEMIT's.
    """

    layer: int
    settings: ValueSettings
    batch: ValueSettings
    layers: tuple[int, ...] = ()


_ROME = ValueSettings(
    steps=20,
    lr=0.5,
    clamp=4.0,
    kl=0.0625,
    decay=0.5,
    scale="absolute",
    stop_on="total",
    essence_at="subject",
    adapt="coordinate",
    relax=False,
)
_MEMIT = replace(_ROME, clamp=0.75, scale="hidden")
_ROME_LLAMA = replace(_ROME, steps=25, decay=1e-3)
_MEMIT_LLAMA = replace(_MEMIT, steps=25, decay=1e-3, clamp=4.0)

#: (model_type, n_layers, d_model) -> what the papers and their code use there.
PRESETS: Mapping[tuple[str, int, int], Preset] = {
    ("gpt2", 24, 1024): Preset(8, replace(_ROME, clamp=3.0), _MEMIT),
    ("gpt2", 36, 1280): Preset(12, _ROME, _MEMIT),
    ("gpt2", 48, 1600): Preset(17, _ROME, _MEMIT, (13, 14, 15, 16, 17)),
    ("gptj", 28, 4096): Preset(5, _ROME, replace(_MEMIT, steps=25), (3, 4, 5, 6, 7, 8)),
    ("llama", 32, 4096): Preset(5, _ROME_LLAMA, _MEMIT_LLAMA, (4, 5, 6, 7, 8)),
    ("mistral", 32, 4096): Preset(5, _ROME_LLAMA, _MEMIT_LLAMA, (4, 5, 6, 7, 8)),
    ("qwen2", 28, 3584): Preset(5, _ROME_LLAMA, _MEMIT_LLAMA, (4, 5, 6, 7, 8)),
}

PUBLISHED_SETTINGS = _ROME
#: For models that no paper tuned; its layers are not used.
PLAIN_PRESET = Preset(0, _ROME, _MEMIT)


def preset_of(model: EditableModel) -> Preset | None:
    """The papers' preset for a model's family and size, if they give one."""
    kind = str(getattr(model.hf.config, "model_type", ""))
    return PRESETS.get((kind, model.n_layers, model.d_model))
