"""Refinement: what many facts at once do to each other and to the rest is trained away.

A closed form meets each subject's value and bounds by their second moment what other keys get. With
hundreds of facts that bound is loose: the words around the subjects give out too, and the facts are
no longer said. So the columns of a solution, Delta_l = sum_i u_il r_il^T, are trained further,
every u_il as it was solved for, on what the *edited* model says:

    r* = argmin  sum_i [ max(nll_i, stop) + kl * sum_j KL_ij + text * KL_text ]
                 + sum_e max(nll_e, stop)

nll_i is the object's mean -log p in the fact's contexts, KL_ij the divergence at its essence
prompts from the model before the batch, KL_text that per token from the base on ordinary text that
names none of the subjects, and nll_e the loss of earlier edits' objects. Each fact keeps its own
columns, so that it rolls back alone as before.

Each step draws some of the prompts and takes them for all, the bare one and "{} is a" always, which
therefore count for more, and clamps sentence by sentence. Adam with one scale a column, as for v*,
on mini-batches, its step in units of the subject's residual stream. Knows no method's equation.
Long because objective and training are one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from editcl.editing.background import unrelated
from editcl.editing.contexts import rephrasings
from editcl.editing.essence import still_meant
from editcl.editing.objective import divergence, log_prob
from editcl.editing.values import PREDICTED, UNSAID, encode_facts, tokens_that_fit
from editcl.encoding import Row
from editcl.errors import NonFiniteError
from editcl.kernels import fused_activations
from editcl.model import EditableModel, micro_batches
from editcl.partial import frozen_parameters
from editcl.progress import progress
from editcl.update import WeightUpdate

if TYPE_CHECKING:
    from editcl.editing.plan import Plan, Solution
    from editcl.facts import Fact

ENOUGH = 50  # facts in the weights for which the closed form measures as well
FEW = 16  # facts that are not divided into several steps of a pass
TEXT_ROWS_OF_VOCABULARY = 20  # that a token of text keeps, in bytes: every one is predicted


@dataclass(frozen=True)
class Refinement:
    """How the columns of a solution are trained further.

    Attributes:
        passes: over the facts; in a later one those that hold already are seen every third time.
        facts_per_step: facts of one step of Adam; of fewer than three times as many a third.
        lr: Adam's rate at first, in units of ||h|| / sqrt(d_model); falls to zero.
        stated: sentences of a fact that are drawn for a step.
        held: essence prompts of a fact that are drawn for a step.
        text_rows: rows of ordinary text for a step of so many facts; for fewer, fewer.
        kl: weight of each essence prompt's divergence.
        text: weight of the divergence per token of ordinary text, once a fact.
        stop: an object's loss (nats) that is low enough.
        seed: of what is drawn.
    """

    passes: int = 10
    facts_per_step: int = 100
    lr: float = 0.02
    stated: int = 3
    held: int = 3
    text_rows: int = 16
    kl: float = 0.02
    text: float = 1.0
    stop: float = 0.02
    seed: int = 0


def worth_refining(n_facts: int) -> bool:
    """Whether so many facts in the weights are better refined where nobody says so."""
    return n_facts > ENOUGH


def refine(
    model: EditableModel,
    facts: Sequence[Fact],
    plan: Plan,
    solution: Solution,
) -> Solution:
    """The solution with its columns trained further; the model is as before.

    Args:
        model: the model before the batch.
        facts: the batch; column i of each update belongs to fact i.
        plan: with `refinement` and `background`.
        solution: with values.

    Raises:
        NonFiniteError: the loss is not finite.
    """
    settings, values = plan.refinement, solution.values
    assert settings is not None and plan.background is not None, "a plan of a refinement"
    assert values is not None and all(u.owner is None for u in solution.updates), "columns by fact"
    task = _Task.of(model, facts, plan)
    columns = _Columns.of(model, solution.updates, values.residual_norm / model.d_model**0.5)
    size = min(settings.facts_per_step, max(FEW, -(-len(facts) // 3)))
    drawn = random.Random(settings.seed)
    loss = torch.full((len(facts),), torch.inf)
    with frozen_parameters(model), fused_activations(model.hf), torch.enable_grad():
        for number in progress(range(settings.passes), "refining"):
            steps = list(_steps(loss, settings.stop, number, size, drawn))
            for k, chosen in enumerate(steps):
                task.gradient(columns, chosen, loss, drawn)
                columns.step(settings.lr * (1 - (number + k / len(steps)) / settings.passes))
    details = {
        "refinement": asdict(settings),
        "text_rows": len(task.texts),
        "refined_loss": round(float(loss.median()), 6),
        "unrefined": int((loss > UNSAID).sum()),
    }
    return replace(solution, updates=columns.updates(), details={**solution.details, **details})


def _steps(
    loss: Tensor, stop: float, number: int, size: int, drawn: random.Random
) -> Iterator[list[int]]:
    """The facts of each step of a pass: all that don't hold, and a third of those that do."""
    chosen = [i for i, seen in enumerate(loss.tolist()) if seen > stop or i % 3 == number % 3]
    drawn.shuffle(chosen)
    for begin in range(0, len(chosen), size):
        yield chosen[begin : begin + size]


