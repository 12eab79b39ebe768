"""The gradient's estimate of a whole heat map, from one forward and one backward pass.

    IE(t, l)  ~  (h_clean - h_corrupted)(t, l) . d p(answer) / d h_corrupted(t, l)

the first-order change of p in the corrupted run when a state moves to its clean value (attribution
patching; Nanda 2023; Syed et al., arXiv:2310.10348); for windows of MLP and attention layers, the
sum over the layers, which counts a path through two restored layers twice. It is an estimate: how
well its ranking agrees with the exact one is what `rank_correlation` tells. Medians over ten facts:
hidden 0.92, MLP 0.94, attention 0.95 on the embedded model; 0.70, 0.83, 0.88 on a model of the same
size that knows CounterFact. Estimates rank cells; their size saturates where effects are large.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from editcl.errors import EditclError, NonFiniteError
from editcl.hooks import Hook, HookFunction
from editcl.model import EditableModel
from editcl.tracing.causal import Settings, corrupt
from editcl.tracing.cells import cell
from editcl.tracing.result import Trace
from editcl.tracing.runs import NOISE_MULTIPLE, Corruption, Question, ask, names, probabilities
from editcl.tracing.text import decode, readable_tokens


def attribute(
    model: EditableModel,
    subject: str,
    prompt: str,
    *,
    answer: str | None = None,
    kinds: Sequence[str] | None = None,
    noise: float | None = None,
    noise_multiple: float = NOISE_MULTIPLE,
    samples: int = 10,
    window: int | None = None,
    seed: int = 0,
) -> Trace:
    """A Trace whose indirect effects are estimates; arguments as for `trace`.

    Its `probability` is p* plus the estimated effect and may leave [0, 1].

    Raises:
        FactError: the subject is not in the prompt, or a text can't be encoded.
        NonFiniteError: the model gives NaN or infinity.
        EditclError: an argument is out of range.
    """
    settings = Settings.of(model, kinds, noise, noise_multiple, samples, window, seed)
    with torch.inference_mode():
        question = ask(model, subject, prompt, answer)
        corruption, sigma = corrupt(model, question, settings)
    token, p, effects = _first_order(model, question, corruption, settings.kinds)
    n_layers, window = model.n_layers, settings.window
    probability, deviation = {}, {}
    for kind, effect in effects.items():
        windows = [cell(kind, 0, layer, window, n_layers) for layer in range(n_layers)]
        summed = torch.stack([effect[c.start : c.stop].sum(0) for c in windows])
        by_cell = summed.permute(2, 0, 1).double() + p[1:, None].T
        probability[kind] = by_cell.mean(-1).numpy()
        deviation[kind] = by_cell.std(-1, correction=0).numpy()
    return Trace(
        question.prompt.replace("{}", question.subject, 1),
        question.subject,
        readable_tokens(model.tokenizer, question.ids),
        question.span,
        decode(model.tokenizer, [token]),
        token,
        float(p[0]),
        float(p[1:].mean()),
        probability,
        deviation,
        sigma,
        corruption.n_samples,
        window,
        seed,
        approximate=True,
    )


def _first_order(
    model: EditableModel, question: Question, corruption: Corruption, kinds: Sequence[str]
) -> tuple[
    int,
    Float[Tensor, " n_rows"],
    dict[str, Float[Tensor, "n_layers n_samples n_tokens"]],
]:
    """The answer, p(answer) of the clean and the corrupted rows, and every state's estimate."""
    points = names(model)
    wanted = [name for kind in kinds for name in points[kind]]
    states: dict[str, Tensor] = {}

    def watch(activation: Tensor, hook: Hook) -> Tensor:
        # A node of its own: some blocks go on to write into their activations.
        states[hook.name] = activation * 1.0
        return states[hook.name].clone()

    with_noise = corruption.hook(question.span)

    def embed(activation: Tensor, hook: Hook) -> Tensor:
        out: Tensor = with_noise(activation.detach(), hook)
        return out.requires_grad_()

    hooks: dict[str, HookFunction] = {"hook_embed": embed, **dict.fromkeys(wanted, watch)}
    with torch.inference_mode(False), torch.enable_grad():
        ids = torch.tensor(question.ids, device=model.device).expand(1 + corruption.n_samples, -1)
        keep = torch.tensor([ids.shape[1] - 1], device=model.device)
        with model.hooks(hooks):
            logits = model.forward({"input_ids": ids}, keep=keep)[:, -1]
        if not bool(torch.isfinite(logits).all()):
            raise NonFiniteError("the model gives NaN or infinite logits. Reload its weights.")
        token = int(logits[0].argmax()) if question.answer is None else question.answer
        p = probabilities(logits)[:, token]
        gradients = torch.autograd.grad(p[1:].sum(), [states[name] for name in wanted])
    estimates = {
        name: ((states[name][0] - states[name][1:]).detach() * gradient[1:]).float().sum(-1)
        for name, gradient in zip(wanted, gradients, strict=True)
    }
    by_kind = {kind: torch.stack([estimates[n] for n in points[kind]]).cpu() for kind in kinds}
    return token, p.detach().double().cpu(), by_kind


def rank_correlation(exact: Trace, approximate: Trace) -> dict[str, float]:
    """Spearman's rank correlation of the effects of two traces, by kind.

    Over the cells from the subject's first token on: the ones before are zero by construction.

    Raises:
        EditclError: the traces are of different sentences or have no kind in common.
    """
    kinds = [kind for kind in exact.kinds if kind in approximate.kinds]
    if exact.tokens != approximate.tokens or exact.span != approximate.span or not kinds:
        raise EditclError("rank_correlation needs two traces of one sentence with a common kind.")
    first = exact.span[0]
    return {
        kind: _spearman(
            exact.indirect_effect(kind)[first:].ravel(),
            approximate.indirect_effect(kind)[first:].ravel(),
        )
        for kind in kinds
    }


def _spearman(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> float:
    """Pearson's correlation of the ranks; NaN where all values of one are equal."""
    a, b = (ranks - ranks.mean() for ranks in (_ranks(x), _ranks(y)))
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale else float("nan")


def _ranks(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Ranks from 0; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts + 1) / 2)[inverse]
