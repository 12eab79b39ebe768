"""UltraEdit: one forward and one backward pass for a whole batch (arXiv:2505.14679).

    Delta_l = (H^T H + lambda I)^-1 H^T V,   v_i = -eta s_l (|h~_i|^2 / d_mlp) g~_i

i runs over the tokens that predict the new objects, h_i is the down-projection's input there and
g_i the gradient of the loss with respect to its output; h~ and g~ are the two, normalised feature
by feature with the mean and the deviation over all tokens seen so far ("lifelong normalisation").
There is no search for v*, no subject span and no covariance, and every layer is solved at once.
Each token has its own column, so every fact can be taken out of the batch. The edited token is the
one that speaks: layers must be late ones, where it knows the subject; in early ones its key is that
of every prompt of the relation, and neighbours go along.

As in the authors' code, H are the inputs as they are, which is what the matrix will see; the
normalised ones only weigh the step. Departures:
- Scale. Published are eta |h~|^2 g~ with eta = 1e-6 and I, which on a small model change nothing.
  Here |h~|^2 is divided by its expectation, s_l = |residual stream| / sqrt(d_model) at the tokens,
  averaged, so that eta is in units of the residual stream's length, shared evenly by the layers;
  and lambda = preservation * mean |h_i|^2, so that one token alone is met up to
  1 / (1 + preservation).
- Prior. The first batch of the authors' code gives its own statistics, by which a single token is
  all mean and no deviation, and nothing is edited. Here `prior` tokens of mean zero and of the
  batch's average power stand at the beginning.
- Lifelong statistics without a hidden state. The authors add each turn's features to sums that
  live beside the model and that no rollback reaches. Here the earlier active facts are run again,
  on the base weights (their gradients were large when they were edited, and are no more), and
  count in the statistics alone. The same log gives the same edit, in any order of its making.
Knows nothing of subjects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from editcl.editing.plan import Method, Plan, Solution
from editcl.encoding import Row, Sentence
from editcl.errors import NonFiniteError
from editcl.facts import Fact
from editcl.hooks import HookFunction
from editcl.model import EditableModel, Hook, micro_batches
from editcl.partial import frozen_parameters
from editcl.progress import progress
from editcl.update import WeightUpdate

TOKENS_PER_BATCH = 4096  # bounds the memory of one forward and backward pass


@dataclass(frozen=True)
class UltraEditSettings:
    """How large the one step is.

    Attributes:
        eta: length of a typical token's v, in units of the residual stream's length there, shared
            by all layers.
        prior: how many tokens of mean zero the statistics begin with.
    """

    eta: float = 0.8
    prior: float = 1.0


@dataclass(frozen=True)
class Features:
    """What one layer shows at the tokens that predict the objects, float64.

    Attributes:
        h: [n_tokens, d_mlp] input of the down-projection.
        g: [n_tokens, d_model] gradient of the loss with respect to its output.
        residual: [n_tokens] length of the residual stream behind the layer.
        fact: [n_tokens] whose object the token predicts.
    """

    h: Float[Tensor, "n_tokens d_mlp"]
    g: Float[Tensor, "n_tokens d_model"]
    residual: Float[Tensor, " n_tokens"]
    fact: Int[Tensor, " n_tokens"]


def ultraedit_with(settings: UltraEditSettings) -> Method:
    """The method with these settings."""

    def solve(model: EditableModel, facts: Sequence[Fact], plan: Plan) -> Solution:
        now, loss = features(model, facts, plan.layers)
        before: dict[int, Features] = {}
        if plan.earlier:
            with model.at_base():
                before, _ = features(model, plan.earlier, plan.layers)
        updates = []
        for layer in plan.layers:
            name = model.down_projection(layer).name
            known = before.get(layer)
            left, right = shift(now[layer], known, settings, plan.preservation)
            owner = tuple(now[layer].fact.tolist())
            right = right / len(plan.layers)
            updates.append(WeightUpdate(name, left.float(), right.float(), owner))
        details = {
            "ultraedit": asdict(settings),
            "loss": round(loss, 6),
            "tokens": len(now[plan.layers[0]].fact),
            "earlier_facts": len(plan.earlier),
        }
        return Solution(tuple(updates), None, details)

    return solve


def shift(
    now: Features, before: Features | None, settings: UltraEditSettings, preservation: float
) -> tuple[Float[Tensor, "d_mlp n_tokens"], Float[Tensor, "d_model n_tokens"]]:
    """The factors of Delta: (H^T H + lambda I)^-1 H^T, and V^T.

    By the push-through identity the first is H^T (H H^T + lambda I)^-1, a system of the size of
    the batch.
    """
    seen_h = now.h if before is None else torch.cat([before.h, now.h])
    seen_g = now.g if before is None else torch.cat([before.g, now.g])
    weight = normalised(now.h, seen_h, settings.prior).square().mean(-1)
    direction = normalised(now.g, seen_g, settings.prior)
    unit = settings.eta * now.residual.mean() / now.g.shape[1] ** 0.5
    value = -unit * weight[:, None] * direction
    gram = now.h @ now.h.T
    ridge = preservation * gram.diagonal().mean()
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    left = torch.cholesky_solve(now.h, torch.linalg.cholesky(gram + ridge * eye)).T
    return left, value.T


def normalised(
    rows: Float[Tensor, "n_tokens d"], seen: Float[Tensor, "n_seen d"], prior: float
) -> Float[Tensor, "n_tokens d"]:
    """(x - mean) / deviation, feature by feature, over what was seen and the prior's tokens."""
    power = seen.square().mean()
    count = len(seen) + prior
    mean = seen.sum(0) / count
    variance = (seen.square().sum(0) + prior * power) / count - mean.square()
    return (rows - mean) / variance.clamp(min=1e-12 * float(power) + 1e-300).sqrt()


