"""Durable storage of a log: `log.sqlite3` and `tensors/<id>.safetensors` in one folder.

    append:  tensor file (temporary, fsync, rename, fsync of the folder)
             -> one SQLite transaction that names it with its size and SHA-256

A kill at any instant leaves the log before or after: until the transaction is through, a tensor
file that nothing names is ignored, and replaced by the next append. Every record carries the
SHA-256 of the one before it and of itself, so that a changed byte anywhere is seen at opening.
SQLite holds an exclusive lock on its file while the log is open; the system releases it when the
process ends, however it ends.

A folder from a stranger can't run code or reach outside itself: file names are made from
validated ids, links are refused, the schema must be this one to the letter, and what is read is
JSON and safetensors. This module knows nothing of models, edits and weights.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from editcl.errors import LogError
from editcl.log.entry import Record
from editcl.log.folders import sync_folder

DATABASE = "log.sqlite3"
PARTIAL = ".tmp"  # in place of a tensor file's ending while it is written
SCHEMA = 3
APPLICATION = 0x6564636C  # "edcl" in SQLite's header
_ID = re.compile(r"[a-z][0-9]{4,12}")
_SUPER_JOURNAL = b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7"
_TABLES = (
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE log (seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, "
    "body TEXT NOT NULL, sha256 TEXT NOT NULL)",
)


class Store:
    """An open log folder.

    Attributes:
        folder: where it is.
        identity: of the base model: "fingerprint", and what describes it to people.
    """

    def __init__(self, folder: str | Path, identity: Callable[[], Mapping[str, str]]) -> None:
        """Opens the folder, or makes it; `identity` is asked for only when it is made.

        Raises:
            LogError: it is not a log, of another version, damaged, locked or not writable.
        """
        self.folder = Path(folder)
        with _as_log_errors(self.folder):
            _check_folder(self.folder)
            (self.folder / "tensors").mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                self.folder / DATABASE, timeout=0.2, isolation_level=None, check_same_thread=False
            )
        weakref.finalize(self, self._connection.close)
        try:
            with _as_log_errors(self.folder):
                self._lock()
                if not self._scalar("SELECT count(*) FROM sqlite_master"):
                    self._create(identity())
                self._check_schema()
                self.identity = self._read_identity()
                self._head = self.read()[1]
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        """Releases the lock."""
        self._connection.close()

    # -- writing --------------------------------------------------------------------------------

    def append(self, record: Record, tensors: Mapping[str, Tensor] | None = None) -> Record:
        """Adds a record, after the tensors that belong to it are safe on the medium.

        Returns:
            The record as stored, which names the file of its tensors.

        Raises:
            LogError: it can't be written; call `discard`.
        """
        assert _ID.fullmatch(record.id), f"{record.id!r} is no id for a log entry"
        body = dict(record.body)
        with _as_log_errors(self.folder):
            if tensors is not None:
                body["tensors"] = self._write_tensors(record.id, tensors)
            text = json.dumps(body, allow_nan=False)
            sha = _link(self._head, record.id, record.kind, text)
            with self._transaction():
                row = (record.id, record.kind, text, sha)
                self._execute("INSERT INTO log (id, kind, body, sha256) VALUES (?, ?, ?, ?)", *row)
                self._execute("UPDATE meta SET value = ? WHERE name = 'head'", sha)
            self._head = sha
        return Record(record.id, record.kind, body)

    def discard(self, record_id: str) -> None:
        """Makes sure that an append that failed or was interrupted has left nothing."""
        with _as_log_errors(self.folder):
            if self._connection.in_transaction:
                self._execute("ROLLBACK")
            if self._scalar("SELECT count(*) FROM log WHERE id = ?", record_id):
                last = "SELECT sha256 FROM log WHERE id != ? ORDER BY seq DESC LIMIT 1"
                head = self._scalar(last, record_id) or _genesis(self.identity)
                with self._transaction():
                    self._execute("DELETE FROM log WHERE id = ?", record_id)
                    self._execute("UPDATE meta SET value = ? WHERE name = 'head'", head)
                self._head = head
            path = self._tensor_path(record_id)
            path.unlink(missing_ok=True)
            path.with_suffix(PARTIAL).unlink(missing_ok=True)  # its room may be what is lacking

    def _write_tensors(self, record_id: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        data = safetensors.torch.save(dict(tensors))
        path = self._tensor_path(record_id)
        temporary = path.with_suffix(PARTIAL)
        temporary.unlink(missing_ok=True)
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
        return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}

    # -- reading --------------------------------------------------------------------------------

    def read(self) -> tuple[list[Record], str]:
        """All records in order, every link of their chain checked, and the last link.

        Raises:
            LogError: a record was changed, removed or is not readable.
        """
        with _as_log_errors(self.folder):
            self._execute("PRAGMA shrink_memory")  # so that pages are read from the file again
            complaint = self._scalar("PRAGMA integrity_check(1)")
            if complaint != "ok":
                raise _damaged(self.folder, str(complaint))
            rows = self._execute("SELECT id, kind, body, sha256 FROM log ORDER BY seq").fetchall()
            head = self._scalar("SELECT value FROM meta WHERE name = 'head'")
        link = _genesis(self.identity)
        records = []
        for name, kind, text, sha in rows:
            if not all(isinstance(value, str) for value in (name, kind, text, sha)):
                raise _damaged(self.folder, "a record is not text")
            link = _link(link, name, kind, text)
            if link != sha or not _ID.fullmatch(name):
                raise _damaged(self.folder, f"record {name!r} was changed")
            records.append(Record(name, kind, self._parse(text)))
        if link != head:
            raise _damaged(self.folder, "records at its end are missing or changed")
        return records, link

    def tensors(self, record: Record) -> dict[str, Tensor]:
        """A record's tensors, checked against the size and SHA-256 that it names.

        Raises:
            LogError: the file is missing, truncated or changed.
        """
        path = self._tensor_path(record.id)
        with _as_log_errors(self.folder):
            named = record.body.get("tensors")
            if not isinstance(named, dict) or not path.is_file() or path.is_symlink():
                raise _damaged(self.folder, f"the tensor file {path.name} is missing")
            size = path.stat().st_size
            if size != named.get("bytes"):
                raise _damaged(
                    self.folder,
                    f"{path.name} has {size} bytes instead of {named.get('bytes')} (truncated?)",
                )
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() != named.get("sha256"):
                raise _damaged(self.folder, f"{path.name} was changed (its SHA-256 differs)")
        try:
            return safetensors.torch.load(data)
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise _damaged(self.folder, f"{path.name} is no safetensors file: {error}") from error

    def _parse(self, text: str) -> dict[str, Any]:
        try:
            body = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _damaged(self.folder, f"a record is not JSON: {error}") from error
        if not isinstance(body, dict):
            raise _damaged(self.folder, "a record is not a JSON object")
        return body

    def _read_identity(self) -> dict[str, str]:
        rows = self._execute("SELECT name, value FROM meta WHERE name != 'head'").fetchall()
        return {str(name): str(value) for name, value in rows}

    # -- SQLite ---------------------------------------------------------------------------------

    def _lock(self) -> None:
        for pragma in (
            "locking_mode = EXCLUSIVE",  # from the first transaction until the log is closed
            "trusted_schema = OFF",
            "cell_size_check = ON",
            "journal_mode = DELETE",  # a rollback journal: what is committed is in one file
            "synchronous = EXTRA",
        ):
            self._execute(f"PRAGMA {pragma}").fetchall()
        with self._transaction():
            pass

    def _create(self, identity: Mapping[str, str]) -> None:
        if any((self.folder / "tensors").glob("*.safetensors")):
            raise _damaged(self.folder, f"{DATABASE} is empty beside tensor files (truncated?)")
        with self._transaction():
            self._execute(f"PRAGMA application_id = {APPLICATION}")
            self._execute(f"PRAGMA user_version = {SCHEMA}")
            for table in _TABLES:
                self._execute(table)
            rows = {**identity, "head": _genesis(identity)}
            for name, value in rows.items():
                self._execute("INSERT INTO meta (name, value) VALUES (?, ?)", name, value)
        sync_folder(self.folder)
        sync_folder(self.folder.absolute().parent)

    def _check_schema(self) -> None:
        if self._scalar("PRAGMA application_id") != APPLICATION:
            raise LogError(
                f"{self.folder / DATABASE} is a SQLite file, but no edit log (its header names "
                "another application). Choose another folder, or restore the log from a copy."
            )
        version = self._scalar("PRAGMA user_version")
        if version != SCHEMA:
            raise LogError(
                f"the log {self.folder} has schema version {version}; this editcl reads version "
                f"{SCHEMA}. Use the version of editcl that wrote it, or a newer one."
            )
        found = self._execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
        if sorted(str(sql) for (sql,) in found) != sorted(_TABLES):
            raise _damaged(self.folder, "its tables are not those of an edit log")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._execute("BEGIN EXCLUSIVE")
        try:
            yield
            self._execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._execute("ROLLBACK")
            raise

    def _execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        return self._connection.execute(sql, values)

    def _scalar(self, sql: str, *values: Any) -> Any:
        row = self._execute(sql, *values).fetchone()
        return None if row is None else row[0]

    def _tensor_path(self, record_id: str) -> Path:
        assert _ID.fullmatch(record_id), f"{record_id!r} is no id for a log entry"
        return self.folder / "tensors" / f"{record_id}.safetensors"


def _check_folder(folder: Path) -> None:
    """Refuses what is not a log folder, before anything is opened or made."""
    if folder.exists() and not folder.is_dir():
        raise LogError(f"{folder} is a file. A log is a folder: choose another path.")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if names - {"tensors"} and DATABASE not in names:
        raise LogError(
            f"{folder} is not a log: it has files, and no {DATABASE}. Choose an empty or new "
            "folder, or restore the missing file from a copy."
        )
    parts = [path for path in (folder / "tensors", *folder.glob(f"{DATABASE}*")) if path.exists()]
    if any(path.is_symlink() for path in parts):
        raise LogError(f"{folder} holds links in place of its files. Copy the log as plain files.")
    journal = folder / f"{DATABASE}-journal"
    # A journal of several databases makes SQLite delete the file it names; a log never has one.
    if journal.is_file() and journal.read_bytes()[-8:] == _SUPER_JOURNAL:
        raise _damaged(folder, f"{journal.name} belongs to several databases")


def _genesis(identity: Mapping[str, str]) -> str:
    text = json.dumps({k: v for k, v in identity.items() if k != "head"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _link(previous: str, *parts: str) -> str:
    return hashlib.sha256(json.dumps([previous, *parts]).encode()).hexdigest()


def _damaged(folder: Path, what: str) -> LogError:
    return LogError(f"the log {folder} is damaged: {what}. Restore the folder from a copy.")


@contextmanager
def _as_log_errors(folder: Path) -> Iterator[None]:
    """Turns what SQLite and the file system raise into LogErrors with a remedy."""
    try:
        yield
    except sqlite3.Error as error:
        text = str(error)
        if "locked" in text:
            raise LogError(
                f"the log {folder} is open elsewhere (another process, or another EditLog of this "
                "one). Close it there (log.close()), or work on a copy of the folder."
            ) from error
        if any(what in text for what in ("readonly", "unable to open", "full", "I/O")):
            raise LogError(
                f"the log {folder} can't be written ({text}). Check the permissions, the space "
                "left and limits on it, or choose another folder."
            ) from error
        raise _damaged(folder, text) from error
    except UnicodeDecodeError as error:  # of SQLite's message about names that damage has changed
        raise _damaged(folder, "its names are not UTF-8") from error
    except OSError as error:
        raise LogError(
            f"the log folder {folder} can't be used: {error}. Check the path, the permissions and "
            "the space left, or choose another folder."
        ) from error
