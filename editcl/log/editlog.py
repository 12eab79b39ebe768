"""EditLog: the one writer of a model's weights, and the memory of everything it wrote.

It is the public face of `Ledger`, which keeps weights, history and files in step: whatever fails
on the way, model and log are as before. Long because the whole public surface of a log is here.
This module knows nothing of how edits are solved for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from torch import Tensor

from editcl.errors import EditclError, LogError, NonFiniteError
from editcl.facts import Fact
from editcl.log.entry import (
    EDIT,
    FRAME_COLUMNS,
    NOTE,
    REAPPLY,
    ROLLBACK,
    SKILL,
    Edit,
    Event,
    Probability,
    Record,
    check_probabilities,
    fact_rows,
    now,
    plain_json,
)
from editcl.log.folders import staged_folder
from editcl.log.history import Columns, Entry, History, Target
from editcl.log.ledger import Ledger
from editcl.log.replay import check_skill_tensors
from editcl.log.report import RollbackReport, VerifyReport
from editcl.log.skill import Note, Skill
from editcl.log.state import Factors
from editcl.log.store import Store
from editcl.log.verify import verify
from editcl.log.weakening import evenly, probabilities, weakened
from editcl.model import EditableModel
from editcl.update import WeightUpdate

if TYPE_CHECKING:
    from pandas import DataFrame


_TINY = 1e-30  # keeps the relative norm of a change of an all-zero matrix finite


class EditLog:
    """The edits and skills of one model, in memory or in a folder; it becomes `model.log`.

    Edits change the weights. Skills are adapters that the log keeps beside them: which are active
    is the log's to say, and whoever runs the model goes by it. As a sequence it is its edits.

    Opening an existing folder checks every file and the base model, and then sets the model to
    the state of the log, bit for bit. One log is open for a folder at a time. Not thread-safe.

    Args:
        model: the model to write; its weights are the base, unless a closed log of it says more.
        folder: where to keep the log; None keeps it in memory.

    Raises:
        LogError: the folder is no log, of another model or version, damaged or open elsewhere;
            or another open log of the model has entries. The model is unchanged.
    """

    def __init__(self, model: EditableModel, folder: str | Path | None = None) -> None:
        previous: EditLog | None = getattr(model, "log", None)
        if previous is not None:
            previous._require_replaceable(folder)
        self._ledger = Ledger(model, {} if previous is None else previous.base_weights())
        self._closed = False
        if folder is not None:
            model.log = self  # the fingerprint is that of the base weights, which this log knows
            try:
                self._ledger.open(Path(folder))
            except BaseException:
                self.close()
                _put_back(model, previous)
                raise
        if previous is not None:
            previous.close()
        model.log = self

    # -- looking --------------------------------------------------------------------------------

    @property
    def folder(self) -> Path | None:
        """Where the log is kept; None in memory."""
        return self._ledger.store.folder if self._ledger.store else None

    @property
    def entries(self) -> tuple[Edit, ...]:
        """All edits in log order, whether active or rolled back."""
        return tuple(self._ledger.history.edits.values())

    @property
    def skills(self) -> tuple[Skill, ...]:
        """All skills in log order, whether active or rolled back."""
        return tuple(self._ledger.history.skills.values())

    @property
    def notes(self) -> tuple[Note, ...]:
        """All notes in log order."""
        return self._ledger.history.notes

    @property
    def timeline(self) -> tuple[Entry, ...]:
        """Edits and skills in the one order in which they came."""
        return self._ledger.history.timeline

    @property
    def events(self) -> tuple[Event, ...]:
        """All rollbacks and reapplications, in order."""
        return self._ledger.history.events

    @property
    def everything(self) -> tuple[Entry | Event | Note, ...]:
        """Edits, skills, events and notes in the one order in which they were written."""
        known: dict[str, Entry | Event | Note] = {one.id: one for one in self.timeline}
        known |= {event.id: event for event in self.events}
        known |= {note.id: note for note in self.notes}
        return tuple(known[record.id] for record in self._ledger.records)

    def size(self, entry: str | Entry) -> tuple[int, int]:
        """How many numbers the log keeps of an edit's change or a skill, and in how many bytes.

        Raises:
            LogError: there is no such entry, or the file of a skill is missing or changed.
        """
        kept = (self._ledger.tensors(self.get(entry).id) or {}).values()
        return sum(t.numel() for t in kept), sum(t.numel() * t.element_size() for t in kept)

    def get(self, entry: str | Entry) -> Entry:
        """The edit or skill of that id; LogError if there is none."""
        return self._ledger.history.find(entry)

    def active_facts(self, entry: str | Edit) -> tuple[bool, ...]:
        """For each fact of an edit, whether it is in the weights; LogError for a skill."""
        history = self._ledger.history
        return history.active[history.find_edit(entry).id]

    def active(self, entry: str | Entry) -> bool:
        """Whether the skill is active, or any fact of the edit in the weights."""
        return any(self._ledger.history.active[self.get(entry).id])

    def active_skills(self) -> tuple[Skill, ...]:
        """The newest active version of each slot, in log order."""
        history = self._ledger.history
        newest = {history.skills[name].slot: name for name in history.active_skills()}
        return tuple(skill for name, skill in history.skills.items() if name in newest.values())

    def skill_tensors(self, skill: str | Skill) -> dict[str, Tensor]:
        """The state of a skill's adapter, as it was logged; yours to change.

        Raises:
            LogError: there is no such skill, or its file is missing, truncated or changed.
        """
        found = self.get(skill)
        if not isinstance(found, Skill):
            raise LogError(f"{found.id} is an edit, not a skill. log.skills lists those.")
        tensors = self._ledger.tensors(found.id)
        assert tensors is not None, "a skill has tensors"
        return {name: tensor.clone() for name, tensor in tensors.items()}

    def __len__(self) -> int:
        return len(self._ledger.history.edits)

    def __iter__(self) -> Iterator[Edit]:
        return iter(self.entries)

    def __contains__(self, entry: object) -> bool:
        if isinstance(entry, Edit | Skill):
            return entry in self.timeline
        return isinstance(entry, str) and entry in self._ledger.history.active

    def __repr__(self) -> str:
        total, active = self._ledger.count()
        where = "in memory" if self.folder is None else f"in {self.folder}"
        text = f"{len(self)} edits, {active} of {total} facts active"
        if self.skills:
            n_active = len(self._ledger.history.active_skills())
            text += f", {n_active} of {len(self.skills)} skills active"
        return f"EditLog({where}: {text}{', closed' if self._closed else ''})"

    def base_weights(self) -> dict[str, Tensor]:
        """Pristine copies of the matrices that edits have touched, on the CPU; don't write them."""
        return dict(self._ledger.weights.base)

    def active_factors(self) -> dict[str, Factors]:
        """For each edited matrix, the factors of what is active: their columns in log order."""
        parts: dict[str, list[Factors]] = {}
        for entry, factors in self._ledger.factors.items():
            for name, own in factors.items():
                columns = self._ledger.history.active_columns(entry, name)
                if any(columns):
                    parts.setdefault(name, []).append(own.columns(columns))
        return {name: Factors.joined(some) for name, some in parts.items()}

    def to_frame(self) -> DataFrame:
        """One row a fact, as a pandas DataFrame.

        Raises:
            EditclError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise EditclError("to_frame needs pandas: pip install pandas") from error
        history = self._ledger.history
        rows = [
            row for edit in self.entries for row in fact_rows(edit, history.active[edit.id])
        ]  # fmt: skip
        return pandas.DataFrame(rows, columns=list(FRAME_COLUMNS))

    # -- writing --------------------------------------------------------------------------------

    def append(
        self,
        updates: Sequence[WeightUpdate],
        facts: Sequence[Fact],
        *,
        method: str,
        layers: Sequence[int],
        before: Sequence[Probability] = (),
        seconds: float = 0.0,
        details: Mapping[str, Any] | None = None,
        measure: Callable[[], Sequence[Probability]] | None = None,
    ) -> Edit:
        """Adds an edit to the log and its change to the weights.

        Args:
            updates: one for each changed matrix; `owner` says which fact a column belongs to.
                If facts share columns, the entry can only be rolled back whole.
            facts: what the edit states.
            method: name of the editor.
            layers: the edited layers.
            before: probabilities before the edit, one a fact, or none.
            seconds: what solving took.
            details: JSON-able extras.
            measure: called with the new weights in place; gives the probabilities after, and may
                add to `details`.

        Raises:
            LogError: the log is closed or can't be written, or the weights are not the log's.
            NonFiniteError: the new weights, or the measured probabilities, are not finite.
        """
        self._require_open()
        facts = tuple(facts)
        self._check_updates(updates, facts)
        names = tuple(update.parameter for update in updates)
        plain_json(details or {}, "the details of an edit")
        before = check_probabilities("before", before, len(facts))
        self._ledger.weights.require_unchanged(names)
        factors = {update.parameter: Factors.of(update) for update in updates}
        norms = {update.parameter: self._relative_norm(update) for update in updates}
        owners = {u.parameter: u.owner for u in updates if u.owner is not None}
        totals = {name: self._ledger.weights.grown(name, factors[name]) for name in names}
        edit_id = self._ledger.history.next_id(EDIT)

        def make() -> tuple[Record, History]:
            after = check_probabilities("after", measure() if measure else (), len(facts))
            extras = plain_json(details or {}, "the details of an edit")
            edit = Edit(
                edit_id, facts, method, tuple(layers), names, before, after, norms, seconds, now(),
                extras, owners,
            )  # fmt: skip
            return Record(edit_id, EDIT, edit.to_json()), self._ledger.history.with_edit(edit)

        self._ledger.step(edit_id, totals, make, factors)
        return self._ledger.history.edits[edit_id]

    def append_skill(
        self,
        tensors: Mapping[str, Tensor],
        *,
        task: str,
        slot: str,
        settings: Mapping[str, Any],
        strategy: str,
        details: Mapping[str, Any] | None = None,
        seconds: float = 0.0,
    ) -> Skill:
        """Adds a trained adapter to the log, active, with what it was trained on.

        Args:
            tensors: its full state; copied.
            task: what was learned.
            slot: the adapter that it is a version of: its task's name, or one that tasks share.
            settings: how the adapter is made, JSON-able.
            strategy: how it was trained.
            details: JSON-able extras.
            seconds: what training took.

        Raises:
            LogError: the log is closed or can't be written, the weights are not the log's, or a
                name is empty, or a tensor is of a dtype that the log doesn't keep.
            NonFiniteError: a tensor holds NaN or infinity.
        """
        self._require_open()
        ledger = self._ledger
        if not task or not slot:
            raise LogError("a skill needs the name of its task and of its adapter (slot).")
        ledger.weights.require_unchanged(ledger.weights.base)  # or `edits` would not be true
        kept = _kept_tensors(tensors, task)
        history = ledger.history
        skill = Skill(
            history.next_id(SKILL), task, slot, plain_json(settings, "the settings of a skill"),
            strategy, history.active_edits(), history.active_skills(), ledger.base(),
            plain_json(details or {}, "the details of a skill"), seconds, now(),
        )  # fmt: skip

        def make() -> tuple[Record, History]:
            return Record(skill.id, SKILL, skill.to_json()), history.with_skill(skill)

        ledger.step(skill.id, {}, make, tensors=kept)
        return skill

    def note(self, kind: str, body: Mapping[str, Any]) -> Note:
        """Keeps a decision or an evaluation; it changes nothing.

        Raises:
            LogError: the log is closed or can't be written, or the body is no JSON.
        """
        self._require_open()
        history = self._ledger.history
        note = Note(history.next_id(NOTE), kind, plain_json(body, "the body of a note"), now())

        def make() -> tuple[Record, History]:
            return Record(note.id, NOTE, note.to_json()), history.with_note(note)

        self._ledger.step(note.id, {}, make)
        return note

    def rollback(self, what: Target, *, remeasure: bool = True) -> RollbackReport:
        """Takes facts out of the weights, and skills out of use, as if they had never been.

        Args:
            what: an edit, a skill, or the id of one; the name of a task; a Fact (wherever it is
                active); a pair (edit, index of the fact); a list of these; or "all". What later
                batches repaired of these facts goes with them.
            remeasure: measure the active facts that were solved with this one present (the others
                of its entry, and later entries) before and after, and report those that weakened;
                of more than 64 an even sample.

        Raises:
            LogError: there is no such entry or fact, nothing of it is active, it is one fact of
                an entry whose facts share columns, or a version of an adapter under a newer one
                that stays active.
        """
        self._require_open()
        return self._switch(ROLLBACK, self._ledger.history.columns(what, active=True), remeasure)

    def reapply(self, what: Target, *, remeasure: bool = True) -> RollbackReport:
        """Puts back what was rolled back; the same arguments as `rollback`.

        They take their old place in the order of the log.
        """
        self._require_open()
        return self._switch(REAPPLY, self._ledger.history.columns(what, active=False), remeasure)

    def rollback_to(self, entry: str | Entry, *, remeasure: bool = True) -> RollbackReport:
        """Rolls back every edit and skill after this one; it and the earlier ones stay.

        Args:
            entry: an edit, a skill, or the id of one; the name of a task (its last skill); or
                "start" to roll back everything.
            remeasure: as in `rollback`.
        """
        self._require_open()
        names = [*self._ledger.history.active]
        keep = 0 if entry == "start" else names.index(self._ledger.history.last(entry)) + 1
        columns = {
            name: tuple(j for j, on in enumerate(self._ledger.history.active[name]) if on)
            for name in names[keep:]
            if any(self._ledger.history.active[name])
        }
        return self._switch(ROLLBACK, columns, remeasure)

    def restore(self) -> None:
        """Writes the logged state over edited matrices that something else has changed."""
        self._require_open()
        ledger = self._ledger
        ledger.write({name: ledger.rebuilt(name, ledger.history) for name in ledger.weights.base})

    # -- checking, copying, closing ---------------------------------------------------------------

    def verify(self) -> VerifyReport:
        """Recomputes what the model should be, and compares; in a folder, checks the files too.

        Every edited matrix is rebuilt from its base and the active columns and compared byte by
        byte. Other parameters are compared with their checksum at opening; in a folder, the
        SHA-256 over the whole base model is compared with the one that the log was made for.
        """
        self._require_open()
        return verify(self._ledger)

    def copy_to(self, folder: str | Path) -> None:
        """Writes the log into a new folder; any copy of the base model can open it there.

        Raises:
            LogError: the folder is not empty, or can't be written.
        """
        self._require_open()
        with staged_folder(folder) as stage:
            copy = Store(stage, self._ledger.identity)
            try:
                for record in self._ledger.records:
                    copy.append(record, self._ledger.tensors(record.id))
            finally:
                copy.close()

    def close(self) -> None:
        """Releases the folder; the model stays as it is, and the entries stay readable."""
        self._closed = True
        if self._ledger.store is not None:
            self._ledger.store.close()

    def __enter__(self) -> EditLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- steps ----------------------------------------------------------------------------------

    def _switch(self, action: str, columns: Columns, remeasure: bool) -> RollbackReport:
        """Takes facts out or puts them back, and measures what that did to dependent ones."""
        start = time.perf_counter()
        if not columns:
            return RollbackReport(action, (), (), 0.0)
        factors = [self._ledger.factors.get(entry, {}) for entry in columns]
        names = [*dict.fromkeys(name for own in factors for name in own)]
        self._ledger.weights.require_unchanged(names)
        event_id = self._ledger.history.next_id(action)
        event = Event(event_id, action, columns, now())
        history = self._ledger.history.with_event(event)
        totals = {name: self._ledger.rebuilt(name, history) for name in names}
        edits = self._ledger.history.edits
        dependents = self._ledger.history.dependents(columns)
        measured = evenly(dependents) if remeasure else []
        facts = [edits[name].facts[j] for name, j in measured]
        before = probabilities(self._ledger.model, facts)
        after: list[Probability] = []

        def make() -> tuple[Record, History]:
            after.extend(probabilities(self._ledger.model, facts))
            return Record(event_id, action, event.to_json()), history

        self._ledger.step(event_id, totals, make)
        moved = tuple((name, j) for name, js in columns.items() for j in js if name in edits)
        return RollbackReport(
            action=action,
            columns=moved,
            facts=tuple(edits[name].facts[j] for name, j in moved),
            seconds=time.perf_counter() - start,
            remeasured=len(measured) if remeasure else None,
            weakened=weakened(measured, facts, before, after),
            dependents=len(dependents),
            skills=tuple(history.skills[name] for name in columns if name in history.skills),
            unsettled=history.unsettled({name for name, _ in moved}),
        )

    # -- helpers --------------------------------------------------------------------------------

    def _relative_norm(self, update: WeightUpdate) -> float:
        return update.norm() / max(self._ledger.weights.norm(update.parameter), _TINY)

    def _check_updates(self, updates: Sequence[WeightUpdate], facts: tuple[Fact, ...]) -> None:
        assert updates, "an edit needs at least one update"
        assert facts, "an edit needs at least one fact"
        names = [update.parameter for update in updates]
        assert len(set(names)) == len(names), f"one update a parameter, got {names}"
        for update in updates:
            assert update.owner is not None or update.rank == len(facts), (
                f"the update of {update.parameter} has {update.rank} columns for "
                f"{len(facts)} facts and names no owners; column j belongs to facts[j]"
            )
            assert max(update.owner or (0,)) < len(facts), (
                f"a column of the update of {update.parameter} belongs to fact "
                f"{max(update.owner or (0,))} of {len(facts)}"
            )
            projection = self._ledger.weights.projection(update.parameter)
            assert projection is not None, f"{update.parameter} is no down-projection of the model"
            shape = (update.left.shape[0], update.right.shape[0])
            assert shape == tuple(projection.weight.shape), (
                f"the update of {update.parameter} is {shape}, the matrix "
                f"{tuple(projection.weight.shape)}"
            )

    def _require_open(self) -> None:
        if self._closed:
            raise LogError("the log is closed. Open it again with EditLog(model, folder).")
        if self._ledger.doubt:
            raise LogError(f"{self._ledger.doubt}. Close the log and open it again.")
        if self._ledger.model.log is not self:
            raise LogError("the model has another log by now. Use model.log.")

    def _require_replaceable(self, folder: str | Path | None) -> None:
        """Another log may take this one's place if nothing of it would be lost or misread."""
        if not self._closed and self._ledger.records:
            raise LogError(
                f"the model has an open log with {len(self._ledger.records)} entries. Use "
                "model.log, or close it (model.log.close()), or load a fresh copy of the model."
            )
        if self._closed and folder is None and self._ledger.count()[1]:
            raise LogError(
                "the model still carries the edits of a closed log, so its weights are no base. "
                "Open that log again, or load a fresh copy of the model."
            )
        if self._closed:
            self._ledger.weights.require_unchanged(self._ledger.weights.base)


def _kept_tensors(tensors: Mapping[str, Tensor], task: str) -> dict[str, Tensor]:
    """Tensors as the log keeps them: copies on the CPU, each with its own memory."""
    kept = {n: t.detach().to("cpu", copy=True).contiguous() for n, t in tensors.items()}
    for name, tensor in kept.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise NonFiniteError(
                f"{name} of the skill {task!r} holds NaN or infinity: its training has diverged. "
                "Train again with a lower learning rate."
            )
    try:
        check_skill_tensors(kept)
    except ValueError as error:
        raise LogError(f"the skill {task!r} can't be logged: {error}. Pass float32.") from error
    return kept


def _put_back(model: EditableModel, previous: EditLog | None) -> None:
    if previous is None:
        del model.log
    else:
        model.log = previous
