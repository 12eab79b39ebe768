"""Fine-tuning on the facts themselves: the baselines that editors are compared with.

    change = argmin over the entries of some down-projections of  mean over facts of  loss(fact)

by Adam on mini-batches, nothing else of the model trained. Three of them:
- FT-L (Zhu et al., arXiv:2012.00363, as run by Meng et al., arXiv:2202.05262): every entry free
  under |change| <= bound. Its published loss takes *all* tokens of the object at the prompt's last
  token: for one token that is the object, for several a bag of them that no prediction can meet
  (it ends at log n), and what follows the first is never trained. Kept as published, for that is
  the figure that editors are compared with.
- FT-M (EasyEdit, arXiv:2308.07269): the same matrix without the bound, each token of the object
  predicted after those before it: the loss that FT-L should have had.
- LoRA on facts: FT-M's loss, the change trained as factors. They are the factors of the update
  itself, so nothing needs to be wrapped into the model and merged again (no peft).
All facts move all entries: the columns of the updates are shared, and the log takes them back
whole. As published, prompts are trained on without contexts, and nothing is held in place.

Departures: rate and bound are in units of the weight's RMS, so that one setting serves every
matrix of every model (published: 5e-4 for both, on GPT-2 XL). The model is called with its weights
replaced and never written; blocks below the first changed one run once.
This module knows nothing of keys, values and covariance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from editcl.architecture import DownProjection
from editcl.editing.plan import Method, Plan, Solution
from editcl.encoding import Row, Sentence
from editcl.errors import NonFiniteError
from editcl.facts import Fact
from editcl.model import EditableModel, micro_batches
from editcl.partial import frozen_parameters
from editcl.progress import progress
from editcl.update import SHARED, WeightUpdate

TOKENS_PER_BATCH = 8192  # bounds the memory of one forward and backward pass


@dataclass(frozen=True)
class FineTuneSettings:
    """What is trained and how.

    Attributes:
        loss: "object": each token of the object after those before it; "prompt-end": all of them
            at the prompt's last token.
        rank: of the trained factors; None trains every entry of the matrix.
        bound: how far an entry may move, in units of the weight's RMS; None lets it.
        lr: Adam's rate, in units of the weight's RMS.
        passes: over all facts, at most.
        facts_per_step: how many facts give the gradient of one step.
        stop: a batch below this mean loss takes no step; a pass below it is the last.
        seed: of the order of the facts and of the factors' start.
    """

    loss: Literal["object", "prompt-end"] = "object"
    rank: int | None = None
    bound: float | None = None
    lr: float = 0.02
    passes: int = 25
    facts_per_step: int = 16
    stop: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        assert self.rank is None or self.rank > 0, f"a rank is at least 1, got {self.rank}"
        assert self.rank is None or self.bound is None, "factors are trained without a bound"
        assert self.passes > 0 and self.facts_per_step > 0, "at least one pass, one fact a step"


FT_L = FineTuneSettings(loss="prompt-end", bound=0.2)
FT_M = FineTuneSettings()
LORA = FineTuneSettings(rank=8)


def fine_tune_with(settings: FineTuneSettings) -> Method:
    """The method that trains with these settings at the plan's layers."""

    def solve(model: EditableModel, facts: Sequence[Fact], plan: Plan) -> Solution:
        return fine_tune(model, facts, plan.layers, settings)

    return solve


