"""Skills and notes in the log: what is active, chains of versions, durability, damage."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from logbook import add, digest, fresh, learn, tensors_of
from test_store import change_body, forge_tensors, refused, resign

from editcl.errors import LogError, NonFiniteError
from editcl.log import Edit, EditLog, Note, Skill
from editcl.log import store as store_module
from editcl.log.skill import broken_chain
from editcl.log.store import Store
from editcl.model import EditableModel


@pytest.fixture
def model() -> EditableModel:
    return fresh()


@pytest.fixture
def log(model: EditableModel) -> EditLog:
    return EditLog(model)


def active(log: EditLog) -> str:
    """Ids of all active entries, older versions included."""
    return " ".join(entry.id for entry in log.timeline if log.active(entry))


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


# -- entries --------------------------------------------------------------------------------------


def test_a_skill_remembers_what_it_was_trained_on(model: EditableModel, log: EditLog) -> None:
    add(log, model, 1, 3)
    add(log, model, 2)
    log.rollback([("e0001", 1), "e0002"])
    one = learn(log, "french", details={"loss": 0.5}, seconds=2.5)
    two = learn(log, "latin", 1, slot="shared")
    assert (one.id, one.task, one.slot, two.slot) == ("s0001", "french", "french", "shared")
    assert one.edits == {"e0001": (0, 2)} and one.parents == ()
    assert two.parents == ("s0001",) and one.base == model.fingerprint()
    assert one.settings["rank"] == 2 and one.details == {"loss": 0.5} and one.strategy
    assert "french" in repr(one) and "2 edited facts" in repr(one) and "in shared" in repr(two)


def test_edits_and_skills_have_one_order_and_edits_stay_the_sequence(
    model: EditableModel, log: EditLog
) -> None:
    first, skill = add(log, model, 1), learn(log, "a")
    second, other = add(log, model, 2), learn(log, "b")
    assert log.timeline == (first, skill, second, other)
    assert log.entries == tuple(log) == (first, second) and len(log) == 2
    assert log.skills == (skill, other) == log.active_skills()
    assert log.get("s0001") is skill and log.get("e0002") is second and skill in log
    assert "s0002" in log and "s0003" not in log
    assert repr(log) == "EditLog(in memory: 2 edits, 2 of 2 facts active, 2 of 2 skills active)"
    with pytest.raises(LogError, match="is a skill"):
        log.active_facts("s0001")
    with pytest.raises(LogError, match="is an edit"):
        log.skill_tensors("e0001")
    with pytest.raises(LogError, match="no entry 's0009'"):
        log.get("s0009")


def test_tensors_are_copies_both_ways(log: EditLog) -> None:
    tensors = tensors_of(1)
    shared = tensors["scale"]
    skill = log.append_skill(
        tensors | {"same": shared, "view": shared[:2], "half": shared.half()},
        task="a", slot="a", settings={}, strategy="x",
    )  # fmt: skip
    expected = {**tensors_of(1), "same": shared.clone(), "view": shared[:2].clone()}
    shared.zero_()
    found = log.skill_tensors(skill)
    assert same({n: found[n] for n in expected}, expected) and found["half"].dtype == torch.float16
    found["scale"].zero_()
    assert same(
        log.skill_tensors("s0001") | {"half": found["half"]}, expected | {"half": found["half"]}
    )


def test_skills_do_not_touch_the_weights_and_edits_not_the_skills(
    model: EditableModel, log: EditLog
) -> None:
    add(log, model, 1)
    edited = digest(model)
    learn(log, "a", 1)
    assert digest(model) == edited
    log.rollback("e0001")
    assert active(log) == "s0001" and same(log.skill_tensors("s0001"), tensors_of(1))
    log.rollback("s0001")
    log.reapply("e0001")
    assert digest(model) == edited and active(log) == "e0001"
    assert log.verify().ok and log.verify().skills == 1


@pytest.mark.parametrize(
    ("tensors", "error"),
    [
        ({}, LogError),
        ({"a": torch.tensor([1.0, float("nan")])}, NonFiniteError),
        ({"a": torch.tensor([float("inf")])}, NonFiniteError),
        ({"a": torch.ones(2, dtype=torch.int16)}, LogError),
        ({"a": torch.ones(2, dtype=torch.complex64)}, LogError),
    ],
)
def test_tensors_that_the_log_can_not_keep_are_refused(
    log: EditLog, tensors: dict[str, torch.Tensor], error: type[Exception]
) -> None:
    with pytest.raises(error):
        log.append_skill(tensors, task="a", slot="a", settings={}, strategy="x")
    assert log.skills == ()


def test_a_skill_needs_names_and_json_and_an_untouched_log(
    model: EditableModel, log: EditLog
) -> None:
    for task, slot in (("", "a"), ("a", "")):
        with pytest.raises(LogError, match="name"):
            log.append_skill(tensors_of(0), task=task, slot=slot, settings={}, strategy="x")
    with pytest.raises(LogError, match="details"):
        learn(log, "a", details={"loss": float("nan")})
    add(log, model, 1)
    with torch.no_grad():
        model.down_projection(0).parameter[0, 0] += 1
    with pytest.raises(LogError, match="changed outside the log"):
        learn(log, "a")
    log.restore()
    learn(log, "a")
    log.close()
    with pytest.raises(LogError, match="closed"):
        learn(log, "b")
    assert [skill.task for skill in log.skills] == ["a"]


def test_notes_are_kept_and_change_nothing(model: EditableModel, log: EditLog) -> None:
    add(log, model, 1)
    before = (digest(model), active(log), log.timeline)
    note = log.note("decision", {"chosen": "edit", "why": ["few", 3]})
    assert note.id == "n0001" and log.notes == (note,)
    log.note("evaluation", {})
    assert (digest(model), active(log), log.timeline) == before
    log.rollback_to("start")
    assert [n.kind for n in log.notes] == ["decision", "evaluation"]
    with pytest.raises(LogError, match="body of a note"):
        log.note("decision", {"x": object()})


def test_an_open_log_with_skills_or_notes_alone_is_not_thrown_away(model: EditableModel) -> None:
    log = EditLog(model)
    log.note("decision", {})
    with pytest.raises(LogError, match="open log with 1 entries"):
        EditLog(model)


def test_entries_come_back_from_json_equal(model: EditableModel, log: EditLog) -> None:
    add(log, model, 1, 2)
    skill, note = learn(log, "ü", details={"x": [1, None]}), log.note("k", {"a": 1})
    assert Skill.from_json("s0001", json.loads(json.dumps(skill.to_json()))) == skill
    assert Note.from_json("n0001", json.loads(json.dumps(note.to_json()))) == note
    assert len({skill, skill}) == len({note, note}) == 1


def test_terminal_control_characters_are_not_printed(log: EditLog) -> None:
    assert "\x1b" not in repr(learn(log, "a\x1b[31mb", slot="c\x1b"))


# -- rolling back ---------------------------------------------------------------------------------


def test_tasks_are_undone_one_by_one_and_come_back(model: EditableModel, log: EditLog) -> None:
    for i, task in enumerate(("a", "b", "c")):
        learn(log, task, i)
    report = log.rollback("b")
    assert active(log) == "s0001 s0003" and [s.task for s in report.skills] == ["b"]
    assert "rolled back 1 skill" in repr(report) and "s0002 b" in repr(report)
    with pytest.raises(LogError, match="nothing to roll back"):
        log.rollback("b")
    assert log.reapply(log.skills[1]).skills == report.skills
    assert active(log) == "s0001 s0002 s0003"
    assert [event.columns for event in log.events] == [{"s0002": (0,)}] * 2


def test_rollback_to_takes_out_what_came_later_of_both_kinds(
    model: EditableModel, log: EditLog
) -> None:
    states = [digest(model)]
    add(log, model, 1, 2)
    learn(log, "a")
    states.append(digest(model))
    add(log, model, 2)
    learn(log, "b")
    learn(log, "b", 1, slot="shared")
    report = log.rollback_to("a")
    assert active(log) == "e0001 s0001" and digest(model) == states[1]
    assert [s.id for s in report.skills] == ["s0002", "s0003"] and len(report.facts) == 1
    assert "1 fact and 2 skills" in repr(report)
    log.reapply("all")
    assert log.rollback_to("b").facts == () and active(log) == "e0001 s0001 e0002 s0002 s0003"
    log.rollback_to(log.entries[1])
    assert active(log) == "e0001 s0001 e0002"
    log.rollback("all")
    assert active(log) == "" and digest(model) == states[0]
    log.reapply("all")
    log.rollback_to("start")
    assert active(log) == "" and log.active_skills() == ()


def test_an_older_version_under_a_newer_one_can_not_be_taken_out(log: EditLog) -> None:
    for i, task in enumerate(("a", "b", "c")):
        learn(log, task, i, slot="shared")
    learn(log, "other", 3)
    assert [s.id for s in log.active_skills()] == ["s0003", "s0004"]
    for what, newer in (("a", "s0002, s0003"), ("s0002", "s0003"), (["a", "c"], "s0002")):
        with pytest.raises(LogError, match=rf"while {newer} is active.*log.rollback_to"):
            log.rollback(what)
    log.rollback(["c", "b"])
    assert [s.id for s in log.active_skills()] == ["s0001", "s0004"]
    with pytest.raises(LogError, match="s0002 can't be out while s0003"):
        log.reapply("c")
    log.reapply(["b", "c"])
    assert active(log) == "s0001 s0002 s0003 s0004"
    log.rollback("c")
    learn(log, "d", 5, slot="shared")  # on top of b: c is on another branch now
    assert log.skills[-1].parents == ("s0001", "s0002", "s0004")
    with pytest.raises(LogError, match="s0003 can't be active beside s0005.*Roll s0005 back first"):
        log.reapply("c")
    log.rollback("d")
    log.reapply("c")
    assert [s.id for s in log.active_skills()] == ["s0003", "s0004"]
    assert log.verify().ok


def test_a_task_learned_twice_goes_as_a_whole(log: EditLog) -> None:
    learn(log, "a", 1)
    learn(log, "a", 2)
    assert [s.id for s in log.active_skills()] == ["s0002"]
    log.rollback("s0002")
    assert [s.id for s in log.active_skills()] == ["s0001"]
    log.reapply("a")
    log.rollback("a")
    assert log.active_skills() == ()


def test_an_id_comes_before_a_task_of_that_name(model: EditableModel, log: EditLog) -> None:
    add(log, model, 1)
    learn(log, "e0001")
    log.rollback("e0001")
    assert active(log) == "s0001"


def test_skills_that_were_trained_with_other_facts_are_reported(
    model: EditableModel, log: EditLog
) -> None:
    add(log, model, 1, 2)
    learn(log, "a")
    add(log, model, 2)
    learn(log, "b")
    report = log.rollback(("e0001", 1), remeasure=False)
    assert [s.task for s in report.unsettled] == ["a", "b"] and "s0001, s0002" in repr(report)
    assert log.reapply(("e0001", 1), remeasure=False).unsettled == ()
    assert [s.task for s in log.rollback("e0002", remeasure=False).unsettled] == ["b"]


def test_rolling_back_a_skill_measures_no_facts(
    model: EditableModel, log: EditLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn(log, "a")
    add(log, model, 1)
    monkeypatch.setattr(model, "score", lambda *_: pytest.fail("measured"))
    assert log.rollback("a").dependents == 0


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["edit", "skill", "skill", "rollback", "reapply", "to"]),
        st.integers(0, 10**6),
    ),
    max_size=20,
)


def _naive_ok(skills: list[tuple[str, set[int]]], on: list[bool]) -> bool:
    """Whether each slot's active versions are its newest one and what that was trained on."""
    for slot in {slot for slot, _ in skills}:
        own = [i for i, (other, _) in enumerate(skills) if other == slot]
        active = {i for i in own if on[i]}
        if active and active != ({max(active)} | skills[max(active)][1]) & set(own):
            return False
    return True


