"""Squares of per-example gradients, summed over examples: what a diagonal Fisher is made of.

    sum_n (d log p(completion_n | prompt_n) / d theta)^2

For LoRA one backward pass a batch gives the gradients of all its rows: those of the weight W of a
linear map y = W x are sum_t dy_{n,t} x_{n,t}^T for row n, and rows don't see each other. Other
kinds take one pass a row. Knows nothing of what it is used for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from editcl.learning.batches import Encoded
from editcl.learning.session import TOKENS_PER_BATCH, Session
from editcl.model import micro_batches

ROWS = 32  # whose gradients of one matrix are in memory at a time


def squared_gradients(
    session: Session, rows: Sequence[Encoded], parameters: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """The sum over rows, in float32, of the adapters that are active now, without dropout.

    Args:
        session: what runs the rows.
        rows: a row's log-probability is the sum over its targets.
        parameters: of adapters; all ask for gradients.
    """
    found = {
        name: torch.zeros_like(parameter, dtype=torch.float32)
        for name, parameter in parameters.items()
    }
    linear = _linear(session, parameters)
    if linear is None:
        for row in rows:
            loss = session.forward([row]).token_losses.sum()
            gradients = torch.autograd.grad(
                loss, list(parameters.values()), allow_unused=True, materialize_grads=True
            )
            for total, gradient in zip(found.values(), gradients, strict=True):
                total += gradient.float().square()
        return found
    for chosen in micro_batches([len(row.ids) for row in rows], TOKENS_PER_BATCH):
        _add_batch(session, [rows[i] for i in chosen], linear, found)
    return found


def _add_batch(
    session: Session,
    rows: Sequence[Encoded],
    linear: Mapping[str, nn.Linear],
    found: Mapping[str, Tensor],
) -> None:
    """Adds the squares of all rows of a batch."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def note(name: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            assert name not in seen, f"{name} ran twice in one forward pass"
            seen[name] = args[0].detach(), output

        return hook

    with ExitStack() as stack:
        for name, module in linear.items():
            stack.enter_context(module.register_forward_hook(note(name)))
        loss = session.forward(rows).token_losses.sum()
    outputs = [output for _, output in seen.values()]
    gradients = torch.autograd.grad(loss, outputs)
    for (name, (inputs, _)), gradient in zip(seen.items(), gradients, strict=True):
        for x, dy in zip(inputs.split(ROWS), gradient.split(ROWS), strict=True):
            by_row = torch.einsum("nto,nti->noi", dy.float(), x.float())
            found[name].add_(by_row.square().sum(0))


def _linear(
    session: Session, parameters: Mapping[str, nn.Parameter]
) -> dict[str, nn.Linear] | None:
    """The linear maps whose weights the parameters are; None if they are more than that."""
    kinds = {session.adapters.settings(name).kind for name in session.adapters.active}
    if kinds != {"lora"}:  # DoRA's matrices also scale the base weight
        return None
    owners = {
        id(module.weight): module
        for module in session.adapters.view.hf.modules()
        if isinstance(module, nn.Linear) and module.bias is None
    }
    if any(id(parameter) not in owners for parameter in parameters.values()):
        return None
    return {name: owners[id(parameter)] for name, parameter in parameters.items()}