def fine_tune(
    model: EditableModel,
    facts: Sequence[Fact],
    layers: Sequence[int],
    settings: FineTuneSettings,
    *,
    show_progress: bool = True,
) -> Solution:
    """Trains the down-projections of some layers to say the facts' new objects.

    Args:
        model: the model; it is never written.
        facts: what it shall say.
        layers: whose down-projections to change.
        settings: loss, bound, rank and how long.
        show_progress: whether a bar may be drawn.

    Returns:
        One update a layer, all of its columns shared by all facts.

    Raises:
        NonFiniteError: the loss is not finite.
        FactError: a text can't be encoded.
    """
    assert facts and layers, "fine-tuning needs facts and layers"
    generator = torch.Generator().manual_seed(settings.seed)
    changes = [_Change.start(model.down_projection(i), settings, generator) for i in layers]
    trained = [tensor for change in changes for tensor in change.factors]
    batches = _batches(model, facts, min(layers), settings, generator)
    adam = torch.optim.Adam(trained, lr=settings.lr)
    losses: list[float] = []
    with frozen_parameters(model), torch.enable_grad():
        for _ in progress(range(settings.passes), "fine-tuning", show=show_progress):
            total = 0.0
            for i in torch.randperm(len(batches), generator=generator).tolist():
                loss = _accumulate(model, changes, batches[i])
                total += loss * _count(batches[i])
                if loss >= settings.stop:
                    adam.step()
                    _clip(trained, settings.bound)
                adam.zero_grad()
            losses.append(total / len(facts))
            if losses[-1] < settings.stop:
                break
    details = {
        "training": asdict(settings),
        "passes": len(losses),
        "first_loss": round(losses[0], 6),
        "last_loss": round(losses[-1], 6),
    }
    return Solution(tuple(change.update() for change in changes), None, details)


# -- what is trained ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Change:
    """The change of one matrix as it is trained: unit * entries, or unit * left @ right.T.

    Attributes:
        projection: the matrix; read, never written.
        unit: its RMS.
        factors: (entries [d_mlp, d_model],) or (left [d_mlp, rank], right [d_model, rank]).
    """

    projection: DownProjection
    unit: float
    factors: tuple[Tensor, ...]

    @classmethod
    def start(
        cls, projection: DownProjection, settings: FineTuneSettings, generator: torch.Generator
    ) -> _Change:
        """No change: zero entries, or a random left factor and a zero right one.

        Entries of `left` have the size 1 / sqrt(rank): a first step of the right factor then
        moves the matrix as far as a step of the entries themselves would, lr * unit.
        """
        weight = projection.weight
        unit = float(weight.float().square().mean().sqrt())
        if not 0 < unit < float("inf"):
            raise NonFiniteError(
                f"the RMS of {projection.name} is {unit}: the matrix is zero or not finite. "
                "Reload the model from its source."
            )
        (d_mlp, d_model), device = weight.shape, weight.device
        if settings.rank is None:
            factors = [torch.zeros(d_mlp, d_model)]
        else:
            left = torch.randn(d_mlp, settings.rank, generator=generator) / settings.rank**0.5
            factors = [left, torch.zeros(d_model, settings.rank)]
        return cls(projection, unit, tuple(f.to(device).requires_grad_() for f in factors))

    def dense(self) -> Float[Tensor, "d_mlp d_model"]:
        """The change as it is now, float32."""
        if len(self.factors) == 1:
            return self.unit * self.factors[0]
        left, right = self.factors
        return left @ (self.unit * right).T

    def weight(self) -> Tensor:
        """The changed matrix as the model would hold it: in its dtype and layout."""
        return self.projection.changed(self.dense())

    def update(self) -> WeightUpdate:
        """The change as factors, every column shared by all facts."""
        if len(self.factors) == 1:
            left, right = factorised(self.dense().detach())
        else:
            left, right = self.factors[0].detach(), self.unit * self.factors[1].detach()
        return WeightUpdate(self.projection.name, left, right, (SHARED,) * left.shape[1])


def factorised(
    change: Float[Tensor, "d_mlp d_model"],
) -> tuple[Float[Tensor, "d_mlp rank"], Float[Tensor, "d_model rank"]]:
    """left @ right.T = change, exactly: the change and an identity of its smaller side.

    Adam's steps have full rank whatever the gradient's, so there is nothing to save by an SVD.
    """
    d_mlp, d_model = change.shape
    identity = torch.eye(min(d_mlp, d_model), device=change.device)
    return (change, identity) if d_model <= d_mlp else (identity, change.T.contiguous())


def _clip(trained: Sequence[Tensor], bound: float | None) -> None:
    if bound is not None:
        for tensor in trained:
            tensor.detach().clamp_(-bound, bound)


