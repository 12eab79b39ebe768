"""EditLog: rollback in any order is exact, and a step that fails changes nothing."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from logbook import add, digest, facts_of, fresh, updates_of

from editcl.encoding import Sentence
from editcl.errors import EditclError, LogError, NonFiniteError
from editcl.facts import Fact
from editcl.log import EditLog, Probability
from editcl.model import EditableModel, Scores

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture
def model() -> EditableModel:
    return fresh()


@pytest.fixture
def log(model: EditableModel) -> EditLog:
    return EditLog(model)


# -- rollback -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_hundred_edits_rolled_back_in_random_order_leave_the_bytes_of_the_base(
    dtype: torch.dtype,
) -> None:
    model = fresh(dtype=dtype)
    base = digest(model)
    log = EditLog(model)
    order = [add(log, model, seed, 1, (seed % 2,)) for seed in range(100)]
    assert digest(model) != base
    random.Random(0).shuffle(order)
    for edit in order[:50]:
        log.rollback(edit, remeasure=False)
    other = fresh(dtype=dtype)
    others = EditLog(other)
    for seed, edit in enumerate(log.entries):
        if log.active(edit):
            add(others, other, seed, 1, (seed % 2,))
    assert len(others) == 50 and digest(other) == digest(model)
    assert log.verify().ok
    for edit in order[50:]:
        log.rollback(edit, remeasure=False)
    assert digest(model) == base and not any(log.active(edit) for edit in log)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_fact_out_of_a_batch_leaves_what_the_others_alone_would_have_made(
    dtype: torch.dtype,
) -> None:
    model, other = fresh("llama", dtype), fresh("llama", dtype)
    log = EditLog(model)
    edit = add(log, model, 3, 7, (0, 1))
    report = log.rollback([edit.facts[2], (edit, 5)])
    assert [j for _, j in report.columns] == [2, 5] and report.facts == (
        edit.facts[2],
        edit.facts[5],
    )
    assert log.active_facts(edit) == (True, True, False, True, True, False, True)
    kept = [0, 1, 3, 4, 6]
    updates = [
        type(u)(u.parameter, u.left[:, kept], u.right[:, kept])
        for u in updates_of(other, 3, 7, (0, 1))
    ]
    facts = tuple(facts_of(3, 7)[j] for j in kept)
    EditLog(other).append(updates, facts, method="test", layers=(0, 1))
    assert digest(model) == digest(other)


def test_reapplied_facts_take_their_old_place(model: EditableModel, log: EditLog) -> None:
    for seed in range(4):
        add(log, model, seed, 2)
    whole = digest(model)
    log.rollback("e0002")
    log.rollback(("e0003", 0))
    log.reapply(["e0002", ("e0003", 0)])
    assert digest(model) == whole
    assert [event.action for event in log.events] == ["rollback", "rollback", "reapply"]


def test_rollback_to_takes_out_later_entries_only(model: EditableModel, log: EditLog) -> None:
    states = [digest(model)]
    for seed in range(4):
        add(log, model, seed)
        states.append(digest(model))
    assert len(log.rollback_to("e0002").facts) == 2
    assert digest(model) == states[2]
    assert log.rollback_to("e0002").facts == () and len(log.events) == 1
    log.reapply("all")
    assert digest(model) == states[4]
    log.rollback_to("start")
    assert digest(model) == states[0]


def test_all_is_everything_active_and_may_be_nothing(model: EditableModel, log: EditLog) -> None:
    assert log.rollback("all").facts == ()
    add(log, model, 1, 3)
    log.rollback(("e0001", 1))
    assert [j for _, j in log.rollback("all").columns] == [0, 2]


def test_weakened_later_facts_are_reported(
    model: EditableModel, log: EditLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(4):
        add(log, model, seed)
    log.rollback("e0003")

    def score(sentences: Sequence[Sentence]) -> Scores:
        """p(new) of the facts after e0001: 0.9 and 0.8; without e0001: 0.3 and 0.7; p(old) 0.75."""
        there = log.active("e0001") and not _written(model, log)
        new = [0.9, 0.8] if there else [0.4, 0.7]
        assert [s.subject for s in sentences] == ["Tower 1.0", "Tower 3.0"] * 2
        log_prob = torch.tensor([*new, 0.1, 0.75]).log()
        return Scores(log_prob, torch.ones(4, dtype=torch.bool), torch.ones(4))

    monkeypatch.setattr(model, "score", score)
    report = log.rollback("e0001")
    assert report.remeasured == 2
    assert [(weak.entry, round(weak.after, 6)) for weak in report.weakened] == [
        ("e0002", 0.4),  # less than half of 0.9
        ("e0004", 0.7),  # overtaken by the old object
    ]
    assert "2 of 2 dependent facts weakened" in repr(report)
    assert "rolled back 1 fact" in repr(report)


def _written(model: EditableModel, log: EditLog) -> bool:
    """Whether the weights are already those without e0001."""
    return not torch.equal(
        model.down_projection(0).parameter.data, _rebuild(model, log)[model.down_projection(0).name]
    )


def _rebuild(model: EditableModel, log: EditLog) -> dict[str, torch.Tensor]:
    ledger = log._ledger
    return {name: ledger.rebuilt(name, ledger.history) for name in ledger.weights.base}


def test_remeasuring_can_be_left_out(
    model: EditableModel, log: EditLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(2):
        add(log, model, seed)
    monkeypatch.setattr(model, "score", lambda *_: pytest.fail("measured"))
    assert log.rollback("e0001", remeasure=False).remeasured is None


# -- random histories against a naive oracle ----------------------------------------------------

STEPS = st.lists(
    st.tuples(st.sampled_from(["append", "rollback", "reapply", "to"]), st.integers(0, 10**6)),
    max_size=25,
)


@settings(max_examples=25, deadline=None)
@given(steps=STEPS, dtype=st.sampled_from(DTYPES))
def test_any_history_gives_the_state_of_a_log_that_only_had_what_is_active(
    steps: list[tuple[str, int]], dtype: torch.dtype
) -> None:
    model = fresh(dtype=dtype)
    base = {n: p.detach().double() for n, p in model.hf.named_parameters()}
    log = EditLog(model)
    naive: list[list[bool]] = []
    for action, number in steps:
        columns = [(i, j) for i, flags in enumerate(naive) for j in range(len(flags))]
        if action == "append":
            add(log, model, len(naive), 1 + number % 3, LAYERS[len(naive) % 3])
            naive.append([True] * (1 + number % 3))
        elif action == "to":
            keep = number % (len(naive) + 1)
            log.rollback_to(f"e{keep:04d}" if keep else "start", remeasure=False)
            naive[keep:] = [[False] * len(flags) for flags in naive[keep:]]
        elif columns:
            i, j = columns[number % len(columns)]
            on = action == "rollback"
            if naive[i][j] == on:
                getattr(log, action)((f"e{i + 1:04d}", j), remeasure=False)
                naive[i][j] = not on
            else:
                with pytest.raises(LogError):
                    getattr(log, action)((f"e{i + 1:04d}", j), remeasure=False)
    assert [list(log.active_facts(edit)) for edit in log] == naive
    assert log.verify().ok
    for name, value in _naive_weights(model, base, naive).items():
        live = model.hf.get_parameter(name).detach().double()
        torch.testing.assert_close(live, value, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)
    assert digest(model) == _digest_with_only(naive, dtype)


LAYERS = ((0,), (1,), (0, 1))


def _naive_weights(
    model: EditableModel, base: dict[str, torch.Tensor], naive: list[list[bool]]
) -> dict[str, torch.Tensor]:
    total = {name: value.clone() for name, value in base.items()}
    for i, flags in enumerate(naive):
        for update in updates_of(model, i, len(flags), LAYERS[i % 3]):
            on = torch.tensor(flags).double()
            total[update.parameter] += (update.left.double() * on) @ update.right.double().T
    return total


def _digest_with_only(naive: list[list[bool]], dtype: torch.dtype) -> str:
    model = fresh(dtype=dtype)
    log = EditLog(model)
    for i, flags in enumerate(naive):
        on = [j for j, flag in enumerate(flags) if flag]
        if on:
            updates = [
                type(u)(u.parameter, u.left[:, on], u.right[:, on])
                for u in updates_of(model, i, len(flags), LAYERS[i % 3])
            ]
            facts = [facts_of(i, len(flags))[j] for j in on]
            log.append(updates, facts, method="test", layers=LAYERS[i % 3])
    return digest(model)


# -- failures change nothing ----------------------------------------------------------------------


class Interrupt(KeyboardInterrupt):
    pass


@pytest.mark.parametrize("error", [ValueError, Interrupt, MemoryError])
def test_a_failing_measurement_leaves_model_and_log_as_they_were(
    model: EditableModel, log: EditLog, error: type[BaseException]
) -> None:
    add(log, model)
    before, base = digest(model), log.base_weights()

    def measure() -> list[Probability]:
        assert digest(model) != before, "measured with the new weights in place"
        raise error("no")

    with pytest.raises(error):
        add(log, model, 1, 1, (0, 1), measure=measure)
    assert digest(model) == before and len(log) == 1 and log.base_weights().keys() == base.keys()
    add(log, model, 1, 1, (0, 1))
    assert log.verify().ok and log.entries[1].id == "e0002"


@pytest.mark.parametrize("action", ["rollback", "reapply"])
def test_a_failing_remeasurement_leaves_model_and_log_as_they_were(
    model: EditableModel, log: EditLog, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    for seed in range(3):
        add(log, model, seed)
    if action == "reapply":
        log.rollback("e0001")
    before, events = digest(model), log.events
    real, calls = model.score, []

    def score(*args: Any) -> Scores:
        calls.append(digest(model))
        if len(calls) == 2:
            raise Interrupt
        return real(*args)

    monkeypatch.setattr(model, "score", score)
    with pytest.raises(Interrupt):
        getattr(log, action)("e0001")
    assert calls[0] == before != calls[1]
    assert digest(model) == before and log.events == events and log.verify().ok


def test_an_interrupt_at_any_line_of_a_step_leaves_before_or_after(tmp_path: Any) -> None:
    """Raises KeyboardInterrupt at each traced line of ledger, state and store in turn."""
    model = fresh()
    log = EditLog(model, tmp_path / "log")
    add(log, model, 0, 2)
    files = ("ledger.py", "state.py", "store.py")
    n, survived = 0, False
    while not survived:
        n += 3
        before, entries = digest(model), log.entries
        survived = _interrupted(lambda: add(log, model, 1, 2, (0, 1)), n, files)
        if not survived:
            assert log.entries == entries and digest(model) == before, f"line {n}"
            assert len(log._ledger.store.read()[0]) == len(entries)  # type: ignore[union-attr]
    assert n > 60 and len(log) == 2 and log.verify().ok
    log.close()
    again = fresh()
    assert len(EditLog(again, tmp_path / "log")) == 2 and digest(again) == digest(model)


def _interrupted(step: Any, n: int, files: tuple[str, ...]) -> bool:
    """Runs a step, interrupted at the nth line in the files; whether it ended before that."""
    left = n

    def trace(frame: Any, kind: str, _: Any) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.endswith(tuple(f"/log/{f}" for f in files)):
            return None
        left -= kind == "line"
        if left == 0 and kind == "line":
            left -= 1
            raise KeyboardInterrupt
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        step()
    except KeyboardInterrupt:
        return False
    finally:
        sys.settrace(previous)
    return True


def test_measured_probabilities_must_be_finite(model: EditableModel, log: EditLog) -> None:
    before = digest(model)
    with pytest.raises(NonFiniteError):
        add(log, model, measure=lambda: [Probability(None, float("nan"))])
    assert digest(model) == before and len(log) == 0


def test_details_that_are_no_json_are_refused(model: EditableModel, log: EditLog) -> None:
    with pytest.raises(LogError, match="details"):
        add(log, model, details={"tensor": torch.ones(1)})
    assert len(log) == 0


@pytest.mark.parametrize("wrong", ["columns", "parameter", "shape", "twice", "none"])
def test_updates_that_do_not_fit_are_invariants(
    model: EditableModel, log: EditLog, wrong: str
) -> None:
    (update,) = updates_of(model, 0, 2, (0,))
    updates = {
        "columns": [type(update)(update.parameter, update.left[:, :1], update.right[:, :1])],
        "parameter": [type(update)("lm_head.weight", update.left, update.right)],
        "shape": [type(update)(update.parameter, update.right, update.left)],
        "twice": [update, update],
        "none": [],
    }[wrong]
    before = digest(model)
    with pytest.raises(AssertionError):
        log.append(updates, facts_of(0, 2), method="test", layers=(0,))
    assert digest(model) == before and len(log) == 0


# -- weights that something else wrote ----------------------------------------------------------


def test_a_write_outside_the_log_is_noticed_and_can_be_undone(
    model: EditableModel, log: EditLog
) -> None:
    add(log, model)
    logged = digest(model)
    with torch.no_grad():
        model.down_projection(0).parameter[3, 3] += 1e-3
    report = log.verify()
    assert not report.ok and not report and "changed outside the log" in repr(report)
    for step in (lambda: add(log, model, 1), lambda: log.rollback("e0001")):
        with pytest.raises(LogError, match="restore"):
            step()
    assert len(log) == 1 and not log.events
    log.restore()
    assert digest(model) == logged and log.verify().ok


def test_a_matrix_changed_before_its_first_edit_is_refused(
    model: EditableModel, log: EditLog
) -> None:
    with torch.no_grad():
        model.down_projection(0).parameter.mul_(2)
        model.hf.transformer.wte.weight.mul_(2)
    assert len(log.verify().problems) == 2
    with pytest.raises(LogError, match="wrap it anew"):
        add(log, model)


def test_a_change_of_dtype_is_noticed(model: EditableModel, log: EditLog) -> None:
    add(log, model)
    model.hf.half()
    with pytest.raises(LogError, match="dtype"):
        log.rollback("e0001")


# -- looking, closing ---------------------------------------------------------------------------


def test_it_reads_like_a_sequence_of_receipts(model: EditableModel, log: EditLog) -> None:
    before = [Probability(0.9, 0.1)]
    edit = add(log, model, before=before, measure=lambda: [Probability(0.1, 0.9)], seconds=0.5)
    add(log, model, 1)
    assert log.entries == tuple(log) and len(log) == 2 and log.get("e0001") is edit
    assert edit in log and "e0002" in log and "e0003" not in log
    assert edit.before == tuple(before) and edit.after == (Probability(0.1, 0.9),)
    (update,) = updates_of(fresh(), 0, 1, (0,))
    weight = fresh().down_projection(0).weight
    expected = float(update.dense().norm() / weight.norm())
    assert edit.relative_norms[update.parameter] == pytest.approx(expected, rel=1e-5)
    assert repr(log) == "EditLog(in memory: 2 edits, 2 of 2 facts active)"
    with pytest.raises(LogError, match="e0009"):
        log.get("e0009")


def test_base_weights_and_fingerprint_are_those_before_the_edits(
    model: EditableModel, log: EditLog
) -> None:
    before = model.down_projection(0).parameter.detach().clone()
    fingerprint = model.fingerprint()
    assert log.base_weights() == {}
    add(log, model)
    assert torch.equal(log.base_weights()[model.down_projection(0).name], before)
    assert model.fingerprint() == fingerprint


def test_to_frame_has_one_row_a_fact(model: EditableModel, log: EditLog) -> None:
    pytest.importorskip("pandas")
    assert list(log.to_frame()["id"]) == []
    add(log, model, 1, 2, before=[Probability(None, 0.1)] * 2)
    log.rollback(("e0001", 1))
    frame = log.to_frame()
    assert list(frame["fact"]) == [0, 1] and list(frame["active"]) == [True, False]
    assert list(frame["p_new_before"]) == [0.1, 0.1] and frame["p_new_after"].isna().all()


def test_to_frame_without_pandas_says_what_to_install(
    log: EditLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(EditclError, match="pip install pandas"):
        log.to_frame()


def test_a_closed_log_is_readable_and_writes_nothing(model: EditableModel) -> None:
    with EditLog(model) as log:
        add(log, model)
    edited = digest(model)
    assert len(log) == 1 and "closed" in repr(log)
    with pytest.raises(LogError, match="closed"):
        log.rollback("e0001")
    assert digest(model) == edited


def test_another_log_does_not_take_edits_for_the_base(model: EditableModel, log: EditLog) -> None:
    add(log, model)
    with pytest.raises(LogError, match="open log"):
        EditLog(model)
    log.close()
    with pytest.raises(LogError, match="closed log"):
        EditLog(model)
    assert model.log is log


def test_an_empty_log_gives_way_to_another(model: EditableModel, log: EditLog) -> None:
    other = EditLog(model)
    assert model.log is other
    with pytest.raises(LogError, match="closed"):
        add(log, model)


def test_unicode_facts_are_kept(model: EditableModel, log: EditLog) -> None:
    facts = [Fact("برج إيفل", "يقع {} في", "روما"), Fact("🗼", "{} は", "東京 🏙️")]
    edit = log.append(updates_of(model, 0, 2, (0,)), facts, method="test", layers=[0])
    assert edit.facts == tuple(facts)
    assert len(log.rollback(facts[1]).facts) == 1
