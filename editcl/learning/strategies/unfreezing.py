"""progressive_unfreezing, bottom_freezing: schedules of the layers that train.

    progressive   group g of n, counted from the top, trains from step round(g/n share total) on
                  (gradual unfreezing of ULMFiT, arXiv:1801.06146, there by epochs)
    bottom        the bottom `share` of the layers train in the first `whole_tasks` tasks only
                  (against spurious forgetting, arXiv:2501.13453)

Layers are those in which an adapter trains; what is in no layer trains throughout. A frozen bottom
costs no backward pass. Memory held: nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, final

from editcl.errors import EditclError
from editcl.learning.parameters import adapted, layer_of
from editcl.learning.session import Session
from editcl.learning.strategies.base import Strategy

if TYPE_CHECKING:
    from editcl.learning.tasks import Task


@final
class ProgressiveUnfreezing(Strategy):
    """In each task the top layers begin.

    Args:
        groups: n, of neighbouring layers.
        share: of the steps, after which all layers train.
    """

    name: ClassVar[str] = "progressive_unfreezing"

    def __init__(self, groups: int = 3, *, share: float = 0.5) -> None:
        if groups < 2:
            raise EditclError(f"{groups!r} groups of layers leave nothing to unfreeze; give 2.")
        self.groups, self.share = groups, _share(share)
        self._group: dict[str, int] = {}  # by parameter

    def begin(self, session: Session, task: Task) -> None:
        """Groups the layers.

        Raises:
            EditclError: there are fewer layers than groups.
        """
        layer = _layers(session)
        order = sorted({*layer.values()}, reverse=True)
        if len(order) < self.groups:
            raise EditclError(
                f"the adapters {', '.join(session.active)} train in {len(order)} layers, which "
                f"{self.groups} groups can't be made of. Give fewer groups, or other targets."
            )
        group = {number: i * self.groups // len(order) for i, number in enumerate(order)}
        self._group = {name: group[number] for name, number in layer.items()}

    def before_step(self, session: Session, step: int, total: int) -> None:
        """Only parameters whose time has come ask for gradients."""
        for name, group in self._group.items():
            if name in session.training:
                start = round(group / self.groups * self.share * total)
                session.training[name].requires_grad_(step >= start)

    def end(self, session: Session, task: Task) -> None:
        """The next task is grouped anew."""
        self._group = {}


@final
class BottomFreezing(Strategy):
    """The bottom layers stay as the first tasks have left them.

    Args:
        share: of the layers.
        whole_tasks: how many tasks train all layers before.
    """

    name: ClassVar[str] = "bottom_freezing"

    def __init__(self, share: float = 0.5, *, whole_tasks: int = 1) -> None:
        if whole_tasks < 0:
            raise EditclError(f"whole_tasks is {whole_tasks!r}; give 0 or more.")
        self.share, self.whole_tasks = _share(share), whole_tasks

    def begin(self, session: Session, task: Task) -> None:
        """Takes the parameters of the bottom layers out of training.

        Raises:
            EditclError: the share is less than a layer, or all of them.
        """
        if len(session.seen) < self.whole_tasks:
            return
        layer = _layers(session)
        order = sorted({*layer.values()})
        bottom = set(order[: round(self.share * len(order))])
        if not bottom or len(bottom) == len(order):
            raise EditclError(
                f"a share of {self.share} of {len(order)} layers is {len(bottom)}; give one that "
                "freezes at least one layer and leaves one."
            )
        for name, number in layer.items():
            if number in bottom:
                del session.training[name]


def _layers(session: Session) -> dict[str, int]:
    """The layer of each parameter that is in one.

    Raises:
        EditclError: none is.
    """
    found = {name: layer_of(session.model.map, name) for name in adapted(session)}
    layers = {name: layer for name, layer in found.items() if layer is not None}
    if not layers:
        kinds = {session.adapters.settings(name).kind for name in session.active}
        raise EditclError(
            f"adapters of kind {', '.join(sorted(kinds))} train in no layer, so that none can be "
            "frozen. Use lora, dora or ia3."
        )
    return layers


def _share(value: float) -> float:
    if not 0 < value < 1:
        raise EditclError(f"the share is {value!r}; give a number above 0 and below 1.")
    return value
