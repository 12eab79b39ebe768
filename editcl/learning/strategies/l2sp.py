"""l2sp: parameters are held near their values at the start of the task.

    loss + lambda sum_i (theta_i - theta_{t-1,i})^2         L2-SP, arXiv:1802.01483

theta_{t-1} is the adapter as it is when task t begins: at first the fresh one, which is the base
model. "Modular": a lambda for each kind of module, so that some may move where others are held. The
distance is that of A and B, not of B A.

Memory held: nothing between tasks; during one, a copy of what trains, made anew from the adapter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from editcl.errors import EditclError
from editcl.learning.parameters import ATTENTION, MLP, adapted, copies, inside, part_of, positive
from editcl.learning.session import Session, StepOutput
from editcl.learning.strategies.base import Strategy

if TYPE_CHECKING:
    from editcl.learning.tasks import Task


@final
class L2SP(Strategy):
    """One strength for all parameters.

    Args:
        strength: lambda.
    """

    name: ClassVar[str] = "l2sp"

    def __init__(self, strength: float = 0.1) -> None:
        self.strength = positive("the strength of l2sp", strength)
        self._start: dict[str, Tensor] = {}

    def begin(self, session: Session, task: Task) -> None:
        """Copies the parameters."""
        self._start = copies(adapted(session))

    def penalty(self, session: Session, output: StepOutput) -> Mapping[str, Tensor]:
        """The distance from the start."""
        strengths = dict.fromkeys(self._start, self.strength)
        return {self.name: distance(session.training, self._start, strengths)}

    def end(self, session: Session, task: Task) -> None:
        """Drops the copy: the next task starts from elsewhere."""
        self._start = {}


@final
class ModularL2SP(Strategy):
    """A strength for each kind of module.

    Args:
        strengths: lambda by "attention", by "mlp" (what else is in a block), or by the end of a
            module's path ("mlp.c_proj"); of several that fit a parameter the first counts, and a
            parameter that none fits is free.
    """

    name: ClassVar[str] = "modular_l2sp"

    def __init__(self, strengths: Mapping[str, float] | None = None) -> None:
        # Facts sit in the MLPs: by default these move less.
        found = {ATTENTION: 0.03, MLP: 0.3} if strengths is None else strengths
        if not found:
            raise EditclError("modular_l2sp has no strengths; give one for at least one module.")
        self.strengths = tuple(
            (name, positive(f"the strength for {name!r}", value)) for name, value in found.items()
        )
        self._start: dict[str, Tensor] = {}
        self._each: dict[str, float] = {}  # by parameter

    def begin(self, session: Session, task: Task) -> None:
        """Copies the parameters that some strength fits.

        Raises:
            EditclError: a strength for modules by name fits none, or none fits.
        """
        parameters = adapted(session)
        fits: dict[str, list[str]] = {
            name: [key for key, _ in self.strengths if _fits(session, key, name)]
            for name in parameters
        }
        fit = {key for found in fits.values() for key in found}
        for key, _ in self.strengths:
            # An adapter may well leave out attention or MLPs, but a module's name is meant.
            if not fit or (key not in fit and key not in (ATTENTION, MLP)):
                raise EditclError(
                    f"modular_l2sp has a strength for {key!r}, but no parameter of the adapters "
                    f"{', '.join(session.active)} is in such a module. Leave it out, or give the "
                    "adapters that target."
                )
        by_key = dict(self.strengths)
        self._each = {name: by_key[found[0]] for name, found in fits.items() if found}
        self._start = copies({name: parameters[name] for name in self._each})

    def penalty(self, session: Session, output: StepOutput) -> Mapping[str, Tensor]:
        """The distance from the start."""
        return {self.name: distance(session.training, self._start, self._each)}

    def end(self, session: Session, task: Task) -> None:
        """Drops the copy."""
        self._start, self._each = {}, {}


def distance(
    parameters: Mapping[str, nn.Parameter],
    start: Mapping[str, Tensor],
    strengths: Mapping[str, float],
) -> Float[Tensor, ""]:
    """sum_i lambda_i (theta_i - start_i)^2 over what trains still."""
    held = [name for name in start if name in parameters]
    terms = [strengths[n] * (parameters[n] - start[n]).float().square().sum() for n in held]
    return torch.stack(terms).sum()


def _fits(session: Session, key: str, name: str) -> bool:
    if key in (ATTENTION, MLP):
        return part_of(session.model.map, name) == key
    return inside(name, key)
