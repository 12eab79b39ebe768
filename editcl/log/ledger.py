"""The ledger behind an EditLog: history, factors, weights and files, and the one way they move.

A step writes weights, makes its record with them in place (measuring happens there), stores it
durably, and only then counts. Whatever fails on the way, everything is as before. What weights
are is state.py's law, what is active is history.py's fold, files are store.py's; this module is
what keeps the three in step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from editcl.errors import LogError, NonFiniteError
from editcl.log.entry import Record
from editcl.log.history import History
from editcl.log.replay import replay
from editcl.log.state import Factors, LiveWeights, Totals, platform_name
from editcl.log.store import Store
from editcl.model import EditableModel


class Ledger:
    """State of one log of one model.

    Attributes:
        model: the model that is written.
        weights: its down-projections.
        history: edits, skills, events, and what is active.
        records: the same as stored, in order.
        factors: of edits, by entry and parameter.
        kept: tensors of skills by entry, in memory; in a folder they stay there.
        store: the open folder; None in memory.
        doubt: why nothing more may be written; empty if all is well.
    """

    def __init__(self, model: EditableModel, base: Mapping[str, Tensor]) -> None:
        self.model = model
        self.weights = LiveWeights(model, base)
        self.history = History()
        self.records: tuple[Record, ...] = ()
        self.factors: dict[str, dict[str, Factors]] = {}
        self.kept: dict[str, dict[str, Tensor]] = {}
        self._base = ""
        self.store: Store | None = None
        self.doubt = ""

    def open(self, folder: Path) -> None:
        """Reads a folder and brings the model to its state; the model is written last."""
        identity = functools.cache(self.identity)
        self.store = Store(folder, identity)
        own, found = identity(), self.store.identity
        if own["fingerprint"] != found.get("fingerprint"):
            raise LogError(
                f"the log {folder} belongs to another model: it was made for "
                f"{_describe(found)}, and this is {_describe(own)}. Load the model it was made "
                "for, or choose another folder for this one."
            )
        records, _ = self.store.read()
        self.history, self.factors = replay(self.store, records, self.weights)
        self.records = tuple(records)
        names = {name: None for factors in self.factors.values() for name in factors}
        names |= dict.fromkeys(self.weights.base)
        try:
            totals = {name: self.rebuilt(name, self.history) for name in names}
        except NonFiniteError as error:
            raise LogError(f"the log {folder} can't be applied: {error}") from error
        self.write(totals)

    def step(
        self,
        record_id: str,
        totals: Totals,
        make: Callable[[], tuple[Record, History]],
        factors: dict[str, Factors] | None = None,
        tensors: dict[str, Tensor] | None = None,
    ) -> None:
        """Writes weights, makes the record with them in place, stores it; or changes nothing.

        The last statement of the block makes the step count. An interrupt at any point of it
        takes the weights, the history and, where it got that far, the stored record back.
        """
        before = (self.history, self.records, self.factors, self.kept)
        grown = self.factors if factors is None else {**self.factors, record_id: factors}
        stored = tensors if factors is None else _named(factors)
        in_memory = tensors is not None and self.store is None
        kept = {**self.kept, record_id: tensors} if in_memory and tensors else self.kept
        snapshot = self.weights.snapshot(totals)
        try:
            self.weights.write(totals)
            record, history = make()
            record.body["weights"] = self.weights.digests(totals)
            record.body["platform"] = platform_name(self.model.device)
            if self.store is not None:
                record = self.store.append(record, stored)
            records = (*self.records, record)
            self.history, self.records, self.factors, self.kept = history, records, grown, kept
        except BaseException:
            self.weights.undo(snapshot)
            self.history, self.records, self.factors, self.kept = before
            self._discard(record_id)
            raise

    def _discard(self, record_id: str) -> None:
        if self.store is None:
            return
        self.doubt = f"the failed write of {record_id} could not be taken back"
        try:
            self.store.discard(record_id)
        except LogError as error:
            self.doubt += f" ({error})"
        else:
            self.doubt = ""

    def write(self, totals: Totals) -> None:
        """Writes weights without a record, all or none."""
        snapshot = self.weights.snapshot(totals)
        try:
            self.weights.write(totals)
        except BaseException:
            self.weights.undo(snapshot)
            raise

    def rebuilt(self, name: str, history: History) -> Tensor:
        """The total of a matrix, from its base and what a history has active."""
        terms = [
            (factors[name], history.active_columns(entry, name))
            for entry, factors in self.factors.items()
            if name in factors
        ]
        return self.weights.rebuilt(name, terms)

    def tensors(self, record_id: str) -> dict[str, Tensor] | None:
        """Tensors of an entry by the names they have in its file; None if it has none.

        Raises:
            LogError: the file of a skill is missing, truncated or changed.
        """
        if record_id in self.factors:
            return _named(self.factors[record_id])
        if record_id not in self.history.skills:
            return None
        if self.store is None:
            return self.kept[record_id]
        return self.store.tensors(next(r for r in self.records if r.id == record_id))

    def count(self) -> tuple[int, int]:
        """How many facts the log holds, and how many of them are active."""
        flags = [on for name in self.history.edits for on in self.history.active[name]]
        return len(flags), sum(flags)

    def base(self) -> str:
        """Fingerprint of the base model; taken once, for it reads all weights."""
        if not self._base:
            own = self.identity() if self.store is None else self.store.identity
            self._base = own["fingerprint"]
        return self._base

    def identity(self) -> dict[str, str]:
        """Of the base model: its fingerprint, and what describes it to people."""
        model = self.model
        return {
            "fingerprint": model.fingerprint(),
            "model": model.name,
            "class": type(model.hf).__name__,
            "dtype": str(model.dtype).removeprefix("torch."),
        }


def _named(factors: Mapping[str, Factors]) -> dict[str, Tensor]:
    """Factors by the names they have in a tensor file."""
    return {
        f"{name}.{side}": factor
        for name, own in factors.items()
        for side, factor in (("left", own.left), ("right", own.right))
    }


def _describe(identity: Mapping[str, str]) -> str:
    name, kind, dtype = (identity.get(key, "?") for key in ("model", "class", "dtype"))
    return f"{name!r} ({kind}, {dtype}, {identity.get('fingerprint', '?')[:12]})"
