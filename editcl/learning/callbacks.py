"""Callback: who watches a training gets plain numbers; and the progress bar, which is one.

The names fit trackers such as TensorBoard and W&B, none of which is needed. Knows nothing of
tensors.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from editcl.progress import SHOW_AFTER_SECONDS

if TYPE_CHECKING:
    from editcl.learning.train import TrainResult


class Callback:
    """Abstract base: what is told to a watcher. An error that one raises ends the training."""

    def on_start(self, info: Mapping[str, Any]) -> None:
        """Before the first step: `task`, `strategy`, the `step` that comes first and the `total`
        of steps, `rows`, the number of trained `parameters`, `settings`.
        """

    def on_step(self, step: int, values: Mapping[str, float]) -> None:
        """After each: `loss`, `lr`, `gradient_norm`, `examples_per_second`, penalties by name."""

    def on_evaluate(self, step: int, values: Mapping[str, float]) -> None:
        """After each look at the held-out rows: `held_out_loss`, `best`."""

    def on_end(self, result: TrainResult) -> None:
        """After the last step; not called where training fails."""


class ProgressBar(Callback):
    """A bar with loss and examples/s on standard error, shown once two seconds have passed.

    Drawn in terminals, and in notebooks that have ipywidgets; elsewhere (pipes, CI) never.
    """

    def __init__(self) -> None:
        self._bar: Any = None
        self._started = 0.0
        self._shown = False

    def on_start(self, info: Mapping[str, Any]) -> None:
        """Makes the bar, not yet shown."""
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True)
        if console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None):
            self._bar = Progress(console=console, transient=True)
            self._what = f"{info['task']} ({info['strategy']})"
            self._task = self._bar.add_task(self._what, total=info["total"], completed=info["step"])
            self._started = time.monotonic()

    def on_step(self, step: int, values: Mapping[str, float]) -> None:
        """Moves it on."""
        if self._bar is None:
            return
        speed = f"{values['examples_per_second']:.0f} examples/s"
        self._bar.update(
            self._task,
            completed=step + 1,
            description=f"{self._what} loss {values['loss']:.3f}, {speed}",
        )
        if not self._shown and time.monotonic() - self._started > SHOW_AFTER_SECONDS:
            self._bar.start()
            self._shown = True

    def close(self) -> None:
        """Takes the bar away, also where training failed."""
        if self._shown:
            self._bar.stop()
        self._bar, self._shown = None, False
