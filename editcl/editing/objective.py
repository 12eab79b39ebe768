"""The loss of v* for a batch of facts, as a function of delta, at as little cost as there is.

Only what delta can change is recomputed (`partial.py`): positions from the subject's last token on,
blocks above the edited layer, and in the last block no more than what predicts something. Rows
that carry the object and essence prompts are run apart, so that no row of the vocabulary is copied
or padded; their losses know their own gradients with respect to the logits a:

    log p(t) = a_t - logsumexp(a)             d/da = onehot(t) - p
    KL(p || q) = sum_i p_i log(p_i / q_i)     d/da_i = p_i (log(p_i / q_i) - KL)

Knows nothing of optimisers and settings. Long because the objective and its selection are one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from editcl.encoding import Row
from editcl.hooks import HookFunction
from editcl.model import EditableModel, Hook
from editcl.partial import SuffixRun, adds_what_it_writes

PART = 256  # tokens that are worth a pass of their own on a CPU
GPU_PART = 2048  # on a GPU, which fewer tokens leave idle


@dataclass(frozen=True)
class Rows:
    """The rows of a batch of facts.

    Attributes:
        rows: encoded rows.
        fact: [n_rows] which fact a row belongs to.
        is_object: [n_rows] whether it carries the new object (else an essence prompt).
        is_joint: [n_rows] whether it sees the deltas of the fact's whole group, or its own alone.
        group: [n_facts] which group a fact belongs to; ascending.
    """

    rows: list[Row]
    fact: Int[Tensor, " n_rows"]
    is_object: Tensor
    is_joint: Tensor
    group: Int[Tensor, " n_facts"]

    @classmethod
    def cat(cls, parts: Sequence[Rows]) -> Rows:
        """Several batches side by side, facts and groups renumbered."""
        facts, groups, n_facts, n_groups = [], [], 0, 0
        for part in parts:
            facts.append(part.fact + n_facts)
            groups.append(part.group + n_groups)
            n_facts, n_groups = n_facts + len(part.group), n_groups + int(part.group[-1]) + 1
        return cls(
            [row for part in parts for row in part.rows],
            torch.cat(facts),
            torch.cat([part.is_object for part in parts]),
            torch.cat([part.is_joint for part in parts]),
            torch.cat(groups),
        )


class _LogProb(torch.autograd.Function):
    """[n] log-probability of a token under each row of logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, token: Tensor) -> Tensor:
        log_probs = logits.float().log_softmax(-1)
        ctx.save_for_backward(log_probs, token)
        ctx.dtype = logits.dtype
        return log_probs.gather(-1, token[:, None])[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        log_probs, token = ctx.saved_tensors
        own = upstream[0][:, None]
        gradient = log_probs.exp().mul_(-own)
        gradient.scatter_add_(1, token[:, None], own)
        return gradient.to(ctx.dtype), None


class _Divergence(torch.autograd.Function):
    """[n] KL(p || q), p by each row of logits, q by rows of log-probabilities."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, held: Tensor) -> Tensor:
        log_probs = logits.float().log_softmax(-1)
        probs, ratio = log_probs.exp(), log_probs.sub_(held)
        found = (probs * ratio).sum(-1)
        ctx.save_for_backward(probs, ratio, found)
        ctx.dtype = logits.dtype
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        probs, ratio, found = ctx.saved_tensors
        gradient = (ratio - found[:, None]).mul_(probs).mul_(upstream[0][:, None])
        return gradient.to(ctx.dtype), None


def log_prob(logits: Float[Tensor, "n d_vocab"], token: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Log-probability of a token (nats) under each row of logits, in float32."""
    return cast(Tensor, _LogProb.apply(logits, token))


def divergence(
    logits: Float[Tensor, "n d_vocab"], held: Float[Tensor, "n d_vocab"]
) -> Float[Tensor, " n"]:
    """KL (nats) from rows of log-probabilities `held` to those of the logits, in float32."""
    return cast(Tensor, _Divergence.apply(logits, held))


@dataclass(frozen=True)
class _Part:
    """Rows of one kind and of about one length, run together.

    Attributes:
        run: from their subjects' last tokens on.
        rows: [n_part] their places in `Objective`'s rows.
        at: (row of the part, suffix position) of each prediction that counts.
        fact: [n_at] the fact that a prediction belongs to.
        token: [n_at] what is predicted; None on essence prompts.
        weight: [n_at] of a prediction in the mean log-probability of its fact.
        held: [n_at, d_vocab] log-probabilities that essence prompts are to keep; None before they
            are known, and on rows that carry the object.
    """

    run: SuffixRun
    rows: Int[Tensor, " n_part"]
    at: tuple[Int[Tensor, " n_at"], Int[Tensor, " n_at"]]
    fact: Int[Tensor, " n_at"]
    token: Int[Tensor, " n_at"] | None
    weight: Float[Tensor, " n_at"]
    held: Float[Tensor, "n_at d_vocab"] | None = None

    def select(self, stay: Int[Tensor, " n_chosen"], new_row: Tensor, new_fact: Tensor) -> _Part:
        """The same of some of its rows, with the rows and facts renumbered."""
        number = torch.full((len(self.rows),), -1, device=self.rows.device)
        number[stay] = torch.arange(len(stay), device=self.rows.device)
        kept = (number[self.at[0]] >= 0).nonzero()[:, 0]
        return _Part(
            self.run.select(stay),
            new_row[self.rows[stay]],
            (number[self.at[0][kept]], self.at[1][kept]),
            new_fact[self.fact[kept]],
            None if self.token is None else self.token[kept],
            self.weight[kept],
            None if self.held is None else self.held[kept],
        )


class Objective:
    """The loss of a batch of facts as a function of delta; holds what does not change.

    Where the MLP's output is added to the residual stream as it is, nothing but the stream at the
    subject's last token depends on delta behind the edited block: the runs begin above it.

    Args:
        model: whose weights are frozen.
        batch: the facts' rows.
        layer: whose down-projection's output delta is added to.
        at_end: whether an essence prompt's prediction is held at its end, or else at the subject's
            last token.
        with_attention: a second delta is added to what the layer's attention writes.
    """

    def __init__(
        self,
        model: EditableModel,
        batch: Rows,
        layer: int,
        *,
        at_end: bool = True,
        with_attention: bool = False,
    ) -> None:
        self.model = model
        self.sites = [f"blocks.{layer}.mlp.out.hook_out"]
        self.sites += [f"blocks.{layer}.hook_attn_out"] * with_attention
        self.above = (
            not with_attention and layer + 1 < model.n_layers and adds_what_it_writes(model, layer)
        )
        self.layer, device = layer, model.device
        self.fact, self.is_joint = batch.fact.to(device), batch.is_joint.to(device)
        self.group, self.n_facts = batch.group.to(device), len(batch.group)
        # A fact's loss is the mean over its rows, each row's that over the object's tokens.
        stated = torch.bincount(batch.fact[batch.is_object], minlength=self.n_facts).tolist()
        self.bare = torch.empty(len(batch.rows), model.d_model, device=device)
        self.residual_norm = torch.empty(len(batch.rows), device=device)
        told = batch.is_object.tolist()
        self.parts: list[_Part] = []
        for kind in (True, False):
            own = [i for i, is_object in enumerate(told) if is_object == kind]
            self.parts += self._prepare(batch, own, stated, at_end)

    def _prepare(
        self, batch: Rows, own: Sequence[int], stated: Sequence[int], at_end: bool
    ) -> list[_Part]:
        """Runs everything that doesn't change on rows of one kind; notes value and residual
        stream at the start."""
        names = [self.sites[0], f"blocks.{self.layer}.hook_resid_post"]
        rows = [batch.rows[i] for i in own]
        starts = [row.subject_last for row in rows]
        # Nothing behind the last prediction is run.
        ids = [
            row.ids[:-1] if row.n_target else row.ids[: None if at_end else row.subject_last + 1]
            for row in rows
        ]
        worth = GPU_PART if self.model.device.type == "cuda" else PART
        parts = []
        for chosen in _alike([len(i) - s for i, s in zip(ids, starts, strict=True)], worth):
            run, found = SuffixRun.prepare(
                self.model,
                [ids[i] for i in chosen],
                [starts[i] for i in chosen],
                self.layer + self.above,
                names if self.above else (),
            )
            if not self.above:
                found = self._at_layer(run, names)
            place = torch.tensor([own[i] for i in chosen], device=self.model.device)
            self.bare[place] = found[names[0]][:, 0].float()
            self.residual_norm[place] = found[names[1]][:, 0].float().norm(dim=-1)
            parts.append(self._part(run, place, [rows[i] for i in chosen], stated, at_end))
        return parts

    def _part(
        self,
        run: SuffixRun,
        place: Int[Tensor, " n_part"],
        rows: Sequence[Row],
        stated: Sequence[int],
        at_end: bool,
    ) -> _Part:
        """What is predicted: in front of each object token, and once on an essence prompt."""
        owner, position, token, weight = [], [], [], []
        facts = self.fact[place].tolist()
        for i, row in enumerate(rows):
            count = max(row.n_target, 1)
            first = row.target_start - 1 - row.subject_last if row.n_target or at_end else 0
            owner += [i] * count
            position += [first + j for j in range(count)]
            token += list(row.ids[row.target_start :])
            weight += [1 / (count * max(1, stated[facts[i]]))] * count
        device = self.model.device
        where = torch.tensor(owner, device=device), torch.tensor(position, device=device)
        return _Part(
            run,
            place,
            where,
            self.fact[place][where[0]],
            torch.tensor(token, device=device) if token else None,
            torch.tensor(weight, device=device),
        )

    def _at_layer(self, run: SuffixRun, names: Sequence[str]) -> dict[str, Tensor]:
        """Activations at the edited block itself, which the run begins with."""
        found: dict[str, Tensor] = {}

        def save(activation: Tensor, hook: Hook) -> None:
            # A copy: some blocks (Falcon) add to the MLP's output in place.
            found[hook.name] = activation.detach().clone()

        nowhere = torch.zeros(1, dtype=torch.long, device=self.model.device)
        with torch.no_grad(), self.model.hooks(dict.fromkeys(names, save)):
            run.logits((nowhere, nowhere))
        return found

    def at_start(self) -> tuple[Tensor, Tensor]:
        """Value and residual-stream norm at the subject's last token of each bare prompt.

        Also keeps what the essence prompts are to be held at.
        """
        with torch.no_grad():
            self.parts = [
                part
                if part.token is not None
                else replace(part, held=self._logits(part, None).float().log_softmax(-1))
                for part in self.parts
            ]
        first = torch.stack([(self.fact == i).nonzero()[0, 0] for i in range(self.n_facts)])
        return self.bare[first], self.residual_norm[first]

    def __call__(self, deltas: Float[Tensor, "n_facts n_sites d_model"]) -> tuple[Tensor, Tensor]:
        """[n_facts] loss of the object and, unweighted, divergence on the essence prompts."""
        sums = torch.zeros_like(deltas).index_add(0, self.group, deltas)
        seen = torch.where(
            self.is_joint[:, None, None], sums[self.group[self.fact]], deltas[self.fact]
        )
        nll = kl = torch.zeros(self.n_facts, device=deltas.device)
        for part in self.parts:
            logits = self._logits(part, seen[part.rows])
            if part.token is not None:
                nll = nll.index_add(0, part.fact, -log_prob(logits, part.token) * part.weight)
            else:
                assert part.held is not None, "at_start comes first"
                kl = kl.index_add(0, part.fact, divergence(logits, part.held))
        return nll, kl

    def _logits(self, part: _Part, shifts: Tensor | None) -> Float[Tensor, "n_at d_vocab"]:
        """At the part's predictions, with shifts [n_part, n_sites, d_model] added."""
        if self.above:
            return part.run.logits(part.at, None if shifts is None else shifts[:, 0], narrow=True)
        if shifts is None:
            return part.run.logits(part.at)
        with self.model.hooks(dict.fromkeys(self.sites, self._adding(shifts))):
            return part.run.logits(part.at)

    def _adding(self, shifts: Tensor) -> HookFunction:
        """A hook function that adds the shifts of its site at the rows' starts."""

        def add(value: Tensor, hook: Hook) -> Tensor:
            shifted = value[:, 0].float() + shifts[:, self.sites.index(hook.name)]
            return torch.cat([shifted.to(value.dtype)[:, None], value[:, 1:]], dim=1)

        return add

    def any_in_group(self, flags: Tensor) -> Tensor:
        """[n_facts] whether the flag holds for any fact of the fact's group."""
        counts = torch.zeros(self.n_facts, device=flags.device)
        return counts.index_add(0, self.group, flags.float())[self.group] > 0

    def select(self, facts: Int[Tensor, " n_chosen"]) -> Objective:
        """The objective of some of the facts (whole groups), renumbered; it is past its start."""
        device = self.fact.device
        new_fact = torch.full((self.n_facts,), -1, device=device)
        new_fact[facts] = torch.arange(len(facts), device=device)
        rows = (new_fact[self.fact] >= 0).nonzero()[:, 0]
        new_row = torch.full((len(self.fact),), -1, device=device)
        new_row[rows] = torch.arange(len(rows), device=device)
        twin = object.__new__(Objective)
        twin.__dict__.update(self.__dict__)
        twin.fact, twin.n_facts = new_fact[self.fact[rows]], len(facts)
        twin.is_joint = self.is_joint[rows]
        twin.bare, twin.residual_norm = self.bare[rows], self.residual_norm[rows]
        twin.group = self.group[facts].unique(return_inverse=True)[1]
        twin.parts = []
        for part in self.parts:
            stay = (new_row[part.rows] >= 0).nonzero()[:, 0]
            if len(stay):
                twin.parts.append(part.select(stay, new_row, new_fact))
        return twin


def _alike(lengths: Sequence[int], worth: int) -> Iterable[list[int]]:
    """Indices in parts of about one length, so that little is run on padding.

    A part is begun where the length changes and the part has the tokens that are worth a pass.
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    part: list[int] = []
    for i in order:
        enough = len(part) * (lengths[part[0]] if part else 0) >= worth
        if enough and lengths[i] > lengths[part[0]]:
            yield sorted(part)
            part = []
        part.append(i)
    if part:
        yield sorted(part)
