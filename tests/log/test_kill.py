"""kill -9 at every write leaves the log before or after a step, never between."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
IN_LIBC = sys.platform.startswith("linux") and shutil.which("cc") is not None
Results = dict[str, dict[str, list[str]]]  # mode -> action -> what each kill left

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(scope="module")
def results() -> Iterator[Results]:
    """Runs die_at_writes.py; in memory where there is such a place, for it syncs a lot."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        yield _die_at_writes(Path(name))


def _die_at_writes(where: Path) -> Results:
    paths = [str(HERE), str(HERE.parent), str(HERE.parent.parent)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    modes = ["python"]
    if IN_LIBC:
        library = where / "die_at_write.so"
        source = HERE / "die_at_write.c"
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        environment["LD_PRELOAD"] = str(library)
        modes += ["whole", "torn"]
    run = subprocess.run(
        [sys.executable, str(HERE / "die_at_writes.py"), str(where), *modes],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("action", ["make", "append", "rollback", "skill"])
@pytest.mark.parametrize("mode", ["python", "whole", "torn"])
def test_a_kill_at_any_write_leaves_before_or_after(
    results: Results, mode: str, action: str
) -> None:
    if mode not in results:
        pytest.skip("dying within libc needs Linux and a C compiler")
    seen = results[mode][action]
    assert len(seen) >= 4, f"died at {len(seen)} writes only"
    assert set(seen) <= {"before", "after"}, seen
    assert seen == sorted(seen, reverse=True), f"went back and forth: {seen}"
    assert action == "make" or (seen[0] == "before" and (mode == "torn" or seen[-1] == "after"))
