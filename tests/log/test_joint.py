"""Changes whose columns do not belong to one fact each: exact, durable, and taken back whole."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from logbook import digest, facts_of, fresh
from test_store import change_body, refused

from editcl.encoding import Sentence
from editcl.errors import LogError
from editcl.log import Edit, EditLog
from editcl.log.export import export_lora, export_model
from editcl.log.weakening import SAMPLE, evenly
from editcl.model import EditableModel, Scores
from editcl.update import SHARED, WeightUpdate

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LAYERS = (0, 1)
Owners = tuple[int, ...]


def updates(
    model: EditableModel, seed: int, owners: Sequence[Owners], keep: Sequence[int] | None = None
) -> list[WeightUpdate]:
    """Random updates of layers 0, 1, ...; only the columns of some facts, renumbered, if asked."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for layer, owner in enumerate(owners):
        left = torch.randn(model.d_mlp, len(owner), generator=generator) / 4
        right = torch.randn(model.d_model, len(owner), generator=generator) / 4
        if keep is not None:
            columns = [c for c, j in enumerate(owner) if j == SHARED or j in keep]
            left, right = left[:, columns], right[:, columns]
            owner = tuple(j if (j := owner[c]) == SHARED else keep.index(j) for c in columns)
        found.append(WeightUpdate(model.down_projection(layer).name, left, right, owner))
    return found


def append(
    log: EditLog,
    model: EditableModel,
    seed: int,
    n_facts: int,
    owners: Sequence[Owners],
    keep: Sequence[int] | None = None,
) -> Edit:
    facts = facts_of(seed, n_facts)
    if keep is not None:
        facts = tuple(facts[j] for j in keep)
    changes = updates(model, seed, owners, keep)
    return log.append(changes, facts, method="joint", layers=range(len(owners)))


# -- random histories ---------------------------------------------------------------------------


@st.composite
def entries(draw: st.DrawFn) -> list[tuple[int, list[Owners]]]:
    """Entries of one to three facts over one or two matrices, with owners of every sort."""
    found = []
    for _ in range(draw(st.integers(1, 4))):
        n_facts = draw(st.integers(1, 3))
        owner = st.lists(st.integers(draw(st.sampled_from([SHARED, 0])), n_facts - 1), max_size=5)
        found.append((n_facts, [tuple(draw(owner)) for _ in range(draw(st.integers(1, 2)))]))
    return found


@settings(max_examples=40, deadline=None)
@given(entries=entries(), dtype=st.sampled_from(DTYPES), data=st.data())
def test_any_subset_taken_out_in_any_order_leaves_a_log_that_never_had_it(
    entries: list[tuple[int, list[Owners]]], dtype: torch.dtype, data: st.DataObject
) -> None:
    model = fresh(dtype=dtype)
    log = EditLog(model)
    units: list[Any] = []  # what can be taken out: a fact, or all facts that share columns
    for seed, (n_facts, owners) in enumerate(entries):
        edit = append(log, model, seed, n_facts, owners)
        units += [edit] if edit.joint else [(edit, j) for j in range(n_facts)]
    whole = digest(model)
    order = data.draw(st.permutations(units))
    out = order[: data.draw(st.integers(0, len(order)))]
    for unit in out:
        log.rollback(unit, remeasure=False)
    assert log.verify().ok
    assert digest(model) == _digest_with_only(entries, log, dtype)
    for unit in data.draw(st.permutations(out)):
        log.reapply(unit, remeasure=False)
    assert digest(model) == whole
    log.rollback("all", remeasure=False)
    assert digest(model) == digest(fresh(dtype=dtype))


def _digest_with_only(
    entries: list[tuple[int, list[Owners]]], log: EditLog, dtype: torch.dtype
) -> str:
    model = fresh(dtype=dtype)
    other = EditLog(model)
    for seed, ((n_facts, owners), edit) in enumerate(zip(entries, log, strict=True)):
        keep = [j for j, on in enumerate(log.active_facts(edit)) if on]
        if keep:
            append(other, model, seed, n_facts, owners, keep)
    return digest(model)


# -- one entry ----------------------------------------------------------------------------------

JOINT: list[Owners] = [(SHARED, 0, SHARED, 2), (1, 1)]
PARTED: list[Owners] = [(2, 0, 2, 0), (0,)]  # fact 1 owns nothing


def test_a_single_fact_of_a_joint_change_is_refused_and_nothing_moves() -> None:
    model = fresh()
    log = EditLog(model)
    base = digest(model)
    edit = append(log, model, 1, 3, JOINT)
    assert edit.joint and edit.owners == {
        model.down_projection(layer).name: JOINT[layer] for layer in LAYERS
    }
    edited = digest(model)
    for what in (edit.facts[1], ("e0001", 0), [(edit, 0), (edit, 1)]):
        with pytest.raises(LogError, match=r"alone.*Take the whole entry: log.rollback\('e0001'"):
            log.rollback(what)
    assert digest(model) == edited and not log.events
    assert len(log.rollback(edit).facts) == 3 and digest(model) == base
    with pytest.raises(LogError, match="log.reapply"):
        log.reapply(edit.facts[1])
    log.reapply(list(edit.facts))
    assert digest(model) == edited and log.verify().ok


