"""Forward passes that recompute only what can change: later positions, upper layers.

When only the activation at the subject's last token of block l changes, positions before it keep
their keys and values at every layer, and blocks below l keep their outputs. A `SuffixRun` computes
these once, beginnings that rows share once for all of them, and then runs rows from position
`start` and block l on, exactly. It knows nothing of facts or losses; it knows the Hugging Face
key-value cache.
"""

from __future__ import annotations

import copy
import inspect
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from editcl.encoding import pad
from editcl.model import EditableModel, Hook

Ids: TypeAlias = tuple[int, ...]
BY_MASK = ("bloom",)  # kinds of model that take no positions and count those that the mask shows


@dataclass(frozen=True)
class SuffixRun:
    """Rows of which only positions from their start on, and blocks from `layer` on, are run.

    Position 0 of the suffix is each row's start: rows are padded at the left in front of it, and
    between a beginning that is shared and the rest, so that all starts align; and at the right
    behind.

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
        before = [tuple(row[:s]) for row, s in zip(rows, starts, strict=True)]
        after = [row[s:] for row, s in zip(rows, starts, strict=True)]
        with torch.no_grad():
            mask, prefix = _prefixes(model, before, max(map(len, after)))
        inputs, _ = behind(model, mask, after)
        run = cls(model, 0, torch.empty(0, 0, 0), inputs, prefix)
        name = f"blocks.{layer}.hook_resid_pre"
        found = model.activations(inputs, [name, *names], cache=run._cache())
        return replace(run, layer=layer, residual=found.pop(name)), found

    def logits(
        self,
        at: tuple[Int[Tensor, " n_at"], Int[Tensor, " n_at"]],
        shift: Float[Tensor, "n_rows d_model"] | None = None,
        *,
        narrow: bool = False,
    ) -> Float[Tensor, "n_at d_vocab"]:
        """Logits at (row, suffix position) pairs, through blocks from `layer` on.

        Args:
            at: distinct pairs.
            shift: is added to the residual stream at each row's start.
            narrow: run what follows the last block's attention at these pairs alone; no hook may
                look at that.
        """
        residual = self.residual
        if shift is not None:
            start = (residual[:, 0].float() + shift).to(residual.dtype)
            residual = torch.cat([start[:, None], residual[:, 1:]], dim=1)
        with ExitStack() as stack:
            stack.enter_context(self.model.start_at(self.layer, residual))
            if narrow:
                stack.enter_context(self.model.narrowed(at))
            return self.model.forward(self.inputs, at=at, cache=self._cache())[0]

    def select(self, index: Int[Tensor, " n_chosen"]) -> SuffixRun:
        """The same run with some of the rows."""
        prefix = None if self.prefix is None else selected(self.prefix, index)
        inputs = {name: tensor[index] for name, tensor in self.inputs.items()}
        return replace(self, residual=self.residual[index], inputs=inputs, prefix=prefix)

    def _cache(self) -> Any:
        """The cache of one run; a shallow copy, since layers reassign what they hold."""
        return None if self.prefix is None else _shallow(self.prefix)


def _prefixes(
    model: EditableModel, rows: Sequence[Ids], n_suffix: int
) -> tuple[Int[Tensor, "n_rows n_prefix"], Any | None]:
    """Mask and key-value cache of what stands in front of the suffixes; None if nothing does.

    Equal rows are run once, and so are beginnings that many of them share: texts in front of
    prompts are the same for every fact.
    """
    distinct = sorted(set(rows))
    heads = heads_worth_sharing(model, distinct, n_suffix)
    names = sorted({row[:n] for row, n in heads.items()})
    mask = torch.zeros(len(names), 0, dtype=torch.long, device=model.device)
    mask, cache = _further(model, mask, None, names)
    number = {name: i for i, name in enumerate(names)}
    at = torch.tensor([number[row[: heads[row]]] for row in distinct], device=model.device)
    cache = None if cache is None else selected(cache, at)
    mask, cache = _further(model, mask[at], cache, [row[heads[row] :] for row in distinct])
    number = {row: i for i, row in enumerate(distinct)}
    at = torch.tensor([number[row] for row in rows], device=model.device)
    return mask[at], None if cache is None else selected(cache, at)


def _further(
    model: EditableModel, mask: Tensor, cache: Any, pieces: Sequence[Ids]
) -> tuple[Tensor, Any]:
    """Mask and cache of rows with a piece run behind each."""
    if not any(pieces):
        return mask, cache
    inputs, mask = behind(model, mask, pieces, left=True)
    return mask, model.forward_caching(inputs, last_only=True, cache=cache)[1]


def behind(
    model: EditableModel, mask: Tensor, pieces: Sequence[Sequence[int]], *, left: bool = False
) -> tuple[dict[str, Tensor], Tensor]:
    """Forward arguments for pieces behind cached rows of a mask, and the mask of both."""
    after = pad(pieces, model.pad_id, model.device, left=left)
    mask = torch.cat([mask, after.mask], dim=1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, mask.shape[1] - after.ids.shape[1] :]
    return accepted(model, after.ids, mask, positions), mask


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


def shared_heads(prompts: Sequence[Ids]) -> dict[Ids, int]:
    """For each of the sorted, distinct prompts how many leading tokens it shares with others.

    A set of n prompts that share d tokens saves (n - 1) d; the sets are nested (as in a prefix
    tree), and of each and its parts, with what no part takes sharing d, the better is taken. A
    prompt keeps one token of its own.
    """
    shared = dict.fromkeys(prompts, 0)

    def best(group: Sequence[Ids], depth: int) -> tuple[int, list[tuple[Sequence[Ids], int]]]:
        """Tokens saved, and the sets that save them, in prompts that share `depth` tokens."""
        # Sorted, so what the first and the last share all share.
        depth = max(depth, _common(group[0], group[-1]))
        parts: dict[int, list[Ids]] = defaultdict(list)
        for prompt in group:
            if len(prompt) > depth + 1:
                parts[prompt[depth]].append(prompt)
        found = [best(part, depth + 1) for part in parts.values() if len(part) > 1]
        sets = [one for _, inner in found for one in inner]
        deeper = {prompt for some, _ in sets for prompt in some}
        rest = [prompt for prompt in group if prompt not in deeper]
        saved = sum(saving for saving, _ in found) + max(0, len(rest) - 1) * depth
        here = (len(group) - 1) * depth
        if here >= saved:
            return here, [(group, depth)]
        return saved, [*sets, (rest, depth)] if len(rest) > 1 else sets

    if prompts:
        for group, depth in best(prompts, 0)[1]:
            shared |= dict.fromkeys(group, depth)
    return shared


def _common(first: Ids, last: Ids) -> int:
    """How many leading tokens are the same, the last one of the shorter left out."""
    most = min(len(first), len(last)) - 1
    return next((k for k in range(most) if first[k] != last[k]), most)


def heads_worth_sharing(
    model: EditableModel, prompts: Sequence[Ids], n_behind: int
) -> dict[Ids, int]:
    """`shared_heads` where they save a pass and padding may stand behind them, else none.

    Args:
        model: that runs them.
        prompts: sorted and distinct.
        n_behind: tokens that follow on a prompt at most.
    """
    heads = shared_heads(prompts)
    saved = sum(heads.values()) - sum(len(head) for head in {p[:n] for p, n in heads.items()})
    width = max(heads.values(), default=0) + n_behind
    width += max((len(prompt) - head for prompt, head in heads.items()), default=0)
    if saved < pass_costs(model) or not _gap_allowed(model, width):
        return dict.fromkeys(heads, 0)
    return heads


def _gap_allowed(model: EditableModel, width: int) -> bool:
    """Whether padding may stand between pieces of rows of so many tokens: the model takes positions
    or finds them by the mask, and windows and position tables span the padding too."""
    config = model.hf.config
    if not (_takes_positions(model) or config.model_type in BY_MASK):
        return False
    windows = (getattr(config, name, None) for name in ("sliding_window", "window_size"))
    return width <= min([model.max_tokens, *(w for w in windows if w)])


def pass_costs(model: EditableModel) -> int:
    """How many tokens more in a forward pass cost about as much as another pass."""
    return 64 if model.device.type == "cpu" else 4096


def accepted(
    model: EditableModel, ids: Tensor, mask: Tensor, positions: Tensor
) -> dict[str, Tensor]:
    """Forward arguments; positions only where the model takes them (Bloom derives its own)."""
    inputs = {"input_ids": ids, "attention_mask": mask}
    if _takes_positions(model):
        inputs["position_ids"] = positions
    return inputs


def _takes_positions(model: EditableModel) -> bool:
    return "position_ids" in inspect.signature(type(model.hf).forward).parameters
