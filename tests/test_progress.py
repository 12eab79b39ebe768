"""Progress bars: one at a time, and quiet where nobody looks."""

from __future__ import annotations

import pytest
import rich.progress

from editcl import progress as module
from editcl.progress import progress


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What bars are started and stopped, on a terminal that shows them at once."""
    found: list[str] = []

    class Bar(rich.progress.Progress):
        def start(self) -> None:
            found.append(f"start {self.tasks[0].description}")

        def stop(self) -> None:
            found.append(f"stop {self.tasks[0].description}")

    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(rich.progress, "Progress", Bar)
    monkeypatch.setattr(module, "SHOW_AFTER_SECONDS", -1.0)
    return found


def test_a_bar_within_a_drawn_one_is_not_drawn(drawn: list[str]) -> None:
    for i in progress([0, 1], "outer"):
        assert list(progress([i, i + 1], "inner")) == [i, i + 1]
    assert drawn == ["start inner", "stop inner", "start outer", "stop outer"]


def test_the_screen_is_free_again_after_an_error(drawn: list[str]) -> None:
    with pytest.raises(ValueError, match="on the way"):
        for i in progress([0, 1, 2], "first"):
            if i == 2:
                raise ValueError("on the way")
    assert list(progress([0], "second")) == [0]
    assert drawn == ["start first", "stop first", "start second", "stop second"]


def test_nothing_is_drawn_into_a_pipe(drawn: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORCE_COLOR")
    assert list(progress([0, 1], "quiet")) == [0, 1]
    assert drawn == []
