"""What batch editors share: one key a subject, and the residual that the edited layers write.

    for l in layers:  Delta_l = sum_g u_g (sum_{i in g} r_i)^T

u_g [d_mlp] is the method's own; g runs over subjects. Facts that share a subject have the same key
up to noise, and asking one key for two values suppresses both (MEMIT-Merge, arXiv:2502.07322); so
every subject is solved for once, with the sum of its facts' deltas as the value, and each fact
keeps its own column (u_g, r_i): taking it out leaves its mates what they had. What remains to be
written is measured anew at the last layer after each edited one (MEMIT, arXiv:2210.07229,
algorithm 1). Two ways to divide it among the layers:

- `spread`, as published: r_i = remaining_i / share(layers left), u of one layer at a time.
- `look_ahead`: every layer solves for all layers left at once and writes its own part,

      min over Delta of  sum_g |sum_m Delta_m^T k_gm - r_g|^2 + sum_m tr(Delta_m^T A_m Delta_m)
      U_l = A_l^-1 K_l (I + sum_m K_m^T A_m^-1 K_m)^-1,   m from l to the last layer,

  with A_m the method's metric. Each subject is written where its key can best be told from others,
  and no layer writes what a later one would have to correct; at one layer the two are the same.
  What follows in higher layers from writing in lower ones is left to the next measuring.

Knows no method's equation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from editcl.editing.contexts import rephrasings
from editcl.editing.keys import subject_keys
from editcl.editing.plan import Plan, Solution
from editcl.editing.trial import tried
from editcl.editing.values import UNSAID, Values, optimise_values
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


HELD_AT_ONCE = 256  # subjects of earlier edits whose keys are in memory together

#: From the keys of a batch at a layer to u [d_mlp, n_subjects].
Directions = Callable[[int, SubjectKeys], Float[Tensor, "d_mlp n_subjects"]]
#: From the keys at each layer left to A^-1 K [d_mlp, n_subjects] of each.
Metric = Callable[[Mapping[int, SubjectKeys]], Mapping[int, Tensor]]


def subject_groups(facts: Sequence[Fact]) -> list[int]:
    """Per fact the number of its subject, from 0 in order of appearance."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(fact.subject.casefold(), len(numbers)) for fact in facts]


def held_facts(facts: Sequence[Fact], plan: Plan) -> list[Fact]:
    """The facts of earlier edits whose keys are to give what they give now.

    Those of subjects that are edited again are left out: to hold their keys would forbid the edit.
    What they say is held while v* is sought instead.
    """
    again = {fact.subject.casefold() for fact in facts}
    return [fact for fact in plan.earlier if fact.subject.casefold() not in again]


def earlier_moments(
    model: EditableModel, held: Sequence[Fact], plan: Plan, layers: Sequence[int]
) -> dict[int, Float[Tensor, "d_mlp d_mlp"]]:
    """sum_e mean_j k_ej k_ej^T over the subjects e of the held facts, by layer; {} without any.

    The keys are those that the facts were solved with: in every context, in every phrasing.
    """
    subjects: dict[int, list[Fact]] = {}
    for fact, group in zip(held, subject_groups(held), strict=True):
        subjects.setdefault(group, []).append(fact)
    together = list(subjects.values())
    moments: dict[int, Tensor] = {}
    for begin in range(0, len(together), HELD_AT_ONCE):
        part = [fact for own in together[begin : begin + HELD_AT_ONCE] for fact in own]
        others = None if plan.rephrased is None else [rephrasings(fact) for fact in part]
        found = subject_keys(model, part, list(layers), plan.contexts, others)
        groups = subject_groups(part)
        for layer in layers:
            moment = SubjectKeys.of(found.pop(layer), groups).moment
            moments[layer] = moments[layer] + moment if layer in moments else moment
    return moments


def spread(
    model: EditableModel,
    facts: Sequence[Fact],
    plan: Plan,
    directions: Directions,
    *,
    share: Callable[[int], float] = float,
    with_attention: bool = False,
) -> Solution:
    """Solves layer after layer, each for its share; the model is as before afterwards.

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
    groups = subject_groups(facts)

    def step(left: Sequence[int]) -> tuple[Tensor, float]:
        keys = subject_keys(model, facts, left[:1], plan.contexts, plan.rephrased)[left[0]]
        return directions(left[0], SubjectKeys.of(keys, groups)), 1 / share(len(left))

    return _layer_by_layer(model, facts, plan, step, with_attention)


def look_ahead(
    model: EditableModel,
    facts: Sequence[Fact],
    plan: Plan,
    metric: Metric,
    *,
    protected: int = 0,
) -> Solution:
    """Solves layer after layer, each for all that are left; the model is as before afterwards.

    Args:
        model: the model.
        facts: the batch.
        plan: layers, covariances, settings.
        metric: the method's A^-1 K of each layer.
        protected: how many earlier facts the metric holds, for the receipt.

    Raises:
        EditclError: several layers on a model that normalises what its MLPs write.
    """
    groups = subject_groups(facts)

    def step(left: Sequence[int]) -> tuple[Tensor, float]:
        found = subject_keys(model, facts, left, plan.contexts, plan.rephrased)
        keys = {layer: SubjectKeys.of(found[layer], groups) for layer in left}
        return joint_directions(keys, metric(keys)), 1.0

    solution = _layer_by_layer(model, facts, plan, step)
    return replace(solution, details={**solution.details, "protected_facts": protected})


def joint_directions(
    keys: Mapping[int, SubjectKeys], solved: Mapping[int, Tensor]
) -> Float[Tensor, "d_mlp n_subjects"]:
    """U of the first of the layers, by the equation of `look_ahead`; `solved` is A^-1 K."""
    gram = sum(keys[layer].means.T @ solved[layer] for layer in keys)
    assert isinstance(gram, Tensor), "there is a layer at least"
    system = gram + torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(system, solved[next(iter(keys))].T).T  # both are symmetric


def _layer_by_layer(
    model: EditableModel,
    facts: Sequence[Fact],
    plan: Plan,
    step: Callable[[Sequence[int]], tuple[Tensor, float]],
    with_attention: bool = False,
) -> Solution:
    """v*, then each layer's u and part of the residual from `step`, which gets the layers left."""
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
            u, part = step(layers[i:])
            name = model.down_projection(layer).name
            residual = (part * remaining).T.contiguous()
            updates.append(WeightUpdate(name, u.float()[:, group], residual))
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
        "unreached": int((values.object_loss > UNSAID).sum()),
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
