"""Files for the tests of readers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from editcl.errors import TableError
from editcl.readers import read_table


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a file of the given name; text as UTF-8."""

    def make(content: str | bytes, name: str = "facts.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return make


@pytest.fixture
def refused() -> Callable[..., str]:
    """The message with which a source is refused."""

    def ask(source: object, **options: str) -> str:
        with pytest.raises(TableError) as caught:
            read_table(source, **options)
        if isinstance(source, Path):
            assert source.name in str(caught.value)
        return str(caught.value)

    return ask
