"""control: every block gives the middle between what it gives without and with the adapter.

    h_pre = block(x),  h_new = (block + LoRA)(x)
    h = lerp(h_pre, h_new, 1/2);     loss + lambda mean_blocks mean_tokens ||h_new - h_pre||^2 / d

Both see the same x, the middle of the block before. Wei et al. 2025, "Control LLM: controlled
evolution for intelligence retention in LLM", arXiv:2501.10979, which trains copies of blocks; here
the copy is the frozen block with a LoRA. Whoever predicts does so inside of `around`, which the
adapter belongs to. Keeps nothing between tasks but the adapter; each forward pass costs two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from torch import Tensor, nn

from editcl.errors import EditclError
from editcl.learning.kinds import LOW_RANK
from editcl.learning.session import Session, StepOutput
from editcl.learning.strategies.base import Strategy

if TYPE_CHECKING:
    from editcl.learning.tasks import Task


@final
class Control(Strategy):
    """Interpolates the blocks with and without adapters.

    Args:
        weight: lambda.
        share: of the trained block in the middle.
    """

    name: ClassVar[str] = "control"

    def __init__(self, weight: float = 1.0, *, share: float = 0.5) -> None:
        if not weight >= 0:
            raise EditclError(f"a weight of {weight!r} can't be; give 0 or more.")
        if not 0 < share <= 1:
            raise EditclError(f"a share of {share!r} is not in (0, 1]; 0.5 is the paper's.")
        self.weight, self.share = weight, share
        self._gaps: dict[int, Tensor] = {}  # h_new - h_pre of the last pass with gradients

    def begin(self, session: Session, task: Task) -> None:
        """Checks the kind of adapters.

        Raises:
            EditclError: they don't work inside the blocks side by side with others.
        """
        kind = session.settings.kind
        if kind not in LOW_RANK:
            raise EditclError(
                f"control interpolates blocks with and without LoRA or DoRA; the session's "
                f"adapters are {kind}. Use AdapterSettings(kind='lora')."
            )

    @contextmanager
    def around(self, session: Session) -> Iterator[None]:
        """The blocks interpolate inside."""
        with session.adapters.using(()):
            blocks = session.adapters.view.map.blocks  # the ones that all LoRAs are in
        handles = [
            block.register_forward_hook(self._middle(i), with_kwargs=True)
            for i, block in enumerate(blocks)
        ]
        try:
            yield
        finally:
            self._gaps = {}
            for handle in handles:
                handle.remove()

    def penalty(self, session: Session, output: StepOutput) -> Mapping[str, Tensor]:
        """The distance between the two, padding left out."""
        inside = output.batch.mask().bool()
        terms = [gap[inside].float().square().mean() for gap in self._gaps.values()]
        assert terms, "control's penalty was asked for outside of `around`"
        self._gaps = {}
        return {self.name: self.weight * torch.stack(terms).mean()}

    def _middle(self, i: int) -> Any:
        """The hook of block i."""

        def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
            _require_no_cache(args, kwargs)
            new = out[0] if isinstance(out, tuple) else out
            with _without_adapters(block):
                found = block.forward(*args, **kwargs)  # not by a call: the block's hooks have run
            pre = found[0] if isinstance(found, tuple) else found
            if torch.is_grad_enabled() and new.requires_grad:
                self._gaps[i] = new - pre
            middle = torch.lerp(pre, new, self.share)
            return (middle, *out[1:]) if isinstance(out, tuple) else middle

        return hook


@contextmanager
def _without_adapters(block: nn.Module) -> Iterator[None]:
    """The adapters of a block do nothing inside, whichever are active.

    peft's own switch for it would take the flags of gradients away from their parameters.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in block.modules() if isinstance(module, BaseTunerLayer)]
    before = [layer._disable_adapters for layer in layers]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer._disable_adapters = value


def _require_no_cache(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raises EditclError where a block would add its keys and values to a cache, twice here."""
    from transformers.cache_utils import Cache

    if any(isinstance(value, Cache) for value in (*args, *kwargs.values())):
        raise EditclError(
            "a block that runs with and without adapters can't fill one cache of keys and values: "
            "under the strategy control, run whole rows and don't generate with a cache."
        )
