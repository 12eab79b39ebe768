"""Logs in folders: resumed bit for bit, locked, and refused with a reason when they are wrong."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from logbook import add, digest, fresh, sample_log

from editcl.errors import LogError
from editcl.log import EditLog
from editcl.log import store as store_module
from editcl.log.store import Store
from editcl.model import EditableModel

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A closed log, not to be written, and the digest of its model."""
    folder = tmp_path_factory.mktemp("sample") / "log"
    return folder, sample_log(folder)


@pytest.fixture
def folder(sample: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of the sample log."""
    return Path(shutil.copytree(sample[0], tmp_path / "log"))


def refused(folder: Path, match: str, model: EditableModel | None = None) -> None:
    """The folder gives a LogError and leaves the model as it was, without a log."""
    model = model or fresh()
    before = digest(model)
    with pytest.raises(LogError, match=match):
        EditLog(model, folder)
    assert digest(model) == before and not hasattr(model, "log")


# -- resuming -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_log_is_resumed_bit_for_bit_and_goes_on(tmp_path: Path, dtype: torch.dtype) -> None:
    model = fresh(dtype=dtype)
    with EditLog(model, tmp_path / "log") as log:
        add(log, model, 1, 3, (0, 1), details={"seed": 1, "layers": (1, 2)})
        add(log, model, 2, 1, (1,))
        log.rollback(("e0001", 1))
    again = fresh(dtype=dtype)
    with EditLog(again, tmp_path / "log") as resumed:
        assert digest(again) == digest(model)
        assert resumed.entries == log.entries and resumed.events == log.events
        assert resumed.active_facts("e0001") == (True, False, True)
        report = resumed.verify()
        assert report.ok and report.files == 2 and not report.notes
        add(resumed, again, 3)
        resumed.reapply(("e0001", 1))
        state = digest(again)
        resumed.rollback("all")
        assert digest(again) == digest(fresh(dtype=dtype))
        resumed.reapply("all")
        assert digest(again) == state
    last = fresh(dtype=dtype)
    with EditLog(last, tmp_path / "log") as log:
        assert digest(last) == state and log.verify().ok


def test_memory_and_folder_give_the_same_bytes(sample: tuple[Path, str]) -> None:
    model = fresh()
    log = EditLog(model)
    add(log, model, 1, 2, (0, 1))
    add(log, model, 2, 1, (1,))
    add(log, model, 3, 3, (0,))
    log.rollback([("e0003", 1), ("e0001", 1)])
    assert digest(model) == sample[1]


def test_the_same_model_opens_its_log_again(folder: Path, sample: tuple[Path, str]) -> None:
    model = fresh()
    with EditLog(model, folder) as log:
        add(log, model, 7)
    edited = digest(model)
    with EditLog(model, folder) as log:
        assert digest(model) == edited and log.verify().ok
        log.rollback("all")
        assert digest(model) == digest(fresh())


def test_a_copy_of_the_log_brings_its_edits_to_a_copy_of_the_model(
    folder: Path, tmp_path: Path, sample: tuple[Path, str]
) -> None:
    model, other = fresh(), fresh()
    with EditLog(model, folder) as log:
        log.copy_to(tmp_path / "copy")
        with pytest.raises(LogError, match="not empty"):
            log.copy_to(tmp_path / "copy")
        with EditLog(other, tmp_path / "copy") as copied:
            assert copied.entries == log.entries and copied.verify().ok
            assert digest(other) == sample[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "log"]


def test_a_log_in_memory_can_be_kept_after_all(tmp_path: Path) -> None:
    model = fresh()
    log = EditLog(model)
    add(log, model, 1, 2)
    log.rollback(("e0001", 0))
    log.copy_to(tmp_path / "kept")
    again = fresh()
    with EditLog(again, tmp_path / "kept") as kept:
        assert digest(again) == digest(model) and kept.verify().ok


def test_a_log_written_elsewhere_may_differ_in_rounding_and_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_body(folder, "r0003", lambda body: body["weights"].update(_wrong(body["weights"])))
    with EditLog(fresh(), folder) as log:
        assert not log.verify().ok and "when r0003" in repr(log.verify())
    monkeypatch.setattr("editcl.log.verify.platform_name", lambda _: "cuda H200, torch 9")
    with EditLog(fresh(), folder) as log:
        report = log.verify()
        assert report.ok and "rounding" in report.notes[0]


def _wrong(digests: dict[str, str]) -> dict[str, str]:
    return dict.fromkeys(digests, "0" * 64)


# -- another process ----------------------------------------------------------------------------

OTHER = """
import sys, logbook
from editcl.log import EditLog
model = logbook.fresh()
log = EditLog(model, sys.argv[1])
print(logbook.digest(model), log.verify().ok, flush=True)
sys.stdin.read()
"""


def test_another_process_resumes_the_same_bytes_and_holds_the_lock_until_it_is_killed(
    folder: Path, sample: tuple[Path, str]
) -> None:
    paths = [str(HERE), str(HERE.parent), str(HERE.parent.parent)]
    other = subprocess.Popen(
        [sys.executable, "-c", OTHER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        text=True,
    )
    try:
        assert other.stdout and other.stdout.readline().split() == [sample[1], "True"]
        refused(folder, "open elsewhere")
        assert other.poll() is None
    finally:
        other.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
        other.communicate()
    with EditLog(fresh(), folder) as log:
        assert log.verify().ok


def test_two_logs_of_one_process_do_not_share_a_folder(folder: Path) -> None:
    with EditLog(fresh(), folder):
        refused(folder, "open elsewhere")
    with EditLog(fresh(), folder) as log:
        assert log.verify().ok


def test_a_log_that_nobody_holds_any_more_is_free(folder: Path) -> None:
    Store(folder, dict)
    with EditLog(fresh(), folder) as log:
        assert log.verify().ok


# -- what is not a log, or not of this model ----------------------------------------------------


def test_a_log_of_another_model_names_both(folder: Path) -> None:
    refused(folder, r"'tiny gpt2' \(GPT2LMHeadModel, float32.*'tiny llama'", fresh("llama"))
    refused(folder, "another model", fresh(seed=1))
    refused(folder, "bfloat16", fresh(dtype=torch.bfloat16))


def test_a_log_of_another_version_is_refused(folder: Path) -> None:
    execute(folder, f"PRAGMA user_version = {store_module.SCHEMA + 1}")
    refused(folder, "schema version 4.*reads version 3")


def test_a_sqlite_file_of_something_else_is_refused(tmp_path: Path) -> None:
    execute(tmp_path, "CREATE TABLE bookmarks (url TEXT)")
    refused(tmp_path, "no edit log")


def test_a_file_a_folder_of_other_things_and_an_impossible_place_are_refused(
    tmp_path: Path,
) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    refused(tmp_path / "notes.txt", "is a file")
    refused(tmp_path, "is not a log")
    refused(tmp_path / "notes.txt" / "log", "can't be used")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_that_can_not_be_written_is_refused(folder: Path) -> None:
    (folder / store_module.DATABASE).chmod(0o444)
    folder.chmod(0o555)
    try:
        refused(folder, "can't be")
    finally:
        folder.chmod(0o755)


def test_a_missing_truncated_or_changed_tensor_file_is_refused(folder: Path) -> None:
    path = folder / "tensors" / "e0002.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    refused(folder, "e0002.safetensors has .* bytes instead of")
    path.write_bytes(data[:200] + bytes([data[200] ^ 1]) + data[201:])
    refused(folder, "e0002.safetensors was changed")
    path.unlink()
    refused(folder, "e0002.safetensors is missing")
    path.write_bytes(data)
    with EditLog(fresh(), folder) as log:
        path.write_bytes(data[:-1])
        assert "truncated" in repr(log.verify())


@pytest.mark.parametrize("size", [0, 1, 50, 1000, 4096, 9000])
def test_a_truncated_database_is_refused(folder: Path, size: int) -> None:
    os.truncate(folder / store_module.DATABASE, size)
    refused(folder, "damaged|no edit log")


def test_a_database_with_damaged_names_is_refused(folder: Path) -> None:
    """SQLite quotes them in its message, which then can't be decoded."""
    path = folder / store_module.DATABASE
    before = path.read_bytes()
    begin = before.index(b"CREATE TABLE")
    refusals = set()
    for place in range(begin, begin + 60, 3):
        content = bytearray(before)
        content[place] ^= 128
        path.write_bytes(content)
        try:
            EditLog(fresh(), folder).close()
        except LogError as error:
            refusals.add("not UTF-8" in str(error))
    assert True in refusals


def test_a_missing_database_is_refused(folder: Path) -> None:
    (folder / store_module.DATABASE).unlink()
    refused(folder, "damaged")
    (folder / store_module.DATABASE).unlink()
    (folder / "notes.txt").touch()
    refused(folder, "no log.sqlite3")


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM log WHERE id = 'r0002'",
        "DELETE FROM log WHERE id = 'r0003'",
        "UPDATE log SET body = replace(body, 'Rome', 'Bonn') WHERE id = 'e0002'",
        "UPDATE log SET kind = 'reapply' WHERE id = 'r0001'",
        "UPDATE meta SET value = 'x' WHERE name = 'model'",
        "UPDATE log SET body = x'00' WHERE id = 'e0002'",
        "CREATE TRIGGER t AFTER INSERT ON log BEGIN DELETE FROM meta; END",
        "CREATE VIEW v AS SELECT * FROM log",
    ],
)
def test_a_changed_database_is_refused(folder: Path, statement: str) -> None:
    execute(folder, statement)
    refused(folder, "damaged")


