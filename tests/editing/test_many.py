"""edit_csv(): a table in, logged changes out; whatever fails, the weights are as before."""

from __future__ import annotations

import pytest
import torch
from batches import CONTROL, MATES, leads, state
from tables import FAST, TINY, control, interrupt, snapshot, table, wrapped

import editcl
from editcl.editing import many
from editcl.editing.choices import ask_objects
from editcl.editing.guards import Guard
from editcl.editing.methods import METHODS
from editcl.editing.resume import Checkpoint
from editcl.editing.values import ValueSettings
from editcl.errors import EditclError, LogError, NonFiniteError, TableError
from editcl.evaluation import catalogue_cases
from editcl.evaluation.damage import general_texts
from editcl.facts import Fact
from editcl.log import EditLog
from editcl.log.store import Store
from editcl.update import WeightUpdate


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("EDITCL_CACHE", str(tmp_path / "cache"))


@pytest.fixture(params=["gpt2", "llama"])
def architecture(request) -> str:
    return request.param


# -- what becomes of a table ----------------------------------------------------------------------


def test_a_csv_becomes_one_entry_and_every_row_holds_afterwards(architecture, tmp_path) -> None:
    model = wrapped(architecture)
    facts, base = control(model), state(model)
    path = table(tmp_path / "facts.csv", facts, id=["a", "b", "c"])
    assert not any(leads(model, facts))
    report = editcl.edit_csv(model, path, **TINY)
    assert all(leads(model, facts))
    (entry,) = report.entries
    assert model.log.entries == (entry,) and entry.facts == tuple(facts)
    assert [row.status for row in report.rows] == ["edited"] * 3
    assert [(row.id, row.number, row.entry, row.index) for row in report.rows] == [
        ("a", 1, entry.id, 0), ("b", 2, entry.id, 1), ("c", 3, entry.id, 2),
    ]  # fmt: skip
    assert all(row.holds for row in report.rows) and report.efficacy == 1.0
    assert all(row.before.new < row.before.old for row in report.rows)
    assert [row.after for row in report.rows] == list(entry.after)
    assert [row.before for row in report.rows] == list(entry.before)
    assert model.log.verify().ok
    model.log.rollback("all")
    assert state(model) == base


def test_one_fact_comes_out_of_a_batch_as_if_it_had_never_been_in_it(architecture) -> None:
    model, twin = wrapped(architecture), wrapped(architecture)
    facts, base = control(model), state(model)
    (entry,) = editcl.edit_csv(model, facts, **TINY).entries
    full, factors = state(model), model.log.active_factors()
    model.log.rollback((entry, 1))
    updates = [
        WeightUpdate(name, f.left[:, [0, 2]].float(), f.right[:, [0, 2]].float())
        for name, f in factors.items()
    ]
    EditLog(twin).append(updates, [facts[0], facts[2]], method="memit", layers=[0, 1])
    assert state(model) == state(twin) != full
    model.log.rollback([(entry, 0), (entry, 2)])
    assert state(model) == base


def test_a_batch_size_makes_several_entries(model) -> None:
    facts, base = control(model), state(model)
    report = editcl.edit_csv(model, facts, batch_size=2, **TINY)
    assert [entry.facts for entry in report.entries] == [tuple(facts[:2]), tuple(facts[2:])]
    assert [(row.entry, row.index) for row in report.rows] == [
        ("e0001", 0), ("e0001", 1), ("e0002", 0),
    ]  # fmt: skip
    assert [entry.details["batch"] for entry in report.entries] == [0, 1]
    assert all(row.holds for row in report.rows)
    model.log.rollback("e0001")
    assert [model.log.active(entry) for entry in report.entries] == [False, True]
    model.log.rollback("all")
    assert state(model) == base