@dataclass
class _Columns:
    """What is trained.

    Attributes:
        model: whose matrices are changed.
        start: the solution's updates.
        unit: [n_facts] of a step.
        right: [d_model, n_facts] of each update, trained.
        first, second: Adam's moments.
        count: steps so far.
    """

    model: EditableModel
    start: Sequence[WeightUpdate]
    unit: Float[Tensor, " n_facts"]
    right: list[Tensor]
    first: list[Tensor]
    second: list[Tensor]
    count: int = 0

    @classmethod
    def of(
        cls,
        model: EditableModel,
        updates: Sequence[WeightUpdate],
        unit: Float[Tensor, " n_facts"],
    ) -> _Columns:
        right = [u.right.float().clone().requires_grad_() for u in updates]
        zeros = [torch.zeros_like(r) for r in right]
        return cls(model, updates, unit, right, zeros, [z.clone() for z in zeros])

    def weights(self) -> dict[str, Tensor]:
        """The edited matrices as functions of what is trained, by parameter."""
        by_name = {p.name: p for p in self.model.map.projections}
        return {
            u.parameter: by_name[u.parameter].changed(u.left.float() @ right.T)
            for u, right in zip(self.start, self.right, strict=True)
        }

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """One step of Adam, one scale a column."""
        beta1, beta2, epsilon = 0.9, 0.99, 1e-8
        self.count += 1
        for right, first, second in zip(self.right, self.first, self.second, strict=True):
            gradient = right.grad
            assert gradient is not None, "there was a loss"
            first.mul_(beta1).add_(gradient, alpha=1 - beta1)
            second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            root = (second.mean(0) / (1 - beta2**self.count)).sqrt() + epsilon
            moved = first / (1 - beta1**self.count) / root
            right -= lr * self.unit * moved
            right.grad = None

    def updates(self) -> tuple[WeightUpdate, ...]:
        """The solution's updates with the columns as trained."""
        return tuple(
            replace(u, right=right.detach().to(u.right.dtype))
            for u, right in zip(self.start, self.right, strict=True)
        )


@dataclass(frozen=True)
class _Asked:
    """One row of a step: what is predicted there, or held.

    Attributes:
        row: the encoded sentence.
        weight: of its loss.
        fact: whose loss it tells; None for one that is held or of an earlier edit.
    """

    row: Row
    weight: float
    fact: int | None = None


