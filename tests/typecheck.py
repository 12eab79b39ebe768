"""The run-time checker of tensor axes that the import hook puts on editcl's functions."""

from __future__ import annotations

import inspect
from typing import Any, get_args

from beartype import beartype
from jaxtyping import AbstractArray


def checked(function: Any) -> Any:
    """beartype, on the annotations that name the axes of tensors.

    The other ones are mypy's affair: some name types that are imported for type checkers only, and
    tests of bad input hand over wrong types on purpose.
    """
    if inspect.isfunction(function):
        for name, hint in list(function.__annotations__.items()):
            resolved = _resolved(hint, function.__globals__)
            function.__annotations__[name] = resolved if _has_axes(resolved) else Any
    return beartype(function)


def _resolved(hint: Any, names: dict[str, Any]) -> Any:
    if not isinstance(hint, str):
        return hint
    try:
        return eval(hint, names)
    except NameError:
        return Any


def _has_axes(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(_has_axes(argument) for argument in get_args(hint))