def test_methods_of_one_fact_go_one_by_one_whatever_the_batch_size(model) -> None:
    facts, base = control(model), state(model)
    options = TINY | {"layers": [1]}
    report = editcl.edit_csv(model, facts, method="rome", batch_size=3, **options)
    assert [entry.facts for entry in report.entries] == [(fact,) for fact in facts]
    assert report.efficacy == 1.0
    model.log.rollback("all")
    assert state(model) == base


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_every_method_edits_a_table_and_comes_out_exactly(method, architecture) -> None:
    model = wrapped(architecture)
    base = state(model)
    report = editcl.edit_csv(model, list(MATES), method=method, **FAST)
    assert [row.status for row in report.rows] == ["edited"] * 3
    assert len(report.entries) == (3 if METHODS[method].single else 1)
    assert state(model) != base and model.log.verify().ok
    model.log.rollback("all")
    assert state(model) == base


def test_a_dry_run_measures_and_changes_nothing(model, tmp_path) -> None:
    before = snapshot(model)
    report = editcl.edit_csv(model, control(model), dry_run=True, **TINY)
    assert snapshot(model) == before
    assert report.dry_run and not report.entries and report.efficacy is None
    assert [row.status for row in report.rows] == ["checked"] * 3
    assert all(row.before is not None and row.after is None for row in report.rows)
    assert not [*(tmp_path / "cache").glob("values-*")]


def test_what_the_model_says_already_is_left_alone(model) -> None:
    fact = Fact("The Eiffel Tower", "The city of {}", "x")
    (said,) = ask_objects(model, [fact.sentence])
    known, before = Fact(fact.subject, fact.prompt, said), snapshot(model)
    report = editcl.edit_csv(model, [known], **TINY)
    assert [row.status for row in report.rows] == ["already said"]
    assert snapshot(model) == before
    report = editcl.edit_csv(model, [known, CONTROL[1]], **TINY)
    assert [row.status for row in report.rows] == ["already said", "edited"]
    assert [entry.facts for entry in report.entries] == [(CONTROL[1],)]
    assert report.rows[0].entry is None and report.rows[1].index == 0


def test_a_table_of_one_fact_and_one_of_one_subject_are_edited(model) -> None:
    assert len(editcl.edit_csv(model, [CONTROL[2]], **TINY).entries) == 1
    report = editcl.edit_csv(model, list(MATES[:2]), **TINY)
    assert [row.status for row in report.rows] == ["edited"] * 2


def test_the_same_table_gives_the_same_bits(tmp_path) -> None:
    runs = []
    for _ in range(2):
        model = wrapped()
        editcl.edit_csv(model, control(model), **TINY)
        runs.append(state(model))
    assert runs[0] == runs[1]


# -- refusals -------------------------------------------------------------------------------------

BAD = [
    ({"method": "magic"}, "unknown method 'magic'; choose one of rome"),
    ({"layers": [99]}, "out of range"),
    ({"layers": [1, 1]}, "different layers"),
    ({"layers": []}, "different layers"),
    ({"method": "rome", "layers": [0, 1]}, "one layer"),
    ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
    ({"batch_size": -2}, "batch_size must be a whole number of at least 1"),
    ({"preservation": 0.0}, "preservation must be positive"),
    ({"preservation": float("nan")}, "preservation must be positive"),
    ({"preservation": float("inf")}, "preservation must be positive and finite"),
    ({"contexts": ("x",)}, "first context"),
    ({"settings": "fast"}, "unknown settings"),
    ({"kind": "excel"}, "there is no kind"),
]


@pytest.mark.parametrize("bad, message", BAD, ids=str)
def test_options_that_make_no_sense_are_refused(model, bad, message) -> None:
    before = snapshot(model)
    with pytest.raises(EditclError, match=message):
        editcl.edit_csv(model, list(CONTROL), **(TINY | bad))
    assert snapshot(model) == before