@settings(max_examples=40)
@given(steps=STEPS)
def test_any_history_gives_the_active_set_of_a_naive_one(steps: list[tuple[str, int]]) -> None:
    model = fresh()
    log = EditLog(model)
    entries: list[Edit | Skill] = []
    on: list[bool] = []
    kinds: list[tuple[str, set[int]]] = []
    for action, number in steps:
        if action == "edit":
            entries.append(add(log, model, len(entries)))
            kinds.append((f"edit {len(entries)}", set()))
            on.append(True)
        elif action == "skill":
            slot = "ab"[number % 2]
            before = {i for i, flag in enumerate(on) if flag and isinstance(entries[i], Skill)}
            entries.append(learn(log, f"t{number % 3}", len(entries), slot=slot))
            kinds.append((slot, before))
            on.append(True)
        elif action == "to":
            keep = number % (len(entries) + 1)
            log.rollback_to(entries[keep - 1] if keep else "start", remeasure=False)
            on[keep:] = [False] * len(on[keep:])
        elif entries:
            i = number % len(entries)
            new = [*on[:i], action == "reapply", *on[i + 1 :]]
            if on[i] != new[i] and _naive_ok(kinds, new):
                getattr(log, action)(entries[i], remeasure=False)
                on = new
            else:
                with pytest.raises(LogError):
                    getattr(log, action)(entries[i], remeasure=False)
        assert [log.active(entry) for entry in entries] == on
    newest = {}
    for entry, flag in zip(entries, on, strict=True):
        if flag and isinstance(entry, Skill):
            newest[entry.slot] = entry.id
    assert {skill.slot: skill.id for skill in log.active_skills()} == newest
    for i, entry in enumerate(entries):
        if isinstance(entry, Skill):
            assert same(log.skill_tensors(entry), tensors_of(i))
    assert log.verify().ok


