"""The user's cache on disk: what is there saves time, what is not there is computed again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where covariances, calibrations and unfinished values are kept.

    `EDITCL_CACHE` overrules the user cache.
    """
    from platformdirs import user_cache_dir

    return Path(os.environ.get("EDITCL_CACHE") or user_cache_dir("editcl"))


def keep(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all; a cache that can't be written costs time, no more."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.tmp")
        partial.write_bytes(data)
        partial.replace(path)
    except OSError:
        return
