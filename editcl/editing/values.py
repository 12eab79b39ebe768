"""v*: the output of one MLP that makes the model say the new object, for many facts at once.

v* = v0 + delta, delta = argmin of
    mean_j -log p(o* | x_j + prompt; v := v + delta)                       (the new object)
  + kl * sum_e KL(p(. | e; v + delta) || p(. | e))                         (essence prompts e)
  + decay * ||delta|| / ||v0||^2                                           (published scale only)
by Adam, with ||delta|| kept within a clamp. ROME, arXiv:2202.05262, eq. 4; the norm in the decay
is not squared, as in the authors' code. Only what delta can change is recomputed (`partial.py`),
every fact of a batch takes its own steps, and facts that have converged leave the batch.
Knows nothing of keys, covariance or weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from editcl.encoding import Row, Sentence
from editcl.errors import NonFiniteError
from editcl.facts import Fact
from editcl.model import EditableModel, Hook, micro_batches
from editcl.partial import SuffixRun, frozen_parameters


@dataclass(frozen=True)
class ValueSettings:
    """How v* is sought.

    Attributes:
        steps: evaluations of the loss at most; the last one takes no step.
        lr: Adam's learning rate on z, delta = z * unit.
        clamp: bound of ||delta|| in units of the reference norm.
        kl: weight of each essence prompt's divergence.
        decay: weight of the decay.
        stop: a fact has converged when its loss falls below this.
        scale: "residual": unit = ||h|| / sqrt(d_model) and reference ||h||, h the residual stream
            behind the layer, so that one setting serves every layer of every model. "absolute":
            unit = 1 and reference ||v0||, as published.
        stop_on: "object": the new object's loss alone decides convergence; "total": everything.
        essence_at: where an essence prompt's prediction is held: at its "end", as the paper says,
            or at the "subject"'s last token, where the authors' code takes it.
    """

    steps: int = 25
    lr: float = 0.2
    clamp: float = 2.0
    kl: float = 0.1
    decay: float = 0.0
    stop: float = 0.05
    scale: Literal["residual", "absolute"] = "residual"
    stop_on: Literal["object", "total"] = "object"
    essence_at: Literal["end", "subject"] = "end"


@dataclass(frozen=True)
class Values:
    """Optimised values of a batch of facts, float32.

    Attributes:
        delta: [n_facts, d_model] what to add to the value at the subject's last token.
        bare: [n_facts, d_model] v0, the value there with the bare prompt.
        residual_norm: [n_facts] ||h|| behind the layer.
        loss, object_loss: [n_facts] at the last evaluation.
        steps: [n_facts] evaluations of the loss.
    """

    delta: Float[Tensor, "n_facts d_model"]
    bare: Float[Tensor, "n_facts d_model"]
    residual_norm: Float[Tensor, " n_facts"]
    loss: Float[Tensor, " n_facts"]
    object_loss: Float[Tensor, " n_facts"]
    steps: Int[Tensor, " n_facts"]


@dataclass(frozen=True)
class _Rows:
    """The rows of a batch of facts, those of the object first per fact.

    Attributes:
        rows: encoded rows.
        fact: [n_rows] which fact a row belongs to.
        is_object: [n_rows] whether it carries the new object (else an essence prompt).
    """

    rows: list[Row]
    fact: Int[Tensor, " n_rows"]
    is_object: Tensor


def optimise_values(
    model: EditableModel,
    facts: Sequence[Fact],
    layer: int,
    contexts: Sequence[str],
    essence: Sequence[Sequence[str]],
    settings: ValueSettings,
    *,
    tokens_per_batch: int = 8192,
) -> Values:
    """v* of every fact at one layer.

    Args:
        model: the model, unchanged afterwards.
        facts: what to make it say.
        layer: whose down-projection's output is sought.
        contexts: texts in front of the prompt; the first is the bare prompt "".
        essence: per fact, prompts with `{}` whose next-token distribution is to stay.
        settings: step size, clamp, weights.
        tokens_per_batch: bound of the tokens that are run at once.

    Raises:
        NonFiniteError: the loss is not finite.
        FactError: a text can't be encoded.
    """
    assert contexts and contexts[0] == "", "the first context is the bare prompt"
    encoded = _encode(model, facts, contexts, essence)
    cost = [sum(len(r.ids) - r.subject_last for r in rows) for rows, _ in encoded]
    parts: dict[int, Values] = {}
    with frozen_parameters(model):
        for chosen in micro_batches(cost, tokens_per_batch):
            values = _optimise(model, _collect([encoded[i] for i in chosen]), layer, settings)
            for place, i in enumerate(chosen):
                parts[i] = _pick(values, place)
    fields = Values.__dataclass_fields__
    ordered = [parts[i] for i in range(len(facts))]
    return Values(**{name: torch.cat([getattr(p, name) for p in ordered]) for name in fields})


def _pick(values: Values, i: int) -> Values:
    return Values(**{n: getattr(values, n)[i : i + 1] for n in Values.__dataclass_fields__})


def _encode(
    model: EditableModel,
    facts: Sequence[Fact],
    contexts: Sequence[str],
    essence: Sequence[Sequence[str]],
) -> list[tuple[list[Row], list[bool]]]:
    """Per fact: its rows, and which carry the object. The object's last token is never fed."""
    sentences, kinds = [], []
    for fact, prompts in zip(facts, essence, strict=True):
        mine = [Sentence(fact.prompt, fact.subject, fact.new_object, c) for c in contexts]
        sentences.append(mine + [Sentence(p, fact.subject) for p in prompts])
        kinds.append([True] * len(mine) + [False] * len(prompts))
    rows = iter(model.encode([s for group in sentences for s in group]))
    return [([next(rows) for _ in kind], kind) for kind in kinds]


