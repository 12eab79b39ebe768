"""Progress bars for anything that may take more than two seconds; quiet where nobody looks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import TypeVar

Item = TypeVar("Item")

SHOW_AFTER_SECONDS = 2.0


def progress(items: Sequence[Item], description: str, *, show: bool = True) -> Iterator[Item]:
    """Iterates with a bar on standard error, shown once two seconds have passed.

    Drawn in terminals, and in notebooks that have ipywidgets; elsewhere (pipes, CI) never.
    """
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    seen = console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)
    if not (show and seen):
        yield from items
        return
    started, shown = time.monotonic(), False
    bar = Progress(console=console, transient=True)
    task = bar.add_task(description, total=len(items))
    try:
        for item in items:
            yield item
            bar.advance(task)
            if not shown and time.monotonic() - started > SHOW_AFTER_SECONDS:
                bar.start()
                shown = True
    finally:
        if shown:
            bar.stop()