# -- the loss -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rows:
    """Facts that are run at once, with what does not change while the matrices do.

    Attributes:
        inputs: ids and mask; an object's last token is not fed.
        layer: the first block that is run.
        residual: the residual stream in front of it.
        keep: positions that are unembedded.
        where: [n_facts, n_target] which of them predicts each token of the object.
        target: [n_facts, n_target] the object's tokens.
        weight: [n_facts, n_target] 1 / (the object's tokens), 0 where it has no more.
    """

    inputs: dict[str, Tensor]
    layer: int
    residual: Float[Tensor, "n_facts n_tokens d_model"]
    keep: Int[Tensor, " n_kept"]
    where: Int[Tensor, "n_facts n_target"]
    target: Int[Tensor, "n_facts n_target"]
    weight: Float[Tensor, "n_facts n_target"]

    @classmethod
    def of(cls, model: EditableModel, rows: Sequence[Row], layer: int, at_end: bool) -> _Rows:
        """Encoded facts; `at_end` asks for all of an object at the prompt's last token."""
        device, width = model.device, max(row.n_target for row in rows)
        places = [
            [row.target_start - 1 + (0 if at_end else j) for j in range(row.n_target)]
            for row in rows
        ]
        kept = sorted({place for some in places for place in some})
        where = torch.zeros(len(rows), width, dtype=torch.long)
        target, weight = torch.zeros_like(where), torch.zeros(len(rows), width)
        for i, (row, some) in enumerate(zip(rows, places, strict=True)):
            where[i, : row.n_target] = torch.tensor([kept.index(place) for place in some])
            target[i, : row.n_target] = torch.tensor(row.ids[row.target_start :])
            weight[i, : row.n_target] = 1 / row.n_target
        inputs = model.pad([row.ids[:-1] for row in rows])
        name = f"blocks.{layer}.hook_resid_pre"
        residual = model.activations(inputs, [name])[name]
        moved = (torch.tensor(kept), where, target, weight)
        return cls(inputs, layer, residual, *(tensor.to(device) for tensor in moved))


def _batches(
    model: EditableModel,
    facts: Sequence[Fact],
    layer: int,
    settings: FineTuneSettings,
    generator: torch.Generator,
) -> list[list[_Rows]]:
    """The facts of each step of Adam, as groups that fit into memory."""
    rows = model.encode([Sentence(f.prompt, f.subject, f.new_object) for f in facts])
    at_end = settings.loss == "prompt-end"
    found = []
    for chosen in torch.randperm(len(rows), generator=generator).split(settings.facts_per_step):
        some = [rows[i] for i in chosen.tolist()]
        groups = micro_batches([len(row.ids) for row in some], TOKENS_PER_BATCH)
        found.append([_Rows.of(model, [some[i] for i in g], layer, at_end) for g in groups])
    return found


def _accumulate(model: EditableModel, changes: Sequence[_Change], batch: Sequence[_Rows]) -> float:
    """The mean loss of a batch; its gradient is added to that of the factors."""
    total = 0.0
    for rows in batch:
        loss = _loss(model, rows, {c.projection.name: c.weight() for c in changes}).sum()
        loss = loss / _count(batch)
        loss.backward()
        total += float(loss.detach())
    if not total < float("inf"):
        raise NonFiniteError(
            "the loss of fine-tuning is not finite: the model's activations overflow or its "
            "weights hold NaN. Check the weights, lower the rate, or load the model in float32."
        )
    return total


def _loss(model: EditableModel, rows: _Rows, weights: dict[str, Any]) -> Float[Tensor, " n_facts"]:
    """Mean -log p over the tokens of each object, with some weights replaced."""
    with model.start_at(rows.layer, rows.residual):
        logits = model.forward(rows.inputs, keep=rows.keep, weights=weights).float()
    index = torch.arange(len(logits), device=logits.device)[:, None]
    log_probs = logits.log_softmax(-1)[index, rows.where]
    taken = log_probs.gather(-1, rows.target[..., None])[..., 0]
    return -(taken * rows.weight).sum(1)


def _count(batch: Sequence[_Rows]) -> int:
    return sum(len(rows.target) for rows in batch)
