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
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from editcl.encoding import pad
from editcl.hooks import held_behind
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
        held: by name, what linear maps of that block give behind the starts, [n_rows, n_suffix - 1,
            d]: those that read each position by itself before attention mixes them.
    """

    model: EditableModel
    layer: int
    residual: Float[Tensor, "n_rows n_suffix d_model"]
    inputs: dict[str, Tensor]
    prefix: Any | None
    held: dict[str, Tensor]

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
        run = cls(model, 0, torch.empty(0, 0, 0), inputs, prefix, {})
        name = f"blocks.{layer}.hook_resid_pre"
        found = model.activations(inputs, [name, *names], cache=run._cache())
        run = replace(run, layer=layer, residual=found.pop(name))
        given = run._linear_outputs(reading_alone(model, layer))
        return replace(run, held={path: out[:, 1:].clone() for path, out in given.items()}), found

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
            for path, held in self.held.items():
                stack.enter_context(held_behind(self.model.hf.get_submodule(path), held))
            if narrow:
                stack.enter_context(self.model.narrowed(at))
            return self.model.forward(self.inputs, at=at, cache=self._cache())[0]

    def select(self, index: Int[Tensor, " n_chosen"]) -> SuffixRun:
        """The same run with some of the rows."""
        prefix = None if self.prefix is None else selected(self.prefix, index)
        inputs = {name: tensor[index] for name, tensor in self.inputs.items()}
        held = {path: tensor[index] for path, tensor in self.held.items()}
        return replace(self, residual=self.residual[index], inputs=inputs, prefix=prefix, held=held)

    def _linear_outputs(self, paths: Sequence[str]) -> dict[str, Tensor]:
        """What modules of the first block that is run give, where that is [n_rows, n_suffix, d]."""
        found: dict[str, Tensor] = {}

        def save(path: str, output: Any) -> None:
            if isinstance(output, Tensor) and output.shape[:2] == self.residual.shape[:2]:
                found[path] = output

        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(self.model.start_at(self.layer, self.residual))
            for path in paths:
                handle = self.model.hf.get_submodule(path).register_forward_hook(
                    lambda _module, _args, output, path=path: save(path, output)
                )
                stack.callback(handle.remove)
            if paths:
                stack.enter_context(self.model.stop_before(self.layer + 1))
                self.model.forward(self.inputs, cache=self._cache())
        return found

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
    pieces = [row[heads[row] :] for row in distinct]
    chosen = [list(range(len(pieces)))]
    if _gap_allowed(model, mask.shape[1] + max(map(len, pieces)) + n_suffix):
        chosen = list(by_length(model, list(map(len, pieces))))
    found = []
    for some in chosen:
        own = at[some]
        there = None if cache is None else selected(cache, own)
        found.append(_further(model, mask[own], there, [pieces[i] for i in some]))
    mask, cache = found[0] if len(found) == 1 else _under_each_other(found)
    number = {distinct[i]: n for n, i in enumerate(i for some in chosen for i in some)}
    at = torch.tensor([number[row] for row in rows], device=model.device)
    return mask[at], None if cache is None else selected(cache, at)


def _under_each_other(found: Sequence[tuple[Tensor, Any]]) -> tuple[Tensor, Any]:
    """Masks and caches of several sets of rows as those of one set, padded at the left."""
    width = max(mask.shape[1] for mask, _ in found)
    whole = _shallow(next(cache for _, cache in found if cache is not None))

    def padded(rows: Tensor, dim: int) -> Tensor:
        shape = list(rows.shape)
        shape[dim] = width - shape[dim]
        return torch.cat([rows.new_zeros(shape), rows], dim)

    for i, layer in enumerate(whole.layers):
        shape = layer.keys.shape[1], 0, layer.keys.shape[3]
        none = [layer.keys.new_zeros(len(mask), *shape) for mask, _ in found]
        own = [
            n if cache is None else cache.layers[i].keys
            for n, (_, cache) in zip(none, found, strict=True)
        ]
        layer.keys = torch.cat([padded(keys, 2) for keys in own])
        own = [
            n if cache is None else cache.layers[i].values
            for n, (_, cache) in zip(none, found, strict=True)
        ]
        layer.values = torch.cat([padded(values, 2) for values in own])
        if hasattr(layer, "cumulative_length"):  # those with a sliding window count what they saw
            layer.cumulative_length = width
    return torch.cat([padded(mask, 1) for mask, _ in found]), whole


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


def reading_alone(model: EditableModel, layer: int) -> tuple[str, ...]:
    """The linear maps of a block's attention that read each position by itself: those of queries,
    keys and values, not that of the output.

    Found by trying it, once: what is the same to the last bit after the first position was changed.
    """
    root = model.map.path(f"blocks.{layer}.attn")
    attention = None if root is None else model.hf.get_submodule(root)
    paths = tuple(
        f"{root}.{path}"
        for path, module in ([] if attention is None else attention.named_modules())
        if isinstance(module, nn.Linear | Conv1D)
    )
    # The modules are part of the question: an adapter may be put around them or taken off.
    memo = f"reading-alone-{layer}-{paths}"
    if memo not in model.memo:
        inputs = model.pad([[model.pad_id] * 3] * 2)
        name = f"blocks.{layer}.hook_resid_pre"
        residual = model.activations(inputs, [name])[name]
        run = SuffixRun(model, layer, residual, inputs, None, {})
        before = run._linear_outputs(paths)
        moved = torch.cat([residual[:, :1].flip(-1) + 1, residual[:, 1:]], dim=1)
        after = replace(run, residual=moved)._linear_outputs(paths)
        model.memo[memo] = tuple(
            path for path in before if torch.equal(before[path][:, 1:], after[path][:, 1:])
        )
    found: tuple[str, ...] = model.memo[memo]
    return found


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


def by_length(
    model: EditableModel, lengths: Sequence[int], width: int = 0, tokens_per_batch: float = math.inf
) -> Iterator[list[int]]:
    """Indices of pieces by length: padded tokens bounded, and no more padding than a pass costs.

    Args:
        model: that runs them.
        lengths: tokens of each piece.
        width: tokens of the cache in front of each piece, which count as padded tokens, but not as
            padding.
        tokens_per_batch: padded tokens that are run at once.
    """
    bearable = pass_costs(model)
    group: list[int] = []
    padding = 0
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        more = len(group) * (lengths[i] - lengths[group[-1]]) if group else 0
        full = (width + lengths[i]) * (len(group) + 1) > tokens_per_batch
        if group and (full or padding + more > bearable):
            yield group
            group, padding, more = [], 0, 0
        group.append(i)
        padding += more
    if group:
        yield group


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
