"""Hook points: TransformerLens names on the modules of an untouched Hugging Face model.

Hook functions get activations as [n_rows, n_tokens, d] whatever the module's own habit (tuples,
keyword arguments, flattened rows). This module knows nothing of what hooks are used for.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from editcl.architecture import ModuleMap
from editcl.errors import EditclError


@dataclass(frozen=True)
class Hook:
    """Where a hook function is called: its TransformerLens name."""

    name: str

    def layer(self) -> int:
        """The block's index; -1 outside the blocks."""
        parts = self.name.split(".")
        return int(parts[1]) if parts[0] == "blocks" else -1


HookFunction = Callable[[Tensor, Hook], Tensor | None]


class StopForward(Exception):  # noqa: N818 - control flow, not an error
    """Leaves a forward pass early."""


@contextmanager
def hooked(modules: ModuleMap, name: str, function: HookFunction) -> Iterator[None]:
    """Calls the function at one hook point; see `EditableModel.hooks` for the names."""
    handles = _register(modules, Hook(name), function)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def passed_through(block: nn.Module, n_outputs: int | None) -> Iterator[None]:
    """Makes a block hand its input on; the module, its parameters and attributes stay in place.

    Args:
        n_outputs: length of the tuple that the block returns, None where it returns a tensor.
    """

    def forward(*args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        return hidden if n_outputs is None else (hidden, *[None] * (n_outputs - 1))

    block.forward = forward  # an instance attribute, deleted below
    try:
        yield
    finally:
        del block.forward


@contextmanager
def run_at(module: nn.Module, at: tuple[Tensor, Tensor]) -> Iterator[None]:
    """A module that treats each position by itself runs at some pairs (row, position) alone.

    Its output is 0 elsewhere. Calls with anything but one tensor [n_rows, n_tokens, d] are left as
    they are.
    """
    whole: list[Tensor] = []

    def narrow(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if len(args) != 1 or kwargs or args[0].ndim != 3:
            return None
        whole.append(args[0])
        return (args[0][at][None],), kwargs

    def widen(_module: nn.Module, _args: Any, output: Tensor) -> Tensor | None:
        if not whole:
            return None
        out = output.new_zeros(*whole.pop().shape[:2], output.shape[-1])
        return out.index_put(at, output[0])

    with _around(module, narrow, widen):
        yield


@contextmanager
def held_behind(module: nn.Module, held: Tensor) -> Iterator[None]:
    """A module runs at each row's first position alone; behind it its output is what is held.

    Args:
        module: treats each position by itself. Calls with anything but one tensor
            [n_rows, n_tokens, d] are left as they are.
        held: [n_rows, n_tokens - 1, d_out].
    """
    narrowed: list[bool] = []

    def narrow(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if len(args) != 1 or kwargs or args[0].ndim != 3:
            return None
        narrowed.append(True)
        return (args[0][:, :1],), kwargs

    def widen(_module: nn.Module, _args: Any, output: Tensor) -> Tensor | None:
        return torch.cat([output, held], dim=1) if narrowed and narrowed.pop() else None

    with _around(module, narrow, widen):
        yield


@contextmanager
def _around(
    module: nn.Module, narrow: Callable[..., Any], widen: Callable[..., Any]
) -> Iterator[None]:
    """A hook in front of a module, which takes arguments by name too, and one behind it."""
    before = module.register_forward_pre_hook(narrow, with_kwargs=True)
    after = module.register_forward_hook(widen)
    try:
        yield
    finally:
        before.remove()
        after.remove()


def _register(modules: ModuleMap, hook: Hook, function: HookFunction) -> list[Any]:
    if hook.name == "hook_embed":
        return [modules.embed.register_forward_hook(_on_output(function, hook))]
    prefix, _, rest = hook.name.partition(".")
    number, _, point = rest.partition(".")
    if prefix == "blocks" and number.isdigit() and int(number) < modules.n_layers:
        layer = int(number)
        block = modules.blocks[layer]
        if point == "hook_resid_pre":
            return [block.register_forward_pre_hook(_on_input(function, hook), with_kwargs=True)]
        if point == "hook_resid_post":
            return [block.register_forward_hook(_on_output(function, hook))]
        if point == "hook_attn_out":
            attention = _attention_output(modules, layer)
            if attention is not None:
                return [attention.register_forward_hook(_on_output(function, hook))]
        if point in ("mlp.hook_post", "mlp.out.hook_out"):
            return _register_down(block, modules.down[layer], hook, function)
    raise EditclError(
        f"unknown hook point {hook.name!r} for a model of {modules.n_layers} layers; "
        "EditableModel.hooks lists the names."
    )


def _attention_output(modules: ModuleMap, layer: int) -> nn.Module | None:
    """The module whose output is what the attention adds to the residual stream."""
    norm = modules.find(f"blocks.{layer}.ln1_post")
    if norm is not None:  # Gemma, OLMo 2: what is added has been normed
        return norm
    attention = modules.find(f"blocks.{layer}.attn")
    if attention is not None and "residual" in inspect.signature(attention.forward).parameters:
        return modules.find(f"blocks.{layer}.attn.o")  # Bloom: its module adds the stream itself
    return attention


def _register_down(
    block: nn.Module, down: nn.Module, hook: Hook, function: HookFunction
) -> list[Any]:
    """Hooks the down-projection; some models (OPT) flatten rows and tokens in front of it."""
    n_tokens = [1]

    def remember(activation: Tensor, _hook: Hook) -> None:
        n_tokens[0] = activation.shape[1]

    def unflattened(activation: Tensor, where: Hook) -> Tensor | None:
        new = function(activation.reshape(-1, n_tokens[0], activation.shape[-1]), where)
        return None if new is None else new.reshape(activation.shape)

    before = block.register_forward_pre_hook(_on_input(remember, hook), with_kwargs=True)
    if hook.name.endswith("hook_post"):
        at = down.register_forward_pre_hook(_on_input(unflattened, hook), with_kwargs=True)
    else:
        at = down.register_forward_hook(_on_output(unflattened, hook))
    return [before, at]


def _on_output(function: HookFunction, hook: Hook) -> Callable[..., Any]:
    def run(_module: nn.Module, _args: Any, output: Any) -> Any:
        tensor = output[0] if isinstance(output, tuple) else output
        new = function(tensor, hook)
        if new is None:
            return None
        return (new, *output[1:]) if isinstance(output, tuple) else new

    return run


def _on_input(function: HookFunction, hook: Hook) -> Callable[..., Any]:
    def run(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        new = function(args[0] if args else kwargs["hidden_states"], hook)
        if new is None:
            return None
        if args:
            return (new, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": new}

    return run
