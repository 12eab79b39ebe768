"""Progress bars for anything that may take more than two seconds; quiet where nobody looks."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import TypeVar

Item = TypeVar("Item")

SHOW_AFTER_SECONDS = 2.0
_SCREEN = threading.Lock()  # there is one screen: who draws on it holds this


def progress(items: Sequence[Item], description: str, *, show: bool = True) -> Iterator[Item]:
    """Iterates with a bar on standard error, shown once two seconds have passed.

    Drawn in terminals, and in notebooks that have ipywidgets; elsewhere (pipes, CI) never. Of bars
    within each other one is drawn: the outer one, once it has something to tell.
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
            late = time.monotonic() - started > SHOW_AFTER_SECONDS
            if not shown and late and _SCREEN.acquire(blocking=False):
                shown = True
                bar.start()
    finally:
        if shown:
            bar.stop()
            _SCREEN.release()
