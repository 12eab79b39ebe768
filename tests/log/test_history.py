"""Which facts are active: the fold of the events, and what a rollback can name."""

from __future__ import annotations

import pytest

from editcl.errors import LogError
from editcl.facts import Fact
from editcl.log.entry import Edit, Event
from editcl.log.history import History

FACTS = tuple(Fact(name, "{} is in", "Rome", "Paris") for name in ("A", "B", "C"))


@pytest.fixture
def history() -> History:
    one = Edit("e0001", FACTS[:2], "test", (0,), ("w",))
    two = Edit("e0002", (FACTS[2], FACTS[0]), "test", (0,), ("w",))
    return History().with_edit(one).with_edit(two)


def event(action: str, **columns: tuple[int, ...]) -> Event:
    return Event("r0001", action, columns, "")


def test_everything_starts_active_and_events_switch_it(history: History) -> None:
    assert history.active == {"e0001": (True, True), "e0002": (True, True)}
    out = history.with_event(event("rollback", e0001=(1,), e0002=(0,)))
    assert out.active == {"e0001": (True, False), "e0002": (False, True)}
    back = out.with_event(event("reapply", e0001=(1,)))
    assert back.active == {"e0001": (True, True), "e0002": (False, True)}
    assert history.active["e0001"] == (True, True)


@pytest.mark.parametrize(
    "columns", [{"e0009": (0,)}, {"e0001": (2,)}, {"e0001": (-1,)}, {"e0001": (0, 0)}]
)
def test_an_event_that_does_not_fit_is_refused(
    history: History, columns: dict[str, tuple[int, ...]]
) -> None:
    with pytest.raises(ValueError):
        history.with_event(event("rollback", **columns))


def test_targets_name_entries_facts_columns_lists_and_all(history: History) -> None:
    both = {"e0001": (0, 1), "e0002": (0, 1)}
    edit = history.edits["e0001"]
    assert history.columns("all", active=True) == both
    assert history.columns("e0001", active=True) == {"e0001": (0, 1)}
    assert history.columns(edit, active=True) == {"e0001": (0, 1)}
    assert history.columns(FACTS[0], active=True) == {"e0001": (0,), "e0002": (1,)}
    assert history.columns((edit, 1), active=True) == {"e0001": (1,)}
    assert history.columns([FACTS[2], ("e0001", 0)], active=True) == {"e0001": (0,), "e0002": (0,)}


def test_only_what_is_active_is_meant(history: History) -> None:
    out = history.with_event(event("rollback", e0001=(0, 1)))
    assert out.columns(FACTS[0], active=True) == {"e0002": (1,)}
    assert out.columns("all", active=False) == {"e0001": (0, 1)}
    with pytest.raises(LogError, match="nothing to roll back"):
        out.columns("e0001", active=True)
    with pytest.raises(LogError, match="nothing to reapply"):
        out.columns("e0002", active=False)
    assert history.columns("all", active=False) == {}


def test_a_fact_without_old_object_matches_any(history: History) -> None:
    assert history.columns(Fact("B", "{} is in", "Rome"), active=True) == {"e0001": (1,)}
    with pytest.raises(LogError, match="no entry"):
        history.columns(Fact("B", "{} is in", "Rome", "London"), active=True)


@pytest.mark.parametrize("what", ["e0009", ("e0001", 2), ("e0001", -1), []])
def test_what_is_not_there_is_a_clear_error(history: History, what: object) -> None:
    with pytest.raises(LogError):
        history.columns(what, active=True)  # type: ignore[arg-type]


def test_a_receipt_of_another_log_is_refused(history: History) -> None:
    other = Edit("e0001", (FACTS[2],), "test", (0,), ("w",))
    with pytest.raises(LogError, match="different log"):
        history.columns(other, active=True)


def test_later_are_active_facts_of_later_entries_that_are_not_named(history: History) -> None:
    assert history.later({"e0001": (0,)}) == [("e0002", 0), ("e0002", 1)]
    assert history.later({"e0001": (0,), "e0002": (0,)}) == [("e0002", 1)]
    assert history.later({"e0002": (0,)}) == []
