"""Which facts are active: the fold of the events, and what a rollback can name."""

from __future__ import annotations

import pytest

from editcl.errors import LogError
from editcl.facts import Fact
from editcl.log.entry import Edit, Event
from editcl.log.history import History
from editcl.update import SHARED

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


def test_dependents_are_other_facts_of_the_entry_and_all_of_later_ones(history: History) -> None:
    later = [("e0002", 0), ("e0002", 1)]
    assert history.dependents({"e0001": (0,)}) == [("e0001", 1), *later]
    assert history.dependents({"e0001": (0, 1)}) == later
    assert history.dependents({"e0001": (0,), "e0002": (0,)}) == [("e0001", 1), ("e0002", 1)]
    assert history.dependents({"e0002": (0,)}) == [("e0002", 1)]
    out = history.with_event(event("rollback", e0001=(1,)))
    assert out.dependents({"e0001": (0,)}) == later


# -- facts that share columns -------------------------------------------------------------------


@pytest.fixture
def joint() -> History:
    """An entry of three facts: in v they share a column, in w fact 2 owns two and fact 0 none."""
    owners = {"v": (SHARED, 0), "w": (2, 1, 2)}
    return History().with_edit(Edit("e0001", FACTS, "ft", (0,), ("v", "w", "x"), owners=owners))


def test_a_column_is_active_with_the_fact_that_owns_it() -> None:
    edit = Edit("e0001", FACTS, "test", (0,), ("w", "x"), owners={"w": (2, 1, 2, 2)})
    history = History().with_edit(edit).with_event(event("rollback", e0001=(1,)))
    assert history.active_columns("e0001", "w") == (True, False, True, True)
    assert history.active_columns("e0001", "x") == (True, False, True)
    last = history.with_event(event("rollback", e0001=(2,)))
    assert last.active_columns("e0001", "w") == (False,) * 4
    assert last.active["e0001"] == (True, False, False)


@pytest.mark.parametrize("what", [("e0001", 1), FACTS[0], [("e0001", 0), ("e0001", 2)]])
def test_facts_that_share_columns_are_refused_alone_and_offered_whole(
    joint: History, what: object
) -> None:
    offer = r"3 facts together.*no fact can be rolled back alone.*log.rollback\('e0001'\)"
    with pytest.raises(LogError, match=offer):
        joint.columns(what, active=True)  # type: ignore[arg-type]
    out = joint.with_event(event("rollback", e0001=(0, 1, 2)))
    with pytest.raises(LogError, match=r"reapplied alone.*log.reapply\('e0001'\)"):
        out.columns(what, active=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("what", ["e0001", "all", list(FACTS), [("e0001", 2), *FACTS[:2]]])
def test_all_facts_that_share_columns_go_and_come_together(joint: History, what: object) -> None:
    columns = joint.columns(what, active=True)  # type: ignore[arg-type]
    assert columns == {"e0001": (0, 1, 2)}
    out = joint.with_event(event("rollback", **columns))
    assert not any(out.active_columns("e0001", "v") + out.active_columns("e0001", "w"))
    assert out.with_event(event("reapply", **columns)).active_columns("e0001", "v") == (True, True)


def test_an_event_that_parts_facts_that_share_columns_does_not_fit(joint: History) -> None:
    with pytest.raises(ValueError, match="parts facts"):
        joint.with_event(event("rollback", e0001=(0, 1)))


def test_a_single_fact_owns_what_it_shares_with_nobody() -> None:
    edit = Edit("e0001", FACTS[:1], "ft", (0,), ("w",), owners={"w": (SHARED,) * 5})
    assert History().with_edit(edit).columns(FACTS[0], active=True) == {"e0001": (0,)}
