"""`editcl bench edit` measures what it names; small here, whole on the command line."""

from __future__ import annotations

import pytest

import editcl
from editcl.benchmarks.edit import bench_edit
from editcl.errors import EditclError

KEYS = {
    "n_edits", "efficacy", "paraphrase", "specificity", "same_subject", "free_running",
    "trace_speedup", "trace_max_error", "edit_speedup", "update_relative_error", "rollback_exact",
    "import_seconds",
}  # fmt: skip


@pytest.fixture(scope="module")
def embedded() -> editcl.EditableModel:
    return editcl.load()


def test_both_sides_of_each_comparison_find_the_same(embedded) -> None:
    found = bench_edit(embedded, n_edits=3, repeats=1)
    figures = found.to_dict()
    assert set(figures) >= KEYS
    assert figures["n_edits"] == 3 and figures["efficacy"] == 1.0
    assert figures["base"]["efficacy"] == 0.0
    assert figures["trace_max_error"] < 1e-4
    assert figures["update_relative_error"] < 1e-3 and figures["value_relative_error"] < 1e-3
    assert figures["rollback_exact"] is True
    assert not any(embedded.log.active(entry) for entry in embedded.log)


def test_a_model_with_logged_edits_is_refused(embedded) -> None:
    if not len(embedded.log):
        editcl.edit(embedded, "Eiffel Tower", "Rome")
    with pytest.raises(EditclError, match="log must be empty"):
        bench_edit(embedded, n_edits=1, repeats=1)