def test_a_fact_without_columns_leaves_the_bytes() -> None:
    model = fresh()
    log = EditLog(model)
    edit = append(log, model, 1, 3, PARTED)
    edited = digest(model)
    log.rollback((edit, 1))
    assert digest(model) == edited and log.active_facts(edit) == (True, False, True)
    log.rollback((edit, 0))
    factors = log.active_factors()
    assert [f.left.shape[1] for f in factors.values()] == [2]  # fact 2, in layer 0 only


def test_columns_of_facts_that_are_not_there_are_invariants() -> None:
    model = fresh()
    log = EditLog(model)
    with pytest.raises(AssertionError, match="belongs to fact 3 of 3"):
        log.append(updates(model, 0, [(3,)]), facts_of(0, 3), method="test", layers=(0,))
    assert len(log) == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_owners_are_durable(tmp_path: Path, dtype: torch.dtype) -> None:
    model = fresh(dtype=dtype)
    with EditLog(model, tmp_path / "log") as log:
        append(log, model, 1, 3, JOINT)
        append(log, model, 2, 3, PARTED)
        log.rollback([("e0002", 0), "e0001"], remeasure=False)
        log.copy_to(tmp_path / "copy")
    for name in ("log", "copy"):
        again = fresh(dtype=dtype)
        with EditLog(again, tmp_path / name) as log:
            assert digest(again) == digest(model) and log.verify().ok
            assert [edit.joint for edit in log] == [True, False]
            log.reapply("e0001")
            with pytest.raises(LogError, match="alone"):
                log.rollback(("e0001", 0))
            log.rollback("all")
            assert digest(again) == digest(fresh(dtype=dtype))


NAME = "transformer.h.0.mlp.c_proj.weight"


@pytest.mark.parametrize(
    "owners",
    [
        {},  # as many columns as facts, says the record; the file has four
        {NAME: [0, 1, 2]},
        {NAME: [0, 1, 2, 3]},
        {NAME: [0, 1, 2, -2]},
        {NAME: [0, 1, 2, 0.5]},
        {NAME: "0122"},
        {"transformer.wte.weight": [0]},
        None,
    ],
)
def test_stored_owners_that_do_not_fit_are_refused(tmp_path: Path, owners: Any) -> None:
    model = fresh()
    with EditLog(model, tmp_path / "log") as log:
        append(log, model, 1, 3, [(SHARED, 0, 1, 2)])
        assert log.entries[0].parameters == (NAME,)
    change_body(tmp_path / "log", "e0001", lambda body: body.update(owners=owners))
    refused(tmp_path / "log", "e0001")


def test_a_stored_event_that_parts_a_joint_change_is_refused(tmp_path: Path) -> None:
    model = fresh()
    with EditLog(model, tmp_path / "log") as log:
        append(log, model, 1, 3, JOINT)
        log.rollback("e0001")
    columns = {"e0001": [0, 1]}
    change_body(tmp_path / "log", "r0001", lambda body: body.update(columns=columns))
    refused(tmp_path / "log", "r0001.*parts facts")


def test_a_joint_change_leaves_as_adapter_and_folder(tmp_path: Path) -> None:
    model = fresh()
    log = EditLog(model)
    append(log, model, 1, 3, JOINT)
    append(log, model, 2, 3, PARTED)
    log.rollback(("e0002", 0), remeasure=False)
    export = export_lora(model, tmp_path / "adapter")
    assert sorted(export.ranks.values()) == [2, 6] and export.relative_error == 0
    from peft import PeftModel

    merged = PeftModel.from_pretrained(fresh().hf, tmp_path / "adapter").merge_and_unload()
    for layer in LAYERS:
        name = model.down_projection(layer).name
        torch.testing.assert_close(merged.get_parameter(name), model.hf.get_parameter(name))
    export_model(model, tmp_path / "model")


# -- what a rollback measures ---------------------------------------------------------------------


@pytest.mark.parametrize("n, at_most", [(0, 4), (3, 4), (4, 4), (5, 4), (1000, 64), (129, 64)])
def test_an_even_sample_covers_the_whole_list_once(n: int, at_most: int) -> None:
    places = [("e0001", j) for j in range(n)]
    chosen = [j for _, j in evenly(places, at_most)]
    assert len(chosen) == min(n, at_most) == len(set(chosen))
    gaps = {b - a for a, b in pairwise([*chosen, n])}
    assert not chosen or (chosen[0] == 0 and max(gaps) - min(gaps) <= 1)


def test_other_facts_of_a_large_batch_are_measured_by_sample(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = fresh()
    log = EditLog(model)
    n_facts = 3 * SAMPLE
    edit = append(log, model, 1, n_facts, [tuple(range(n_facts))])
    sizes: list[int] = []

    def score(sentences: Sequence[Sentence]) -> Scores:
        sizes.append(len(sentences))
        n = len(sentences)
        values = torch.full((n,), 0.5 / len(sizes)).log()
        return Scores(values, torch.ones(n, dtype=torch.bool), torch.ones(n))

    monkeypatch.setattr(model, "score", score)
    report = log.rollback((edit, 5))
    assert sizes == [2 * SAMPLE, 2 * SAMPLE]  # new and old objects, before and after
    assert (report.remeasured, report.dependents) == (SAMPLE, n_facts - 1)
    assert f"of {SAMPLE} dependent facts weakened, evenly chosen of {n_facts - 1}" in repr(report)
    few = log.rollback([(edit, j) for j in range(6, n_facts)])
    assert (few.remeasured, few.dependents) == (5, 5) and "evenly" not in repr(few)