def test_a_chain_is_judged_by_slots(log: EditLog) -> None:
    learn(log, "a", slot="x")
    learn(log, "b", slot="y")
    skills = {skill.id: skill for skill in log.skills}
    assert not broken_chain(skills, {"s0001": False, "s0002": True})
    assert not broken_chain({}, {})


# -- durable --------------------------------------------------------------------------------------


def sample(folder: Path) -> str:
    """A log with everything in it."""
    model = fresh()
    with EditLog(model, folder) as log:
        add(log, model, 1, 2)
        learn(log, "a", 1, slot="shared")
        log.note("decision", {"chosen": "train"})
        learn(log, "b", 2, slot="shared")
        learn(log, "c", 3)
        log.rollback(("e0001", 0))
        log.rollback("b")
        return digest(model)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("skills") / "log"
    return folder, sample(folder)


@pytest.fixture
def folder(kept: tuple[Path, str], tmp_path: Path) -> Path:
    return Path(shutil.copytree(kept[0], tmp_path / "log"))


def test_a_log_brings_its_skills_back_bit_for_bit_and_goes_on(
    folder: Path, kept: tuple[Path, str]
) -> None:
    model = fresh()
    with EditLog(model, folder) as log:
        assert digest(model) == kept[1] and active(log) == "e0001 s0001 s0003"
        assert [
            same(log.skill_tensors(s), tensors_of(i + 1)) for i, s in enumerate(log.skills)
        ] == [True] * 3
        assert log.skills[1].parents == ("s0001",) and log.notes[0].body == {"chosen": "train"}
        report = log.verify()
        assert report.ok and report.files == 4 and report.skills == 3
        log.reapply("b")
        new = learn(log, "d", 4, slot="shared")
        assert same(log.skill_tensors(new), tensors_of(4)) and log.verify().ok
        entries = (log.timeline, log.notes, log.events)
    with EditLog(fresh(), folder) as log:
        assert (log.timeline, log.notes, log.events) == entries
        assert active(log) == "e0001 s0001 s0002 s0003 s0004" and log.verify().files == 5
        assert same(log.skill_tensors("s0004"), tensors_of(4))


