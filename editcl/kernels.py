"""What makes passes from the middle of a sentence cheap inside an untouched Hugging Face model.

A key-value cache layer that many rows share, one kernel in place of eight for GPT-2's activation,
and plain attention for few queries. All are exact. This module knows nothing of cells.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel
from transformers.activations import NewGELUActivation
from transformers.cache_utils import DynamicLayer

from editcl.hooks import StopForward


class Prefix(DynamicLayer):
    """Keys and values of a prefix, for any number of rows per sample.

    Rows are ordered cell by cell, samples within: row r continues prefix r mod n_prefix_rows.
    """

    def __init__(self, keys: Tensor, values: Tensor, stop: bool = False) -> None:
        super().__init__()
        self.keys, self.values, self.stop = keys, values, stop
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> Any:
        """The prefix with the new positions behind it, for as many rows as these have.

        Raises:
            StopForward: this layer is the last whose keys and values are wanted.
        """
        keys, values = _behind(self.keys, key_states), _behind(self.values, value_states)
        if self.stop:
            self.keys, self.values = keys, values
            raise StopForward
        return keys, values


def _behind(
    prefix: Float[Tensor, "n_samples n_heads n_prefix d_head"],
    new: Float[Tensor, "n_rows n_heads n_new d_head"],
) -> Float[Tensor, "n_rows n_heads n_tokens d_head"]:
    n_prefix = prefix.shape[2]
    if not n_prefix:
        return new
    out = new.new_empty(new.shape[0], new.shape[1], n_prefix + new.shape[2], new.shape[3])
    out.unflatten(0, (-1, prefix.shape[0]))[..., :n_prefix, :] = prefix
    out[:, :, n_prefix:] = new
    return out


@contextmanager
def fused_activations(hf: torch.nn.Module) -> Iterator[None]:
    """GPT-2's tanh GELU, written in transformers as eight passes over memory, as one kernel."""
    modules = [m for m in hf.modules() if type(m) is NewGELUActivation]
    for module in modules:
        module.forward = _gelu  # an instance attribute, deleted below
    try:
        yield
    finally:
        for module in modules:
            module.__dict__.pop("forward", None)


@contextmanager
def small_attention(hf: PreTrainedModel) -> Iterator[None]:
    """Attention of few queries by plain products of matrices on a CPU, where the fused kernel costs
    as much for a handful of positions as for many; the same but for rounding."""
    before = hf.config._attn_implementation
    logger = logging.getLogger(PreTrainedModel.__module__)
    level = logger.level
    if before == "sdpa" and hf.device.type == "cpu":
        # Classes that can't switch (Falcon) say so in a warning and stay as they are.
        logger.setLevel(logging.ERROR)
        hf.set_attn_implementation("eager")
        logger.setLevel(level)
    try:
        yield
    finally:
        if hf.config._attn_implementation != before:
            hf.set_attn_implementation(before)


def _gelu(x: Tensor) -> Tensor:
    return torch.nn.functional.gelu(x, approximate="tanh")
