"""What batch editors share: one key a subject, and the residual spread over the edited layers.

    for l in layers:  Delta_l = sum_g u_g (sum_{i in g} r_i)^T,  r_i = remaining_i / share(left)

u_g [d_mlp] is the method's own; g runs over subjects, "left" counts layers. Facts that share a
subject have the same key up to noise, and asking one key for two values suppresses both
(MEMIT-Merge, arXiv:2502.07322); so every subject is solved for once, with the sum of its facts'
deltas as the value, and each fact keeps its own column (u_g, r_i): taking it out leaves its mates
what they had. "remaining" is measured anew at the last layer after each edited one (MEMIT,
arXiv:2210.07229, algorithm 1). Knows no method's equation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from editcl.editing.keys import subject_keys
from editcl.editing.plan import Plan, Solution
from editcl.editing.trial import tried
from editcl.editing.values import Values, optimise_values
from editcl.encoding import Sentence
from editcl.errors import EditclError
from editcl.facts import Fact
from editcl.model import EditableModel, micro_batches
from editcl.partial import adds_what_it_writes
from editcl.update import WeightUpdate


@dataclass(frozen=True)
class SubjectKeys:
    """Keys of a batch at one layer, by subject.

    Attributes:
        rows: [n_rows, d_mlp] one key for each context of each fact, float64.
        subject: [n_rows] whose key it is.
        weight: [n_rows] 1 / (keys of that subject).
    """

    rows: Float[Tensor, "n_rows d_mlp"]
    subject: Int[Tensor, " n_rows"]
    weight: Float[Tensor, " n_rows"]

    @classmethod
    def of(cls, keys: Float[Tensor, "n_facts n_contexts d_mlp"], groups: Sequence[int]) -> Any:
        """Flattens the keys of the facts; `groups` numbers each fact's subject from 0."""
        subject = torch.tensor(groups, device=keys.device).repeat_interleave(keys.shape[1])
        return cls(keys.flatten(0, 1).double(), subject, 1 / subject.bincount()[subject].double())

    @property
    def means(self) -> Float[Tensor, "d_mlp n_subjects"]:
        """The mean key of each subject."""
        count = int(self.subject.max()) + 1
        zeros = self.rows.new_zeros(count, self.rows.shape[1])
        return zeros.index_add(0, self.subject, self.rows * self.weight[:, None]).T

    @property
    def moment(self) -> Float[Tensor, "d_mlp d_mlp"]:
        """sum over subjects of the mean of k k^T over the subject's keys."""
        return self.rows.T @ (self.rows * self.weight[:, None])


#: From the keys of a batch at a layer to u [d_mlp, n_subjects].
Directions = Callable[[int, SubjectKeys], Float[Tensor, "d_mlp n_subjects"]]


def subject_groups(facts: Sequence[Fact]) -> list[int]:
    """Per fact the number of its subject, from 0 in order of appearance."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(fact.subject.casefold(), len(numbers)) for fact in facts]


def spread(
    model: EditableModel,
    facts: Sequence[Fact],
    plan: Plan,
    directions: Directions,
    *,
    share: Callable[[int], float] = float,
    with_attention: bool = False,
) -> Solution:
    """Solves layer after layer; the model is as before afterwards.

    Args:
        model: the model.
        facts: the batch.
        plan: layers, covariances, settings.
        directions: the method's equation for u.
        share: what the remaining residual is divided by when so many layers are left.
        with_attention: passed to `optimise_values`.

    Raises:
        EditclError: several layers on a model that normalises what its MLPs write.
    """
    layers, groups = plan.layers, subject_groups(facts)
    if len(layers) > 1 and not adds_what_it_writes(model, layers[-1]):
        raise EditclError(
            "this model rescales what its MLPs write before it is added to the residual stream, "
            f"so a residual can't be spread over several layers. Give one: layers=[{layers[-1]}]."
        )
    started = time.perf_counter()
    values = plan.values
    if values is None:
        values = optimise_values(
            model,
            facts,
            layers[-1],
            plan.contexts,
            plan.essence,
            plan.settings,
            rephrased=plan.rephrased,
            groups=groups,
            with_attention=with_attention,
            checkpoint=plan.checkpoint,
        )
    seconds = time.perf_counter() - started
    start = _hidden(model, facts, layers[-1]) if len(layers) > 1 else None
    group = torch.tensor(groups, device=model.device)
    updates: list[WeightUpdate] = []
    with ExitStack() as stack:
        for i, layer in enumerate(layers):
            remaining = values.delta
            if start is not None and i:
                reached = _hidden(model, facts, layers[-1]) - start
                remaining = remaining - _mean_by_group(reached, group, each=True)
            keys = subject_keys(model, facts, [layer], plan.contexts, plan.rephrased)[layer]
            u = directions(layer, SubjectKeys.of(keys, groups))
            residual = remaining / share(len(layers) - i)
            name = model.down_projection(layer).name
            updates.append(WeightUpdate(name, u.float()[:, group], residual.T.contiguous()))
            if i + 1 < len(layers):
                stack.enter_context(tried(model, updates[-1:]))
    details = {**figures(values), "values_seconds": round(seconds, 3)}
    return Solution(tuple(updates), values, details)


def figures(values: Values) -> dict[str, Any]:
    """Medians over facts for the receipt."""
    size = values.delta.norm(dim=-1) / values.residual_norm
    return {
        "steps": float(values.steps.float().median()),
        "object_loss": round(float(values.object_loss.median()), 6),
        "delta_over_residual": round(float(size.median()), 6),
        "unreached": int((values.object_loss > 0.7).sum()),  # p(new) below one half
    }


def _mean_by_group(
    rows: Float[Tensor, "n_facts d_model"], group: Int[Tensor, " n_facts"], *, each: bool
) -> Float[Tensor, "n_facts d_model"]:
    """What a subject's facts have on average; with `each`, a fact's part of one such mean."""
    count = group.bincount()[group][:, None]
    sums = torch.zeros_like(rows).index_add(0, group, rows)[group]
    return sums / count / (count if each else 1)


def _hidden(
    model: EditableModel, facts: Sequence[Fact], layer: int
) -> Float[Tensor, "n_facts d_model"]:
    """Residual stream behind a layer at each bare prompt's last subject token."""
    rows = model.encode([Sentence(f.prompt, f.subject) for f in facts])
    name = f"blocks.{layer}.hook_resid_post"
    hidden = torch.empty(len(rows), model.d_model, device=model.device)
    cut = [row.ids[: row.subject_last + 1] for row in rows]
    for chosen in micro_batches([len(ids) for ids in cut], 4096):
        found = model.activations(model.pad([cut[i] for i in chosen]), [name])[name]
        last = torch.tensor([rows[i].subject_last for i in chosen], device=model.device)
        hidden[chosen] = found[torch.arange(len(chosen), device=model.device), last].float()
    return hidden