def test_a_copy_of_a_log_in_memory_or_in_a_folder_has_the_skills(
    folder: Path, tmp_path: Path
) -> None:
    model = fresh()
    memory = EditLog(model)
    add(memory, model, 1)
    learn(memory, "a", 1)
    memory.note("k", {"x": 1})
    memory.copy_to(tmp_path / "from memory")
    with EditLog(fresh(), folder) as log:
        log.copy_to(tmp_path / "from folder")
        skills = (log.skills, log.notes, log.events)
    with EditLog(fresh(), tmp_path / "from memory") as log:
        assert same(log.skill_tensors("s0001"), tensors_of(1)) and log.verify().ok
        assert log.skills == memory.skills and log.notes == memory.notes
    with EditLog(fresh(), tmp_path / "from folder") as log:
        assert (log.skills, log.notes, log.events) == skills and log.verify().ok
        assert same(log.skill_tensors("s0002"), tensors_of(2))


def test_a_missing_truncated_or_changed_file_of_a_skill_is_refused(folder: Path) -> None:
    path = folder / "tensors" / "s0002.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    refused(folder, "s0002.safetensors has .* bytes instead of")
    for place in (9, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        refused(folder, "s0002.safetensors was changed")
    path.unlink()
    refused(folder, "s0002.safetensors is missing")
    path.write_bytes(data)
    with EditLog(fresh(), folder) as log:
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert "s0002" in repr(log.verify())
        with pytest.raises(LogError, match="was changed"):
            log.skill_tensors("s0002")


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_damage_is_refused_or_harmless(
    kept: tuple[Path, str], tmp_path: Path, data: st.DataObject
) -> None:
    shutil.rmtree(tmp_path)
    folder = Path(shutil.copytree(kept[0], tmp_path / "log"))
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    path = data.draw(st.sampled_from([folder / store_module.DATABASE, *paths]))
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    model = fresh()
    base = digest(model)
    try:
        log = EditLog(model, folder)
    except LogError:
        assert digest(model) == base
    else:
        with log:
            assert digest(model) == kept[1] and log.verify().ok
            assert active(log) == "e0001 s0001 s0003" and len(log.notes) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.update(task=3),
        lambda body: body.update(slot=""),
        lambda body: body.update(edits={"e0001": [1]}),
        lambda body: body.update(edits={"e0001": [True]}),
        lambda body: body.update(edits=[]),
        lambda body: body.update(parents=[]),
        lambda body: body.update(parents=["s0002"]),
        lambda body: body.update(parents=[1]),
        lambda body: body.update(settings=3),
        lambda body: body.update(seconds="x"),
        lambda body: body.update(tensors=None),
        lambda body: body.update(weights=3),
        lambda body: body.clear(),
    ],
)
def test_a_signed_record_that_does_not_fit_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    change_body(folder, "s0002", change)
    refused(folder, "s0002|damaged")


