"""Cells of a heat map, exactly, without a forward pass for each.

What a restored state at (token t, first layer a) can change is the rectangle of positions >= t
and layers > a. So

1. positions before t take keys and values from the corrupted run,
2. layers up to a are skipped: a row enters above a with the corrupted run's residual stream, in
   which position t holds the restored layer's output,
3. all cells of one token share one pass: rows join the batch at the layer where they enter,
4. in the last block the positions before the last one only give their keys and values, and only
   the last position is unembedded,
5. cells before the subject, and cells of the last layer, need no pass at all.

Values equal those of `editcl.tracing.reference` up to rounding. A null cell, which restores
nothing and must give the corrupted run's probability, is run first: where it does not (a model
that keeps no ordinary key-value cache, say), the published procedure is used, with a warning.
This module knows the Hugging Face key-value cache; it knows nothing of noise or of subjects.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.cache_utils import Cache

from editcl.hooks import Hook, HookFunction, StopForward
from editcl.kernels import Prefix, fused_activations
from editcl.tracing.cells import Cell
from editcl.tracing.runs import Runs, names, probabilities

CPU_BYTES, GPU_BYTES = 4 * 2**20, 256 * 2**20
"""Size of one MLP activation [rows, tokens, d_mlp] up to which cells share a pass.

On a CPU larger ones save nothing: matrix products are at full speed from a few hundred rows on.
"""

_NULL_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
"""Largest difference of log p(answer) that counts as rounding; by dtype, else the coarse one."""

_COARSE = 0.1


def restored_cells(
    runs: Runs, cells: Sequence[Cell], *, sever: str | None = None
) -> Float[Tensor, "n_cells n_samples"]:
    """p(answer) of every corrupted run with each cell restored.

    Args:
        sever: "mlp" or "attn": hold these outputs at the restored token, in the layers above
            the restored one, at their values in the corrupted run.
    """
    values = runs.corrupted.expand(len(cells), -1).clone()
    single = _single_layers(runs, sorted({c.kind for c in cells} - {"hidden"}))
    open_cells: list[int] = []
    for i, cell in enumerate(cells):
        top = cell.start == runs.model.n_layers - 1
        if cell.token < runs.question.span[0] or (top and cell.token < runs.n_tokens - 1):
            continue
        if not top:
            open_cells.append(i)
        else:
            values[i] = runs.clean if cell.kind == "hidden" else single[cell.kind].probability
    open_cells.sort(key=lambda i: (cells[i].token, cells[i].start))
    engine = _Engine(runs, {k: s.states for k, s in single.items()}, sever)
    with fused_activations(runs.model.hf), runs.model.hooks(engine.hooks()):
        for token, group in groupby(open_cells, key=lambda i: cells[i].token):
            for chunk in _chunks(list(group), runs, token):
                values[chunk] = engine.run(_Pass(token, [cells[i] for i in chunk]))
    return values


def null_cells_hold(runs: Runs) -> bool:
    """Whether passes from the middle work on this model: rows that restore nothing change nothing.

    One sample; two rows that enter at different layers, behind a cached prefix.
    """
    token = min(max(runs.question.span[0], 1), runs.n_tokens - 1)
    if not runs.keys_values or runs.model.n_layers < 2:
        return False
    one = runs.first_sample()
    cells = [Cell("none", token, layer, layer + 1) for layer in (0, runs.model.n_layers // 2 - 1)]
    engine = _Engine(one, {"none": one.noisy["hidden"]}, None)
    try:
        with runs.model.hooks(engine.hooks()):
            values = engine.run(_Pass(token, cells))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, IndexError, AttributeError, NotImplementedError):
        return False
    difference = (values.double().log() - one.corrupted.double().log()).abs().max()
    return bool(difference < _NULL_TOLERANCE.get(runs.model.dtype, _COARSE))


@dataclass(frozen=True)
class _Single:
    """One kind's outputs restored in one layer, at every token at once.

    Attributes:
        states: [n_layers, n_samples, n_tokens, d] output of the block in which they are restored;
            each token's is that of restoring it alone, because blocks mix tokens before that.
        probability: [n_samples] p(answer) with the last layer restored.
    """

    states: Float[Tensor, "n_layers n_samples n_tokens d_model"]
    probability: Float[Tensor, " n_samples"]


def _single_layers(runs: Runs, kinds: Sequence[str]) -> dict[str, _Single]:
    """Restores each layer by itself: every block gets the corrupted run's input."""
    if not kinds:
        return {}
    n, model, points = runs.n_samples, runs.model, names(runs.model)
    outputs: list[Tensor] = []

    def corrupted(_activation: Tensor, hook: Hook) -> Tensor:
        return runs.noisy["hidden"][hook.layer() - 1].repeat(len(kinds), 1, 1)

    def restore(i: int, kind: str) -> HookFunction:
        def hook(activation: Tensor, where: Hook) -> Tensor:
            out = activation.clone()
            out[i * n : (i + 1) * n] = runs.states[kind][where.layer()]
            return out

        return hook

    hooks: dict[str, HookFunction] = {}
    for layer in range(model.n_layers):
        if layer:
            hooks[f"blocks.{layer}.hook_resid_pre"] = corrupted
        hooks |= {points[kind][layer]: restore(i, kind) for i, kind in enumerate(kinds)}
        hooks[points["hidden"][layer]] = lambda activation, _hook: outputs.append(activation)
    ids = torch.tensor([runs.question.ids], device=model.device)
    with model.start_at(0, runs.entry.repeat(len(kinds), 1, 1)), model.hooks(hooks):
        logits = model.forward({"input_ids": ids}, keep=_last(ids))[:, -1]
    probability = probabilities(logits)[:, runs.answer]
    states = torch.stack(outputs).unflatten(1, (len(kinds), n))
    return {
        kind: _Single(states[:, i], probability[i * n : (i + 1) * n])
        for i, kind in enumerate(kinds)
    }


