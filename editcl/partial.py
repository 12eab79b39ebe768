"""Forward passes that recompute only what can change: later positions, upper layers.

When only the activation at the subject's last token of block l changes, positions before it keep
their keys and values at every layer, and blocks below l keep their outputs. A `SuffixRun` computes
these once and then runs rows from position `start` and block l on, exactly. It knows nothing of
facts or losses; it knows the Hugging Face key-value cache.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from editcl.encoding import pad
from editcl.model import EditableModel, Hook


@dataclass(frozen=True)
class SuffixRun:
    """Rows of which only positions from their start on, and blocks from `layer` on, are run.

    Position 0 of the suffix is each row's start: rows are padded at the left in front of it, so
    that all starts align, and at the right behind.

    Attributes:
        model: the model that runs them.
        layer: the first block that is run.
        residual: [n_rows, n_suffix, d_model] residual stream in front of that block.
        inputs: ids of the suffix, mask of the whole rows, positions of the suffix.
        prefix: key-value cache of the positions before the starts; None if there are none.
    """

    model: EditableModel
    layer: int
    residual: Float[Tensor, "n_rows n_suffix d_model"]
    inputs: dict[str, Tensor]
    prefix: Any | None

    @classmethod
    def prepare(
        cls,
        model: EditableModel,
        rows: Sequence[Sequence[int]],
        starts: Sequence[int],
        layer: int,
        names: Sequence[str] = (),
    ) -> tuple[SuffixRun, dict[str, Float[Tensor, "n_rows n_suffix d"]]]:
        """Runs every token once and keeps what later runs need; and activations of the suffix.

        Args:
            model: the model.
            rows: token ids of each row.
            starts: the first position of each row that later runs recompute.
            layer: the first block that later runs recompute.
            names: hook points below it whose activations are wanted.
        """
        before = pad(
            [row[:s] for row, s in zip(rows, starts, strict=True)],
            model.pad_id,
            model.device,
            left=True,
        )
        after = pad(
            [row[s:] for row, s in zip(rows, starts, strict=True)], model.pad_id, model.device
        )
        mask = torch.cat([before.mask, after.mask], dim=1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        n_prefix = before.ids.shape[1]
        prefix = None
        if n_prefix:
            inputs = accepted(model, before.ids, before.mask, positions[:, :n_prefix])
            with torch.no_grad():
                _, prefix = model.forward_caching(inputs, last_only=True)
        inputs = accepted(model, after.ids, mask, positions[:, n_prefix:])
        run = cls(model, 0, torch.empty(0, 0, 0), inputs, prefix)
        name = f"blocks.{layer}.hook_resid_pre"
        found = model.activations(inputs, [name, *names], cache=run._cache())
        return replace(run, layer=layer, residual=found.pop(name)), found

    def logits(
        self,
        at: tuple[Int[Tensor, " n_at"], Int[Tensor, " n_at"]],
        shift: Float[Tensor, "n_rows d_model"] | None = None,
    ) -> Float[Tensor, "n_at d_vocab"]:
        """Logits at (row, suffix position) pairs, through blocks from `layer` on.

        `shift` is added to the residual stream at each row's start.
        """
        residual = self.residual
        if shift is not None:
            start = (residual[:, 0].float() + shift).to(residual.dtype)
            residual = torch.cat([start[:, None], residual[:, 1:]], dim=1)
        with self.model.start_at(self.layer, residual):
            return self.model.forward(self.inputs, at=at, cache=self._cache())[0]

    def select(self, index: Int[Tensor, " n_chosen"]) -> SuffixRun:
        """The same run with some of the rows."""
        prefix = None if self.prefix is None else selected(self.prefix, index)
        inputs = {name: tensor[index] for name, tensor in self.inputs.items()}
        return replace(self, residual=self.residual[index], inputs=inputs, prefix=prefix)

    def _cache(self) -> Any:
        """The cache of one run; a shallow copy, since layers reassign what they hold."""
        return None if self.prefix is None else _shallow(self.prefix)


def adds_what_it_writes(model: EditableModel, layer: int) -> bool:
    """Whether what a layer's MLP writes is added to the residual stream as it is.

    Not so where it is normed or scaled first (Gemma 2, OLMo 2). Found by trying it, once.
    """
    memo = f"adds-what-it-writes-{layer}"
    if memo not in model.memo:
        inputs = model.pad([[model.pad_id, model.pad_id]])
        name = f"blocks.{layer}.hook_resid_post"
        before = model.activations(inputs, [name])[name]
        shift = 0.1 * before[0, -1]

        def add(value: Tensor, _hook: Hook) -> Tensor:
            return value + shift

        with model.hooks({f"blocks.{layer}.mlp.out.hook_out": add}):
            after = model.activations(inputs, [name])[name]
        error = (after - before - shift)[0, -1].float().norm() / shift.float().norm()
        model.memo[memo] = float(error) < 0.1  # in 16 bits the sum is rounded
    return bool(model.memo[memo])


@contextmanager
def frozen_parameters(model: EditableModel) -> Iterator[None]:
    """No gradients with respect to the weights inside; flags are restored."""
    flags = [(p, p.requires_grad) for p in model.hf.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def selected(cache: Any, index: Int[Tensor, " n_chosen"]) -> Any:
    """A key-value cache of some of the rows (or of a row several times)."""
    twin = _shallow(cache)
    for layer in twin.layers:
        layer.keys, layer.values = layer.keys[index], layer.values[index]
    return twin


def _shallow(cache: Any) -> Any:
    """A cache whose layers can be updated without touching the original's tensors."""
    twin = copy.copy(cache)
    twin.layers = [copy.copy(layer) for layer in cache.layers]
    return twin


def accepted(
    model: EditableModel, ids: Tensor, mask: Tensor, positions: Tensor
) -> dict[str, Tensor]:
    """Forward arguments; positions only where the model takes them (Bloom derives its own)."""
    inputs = {"input_ids": ids, "attention_mask": mask}
    if "position_ids" in inspect.signature(type(model.hf).forward).parameters:
        inputs["position_ids"] = positions
    return inputs