def test_contradictory_rows_are_refused(model, tmp_path) -> None:
    before = snapshot(model)
    twice = [CONTROL[0], Fact(CONTROL[0].subject, CONTROL[0].prompt, "München")]
    with pytest.raises(TableError, match="line 3.*subject and prompt are those of row 1"):
        editcl.edit_csv(model, table(tmp_path / "facts.csv", twice), **TINY)
    assert snapshot(model) == before


def test_broken_weights_are_refused(model) -> None:
    with torch.no_grad():
        model.down_projection(1).parameter[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        editcl.edit_csv(model, list(CONTROL), **TINY)
    assert len(model.log) == 0


# -- guards ---------------------------------------------------------------------------------------


def test_a_guard_takes_the_batch_back_says_why_and_stops(model) -> None:
    facts, base = control(model), state(model)
    options = TINY | {"guard": Guard(max_growth=1e-9), "batch_size": 1}
    report = editcl.edit_csv(model, facts, **options)
    assert state(model) == base
    assert [row.status for row in report.rows] == ["taken back", "not reached", "not reached"]
    assert report.stopped.startswith("the edited weights have moved by")
    assert report.stopped.endswith("the last batch (e0001) was taken back")
    (entry,) = report.entries
    assert not model.log.active(entry)
    assert [health.entry for health in report.health] == [entry.id]
    assert [row.after for row in report.rows] == [row.before for row in report.rows]
    assert report.efficacy is None


def test_a_guard_that_is_content_changes_nothing_and_tells_the_health(model) -> None:
    facts = control(model)
    options = TINY | {"guard": Guard(max_growth=10, max_divergence=10), "batch_size": 2}
    report = editcl.edit_csv(model, facts, **options)
    assert report.stopped is None and report.efficacy == 1.0
    first, last = report.health
    assert (first.n_facts, last.n_facts) == (2, 3)
    assert 0 < first.growth < last.growth and last.retention == 1.0
    twin = wrapped()
    editcl.edit_csv(twin, facts, **(options | {"guard": None}))
    assert state(twin) == state(model)


def test_a_guard_takes_back_all_that_came_since_its_last_check(model, monkeypatch) -> None:
    monkeypatch.setattr(many, "CHECK_EVERY", 2)
    base, options = state(model), FAST | {"guard": Guard(max_growth=1e-9), "method": "rome"}
    report = editcl.edit_csv(model, control(model), **options)
    assert [row.status for row in report.rows] == ["taken back", "taken back", "not reached"]
    assert report.stopped.endswith("the last 2 batches (e0001 to e0002) were taken back")
    assert state(model) == base
    limit = 1.0001 * report.health[0].growth
    options |= {"guard": Guard(max_growth=limit, max_divergence=None, min_retention=None)}
    report = editcl.edit_csv(model, control(model), **options)
    assert len(report.health) == 2, "after two edits, and after the last one"
    assert [row.status for row in report.rows] == ["edited", "edited", "taken back"]


# -- errors and interrupts ------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError("no memory"), KeyboardInterrupt()], ids=repr)
def test_an_error_or_interrupt_on_the_way_leaves_the_weights_as_before(
    model, monkeypatch, error
) -> None:
    editcl.edit_csv(model, [MATES[2]], **FAST)
    before = state(model)
    calls = interrupt(monkeypatch, "memit", 3, error)
    with pytest.raises(type(error)) as caught:
        editcl.edit_csv(model, control(model), batch_size=1, **FAST)
    assert caught.value is error and calls == [1, 1, 1]
    assert state(model) == before
    assert [model.log.active(entry) for entry in model.log.entries] == [True, False, False]
    assert model.log.verify().ok


def test_an_interrupt_between_log_and_report_leaves_the_weights_as_before(
    model, monkeypatch
) -> None:
    facts, before = control(model), state(model)

    def stop(*_) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoint, "clear", stop)  # what comes right after the log's append
        editcl.edit_csv(model, facts, **FAST)
    assert len(model.log) == 1 and state(model) == before
    measure, calls = many.probabilities, []

    def last_fails(*arguments):
        calls.append(1)
        return measure(*arguments) if len(calls) < 3 else stop()

    monkeypatch.setattr(many, "probabilities", last_fails)  # before, in the log, for the report
    with pytest.raises(KeyboardInterrupt):
        editcl.edit_csv(model, facts, **FAST)
    assert len(model.log) == 2 and state(model) == before


