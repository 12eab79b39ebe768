"""The published procedure of ROME, written out plainly, to measure against (arXiv:2202.05262).

One fact, the full model on every token at every step, a torch.optim.Adam on delta, the whole
sequence through the unembedding. Parameters take no gradients, as in the authors' code. Used by
benchmarks and as an oracle in tests; the library itself never calls it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from editcl.editing.values import ValueSettings
from editcl.encoding import Sentence
from editcl.facts import Fact
from editcl.model import EditableModel, Hook
from editcl.partial import frozen_parameters


@dataclass(frozen=True)
class PublishedValue:
    """v* of one fact.

    Attributes:
        delta: v* minus the value at the bare prompt.
        bare: that value.
        loss: at the last evaluation.
    """

    delta: Float[Tensor, " d_model"]
    bare: Float[Tensor, " d_model"]
    loss: float


@dataclass(frozen=True)
class PublishedEdit:
    """What the published procedure gives for one fact.

    Attributes:
        left, right: the factors of the update, Delta = left right^T, [d_mlp] and [d_model].
        value: v*, [d_model].
        delta: v* minus the value at the bare prompt.
    """

    left: Float[Tensor, " d_mlp"]
    right: Float[Tensor, " d_model"]
    value: Float[Tensor, " d_model"]
    delta: Float[Tensor, " d_model"]


def published_value(
    model: EditableModel,
    fact: Fact,
    layer: int,
    contexts: Sequence[str],
    essence: Sequence[str],
    settings: ValueSettings,
) -> PublishedValue:
    """v* by full forward and backward passes."""
    assert settings.scale == "absolute" and settings.essence_at == "subject", (
        "the published procedure knows the absolute scale and divergence at the subject only"
    )
    sentences = [Sentence(fact.prompt, fact.subject, fact.new_object, c) for c in contexts]
    rows = model.encode(sentences + [Sentence(p, fact.subject) for p in essence])
    n_object = len(contexts)
    inputs = model.pad([row.ids[:-1] if row.n_target else row.ids for row in rows])
    targets = torch.full_like(inputs["input_ids"], -100)
    for i, row in enumerate(rows[:n_object]):
        targets[i, row.target_start - 1 : len(row.ids) - 1] = torch.tensor(
            row.ids[row.target_start :]
        )
    lookup = [row.subject_last for row in rows]
    delta = torch.zeros(model.d_model, device=model.device, requires_grad=True)
    bare: list[Tensor] = []
    base_log_probs: Tensor | None = None

    def shift(value: Tensor, _hook: Hook) -> Tensor:
        if not bare:
            bare.append(value[0, lookup[0]].detach().clone())
        value = value.clone()
        for i, position in enumerate(lookup):
            value[i, position, :] += delta
        return value

    optimiser = torch.optim.Adam([delta], lr=settings.lr)
    with frozen_parameters(model), model.hooks({f"blocks.{layer}.mlp.out.hook_out": shift}):
        for step in range(settings.steps):
            optimiser.zero_grad()
            logits = model.forward(inputs)
            # The authors take the divergence at the subject's last token, not at the prompt's end.
            essence_logits = torch.stack(
                [logits[n_object + i, idx, :] for i, idx in enumerate(lookup[n_object:])]
            )
            now = essence_logits.log_softmax(-1)
            if base_log_probs is None:
                base_log_probs = now.detach().clone()
            log_probs = logits.log_softmax(-1)
            gathered = log_probs.gather(2, targets.clamp(min=0)[..., None])[..., 0]
            mask = (targets != -100).float()
            n_tokens = rows[0].n_target
            nll = (-(gathered * mask).sum(1)[:n_object] / n_tokens).mean()
            kl = settings.kl * (now.exp() * (now - base_log_probs)).sum()
            decay = settings.decay * (delta.norm() / bare[0].norm() ** 2)
            loss = nll + kl + decay
            if loss < settings.stop or step == settings.steps - 1:
                break
            loss.backward()
            optimiser.step()
            limit = settings.clamp * bare[0].norm()
            if delta.norm() > limit:
                with torch.no_grad():
                    delta[...] = delta * limit / delta.norm()
    return PublishedValue(delta.detach(), bare[0], float(loss.detach()))


def published_rome(
    model: EditableModel,
    fact: Fact,
    layer: int,
    contexts: Sequence[str],
    essence: Sequence[str],
    settings: ValueSettings,
    inverse_covariance: Float[Tensor, "d_mlp d_mlp"],
) -> PublishedEdit:
    """u by a full pass a context, v* by `published_value`, and the authors' update."""
    keys = []
    for context in contexts:
        row = model.encode([Sentence(fact.prompt, fact.subject, context=context)])[0]
        _, cache = model.run_with_cache(model.pad([row.ids]), [f"blocks.{layer}.mlp.hook_post"])
        keys.append(cache[f"blocks.{layer}.mlp.hook_post"][0, row.subject_last])
    u = inverse_covariance @ torch.stack(keys).float().mean(0)
    u = u / u.norm()
    found = published_value(model, fact, layer, contexts, essence, settings)
    row = model.encode([Sentence(fact.prompt, fact.subject)])[0]
    names = [f"blocks.{layer}.mlp.hook_post", f"blocks.{layer}.mlp.out.hook_out"]
    _, cache = model.run_with_cache(model.pad([row.ids]), names)
    key, value = (cache[name][0, row.subject_last].float() for name in names)
    target = found.bare + found.delta
    right = (target - value) / (key @ u)
    return PublishedEdit(u, right, target, found.delta)
