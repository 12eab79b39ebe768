"""Folders on disk: written beside their place and moved there whole, flushed to the medium.

This module knows nothing of what the folders hold.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from editcl.errors import LogError


@contextmanager
def staged_folder(target: str | Path, *, replaces: tuple[str, ...] = ()) -> Iterator[Path]:
    """A temporary folder beside the target that takes its place when the block ends well.

    Args:
        target: the folder to make; missing, or empty.
        replaces: if it is not empty, it is replaced if it holds a file of one of these names.

    Raises:
        LogError: the target is a file, is not empty, or can't be written.
    """
    target = Path(target).absolute()
    _require_free(target, replaces)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise LogError(f"{target} can't be written: {error}. Choose another folder.") from error
    try:
        stage.chmod(0o777 & ~_umask())  # mkdtemp makes it private
        yield stage
        _flush_tree(stage)
        _swap(stage, target)
    except OSError as error:
        raise LogError(f"{target} can't be written: {error}. Choose another folder.") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Flushes a folder's names to the medium, where the system can."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _require_free(target: Path, replaces: tuple[str, ...]) -> None:
    if target.exists() and not target.is_dir():
        raise LogError(f"{target} is a file. Choose a folder.")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not replaces:
        raise LogError(f"{target} is not empty. Choose another folder, or pass overwrite=True.")
    if not any((target / name).is_file() for name in replaces):
        raise LogError(
            f"{target} is not empty and holds no {' or '.join(replaces)}, so it is not an earlier "
            "export and is left alone. Choose another folder."
        )


def _swap(stage: Path, target: Path) -> None:
    """Moves the stage to its place; what was there is set aside first and then deleted."""
    aside = stage.with_name(stage.name + ".old")
    if target.exists():
        os.replace(target, aside)
    try:
        os.replace(stage, target)
    except OSError:
        if aside.exists():
            os.replace(aside, target)
        raise
    sync_folder(target.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _flush_tree(folder: Path) -> None:
    for root, _, files in os.walk(folder):
        for name in files:
            with open(Path(root) / name, "rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(root))


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