@dataclass(frozen=True)
class _Pass:
    """Cells of one token that are run together, in the order in which they enter."""

    token: int
    cells: Sequence[Cell]

    @property
    def first(self) -> int:
        """The lowest block that is run."""
        return self.cells[0].start + 1

    def entering(self, block: int) -> list[Cell]:
        return [cell for cell in self.cells if cell.start + 1 == block]

    def running(self, block: int) -> list[Cell]:
        return [cell for cell in self.cells if cell.start < block]


@dataclass
class _Engine:
    """Runs passes over the rectangle that a token's cells can change.

    Attributes:
        runs: the clean and corrupted runs.
        single: by kind, block outputs with that kind restored in one layer.
        sever: what is held at its corrupted value above the restored layer.
    """

    runs: Runs
    single: dict[str, Tensor]
    sever: str | None
    _pass: _Pass | None = field(default=None, init=False)
    _top: Tensor | None = field(default=None, init=False)

    def hooks(self) -> dict[str, HookFunction]:
        """Everything a pass does inside the model, for all blocks but the first."""
        points = names(self.runs.model)
        found: dict[str, HookFunction] = {}
        for block in range(1, self.runs.model.n_layers):
            found[f"blocks.{block}.hook_resid_pre"] = self._grow
            for kind in ("mlp", "attn"):
                if kind in self.single or kind == self.sever:
                    found[points[kind][block]] = self._overwriter(kind)
        return found

    def run(self, cells: _Pass) -> Float[Tensor, "n_cells n_samples"]:
        """p(answer) of every corrupted run with each of the cells restored."""
        model, ids = self.runs.model, self.runs.question.ids
        suffix = torch.tensor([ids[cells.token :]], device=model.device)
        cache = self._cache(cells.token, stop=suffix.shape[1] > 1)
        self._pass = cells
        try:
            with model.start_at(cells.first, self._enter(cells.first)):
                logits = self._forward(suffix, cache)
        finally:
            self._pass = None
        if logits is None:
            assert self._top is not None
            top, suffix = model.n_layers - 1, suffix[:, -1:]
            keys, values = cache.layers[top].keys, cache.layers[top].values
            cache = self._cache(len(ids) - 1, stop=False)
            cache.layers[top] = Prefix(keys[:, :, :-1], values[:, :, :-1])
            with model.start_at(top, self._top):
                logits = self._forward(suffix, cache)
            assert logits is not None
        p = probabilities(logits[:, -1])[:, self.runs.answer]
        return p.unflatten(0, (-1, self.runs.n_samples))

    def _forward(self, ids: Tensor, cache: Cache) -> Tensor | None:
        """Logits at the last position; None where the cache stopped the pass."""
        try:
            return self.runs.model.forward({"input_ids": ids}, keep=_last(ids), cache=cache)
        except StopForward:
            return None

    def _cache(self, n_prefix: int, *, stop: bool) -> Cache:
        """Keys and values of the corrupted run at the positions before the suffix."""
        pairs = [(k[:, :, :n_prefix], v[:, :, :n_prefix]) for k, v in self.runs.keys_values]
        top = len(pairs) - 1
        return Cache([Prefix(k, v, stop and i == top) for i, (k, v) in enumerate(pairs)])

    def _enter(self, block: int) -> Float[Tensor, "n_rows n_suffix d_model"]:
        """Rows of the cells that enter at a block: corrupted, but for the restored position."""
        assert self._pass is not None
        token, below, rows = self._pass.token, block - 1, []
        for cell in self._pass.entering(block):
            row = self.runs.noisy["hidden"][below, :, token:].clone()
            if cell.kind == "hidden":
                row[:, 0] = self.runs.states["hidden"][below, token]
            else:
                row[:, 0] = self.single[cell.kind][below, :, token]
            rows.append(row)
        return torch.cat(rows)

    def _grow(self, activation: Tensor, hook: Hook) -> Tensor | None:
        """Rows join the batch at the block where they enter."""
        block, cells = hook.layer(), self._pass
        if cells is None:
            return self._top if block == self.runs.model.n_layers - 1 else None
        if block < cells.first:
            return None
        if cells.entering(block):
            new = self._enter(block)
            activation = new if block == cells.first else torch.cat([activation, new])
        if block == self.runs.model.n_layers - 1:
            self._top = activation[:, -1:]
        return activation

    def _overwriter(self, kind: str) -> HookFunction:
        """Restores a window's upper layers, or holds a severed output, at the restored token."""

        def overwrite(activation: Tensor, hook: Hook) -> Tensor | None:
            block, cells = hook.layer(), self._pass
            if cells is None or block < cells.first:
                return None
            rows = cells.running(block)
            chosen = [i for i, cell in enumerate(rows) if cell.kind == kind and block < cell.stop]
            if not chosen and self.sever != kind:
                return None
            out = activation.clone()
            by_cell = out.unflatten(0, (len(rows), self.runs.n_samples))
            if self.sever == kind:
                by_cell[:, :, 0] = self.runs.noisy[kind][block, :, cells.token]
            if chosen:
                by_cell[chosen, :, 0] = self.runs.states[kind][block, cells.token]
            return out

        return overwrite


def _chunks(cells: list[int], runs: Runs, token: int) -> Iterator[list[int]]:
    """Cells in as few equal parts as the budget of bytes allows."""
    model = runs.model
    budget = CPU_BYTES if model.device.type == "cpu" else GPU_BYTES
    size = runs.n_samples * (runs.n_tokens - token) * model.d_mlp * model.dtype.itemsize
    count = -(-len(cells) // max(1, budget // size))
    width = -(-len(cells) // count)
    for begin in range(0, len(cells), width):
        yield cells[begin : begin + width]


def _last(ids: Tensor) -> Tensor:
    return torch.tensor([ids.shape[1] - 1], device=ids.device)
