"""Receipts: they survive JSON, read well, and show nothing unescaped."""

from __future__ import annotations

import json

import pytest

from editcl.errors import LogError, NonFiniteError
from editcl.facts import Fact
from editcl.log.entry import Edit, Event, Probability, check_probabilities, plain_json

EIFFEL = Fact("The Eiffel Tower", "{} is located in the city of", "Rome", "Paris")


def edit(facts: tuple[Fact, ...] = (EIFFEL,), **changes: object) -> Edit:
    values: dict[str, object] = {
        "method": "rome",
        "before": tuple(Probability(0.9, 0.01) for _ in facts),
        "after": tuple(Probability(None, 0.98) for _ in facts),
        "relative_norms": {"h.3.weight": 0.0123},
        "seconds": 1.5,
        "created": "2026-01-01T00:00:00Z",
        "details": {"seed": 1, "notes": ["ü", None]},
    }
    return Edit(
        id="e0001", facts=facts, layers=(3,), parameters=("h.3.weight",), **(values | changes)
    )  # type: ignore[arg-type]


def test_an_edit_comes_back_from_json_equal() -> None:
    for one in (
        edit(),
        edit((EIFFEL, Fact("埃菲尔铁塔", "{}位于", "罗马"))),
        edit(before=(), after=()),
        edit(owners={"h.3.weight": (-1, 0, -1)}),
    ):
        assert Edit.from_json("e0001", json.loads(json.dumps(one.to_json()))) == one
    assert len({edit(), edit()}) == 1


def test_an_event_comes_back_from_json_equal() -> None:
    event = Event("r0001", "rollback", {"e0001": (0, 2)}, "2026-01-01T00:00:00Z")
    again = Event.from_json("r0001", "rollback", json.loads(json.dumps(event.to_json())))
    assert again == event


def test_the_repr_tells_what_changed() -> None:
    text = repr(edit())
    assert "e0001" in text and "rome, layer 3, 1.50 s" in text
    assert "The Eiffel Tower is located in the city of: Paris -> Rome" in text
    assert "p(new) 0.01 -> 0.98, p(old) 0.9 -> ?" in text and "0.0123" in text


def test_a_long_batch_is_shortened() -> None:
    text = repr(edit(tuple(Fact(f"T{i}", "{} is in", "Rome") for i in range(20))))
    assert "and 15 more" in text and text.count("\n") < 10


def test_the_repr_tells_that_an_edit_can_only_be_taken_back_whole() -> None:
    facts = (EIFFEL, Fact("The Louvre", "{} is in", "Rome"))
    assert not edit(facts).joint and "as one" not in repr(edit(facts))
    shared = edit(facts, owners={"h.3.weight": (1, -1)})
    assert shared.joint and "2 facts as one, rome" in repr(shared)
    assert not edit(facts, owners={"h.3.weight": (1, 1)}).joint


def test_html_escapes_everything() -> None:
    evil = Fact("<script>x</script>", "{} is <b>in</b>", "<img onerror=1>", "&amp;")
    page = edit((evil,), method="<i>", relative_norms={"<u>": 1.0})._repr_html_()
    for tag in ("<script", "<img", "<i>", "<u>", "<b>in"):
        assert tag not in page
    assert "&lt;script&gt;" in page


def test_terminal_control_characters_are_not_printed() -> None:
    assert "\x1b" not in repr(edit((Fact("A\x1b[31mB", "{} is in", "Rome"),)))


@pytest.mark.parametrize("details", [{"x": float("nan")}, {"x": object()}, {"x": {1, 2}}])
def test_details_that_json_can_not_hold_are_refused(details: dict[str, object]) -> None:
    with pytest.raises(LogError, match="details"):
        plain_json(details, "the details")


def test_details_are_kept_as_they_will_come_back() -> None:
    assert plain_json({"layers": (1, 2)}, "details") == {"layers": [1, 2]}


def test_probabilities_must_be_finite_and_one_a_fact() -> None:
    assert check_probabilities("after", [Probability(None, 0.5)], 1) == (Probability(None, 0.5),)
    with pytest.raises(NonFiniteError):
        check_probabilities("after", [Probability(None, float("nan"))], 1)
    with pytest.raises(AssertionError):
        check_probabilities("after", [Probability(None, 0.5)], 2)


@pytest.mark.parametrize(
    "change",
    [
        *({"facts": 3}, {"facts": [["A"]]}, {"method": None}, {"layers": "x"}, {"details": 1}),
        *({"owners": None}, {"owners": [0]}, {"owners": {"h.3.weight": 0}}),
        *({"owners": {"h.3.weight": [x]}} for x in (1, -2, 0.0, True, "0", None)),
        {"owners": {"h.4.weight": [0]}},
    ],
)
def test_json_that_is_no_edit_is_a_plain_python_error(change: dict[str, object]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        Edit.from_json("e0001", edit().to_json() | change)


def test_a_receipt_says_when_an_edit_did_not_take() -> None:
    assert edit().untaken == () and "did not take" not in repr(edit())
    weak = edit(after=(Probability(0.1, 0.02),))
    assert weak.untaken == (0,)
    assert "1 of 1 did not take: p(new) is below 0.1" in repr(weak)
