"""Is the model what its log says? Recomputes and compares; changes nothing."""

from __future__ import annotations

import time

from editcl.errors import LogError
from editcl.log.entry import EDIT, SKILL
from editcl.log.ledger import Ledger
from editcl.log.report import VerifyReport
from editcl.log.state import platform_name
from editcl.log.store import Store


def verify(ledger: Ledger) -> VerifyReport:
    """See `EditLog.verify`."""
    start = time.perf_counter()
    weights = ledger.weights
    problems = [
        f"{name} is not base + active columns: it was changed outside the log. "
        "log.restore() puts the logged state back."
        for name in weights.base
        if not weights.equals(name, ledger.rebuilt(name, ledger.history))
    ]
    changed = [name for name in weights.changed() if name not in weights.base]
    problems += [f"{name} was changed since the log was opened" for name in changed]
    notes = [] if problems else _compare_recorded(ledger, problems)
    files = _check_store(ledger, ledger.store, problems) if ledger.store else None
    total, active = ledger.count()
    return VerifyReport(
        problems=tuple(problems),
        notes=tuple(notes),
        parameters=len(weights.base),
        untouched=weights.n_parameters - len(weights.base) - len(changed),
        active=active,
        total=total,
        files=files,
        seconds=time.perf_counter() - start,
        skills=len(ledger.history.skills),
    )


def _compare_recorded(ledger: Ledger, problems: list[str]) -> list[str]:
    """Compares with the SHA-256 that each matrix had after the last step that wrote it."""
    last = {
        name: (sha, record)
        for record in ledger.records
        for name, sha in record.body.get("weights", {}).items()
    }
    live = ledger.weights.digests(last)
    here = platform_name(ledger.model.device)
    notes = []
    for name, (sha, record) in last.items():
        there = record.body.get("platform")
        if sha == live[name]:
            continue
        if there == here:
            problems.append(f"{name} has other bytes than when {record.id} was logged")
        else:
            notes.append(
                f"{name} differs in rounding from {record.id} as logged on {there}; this is {here}"
            )
    return notes


def _check_store(ledger: Ledger, store: Store, problems: list[str]) -> int:
    files = 0
    try:
        for record in store.read()[0]:
            if record.kind in (EDIT, SKILL):
                store.tensors(record)
                files += 1
    except LogError as error:
        problems.append(str(error))
    if ledger.model.fingerprint() != store.identity.get("fingerprint"):
        problems.append("the base model's fingerprint is not the one that the log was made for")
    return files
