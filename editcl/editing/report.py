"""BatchReport: what a table of facts became, row by row. Knows nothing of how it was edited."""

from __future__ import annotations

import csv
import html
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from editcl.editing.guards import Health
from editcl.errors import EditclError
from editcl.facts import Fact
from editcl.log import Edit, Probability

if TYPE_CHECKING:
    from pandas import DataFrame

Status = Literal["edited", "already said", "taken back", "not reached", "checked"]
COLUMNS = (
    "row", "id", "subject", "prompt", "old_object", "new_object", "status", "entry", "fact",
    "p_new_before", "p_new_after", "p_old_before", "p_old_after", "holds",
)  # fmt: skip


def check_results_path(path: Path, source: Path, log: Path) -> None:
    """Tells before anything is edited whether `to_csv` may write there.

    Raises:
        EditclError: the folder is missing or can't be written, or what is there is no earlier
            results table: the source itself, a part of the log, something else.
    """
    folder = path.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise EditclError(f"{folder} is no folder that can be written; make it, or change --out.")
    if log.resolve() in (path.resolve(), *path.resolve().parents):
        raise EditclError(f"{path} is in the folder of the log; write the results elsewhere.")
    if not path.exists():
        return
    if source.exists() and path.samefile(source):
        raise EditclError(f"{path} is the table itself; write the results to another file.")
    header = (",".join(COLUMNS) + "\r\n").encode()
    if path.is_file():
        with path.open("rb") as file:
            if file.read(len(header)) == header:
                return
    raise EditclError(
        f"{path} is there and holds no earlier results; write them elsewhere or delete it."
    )


@dataclass(frozen=True)
class RowResult:
    """One row of the table.

    Attributes:
        number: its number in the source.
        id: its name there.
        fact: the fact as it was edited.
        status: "edited"; "already said" (the model said the new object before, nothing was done);
            "taken back" (a guard objected to its batch); "not reached" (a guard had stopped);
            "checked" (a dry run).
        before, after: probabilities, where measured.
        entry: id of the log entry, and which of its facts it is.
        index: see entry.
    """

    number: int
    id: str
    fact: Fact
    status: Status
    before: Probability | None = None
    after: Probability | None = None
    entry: str | None = None
    index: int | None = None

    @property
    def holds(self) -> bool | None:
        """Whether the new object is now likelier than the old; None where that can't be told."""
        if self.after is None or self.after.old is None:
            return None
        return self.after.new > self.after.old

    def to_dict(self) -> dict[str, Any]:
        """One value for each of `COLUMNS`."""
        before, after = self.before, self.after
        values = (
            self.number, self.id, self.fact.subject, self.fact.prompt, self.fact.old_object,
            self.fact.new_object, self.status, self.entry, self.index,
            before and before.new, after and after.new, before and before.old, after and after.old,
            self.holds,
        )  # fmt: skip
        return dict(zip(COLUMNS, values, strict=True))


@dataclass(frozen=True)
class BatchReport:
    """What `edit_csv` did.

    Attributes:
        source: the table.
        method: the editor.
        layers: the edited layers.
        rows: one result a row, in the table's order.
        entries: the log entries, one a batch.
        health: the model's state after each batch.
        warnings: what was noticed while reading.
        stopped: why a guard stopped, if one did.
        seconds: everything together.
        dry_run: nothing was edited.
    """

    source: str
    method: str
    layers: tuple[int, ...]
    rows: tuple[RowResult, ...]
    entries: tuple[Edit, ...] = ()
    health: tuple[Health, ...] = ()
    warnings: tuple[str, ...] = ()
    stopped: str | None = None
    seconds: float = 0.0
    dry_run: bool = False

    @property
    def efficacy(self) -> float | None:
        """Share of edited rows whose new object is now likelier than the old."""
        told = [row.holds for row in self.rows if row.status == "edited" and row.holds is not None]
        return sum(told) / len(told) if told else None

    def to_frame(self) -> DataFrame:
        """One row a fact, as a pandas DataFrame.

        Raises:
            EditclError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise EditclError("to_frame needs pandas: pip install pandas") from error
        return pandas.DataFrame([row.to_dict() for row in self.rows], columns=list(COLUMNS))

    def to_csv(self, path: str | Path) -> None:
        """Writes the results as UTF-8 CSV.

        A cell that a spreadsheet would run as a formula gets an apostrophe in front. The file is
        written whole or, on an OSError, left as it was.
        """
        path = Path(path)
        partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            with partial.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS)
                writer.writeheader()
                for row in self.rows:
                    writer.writerow({name: _safe(value) for name, value in row.to_dict().items()})
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-able data; entries by id."""
        return {
            "source": self.source,
            "method": self.method,
            "layers": list(self.layers),
            "efficacy": self.efficacy,
            "seconds": self.seconds,
            "dry_run": self.dry_run,
            "stopped": self.stopped,
            "warnings": list(self.warnings),
            "entries": [entry.id for entry in self.entries],
            "health": [health.to_dict() for health in self.health],
            "rows": [row.to_dict() for row in self.rows],
        }

    def summary(self) -> str:
        """Counts and figures in a few lines."""
        counts = Counter(row.status for row in self.rows)
        done = ", ".join(f"{n} {status}" for status, n in counts.items())
        lines = [f"{self.source}: {len(self.rows)} facts by {self.method}: {done}"]
        if self.entries:
            names = ", ".join(entry.id for entry in self.entries[:6])
            more = " ..." if len(self.entries) > 6 else ""
            lines.append(f"layers {list(self.layers)}, log entries {names}{more}")
        if self.efficacy is not None:
            each = self.seconds / max(1, counts["edited"])
            lines.append(
                f"efficacy {self.efficacy:.1%}, {self.seconds:.1f} s ({each:.2f} s a fact)"
            )
        if self.stopped:
            lines.append(f"stopped: {self.stopped}")
        lines += [f"warning: {warning}" for warning in self.warnings[:5]]
        if len(self.warnings) > 5:
            lines.append(f"... and {len(self.warnings) - 5} more warnings")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"BatchReport\n{self.summary()}"

    def _repr_html_(self) -> str:
        head = "".join(f"<div>{html.escape(line)}</div>" for line in self.summary().splitlines())
        rows = "".join(
            f"<tr><td style='text-align:left'>{html.escape(str(row.fact))}</td>"
            f"<td>{html.escape(row.status)}</td>"
            f"<td>{'' if row.after is None else f'{row.after.new:.3g}'}</td></tr>"
            for row in self.rows[:10]
        )
        return f"{head}<table><tr><th>fact</th><th>status</th><th>p(new)</th></tr>{rows}</table>"


def _safe(value: Any) -> Any:
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + value
    return value