def _collect(encoded: Sequence[tuple[list[Row], list[bool]]]) -> _Rows:
    rows = [row for group, _ in encoded for row in group]
    fact = [i for i, (group, _) in enumerate(encoded) for _ in group]
    kinds = [kind for _, group in encoded for kind in group]
    return _Rows(rows, torch.tensor(fact), torch.tensor(kinds))


class _Objective:
    """The loss of a batch of facts as a function of delta; holds what does not change."""

    def __init__(
        self, model: EditableModel, batch: _Rows, layer: int, settings: ValueSettings
    ) -> None:
        self.model, self.layer = model, layer
        ids = [row.ids[:-1] if row.n_target else row.ids for row in batch.rows]
        starts = [row.subject_last for row in batch.rows]
        self.run = SuffixRun.prepare(model, ids, starts, layer)
        device = model.device
        self.fact, self.is_object = batch.fact.to(device), batch.is_object.to(device)
        self.n_facts = int(batch.fact[-1]) + 1
        # Positions of the suffix whose prediction counts: in front of each object token, and the
        # last one of an essence prompt.
        at_end = settings.essence_at == "end"
        spans = [
            (r.target_start - 1 - r.subject_last if r.n_target or at_end else 0, max(r.n_target, 1))
            for r in batch.rows
        ]
        kept = sorted({first + i for first, count in spans for i in range(count)})
        self.keep = torch.tensor(kept, device=device)
        place = {position: i for i, position in enumerate(kept)}
        width = max(count for _, count in spans)
        self.where = torch.zeros(len(spans), width, dtype=torch.long)
        self.target = torch.zeros(len(spans), width, dtype=torch.long)
        self.weight = torch.zeros(len(spans), width)
        for i, ((first, count), row) in enumerate(zip(spans, batch.rows, strict=True)):
            self.where[i, :count] = torch.tensor([place[first + j] for j in range(count)])
            if row.n_target:
                self.target[i, :count] = torch.tensor(row.ids[row.target_start :])
                self.weight[i, :count] = 1 / count
        self.where, self.target = self.where.to(device), self.target.to(device)
        self.weight = self.weight.to(device)
        self.essence: Tensor | None = None

    def at_start(self) -> tuple[Tensor, Tensor]:
        """Value and residual-stream norm at the subject's last token of each bare prompt."""
        found: dict[str, Tensor] = {}

        def save(activation: Tensor, hook: Hook) -> None:
            # A copy: some blocks (Falcon) add to the MLP's output in place.
            found[hook.name] = activation[:, 0].detach().clone().float()

        names = [f"blocks.{self.layer}.mlp.out.hook_out", f"blocks.{self.layer}.hook_resid_post"]
        with torch.no_grad(), self.model.hooks(dict.fromkeys(names, save)):
            logits = self.run.logits(self.keep).float()
        self.essence = self._essence(logits)
        first = torch.stack([(self.fact == i).nonzero()[0, 0] for i in range(self.n_facts)])
        return found[names[0]][first], found[names[1]][first].norm(dim=-1)

    def __call__(self, delta: Float[Tensor, "n_facts d_model"]) -> tuple[Tensor, Tensor]:
        """[n_facts] loss of the object and, unweighted, divergence on the essence prompts."""

        def add(value: Tensor, _hook: Hook) -> Tensor:
            shifted = value[:, 0].float() + delta[self.fact]
            return torch.cat([shifted.to(value.dtype)[:, None], value[:, 1:]], dim=1)

        with self.model.hooks({f"blocks.{self.layer}.mlp.out.hook_out": add}):
            logits = self.run.logits(self.keep).float()
        rows = torch.arange(len(logits), device=logits.device)
        log_probs = logits[rows[:, None], self.where].log_softmax(-1)
        taken = log_probs.gather(-1, self.target[..., None])[..., 0]
        each = -(taken * self.weight).sum(1)
        zeros = torch.zeros(self.n_facts, device=logits.device)
        count = zeros.index_add(0, self.fact, self.is_object.float())
        nll = zeros.index_add(0, self.fact, each) / count
        divergence = zeros
        if self.essence is not None:
            now = self._essence(logits)
            assert now is not None
            kl = (now.exp() * (now - self.essence)).sum(-1)
            divergence = zeros.index_add(0, self.fact[~self.is_object], kl)
        return nll, divergence

    def _essence(self, logits: Tensor) -> Tensor | None:
        """Log-probabilities at the end of the essence prompts; None if there are none."""
        rows = (~self.is_object).nonzero()[:, 0]
        if not len(rows):
            return None
        return logits[rows, self.where[rows, 0]].log_softmax(-1)

    def select(self, facts: Int[Tensor, " n_chosen"]) -> _Objective:
        """The objective of some of the facts, renumbered."""
        new_number = torch.full((self.n_facts,), -1, device=self.fact.device)
        new_number[facts] = torch.arange(len(facts), device=self.fact.device)
        rows = (new_number[self.fact] >= 0).nonzero()[:, 0]
        twin = object.__new__(_Objective)
        twin.__dict__.update(self.__dict__)
        twin.run = self.run.select(rows)
        twin.fact, twin.n_facts = new_number[self.fact[rows]], len(facts)
        twin.where, twin.target = self.where[rows], self.target[rows]
        twin.weight, twin.is_object = self.weight[rows], self.is_object[rows]
        if self.essence is not None:
            chosen = new_number[self.fact[~self.is_object]] >= 0
            twin.essence = self.essence[chosen]
        return twin