def test_damage_while_the_log_is_open_is_found_by_verify(folder: Path) -> None:
    with EditLog(fresh(), folder) as log:
        path = folder / store_module.DATABASE
        data = path.read_bytes()
        assert data.count(b"Tower 2.0") == 1
        with open(path, "r+b") as file:
            file.seek(data.index(b"Tower 2.0"))
            file.write(b"Tower 9.9")
        report = log.verify()
        assert not report.ok and "damaged" in repr(report)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_random_damage_is_refused_or_harmless(
    sample: tuple[Path, str], tmp_path: Path, data: st.DataObject
) -> None:
    shutil.rmtree(tmp_path)
    folder = Path(shutil.copytree(sample[0], tmp_path / "log"))
    for _ in range(data.draw(st.integers(1, 4))):
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        path = data.draw(st.sampled_from([folder / store_module.DATABASE, *paths]))
        content = bytearray(path.read_bytes())
        if data.draw(st.integers(0, 9)) == 0:
            content = content[: data.draw(st.integers(0, len(content)))]
        elif content:
            content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        path.write_bytes(content)
    model = fresh()
    base = digest(model)
    try:
        log = EditLog(model, folder)
    except LogError:
        assert digest(model) == base and not hasattr(model, "log")
    else:
        with log:
            assert digest(model) == sample[1] and log.verify().ok and len(log) == 3


