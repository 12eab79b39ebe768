"""The bytes and text of a file: read once, whole, and only if it stays as it is meanwhile.

Knows nothing of what the text says.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from pathlib import Path

from editcl.readers.problems import Problems

MAX_BYTES = 2_000_000_000  # of one file
# Without O_NONBLOCK a pipe would be waited for before it can be told from a file.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_CHUNK = 1 << 20
_BOMS = (
    (b"\xef\xbb\xbf", "utf-8"),
    (b"\xff\xfe\x00\x00", "utf-32-le"),
    (b"\x00\x00\xfe\xff", "utf-32-be"),
    (b"\xff\xfe", "utf-16-le"),
    (b"\xfe\xff", "utf-16-be"),
)


def read_bytes(path: Path, problems: Problems) -> tuple[bytes, str]:
    """The file's bytes and their SHA-256.

    Raises:
        TableError: it is a URL, absent, no regular file, too large, or changed while it was read.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
        problems.fail(None, "this is a URL, not a file; download it first, then name the file.")
    try:
        handle = os.open(path, _FLAGS)
    except (OSError, ValueError) as error:
        if os.path.isdir(path):
            problems.fail(None, "this is a directory; name a file in it.")
        reason = error.strerror if isinstance(error, OSError) else error
        problems.fail(None, f"the file can't be opened ({reason}); check its name and rights.")
    try:
        return _stable_bytes(handle, path, problems)
    except OSError as error:
        problems.fail(None, f"the file can't be read ({error.strerror}).")
    finally:
        os.close(handle)


def _stable_bytes(handle: int, path: Path, problems: Problems) -> tuple[bytes, str]:
    before = os.fstat(handle)
    if stat.S_ISDIR(before.st_mode):
        problems.fail(None, "this is a directory; name a file in it.")
    if not stat.S_ISREG(before.st_mode):
        problems.fail(None, "this is no regular file; save its content to a file first.")
    if before.st_size > MAX_BYTES:
        problems.fail(
            None,
            f"the file has {before.st_size:,} bytes, more than the {MAX_BYTES:,} that are read at "
            "once; split it.",
        )
    data = b"".join(_chunks(handle))
    digest = hashlib.sha256(data).hexdigest()
    os.lseek(handle, 0, os.SEEK_SET)
    again = hashlib.sha256()
    for chunk in _chunks(handle):
        again.update(chunk)
    states = [_state(before), _state(os.fstat(handle)), _state(os.stat(path))]
    if len(set(states)) > 1 or len(data) != before.st_size or again.hexdigest() != digest:
        problems.fail(None, "the file changed while it was read; wait for its writer, then retry.")
    return data, digest


def _chunks(handle: int) -> list[bytes]:
    chunks, left = [], MAX_BYTES + 1
    while left > 0 and (chunk := os.read(handle, min(_CHUNK, left))):
        chunks.append(chunk)
        left -= len(chunk)
    return chunks


def _state(found: os.stat_result) -> tuple[int, int, int, int]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def decode(data: bytes, problems: Problems) -> str:
    """The text: UTF-8, or what a byte order mark says (UTF-8, UTF-16, UTF-32).

    Raises:
        TableError: the bytes are none of these; names the first wrong byte.
    """
    mark, encoding = next(((m, e) for m, e in _BOMS if data.startswith(m)), (b"", "utf-8"))
    try:
        return data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        position = len(mark) + error.start
        line = data[len(mark) : position].decode(encoding, "ignore").count("\n") + 1
        problems.fail(
            f"line {line}",
            f"byte 0x{data[position]:02x} at position {position:,} is not {encoding.upper()}; save "
            "the file as UTF-8 (in Excel: 'CSV UTF-8').",
        )