@pytest.fixture
def stored(model, tmp_path):
    """A model whose log is in a folder."""
    with EditLog(model, tmp_path / "log"):
        yield model


def failing_append(monkeypatch, fails) -> None:
    append, calls = Store.append, []

    def full(self, record, tensors=None):
        calls.append(record.kind)
        if fails(len(calls)):
            raise LogError("No space left on device")
        return append(self, record, tensors)

    monkeypatch.setattr(Store, "append", full)


def test_a_full_disk_leaves_model_and_log_as_they_were(stored, monkeypatch) -> None:
    before = snapshot(stored)
    with monkeypatch.context() as patch, pytest.raises(LogError, match="No space left"):
        failing_append(patch, lambda _: True)
        editcl.edit_csv(stored, control(stored), **FAST)
    assert snapshot(stored) == before and stored.log.verify().ok
    with monkeypatch.context() as patch, pytest.raises(LogError, match="^No space left"):
        failing_append(patch, lambda number: number == 2)
        editcl.edit_csv(stored, control(stored), batch_size=1, **FAST)
    assert state(stored) == before[0] and stored.log.verify().ok
    editcl.edit_csv(stored, control(stored), **FAST)
    assert stored.log.verify().ok


def test_where_a_full_disk_forbids_to_take_back_it_says_so_and_log_and_model_agree(
    stored, monkeypatch
) -> None:
    base = state(stored)
    with monkeypatch.context() as patch, pytest.raises(LogError, match="e0001.*taken back"):
        failing_append(patch, lambda number: number > 1)
        editcl.edit_csv(stored, control(stored), batch_size=1, **FAST)
    assert stored.log.verify().ok and stored.log.active("e0001")
    stored.log.rollback("all")
    assert state(stored) == base


# -- on the model that ships ----------------------------------------------------------------------

QUICK = ValueSettings(steps=12)


@pytest.fixture(scope="module")
def embedded():
    return editcl.load()


def test_a_table_is_edited_and_a_guard_finds_the_model_well(embedded, tmp_path) -> None:
    facts, base = [case.fact for case in catalogue_cases(6, seed=3)], state(embedded)
    assert not any(leads(embedded, facts))
    path, guard = table(tmp_path / "facts.csv", facts), Guard()
    report = editcl.edit_csv(embedded, path, settings=QUICK, guard=guard, corpus=general_texts())
    assert report.stopped is None and report.efficacy == 1.0 and len(report.entries) == 1
    (health,) = report.health
    assert health.retention == 1.0 and health.divergence < 0.2
    embedded.log.rollback((report.entries[0], 2))
    assert leads(embedded, facts) == [True, True, False, True, True, True]
    embedded.log.rollback("all")
    assert state(embedded) == base


def test_missing_prompts_and_old_objects_are_found_out(embedded, tmp_path) -> None:
    path = tmp_path / "facts.csv"
    path.write_text(
        "subject,new_object,prompt\nNigeria,Accra,\nGhana,Abuja,capital\nAlgeria,Algiers,capital\n"
    )
    report = editcl.edit_csv(embedded, path, settings=QUICK, guard=None, corpus=general_texts())
    assert [row.status for row in report.rows] == ["edited", "edited", "already said"]
    assert len({row.fact.prompt for row in report.rows}) == 1
    assert [row.fact.old_object for row in report.rows[:2]] == ["Abuja", "Accra"]
    assert report.efficacy == 1.0
    embedded.log.rollback("all")