@dataclass(frozen=True)
class _Task:
    """Rows of a batch, of earlier edits, and of text.

    Attributes:
        model: the model before the batch.
        settings: what is drawn, and its weights.
        stated, held: per fact, rows that carry the object, and essence prompts.
        earlier: per earlier fact, rows that carry its object.
        texts: ordinary text that names no edited subject.
        base: weights whose predictions on it are to stay.
    """

    model: EditableModel
    settings: Refinement
    stated: Sequence[Sequence[Row]]
    held: Sequence[Sequence[Row]]
    earlier: Sequence[Sequence[Row]]
    texts: Sequence[Sequence[int]]
    base: Mapping[str, Tensor]

    @classmethod
    def of(cls, model: EditableModel, facts: Sequence[Fact], plan: Plan) -> _Task:
        assert plan.refinement is not None and plan.background is not None, "a plan of it"
        rows = encode_facts(model, facts, plan.contexts, plan.rephrased, plan.essence)
        earlier = still_meant(plan.earlier, facts)
        others = None if plan.rephrased is None else [rephrasings(fact) for fact in earlier]
        before = encode_facts(model, earlier, plan.contexts, others, [()] * len(earlier))
        subjects = [fact.subject for fact in (*facts, *plan.earlier)]
        return cls(
            model,
            plan.refinement,
            [stated for stated, _ in rows],
            [held for _, held in rows],
            [stated for stated, _ in before],
            unrelated(model, plan.background.rows, subjects),
            plan.background.weights,
        )

    def gradient(
        self, columns: _Columns, chosen: Sequence[int], loss: Tensor, drawn: random.Random
    ) -> float:
        """The loss of a step; adds its gradient to the columns', and notes the facts' losses."""
        s, total = self.settings, 0.0
        told: list[_Asked] = []
        held: list[_Asked] = []
        for i in chosen:
            some = _draw(self.stated[i], s.stated, drawn)
            told += [_Asked(row, 1 / len(some), i) for row in some]
            some = _draw(self.held[i], s.held, drawn)
            held += [_Asked(row, s.kl * len(self.held[i]) / len(some)) for row in some]
        for rows in drawn.sample(self.earlier, min(len(self.earlier), len(chosen))):
            told.append(_Asked(drawn.choice(rows), 1.0))
        n_texts = -(-s.text_rows * len(chosen) // s.facts_per_step)
        texts = drawn.sample(self.texts, min(n_texts, len(self.texts)))
        seen = torch.zeros_like(loss)
        for part in self._parts([a.row.ids for a in told]):
            total += self._told([told[i] for i in part], columns, seen)
        for part in self._parts([a.row.ids for a in held]):
            total += self._held([held[i] for i in part], columns)
        for part in self._parts(texts, TEXT_ROWS_OF_VOCABULARY):
            per_token = s.text * len(chosen) / sum(map(len, texts))
            total += self._text([texts[i] for i in part], per_token, columns)
        loss[chosen] = seen[chosen]
        if not bool(torch.isfinite(loss[chosen]).all()):
            raise NonFiniteError(
                "the loss of the refinement is not finite: the model's activations overflow. "
                "Load the model in float32 or bfloat16, or edit with refine=False."
            )
        return total

    def _parts(
        self, rows: Sequence[Sequence[int]], vocabulary: int = PREDICTED
    ) -> Iterator[list[int]]:
        budget = tokens_that_fit(self.model, 0, vocabulary=vocabulary)
        return micro_batches([len(row) for row in rows], budget)

    def _told(self, asked: Sequence[_Asked], columns: _Columns, seen: Tensor) -> float:
        """max(nll, stop) of rows that carry an object."""
        rows = [a.row for a in asked]
        counts = torch.tensor([row.n_target for row in rows])
        owner = torch.arange(len(rows)).repeat_interleave(counts)
        place = [row.target_start - 1 + j for row in rows for j in range(row.n_target)]
        token = [t for row in rows for t in row.ids[row.target_start :]]
        device = self.model.device
        at = owner.to(device), torch.tensor(place, device=device)
        logits = self._logits([row.ids[:-1] for row in rows], at, columns.weights())
        taken = -log_prob(logits, torch.tensor(token, device=device))
        each = torch.zeros(len(rows), device=device).index_add(0, at[0], taken)
        each = each / counts.to(device)
        weight = torch.tensor([a.weight for a in asked], device=device)
        total = (each.clamp(min=self.settings.stop) * weight).sum()
        total.backward()
        mine = [k for k, a in enumerate(asked) if a.fact is not None]
        whose = torch.tensor([asked[k].fact for k in mine], dtype=torch.long)
        seen.index_add_(0, whose, (each * weight).detach().cpu()[mine])
        return float(total.detach())

    def _held(self, asked: Sequence[_Asked], columns: _Columns) -> float:
        """Divergence at the ends of essence prompts, from the model before the batch."""
        rows = [a.row.ids for a in asked]
        device = self.model.device
        ends = torch.tensor([len(row) - 1 for row in rows], device=device)
        at = torch.arange(len(rows), device=device), ends
        weight = torch.tensor([a.weight for a in asked], device=device)
        return self._diverge(rows, at, weight, {}, columns)

    def _text(self, rows: Sequence[Sequence[int]], weight: float, columns: _Columns) -> float:
        """Divergence at every token of ordinary text, from the base."""
        device = self.model.device
        owner = torch.tensor([i for i, row in enumerate(rows) for _ in row], device=device)
        place = torch.tensor([j for row in rows for j in range(len(row))], device=device)
        weights = torch.full((len(owner),), weight, device=device)
        return self._diverge(rows, (owner, place), weights, self.base, columns)

    def _diverge(
        self,
        rows: Sequence[Sequence[int]],
        at: tuple[Tensor, Tensor],
        weight: Tensor,
        reference: Mapping[str, Tensor],
        columns: _Columns,
    ) -> float:
        with torch.no_grad():
            held = self._logits(rows, at, reference).float().log_softmax(-1)
        logits = self._logits(rows, at, columns.weights())
        total = (divergence(logits, held) * weight).sum()
        total.backward()
        return float(total.detach())

    def _logits(
        self,
        rows: Sequence[Sequence[int]],
        at: tuple[Tensor, Tensor],
        weights: Mapping[str, Any],
    ) -> Float[Tensor, "n_at d_vocab"]:
        return self.model.forward(self.model.pad(rows), at=at, weights=weights)[0]


def _draw(rows: Sequence[Row], count: int, drawn: random.Random) -> list[Row]:
    """The first row (the bare prompt) and others by lot, up to so many."""
    return [*rows[:1], *drawn.sample(rows[1:], min(count - 1, len(rows) - 1))] if rows else []
