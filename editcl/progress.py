"""Progress bars for anything that may take more than two seconds; quiet where nobody looks."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")

SHOW_AFTER_SECONDS = 2.0


def progress(items: Sequence[Item], description: str) -> Iterator[Item]:
    """Iterates with a bar on standard error, shown once two seconds have passed.

    Nothing is drawn where standard error is not a terminal (scripts, CI, pipes).
    """
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import Progress

    started = time.monotonic()
    bar = Progress(console=Console(stderr=True), transient=True)
    shown = False
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
