"""Quantities computed the plain way, which tests hold others against."""

from __future__ import annotations

import torch


def example_by_example(own, rows, parameters):
    """Squared gradients of the log-likelihood, summed over rows, from all positions' logits."""
    found = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for row in rows:
        logits = own.adapters.logits({"input_ids": torch.tensor([row.ids])})[0]
        log_probs = logits.log_softmax(-1)
        likelihood = sum(log_probs[at - 1, row.ids[at]] for at in range(row.start, len(row.ids)))
        gradients = torch.autograd.grad(likelihood, list(parameters.values()))
        for total, gradient in zip(found.values(), gradients, strict=True):
            total += gradient**2
    return found
