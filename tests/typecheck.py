"""The run-time checker of tensor axes that the import hook puts on editcl's functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, get_args

import jaxtyping
from beartype import beartype
from jaxtyping import AbstractArray

_jaxtyped = jaxtyping.jaxtyped


def install() -> None:
    """Checks the axes of every module of editcl that is imported from now on.

    jaxtyping's hook would wrap each function, with axes or not, and a wrapped call costs more than
    most of those functions do: tests would take nearly three times as long.
    """
    jaxtyping.jaxtyped = _where_axes_are_named  # the name that the hook writes into a module
    jaxtyping.install_import_hook("editcl", "typecheck.checked")


def _where_axes_are_named(*, typechecker: Any) -> Callable[[Any], Any]:
    """The decorator that the hook writes above functions and classes."""
    decorate = _jaxtyped(typechecker=typechecker)

    def decorated(thing: Any) -> Any:
        # Of a dataclass jaxtyping checks what it is made of.
        function = thing.__init__ if inspect.isclass(thing) else thing
        if not inspect.isfunction(function):
            return decorate(thing)
        hints = [_resolved(h, function.__globals__) for h in function.__annotations__.values()]
        return decorate(thing) if any(map(_has_axes, hints)) else thing

    return decorated


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
