"""Kills processes at each of their writes, and looks at the log that they leave behind.

Run by test_kill.py as `die_at_writes.py FOLDER MODE...`. For each mode, each action (make a
log, append an edit or a skill, roll back) and each n, a forked child dies by SIGKILL at its nth
write; the parent then opens the log and notes whether the model is as before or after. Prints one
JSON object.

Modes: "python" dies after the nth call of fsync, replace or an SQL statement; "whole" and "torn"
die within libc, after the nth write or half-way through it (needs the preloaded library).
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from logbook import add, digest, fresh, learn, sample_log

from editcl.errors import LogError
from editcl.log import EditLog
from editcl.log.store import Store

torch.set_num_threads(1)


def make(model: Any, folder: Path, ready: Callable[[], None]) -> EditLog:
    ready()
    return EditLog(model, folder)


def append(model: Any, folder: Path, ready: Callable[[], None]) -> EditLog:
    log = EditLog(model, folder)
    ready()
    add(log, model, 9, 2, (0, 1))
    return log


def rollback(model: Any, folder: Path, ready: Callable[[], None]) -> EditLog:
    log = EditLog(model, folder)
    ready()
    log.rollback("e0003", remeasure=False)
    return log


def skill(model: Any, folder: Path, ready: Callable[[], None]) -> EditLog:
    log = EditLog(model, folder)
    ready()
    learn(log, "task", 9)
    return log


ACTIONS = {"make": make, "append": append, "rollback": rollback, "skill": skill}


def die_in_python(n: int) -> None:
    left = n

    def counted(function: Any) -> Any:
        def run(*args: Any) -> Any:
            nonlocal left
            result = function(*args)
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return run

    os.fsync, os.replace = counted(os.fsync), counted(os.replace)
    Store._execute = counted(Store._execute)  # type: ignore[method-assign]


def die_in_libc(n: int, torn: bool) -> None:
    ctypes.CDLL(None).die_at_write(n, int(torn))


def killed(action: str, model: Any, folder: Path, n: int, mode: str) -> bool:
    """Runs an action in a child that dies at its nth write; False if it ended before that."""
    child = os.fork()
    if child == 0:

        def ready() -> None:
            if mode == "python":
                die_in_python(n)
            else:
                die_in_libc(n, mode == "torn")

        try:
            ACTIONS[action](model, folder, ready)
        except BaseException:
            os._exit(3)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL, status
        return True
    assert os.WEXITSTATUS(status) == 0, f"{action} failed with {status}"
    return False


def state(folder: Path, goes_on: bool = False) -> str:
    """What a folder holds; now and then also that work can go on from there."""
    model = fresh()
    try:
        with EditLog(model, folder) as log:
            assert log.verify().ok, log.verify()
            text = f"{digest(model)} {len(log)} {len(log.events)} {len(log.active_skills())}"
            if goes_on:
                add(log, model, 5)
                learn(log, "more", 5)
                log.rollback("all", remeasure=False)
                assert log.verify().ok, log.verify()
            return text
    except LogError as error:
        return f"error: {error}"


def run(where: Path, mode: str) -> dict[str, list[str]]:
    sample_log(where / "sample")
    model = fresh()  # each child works on its own copy of it
    gc.freeze()  # a garbage collection in a child would copy all of the parent's memory
    result = {}
    for action, step in ACTIONS.items():
        start = None if action == "make" else where / "sample"

        def copy(name: str, start: Path | None = start) -> Path:
            if start is not None:
                shutil.copytree(start, where / name)
            return where / name

        step(fresh(), copy(f"{action} after"), lambda: None).close()
        after, before = state(where / f"{action} after"), state(copy(f"{action} before"))
        seen, n = [], 1
        while killed(action, model, copy(f"{action} {n}"), n, mode):
            found = state(where / f"{action} {n}", goes_on=n % 4 == 0)
            seen.append({after: "after", before: "before"}.get(found, found))
            n += 1
        result[action] = seen
    return result


if __name__ == "__main__":
    print(json.dumps({mode: run(Path(sys.argv[1]) / mode, mode) for mode in sys.argv[2:]}))
