"""v*: the output of one MLP that makes the model say the new object, for many facts at once.

v* = v0 + delta, delta = argmin of
    mean_j -log p(o* | x_j + prompt; v := v + delta)                       (the new object)
  + kl * sum_e KL(p(. | e; v + delta) || p(. | e))                         (essence prompts e)
  + decay * ||delta|| / reference^2                                        (published scales only)
by Adam, with ||delta|| kept within a clamp. ROME, arXiv:2202.05262, eq. 4; the norm in the decay
is not squared, as in the authors' code. The first two terms are in `objective.py`. Every fact of a
batch takes its own steps, and facts that have converged leave the batch.

Facts of a *group* share a subject, hence the key, hence the value that the weights can give: what
is added there is the sum of their deltas. Each fact must hold with the sum in place and, so that
its mates can be taken back without it, with its own delta alone: the bare prompt is asked in both
ways, the other contexts in either by turns. Essence prompts see the sum, and what is held of the
subject is held once. n deltas together go n times as far as one, on average of directions sqrt(n)
times: mates take steps of lr / sqrt(n), and up to sqrt(n) times as many.
Knows nothing of keys, covariance or weights. Long because settings, groups and optimiser are one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from editcl.editing.contexts import spoken
from editcl.editing.objective import Objective, Rows
from editcl.editing.resume import Checkpoint
from editcl.encoding import Row, Sentence
from editcl.errors import EditclError, NonFiniteError
from editcl.facts import Fact
from editcl.kernels import fused_activations, small_attention
from editcl.model import EditableModel, micro_batches
from editcl.partial import frozen_parameters
from editcl.progress import progress

MEMORY = 1 << 30  # bytes that the activations of a micro-batch may take on a CPU, about
UNSAID = 0.7  # nats a token of an object: p below one half
PREDICTED = 5  # bytes per token and entry of the vocabulary: a quarter predicts something
SHARE = 4  # on a GPU: one part in so many of all that it has

_CHOICES = {
    "scale": ("residual", "absolute", "hidden"),
    "stop_on": ("object", "total"),
    "essence_at": ("end", "subject"),
    "adapt": ("fact", "coordinate"),
}


@dataclass(frozen=True)
class ValueSettings:
    """How v* is sought.

    Attributes:
        steps: evaluations of the loss at most, of a fact alone; the last one takes no step.
        lr: of a fact alone, Adam's learning rate on z, delta = z * unit.
        clamp: bound of ||delta|| in units of the reference norm.
        kl: weight of each essence prompt's divergence.
        decay: weight of the decay.
        stop: a fact has converged when its loss falls below this.
        scale: "residual": unit = ||h|| / sqrt(d_model) and reference ||h||, h the residual stream
            behind the layer, so that one setting serves every layer of every model. "absolute":
            unit = 1 and reference ||v0||, as published for ROME. "hidden": unit = 1 and reference
            ||h||, as published for MEMIT.
        stop_on: "object": the new object's loss alone decides convergence; "total": everything.
        essence_at: where an essence prompt's prediction is held: at its "end", as the paper says,
            or at the "subject"'s last token, where the authors' code takes it.
        adapt: Adam's step by "coordinate", as published, which moves every coordinate at first,
            whatever its gradient; or by "fact", one scale for the vector, so that delta stays in
            the span of the gradients and is a third smaller for the same effect.
        relax: over the second half of the steps let the weight of the divergence fall to zero, for
            the few facts that can't be had with all of it.
    """

    steps: int = 40
    lr: float = 0.2
    clamp: float = 2.0
    kl: float = 0.3
    decay: float = 0.0
    stop: float = 0.05
    scale: Literal["residual", "absolute", "hidden"] = "residual"
    stop_on: Literal["object", "total"] = "object"
    essence_at: Literal["end", "subject"] = "end"
    adapt: Literal["fact", "coordinate"] = "fact"
    relax: bool = True

    def __post_init__(self) -> None:
        if self.steps < 1 or not (self.lr > 0 and self.clamp > 0):
            raise EditclError(
                f"steps must be at least 1 and lr and clamp positive, got steps={self.steps}, "
                f"lr={self.lr}, clamp={self.clamp}."
            )
        if not (self.kl >= 0 and self.decay >= 0 and self.stop >= 0):
            raise EditclError(
                f"kl, decay and stop can't be negative, got {self.kl}, {self.decay}, {self.stop}."
            )
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise EditclError(f"{name} is one of {known}, got {getattr(self, name)!r}.")


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


def optimise_values(
    model: EditableModel,
    facts: Sequence[Fact],
    layer: int,
    contexts: Sequence[str],
    essence: Sequence[Sequence[str]],
    settings: ValueSettings,
    *,
    rephrased: Sequence[Sequence[str]] | None = None,
    groups: Sequence[int] | None = None,
    with_attention: bool = False,
    tokens_per_batch: int | None = None,
    checkpoint: Checkpoint | None = None,
) -> Values:
    """v* of every fact at one layer.

    Args:
        model: the model, unchanged afterwards.
        facts: what to make it say.
        layer: whose down-projection's output is sought.
        contexts: texts in front of the prompt; the first is the bare prompt "".
        essence: per fact, prompts with `{}` whose next-token distribution is to stay.
        settings: step size, clamp, weights.
        rephrased: per fact, further prompts that say it and take turns with its own.
        groups: per fact, a number that facts with one subject share; None: every fact alone.
        with_attention: also optimise what the layer's attention adds, and drop it (PMET).
        tokens_per_batch: bound of the tokens that are run at once; None: see `tokens_that_fit`.
        checkpoint: where finished micro-batches are kept and found again.

    Raises:
        NonFiniteError: the loss is not finite.
        FactError: a text can't be encoded.
    """
    assert contexts and contexts[0] == "", "the first context is the bare prompt"
    members: dict[int, list[int]] = {}
    for i, group in enumerate(range(len(facts)) if groups is None else groups):
        members.setdefault(group, []).append(i)
    together = list(members.values())
    encoded = encode_facts(model, facts, contexts, rephrased, essence)
    batches = [_join([encoded[i] for i in group]) for group in together]
    cost = [sum(len(r.ids) - r.subject_last for r in batch.rows) for batch in batches]
    parts: dict[int, Values] = {}
    budget = tokens_per_batch or tokens_that_fit(model, layer)
    chunks = list(micro_batches(cost, budget))
    with frozen_parameters(model), fused_activations(model.hf), small_attention(model.hf):
        for number, chosen in enumerate(progress(chunks, "values")):
            found = checkpoint.read(number) if checkpoint is not None else None
            n_facts = sum(len(together[g]) for g in chosen)
            if found is None or not _usable(found, n_facts, model.d_model):
                joined = Rows.cat([batches[g] for g in chosen])
                values = _optimise(model, joined, layer, settings, with_attention)
                if checkpoint is not None:
                    checkpoint.write(number, values.__dict__)
            else:
                values = Values(**{name: t.to(model.device) for name, t in found.items()})
            for place, i in enumerate(i for g in chosen for i in together[g]):
                parts[i] = _pick(values, place)
    return join_values([parts[i] for i in range(len(facts))])


def _usable(found: Mapping[str, Tensor], n_facts: int, d_model: int) -> bool:
    """Whether these are finite values of so many facts."""
    shapes = {"delta": (n_facts, d_model), "bare": (n_facts, d_model)}
    return found.keys() == Values.__dataclass_fields__.keys() and all(
        tensor.shape == shapes.get(name, (n_facts,))
        and tensor.is_floating_point() == (name != "steps")
        and bool(torch.isfinite(tensor).all())
        for name, tensor in found.items()
    )


def tokens_that_fit(model: EditableModel, layer: int, *, vocabulary: int = PREDICTED) -> int:
    """How many tokens of a micro-batch fit `MEMORY`, or on a GPU its own share of the card.

    A fixed amount rather than what is free just now: what a fact gets must not depend on what else
    the machine does. Per token and block about 12 d_model + 3 d_mlp numbers are kept for the way
    back, and at predicted positions, about a quarter of all, five rows of the vocabulary, float32.
    """
    memory = MEMORY
    if model.device.type == "cuda":
        total = torch.cuda.get_device_properties(model.device).total_memory
        weights = sum(p.numel() * p.itemsize for p in model.hf.parameters())
        memory = gpu_memory(total, weights)
    numbers = (model.n_layers - layer) * (12 * model.d_model + 3 * model.d_mlp)
    return max(512, memory // (model.dtype.itemsize * numbers + vocabulary * model.d_vocab))


def gpu_memory(total: int, weights: int) -> int:
    """Bytes for a micro-batch on a card of so many, of which the weights take so many."""
    return min(total // SHARE, max(0, total - weights) // 2)


def join_values(parts: Sequence[Values]) -> Values:
    """The values of several batches as those of one."""
    fields = Values.__dataclass_fields__
    return Values(**{name: torch.cat([getattr(p, name) for p in parts]) for name in fields})


def _pick(values: Values, i: int) -> Values:
    return Values(**{n: getattr(values, n)[i : i + 1] for n in Values.__dataclass_fields__})


def encode_facts(
    model: EditableModel,
    facts: Sequence[Fact],
    contexts: Sequence[str],
    rephrased: Sequence[Sequence[str]] | None,
    essence: Sequence[Sequence[str]],
) -> list[tuple[list[Row], list[Row]]]:
    """Per fact: rows that carry the object, one a context, and rows of the essence prompts."""
    sentences = []
    further = rephrased if rephrased is not None else [()] * len(facts)
    for fact, others, prompts in zip(facts, further, essence, strict=True):
        starts = spoken(fact, contexts, others)
        sentences += [replace(start, target=fact.new_object) for start in starts]
        sentences += [Sentence(p, fact.subject) for p in prompts]
    rows = iter(model.encode(sentences))
    return [([next(rows) for _ in contexts], [next(rows) for _ in prompts]) for prompts in essence]


def _join(members: Sequence[tuple[list[Row], list[Row]]]) -> Rows:
    """The rows of one group: of a fact alone, or of several that share a subject.

    An essence prompt that several of them hold is there once.
    """
    rows: list[Row] = []
    known: set[tuple[int, ...]] = set()
    facts: list[int] = []
    objects: list[bool] = []
    joints: list[bool] = []
    shared = len(members) > 1
    for i, (stated, essence) in enumerate(members):
        held = [row for row in essence if row.ids not in known]
        known |= {row.ids for row in held}
        asked = [(row, j % 2 == 0) for j, row in enumerate(stated)] if shared else []
        asked += [(stated[0], False)] if shared else [(row, True) for row in stated]
        rows += [row for row, _ in asked] + held
        facts += [i] * (len(asked) + len(held))
        objects += [True] * len(asked) + [False] * len(held)
        joints += [joint for _, joint in asked] + [True] * len(held)
    return Rows(
        rows,
        torch.tensor(facts),
        torch.tensor(objects),
        torch.tensor(joints),
        torch.zeros(len(members), dtype=torch.long),
    )


def _optimise(
    model: EditableModel,
    batch: Rows,
    layer: int,
    settings: ValueSettings,
    with_attention: bool,
) -> Values:
    objective = Objective(
        model,
        batch,
        layer,
        at_end=settings.essence_at == "end",
        with_attention=with_attention,
    )
    bare, residual_norm = objective.at_start()
    n_facts, d_model = bare.shape
    unit = residual_norm / d_model**0.5
    unit = unit if settings.scale == "residual" else torch.ones_like(unit)
    reference = bare.norm(dim=-1) if settings.scale == "absolute" else residual_norm
    result = Values(
        delta=torch.zeros_like(bare),
        bare=bare,
        residual_norm=residual_norm,
        loss=torch.zeros(n_facts, device=bare.device),
        object_loss=torch.zeros(n_facts, device=bare.device),
        steps=torch.zeros(n_facts, dtype=torch.long, device=bare.device),
    )
    left = torch.arange(n_facts, device=bare.device)
    mates = objective.group.bincount()[objective.group].float().sqrt()
    limit = (settings.steps * mates).round().long()
    z = torch.zeros(n_facts, len(objective.sites), d_model, device=bare.device)
    adam = _Adam.start(z)
    for step in range(int(limit.max())):
        z.requires_grad_(True)
        deltas = z * unit[left, None, None]
        delta = deltas[:, 0]
        nll, divergence = objective(deltas)
        decay = settings.decay * delta.norm(dim=-1) / reference[left] ** 2
        loss = nll + _divergence_weight(settings, step / limit[left]) * divergence + decay
        _check(loss)
        judged = nll if settings.stop_on == "object" else loss
        result.delta[left], result.loss[left] = delta.detach(), loss.detach()
        result.object_loss[left], result.steps[left] = nll.detach(), step + 1
        going = objective.any_in_group(judged.detach() >= settings.stop) & (step + 1 < limit[left])
        if not bool(going.any()):
            break
        (gradient,) = torch.autograd.grad(loss.sum(), z)
        lr = settings.lr / mates[left, None, None]
        z, adam = adam.step(z.detach(), gradient, lr, settings.adapt)
        norm = z.norm(dim=-1) * unit[left, None]
        shrink = settings.clamp * reference[left, None] / norm.clamp(min=1e-30)
        z = z * shrink.clamp(max=1)[..., None]
        # A converged fact leaves at once: its v* must not depend on the batch it was in.
        if not bool(going.all()):
            stay = going.nonzero()[:, 0]
            objective, left, z = objective.select(stay), left[stay], z[stay]
            adam = adam.select(stay)
    return result


def _divergence_weight(
    settings: ValueSettings, gone: Float[Tensor, " n_facts"]
) -> Float[Tensor, " n_facts"]:
    """Of the divergence, when so large a part of a fact's steps is gone."""
    return settings.kl * (
        (2 * (1 - gone)).clamp(max=1) if settings.relax else torch.ones_like(gone)
    )


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

    def step(self, z: Tensor, gradient: Tensor, lr: Tensor, adapt: str) -> tuple[Tensor, _Adam]:
        beta1, beta2, epsilon = 0.9, 0.999, 1e-8
        first = beta1 * self.first + (1 - beta1) * gradient
        second = beta2 * self.second + (1 - beta2) * gradient**2
        count = self.count + 1
        shown = second.mean(-1, keepdim=True) if adapt == "fact" else second
        root = (shown / (1 - beta2**count)).sqrt() + epsilon
        return z - lr * first / (1 - beta1**count) / root, _Adam(first, second, count)

    def select(self, index: Tensor) -> _Adam:
        return replace(self, first=self.first[index], second=self.second[index])