def features(
    model: EditableModel, facts: Sequence[Fact], layers: Sequence[int]
) -> tuple[dict[int, Features], float]:
    """The features of every edited layer, in the order of the facts, and the mean loss of a token.

    Every token of an object counts alike, and rows do not touch each other: a fact's features do
    not depend on the batch, but for rounding. The model is not changed.

    Raises:
        NonFiniteError: the loss is not finite.
        FactError: a text can't be encoded.
    """
    rows = model.encode([Sentence(f.prompt, f.subject, f.new_object) for f in facts])
    found: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = {layer: [] for layer in layers}
    order: list[int] = []
    total = 0.0
    batches = list(micro_batches([len(row.ids) for row in rows], TOKENS_PER_BATCH))
    with frozen_parameters(model), torch.enable_grad():
        for chosen in progress(batches, "gradients"):
            batch, loss = _pass(model, [rows[i] for i in chosen], layers)
            total += loss
            order += [i for i in chosen for _ in range(rows[i].n_target)]
            for layer, part in batch.items():
                found[layer].append(part)
    place = sorted(range(len(order)), key=lambda j: order[j])
    fact = torch.tensor([order[j] for j in place], device=model.device)
    result = {}
    for layer, parts in found.items():
        h, g, residual = (torch.cat(column)[place] for column in zip(*parts, strict=True))
        result[layer] = Features(h, g, residual, fact)
    return result, total / len(order)


def _pass(
    model: EditableModel, rows: Sequence[Row], layers: Sequence[int]
) -> tuple[dict[int, tuple[Tensor, Tensor, Tensor]], float]:
    """One forward and one backward pass: h, g and |residual| of each layer, and the summed loss."""
    device = model.device
    line = torch.tensor([i for i, row in enumerate(rows) for _ in range(row.n_target)])
    at = torch.tensor([row.target_start - 1 + j for row in rows for j in range(row.n_target)])
    target = torch.tensor([token for row in rows for token in row.ids[row.target_start :]])
    line, at, target = line.to(device), at.to(device), target.to(device)
    keys: dict[int, Tensor] = {}
    lengths: dict[int, Tensor] = {}
    probes: dict[int, Tensor] = {}

    def key(value: Tensor, hook: Hook) -> None:
        keys[hook.layer()] = value.detach()[line, at].double()

    def probe(value: Tensor, hook: Hook) -> Tensor:
        # Added, not assigned: some blocks write into the MLP's output in place.
        zeros = torch.zeros_like(value, requires_grad=True)
        probes[hook.layer()] = zeros
        return value + zeros

    def length(value: Tensor, hook: Hook) -> None:
        lengths[hook.layer()] = value.detach()[line, at].double().norm(dim=-1)

    hooks: dict[str, HookFunction] = {}
    for layer in layers:
        hooks[f"blocks.{layer}.mlp.hook_post"] = key
        hooks[f"blocks.{layer}.mlp.out.hook_out"] = probe
        hooks[f"blocks.{layer}.hook_resid_post"] = length
    keep, place = at.unique(return_inverse=True)
    with model.hooks(hooks):
        logits = model.forward(model.pad([row.ids[:-1] for row in rows]), keep=keep)
    log_probs = logits[line, place].float().log_softmax(-1)
    loss = -log_probs.gather(-1, target[:, None]).sum()
    if not bool(torch.isfinite(loss)):
        raise NonFiniteError(
            "the loss of the new objects is not finite: the model's activations overflow or its "
            "weights hold NaN. Check the weights, or load the model in float32 or bfloat16."
        )
    gradients = torch.autograd.grad(loss, [probes[layer] for layer in layers])
    result = {
        layer: (keys[layer], gradient[line, at].double(), lengths[layer])
        for layer, gradient in zip(layers, gradients, strict=True)
    }
    return result, float(loss.detach())


ultraedit: Method = ultraedit_with(UltraEditSettings())