def _optimise(model: EditableModel, batch: _Rows, layer: int, settings: ValueSettings) -> Values:
    objective = _Objective(model, batch, layer, settings)
    bare, residual_norm = objective.at_start()
    n_facts, d_model = bare.shape
    if settings.scale == "residual":
        unit, reference = residual_norm / d_model**0.5, residual_norm
    else:
        unit, reference = torch.ones_like(residual_norm), bare.norm(dim=-1)
    result = Values(
        delta=torch.zeros_like(bare),
        bare=bare,
        residual_norm=residual_norm,
        loss=torch.zeros(n_facts, device=bare.device),
        object_loss=torch.zeros(n_facts, device=bare.device),
        steps=torch.zeros(n_facts, dtype=torch.long, device=bare.device),
    )
    left = torch.arange(n_facts, device=bare.device)
    z, adam = torch.zeros_like(bare), _Adam.start(bare)
    for step in range(settings.steps):
        z.requires_grad_(True)
        delta = z * unit[left, None]
        nll, divergence = objective(delta)
        decay = settings.decay * delta.norm(dim=-1) / bare[left].norm(dim=-1) ** 2
        loss = nll + settings.kl * divergence + decay
        _check(loss)
        judged = nll if settings.stop_on == "object" else loss
        result.delta[left], result.loss[left] = delta.detach(), loss.detach()
        result.object_loss[left], result.steps[left] = nll.detach(), step + 1
        going = judged.detach() >= settings.stop
        if step == settings.steps - 1 or not bool(going.any()):
            break
        (gradient,) = torch.autograd.grad(loss.sum(), z)
        z, adam = adam.step(z.detach(), gradient, settings.lr)
        norm = z.norm(dim=-1) * unit[left]
        shrink = (settings.clamp * reference[left] / norm.clamp(min=1e-30)).clamp(max=1)
        z = z * shrink[:, None]
        # A converged fact leaves at once: its v* must not depend on the batch it was in.
        if not bool(going.all()):
            stay = going.nonzero()[:, 0]
            objective, left, z = objective.select(stay), left[stay], z[stay]
            adam = adam.select(stay)
    return result


def _check(loss: Tensor) -> None:
    if not bool(torch.isfinite(loss).all()):
        raise NonFiniteError(
            "the loss of v* is not finite: the model's activations overflow or its weights hold "
            "NaN. Check the weights, or load the model in float32 or bfloat16."
        )


@dataclass(frozen=True)
class _Adam:
    """Adam's state (arXiv:1412.6980) as a value, so that converged facts can leave the batch."""

    first: Tensor
    second: Tensor
    count: int = 0

    @classmethod
    def start(cls, like: Tensor) -> _Adam:
        return cls(torch.zeros_like(like), torch.zeros_like(like))

    def step(self, z: Tensor, gradient: Tensor, lr: float) -> tuple[Tensor, _Adam]:
        beta1, beta2, epsilon = 0.9, 0.999, 1e-8
        first = beta1 * self.first + (1 - beta1) * gradient
        second = beta2 * self.second + (1 - beta2) * gradient**2
        count = self.count + 1
        root = (second / (1 - beta2**count)).sqrt() + epsilon
        return z - lr * first / (1 - beta1**count) / root, _Adam(first, second, count)

    def select(self, index: Tensor) -> _Adam:
        return replace(self, first=self.first[index], second=self.second[index])
