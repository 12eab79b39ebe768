"""The exact sum of LoRA adapters, as one adapter of the sum of their ranks.

    sum_i s_i B_i A_i = [B_1 ... B_n] [s_1 A_1; ...; s_n A_n]

Averaging or adding the A and B of adapters would give cross terms B_i A_j, which is another thing.
Knows nothing of peft's modules, only of the names of its tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from editcl.errors import EditclError
from editcl.learning.kinds import AdapterSettings

Part = tuple[AdapterSettings, dict[str, Tensor]]


def summed(names: Sequence[str], parts: Sequence[Part]) -> Part:
    """Settings and tensors of the sum; its scale is 1 and it has no dropout.

    Raises:
        EditclError: there is none, one is no LoRA, or their targets differ.
    """
    if not parts:
        raise EditclError("an empty list of adapters has no sum: name at least one.")
    first, tensors = parts[0]
    for name, (settings, own) in zip(names, parts, strict=True):
        if settings.kind != "lora":
            raise EditclError(f"{name!r} is {settings.kind}; only LoRA adapters have a sum.")
        if own.keys() != tensors.keys():
            raise EditclError(
                f"{name!r} and {names[0]!r} have different targets ({settings.targets!r}, "
                f"{first.targets!r}), so no single adapter is their sum. Use both: using(names)."
            )
    rank = sum(settings.rank for settings, _ in parts)
    joined = {}
    for key in tensors:
        if ".lora_A." in key:
            joined[key] = torch.cat([own[key] * settings.scale for settings, own in parts], dim=0)
        else:
            joined[key] = torch.cat([own[key] for _, own in parts], dim=1)
    return replace(first, rank=rank, alpha=float(rank), dropout=0.0, init="default"), joined
