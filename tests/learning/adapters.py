"""What tests of adapters share: banks with adapters that do something."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from editcl.learning.lora import Adapters, AdapterSettings
from editcl.model import EditableModel

ROWS = [[5, 6, 7, 8, 9], [10, 11, 12], [13, 14, 15, 16]]
SMALL = AdapterSettings(rank=2, alpha=4.0)


def inputs_of(model: EditableModel) -> Mapping[str, Any]:
    return model.pad(ROWS)


def logits(bank: Adapters, *names: str) -> Tensor:
    with torch.no_grad(), bank.using(names):
        return bank.logits(inputs_of(bank.model))


def shake(bank: Adapters, name: str, seed: int = 0, size: float = 0.1) -> None:
    """Random parameters, as if it had been trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in bank.trainable(name).values():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(size * noise.to(parameter))


def trained(bank: Adapters, name: str, settings: AdapterSettings = SMALL, seed: int = 0) -> None:
    """Adds an adapter that changes the logits."""
    bank.add(name, settings, seed=seed)
    shake(bank, name, seed + 1)


def step(bank: Adapters, names: tuple[str, ...]) -> float:
    """One step of gradient descent on what asks for gradients of these; gives the loss."""
    parameters = [p for name in names for p in bank.trainable(name).values()]
    optimiser = torch.optim.SGD([p for p in parameters if p.requires_grad], lr=0.05)
    with bank.using(names):
        loss = -bank.logits(inputs_of(bank.model))[:, :3].log_softmax(-1)[..., 17].mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return float(loss.detach())
