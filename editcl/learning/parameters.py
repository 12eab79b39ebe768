"""The adapter parameters that train: which they are, where they sit, and copies of them.

Knows nothing of strategies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor, nn

from editcl.architecture import ModuleMap
from editcl.errors import EditclError, UnsupportedModel
from editcl.learning.session import Session

ATTENTION, MLP = "attention", "mlp"  # the parts of a block, as AdapterSettings.targets has them


def adapted(session: Session) -> dict[str, nn.Parameter]:
    """Those of the training parameters that are an active adapter's, by their names in training.

    A strategy may train others beside them (a classifier), which have no earlier task to keep.
    """
    prefixes = tuple(f"{name}/" for name in session.active)
    return {name: p for name, p in session.training.items() if name.startswith(prefixes)}


def copies(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Clones, where the parameters are."""
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def move(held: dict[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> None:
    """Brings tensors to where the parameters of their names are: resumed ones are on the CPU."""
    for name, parameter in parameters.items():
        if name in held:
            held[name] = held[name].to(parameter.device)


def layer_of(modules: ModuleMap, name: str) -> int | None:
    """The block in which a parameter sits; None for one in no block (virtual tokens)."""
    for layer in range(modules.n_layers):
        if inside(name, str(modules.path(f"blocks.{layer}"))):
            return layer
    return None


def part_of(modules: ModuleMap, name: str) -> str | None:
    """Whether a parameter sits in "attention" or else ("mlp") in a block; None: in no block.

    Raises:
        UnsupportedModel: the attention can't be told from the rest.
    """
    layer = layer_of(modules, name)
    if layer is None:
        return None
    path = modules.path(f"blocks.{layer}.attn")
    if path is None:
        raise UnsupportedModel(
            f"the attention of layer {layer} can't be told from the rest of the block on this "
            "architecture: name modules instead of 'attention' and 'mlp'."
        )
    return ATTENTION if inside(name, path) else MLP


def inside(name: str, path: str) -> bool:
    """Whether a parameter's name leads through a module path, or through the end of one."""
    return f".{path}." in f".{name.rpartition('/')[2]}."


def positive(what: str, value: float) -> float:
    """The value, if it is a finite number above 0.

    Raises:
        EditclError: it is not.
    """
    if isinstance(value, bool) or not 0 < value < math.inf:
        raise EditclError(f"{what} is {value!r}; give a number above 0.")
    return value