def test_events_and_notes_that_do_not_fit_are_refused(folder: Path) -> None:
    backup = (folder / store_module.DATABASE).read_bytes()
    for name, change in (
        ("r0002", {"columns": {"s0001": [0]}}),  # under a newer version
        ("r0002", {"columns": {"s0002": [1]}}),
        ("r0002", {"columns": {"s0009": [0]}}),
        ("n0001", {"kind": 3}),
        ("n0001", {"body": 3}),
    ):
        (folder / store_module.DATABASE).write_bytes(backup)
        change_body(folder, name, lambda body, change=change: body.update(change))
        refused(folder, name)
    (folder / store_module.DATABASE).write_bytes(backup)
    resign(folder, lambda rows: [row for row in rows if row[0] != "s0001"])
    refused(folder, "s0002 of the log does not read.*out of order")


def test_signed_tensor_files_that_lie_are_refused(folder: Path) -> None:
    import safetensors.torch

    for tensors in (
        {},
        {"a": torch.tensor([float("nan")])},
        {"a": torch.ones(2, dtype=torch.int16)},
    ):
        forge_tensors(folder, "s0002", safetensors.torch.save(tensors))
        refused(folder, "s0002")
    for data in (b"", b"\x80\x04.", (2**60).to_bytes(8, "little") + b"{}"):
        forge_tensors(folder, "s0002", data)
        refused(folder, "no safetensors file")


@pytest.mark.parametrize("statement", ["BEGIN", "INSERT", "COMMIT"])
@pytest.mark.parametrize("after", [False, True])
def test_a_failing_transaction_leaves_the_log_as_it_was(
    folder: Path, monkeypatch: pytest.MonkeyPatch, statement: str, after: bool
) -> None:
    log = EditLog(fresh(), folder)
    before = (log.timeline, log.notes, sorted(os.listdir(folder / "tensors")))
    real = Store._execute

    def execute(store: Store, sql: str, *values: Any) -> sqlite3.Cursor:
        if not sql.startswith(statement):
            return real(store, sql, *values)
        patch.undo()
        if after:
            real(store, sql, *values)
        raise sqlite3.OperationalError("disk I/O error")

    for step in (lambda: learn(log, "x"), lambda: log.note("x", {})):
        with monkeypatch.context() as patch:
            patch.setattr(Store, "_execute", execute)
            with pytest.raises(LogError):
                step()
        assert (log.timeline, log.notes, sorted(os.listdir(folder / "tensors"))) == before
    learn(log, "x", 8)
    assert log.verify().ok
    log.close()


def test_a_skill_in_memory_that_fails_to_be_logged_is_not_there(
    log: EditLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("editcl.log.ledger.platform_name", fail)
        with pytest.raises(KeyboardInterrupt):
            learn(log, "a")
    assert log.skills == () and not log._ledger.kept
    assert learn(log, "a").id == "s0001"