# -- a log from a stranger: everything in it is signed anew, nothing in it is true ---------------


def execute(folder: Path, *statements: str) -> None:
    connection = sqlite3.connect(folder / store_module.DATABASE)
    with connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


def change_body(folder: Path, name: str, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes the JSON of one record, and signs the whole chain again."""
    resign(folder, lambda rows: [_changed(row, change) if row[0] == name else row for row in rows])


def _changed(row: tuple[str, ...], change: Callable[[dict[str, Any]], Any]) -> tuple[str, ...]:
    body = json.loads(row[2])
    new = change(body)
    return row[0], row[1], json.dumps(body if new is None else new)


def resign(folder: Path, change: Callable[[list[tuple[str, ...]]], list[tuple[str, ...]]]) -> None:
    connection = sqlite3.connect(folder / store_module.DATABASE)
    with connection:
        rows = connection.execute("SELECT id, kind, body FROM log ORDER BY seq").fetchall()
        identity = dict(connection.execute("SELECT name, value FROM meta").fetchall())
        connection.execute("DELETE FROM log")
        link = store_module._genesis(identity)
        for name, kind, text in change(rows):
            link = store_module._link(link, name, kind, text)
            connection.execute(
                "INSERT INTO log (id, kind, body, sha256) VALUES (?, ?, ?, ?)",
                (name, kind, text, link),
            )
        connection.execute("UPDATE meta SET value = ? WHERE name = 'head'", (link,))
    connection.close()


def forge_tensors(folder: Path, name: str, data: bytes) -> None:
    (folder / "tensors" / f"{name}.safetensors").write_bytes(data)
    tensors = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    change_body(folder, name, lambda body: body.update(tensors=tensors))


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "e0002/../../x", "", "e", "E0002", "e0002 "])
def test_ids_can_not_name_files_outside_the_folder(folder: Path, name: str) -> None:
    resign(folder, lambda rows: [(name, *row[1:]) if row[0] == "e0002" else row for row in rows])
    refused(folder, "was changed")


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.update(parameters=["transformer.wte.weight"]),
        lambda body: body.update(parameters=[]),
        lambda body: body.update(facts=[]),
        lambda body: body.update(facts=[["A", "no placeholder", "B", None]]),
        lambda body: body.update(facts=body["facts"] * 2),
        lambda body: body.update(layers=["x"]),
        lambda body: body.update(weights=3),
        lambda body: body.update(tensors=None),
        lambda body: body.update(tensors={"bytes": 10**12, "sha256": 1}),
        lambda body: body.clear(),
        lambda body: [],
    ],
)
def test_records_that_do_not_read_or_fit_are_refused(
    folder: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    change_body(folder, "e0002", change)
    refused(folder, "e0002|damaged")


@pytest.mark.parametrize(
    "columns", [{"e0009": [0]}, {"e0001": [5]}, {"e0001": "x"}, {"e0001": [1]}]
)
def test_events_that_do_not_fit_are_refused(folder: Path, columns: dict[str, Any]) -> None:
    change_body(folder, "r0003", lambda body: body.update(columns=columns))
    if columns != {"e0001": [1]}:
        refused(folder, "r0003")
    else:
        EditLog(fresh(), folder).close()


def test_unknown_kinds_wrong_order_and_deep_json_are_refused(folder: Path) -> None:
    backup = (folder / store_module.DATABASE).read_bytes()
    for change, match in (
        (lambda rows: [*rows, ("r0004", "adapter", "{}")], "kind 'adapter'"),
        (lambda rows: [*rows, ("e0009", *rows[0][1:])], "out of order"),
        (lambda rows: rows[1:], "out of order"),
        (lambda rows: [*rows, ("r0004", "rollback", "[" * 10**5)], "JSON"),
    ):
        (folder / store_module.DATABASE).write_bytes(backup)
        resign(folder, change)
        refused(folder, match)


def test_tensor_files_that_lie_are_refused(folder: Path) -> None:
    import safetensors.torch

    path = folder / "tensors" / "e0002.safetensors"
    real = safetensors.torch.load(path.read_bytes())
    left = next(name for name in real if name.endswith(".left"))
    for value in (
        real[left].fill_(float("nan")),
        torch.ones(real[left].shape, dtype=torch.int64),
        torch.ones(3, 1),
    ):
        forge_tensors(folder, "e0002", safetensors.torch.save({**real, left: value}))
        refused(folder, "e0002")
    forge_tensors(folder, "e0002", safetensors.torch.save({**real, "more": torch.ones(1)}))
    refused(folder, "its file holds")
    for data in (b"", b"\x80\x04.", b"\xff" * 64, (2**60).to_bytes(8, "little") + b"{}"):
        forge_tensors(folder, "e0002", data)
        refused(folder, "no safetensors file")


def test_links_are_not_followed(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    shutil.move(folder / "tensors", outside)
    (folder / "tensors").symlink_to(outside)
    refused(folder, "links")
    (folder / "tensors").unlink()
    shutil.move(outside, folder / "tensors")
    victim = tmp_path / "victim.txt"
    victim.write_text("mine")
    for name in ("e0004.safetensors", "e0004.tmp"):
        (folder / "tensors" / name).symlink_to(victim)
    model = fresh()
    with EditLog(model, folder) as log:
        add(log, model, 9)
    assert victim.read_text() == "mine"
    (folder / "tensors" / "e0004.tmp").unlink(missing_ok=True)
    with EditLog(fresh(), folder) as log:
        assert len(log) == 4 and log.verify().ok


def test_a_journal_can_not_make_sqlite_delete_a_file(folder: Path, tmp_path: Path) -> None:
    journal = folder / f"{store_module.DATABASE}-journal"
    journal.write_bytes(bytes(600) + store_module._SUPER_JOURNAL)
    refused(folder, "several databases")


# -- failing writes -----------------------------------------------------------------------------


@pytest.mark.parametrize("broken", ["open", "os.fsync", "os.replace"])
def test_a_failing_medium_leaves_model_and_log_as_they_were(
    folder: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    model = fresh()
    log = EditLog(model, folder)
    before, entries = digest(model), log.entries
    with monkeypatch.context() as patch:
        patch.setattr(store_module.os if "." in broken else store_module, broken.split(".")[-1],
                      fail, raising=False)  # fmt: skip
        with pytest.raises(LogError, match="No space left"):
            add(log, model, 9)
    assert digest(model) == before and log.entries == entries
    assert len([*(folder / "tensors").iterdir()]) == 3, "half a file would take up room"
    add(log, model, 9)
    assert log.verify().ok
    log.close()


@pytest.mark.parametrize("statement", ["BEGIN", "INSERT", "UPDATE", "COMMIT"])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("error", [sqlite3.OperationalError("disk I/O error"), KeyboardInterrupt()])
def test_a_failing_transaction_leaves_model_and_log_as_they_were(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    statement: str,
    after: bool,
    error: BaseException,
) -> None:
    model = fresh()
    log = EditLog(model, folder)
    before, events = digest(model), log.events
    real = Store._execute

    def execute(store: Store, sql: str, *values: Any) -> sqlite3.Cursor:
        if not sql.startswith(statement):
            return real(store, sql, *values)
        patch.undo()
        if after:
            real(store, sql, *values)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Store, "_execute", execute)
        if isinstance(error, sqlite3.Error):  # of the medium, not of the log
            with pytest.raises(LogError, match=r"can't be written \(disk I/O error\)"):
                log.rollback("e0002")
        else:
            with pytest.raises(KeyboardInterrupt):
                log.rollback("e0002")
    assert digest(model) == before and log.events == events
    log.close()
    again = fresh()
    with EditLog(again, folder) as log:
        assert digest(again) == before and log.events == events


def test_a_write_that_can_not_be_taken_back_stops_the_log(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise LogError("no")

    model = fresh()
    log = EditLog(model, folder)
    before = digest(model)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "append", fail)
        patch.setattr(Store, "discard", fail)
        with pytest.raises(LogError, match="no"):
            add(log, model, 9)
    assert digest(model) == before
    with pytest.raises(LogError, match=r"could not be taken back.*open it again"):
        add(log, model, 9)
    log.close()
    with EditLog(fresh(), folder) as log:
        assert len(log) == 3
