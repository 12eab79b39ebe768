"""Report: what the checklist found. Frozen values that read well; they compute nothing of models.

Every figure stands beside that of the base model: all edits out, no adapters.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from editcl.evaluation.damage import Damage
from editcl.learner.outcome import survival_json
from editcl.learner.steps import Step
from editcl.learning.drift import Drift
from editcl.learning.survival import Survival
from editcl.learning.tasks import TEXT
from editcl.log.entry import one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class TaskLine:
    """How a task is done.

    Attributes:
        name: of the task.
        kind: "completion", "classification" or "text" (whose score is -log perplexity).
        base: score of the base model.
        now: score now, each prompt going where inference sends it; of texts, told.
        told: score under the skill of its own name; None if there is none.
        n: test examples.
        how: how it was learnt, or that it was not.
    """

    name: str
    kind: str
    base: float
    now: float
    told: float | None
    n: int
    how: str

    @property
    def share(self) -> bool:
        """Whether scores are shares, from 0 to 1."""
        return self.kind != TEXT


@dataclass(frozen=True)
class Knowledge:
    """Facts that nobody asked to change.

    Attributes:
        n: facts that were asked.
        known: how many the base answers rightly.
        kept: how many of those are still answered rightly.
        gained: how many of the others are answered rightly now.
        lost: those that were known and no longer are, as sentences.
        groups: (known, kept) by relation; empty where no relation is known.
    """

    n: int
    known: int
    kept: int
    gained: int
    lost: tuple[str, ...]
    groups: Mapping[str, tuple[int, int]]

    @property
    def share(self) -> float | None:
        """kept / known; None where the base knew none."""
        return self.kept / self.known if self.known else None


@dataclass(frozen=True)
class Spent:
    """What an entry of the log has cost.

    Attributes:
        id: of the entry.
        what: the task, or the facts.
        how: method or strategy.
        n: facts or examples.
        seconds: what editing or training took.
        numbers: how many numbers the log keeps of it.
        n_bytes: and in how many bytes.
        active: whether any of it is in force.
    """

    id: str
    what: str
    how: str
    n: int
    seconds: float
    numbers: int
    n_bytes: int
    active: bool


@dataclass(frozen=True)
class Moment:
    """Something that was written into the log.

    Attributes:
        id: its name there.
        kind: "edit", "skill", "rollback", "reapply", or the kind of a note.
        text: what it says.
        state: "active", "active in part" or "rolled back"; "" of what is neither.
        created: when, in UTC (ISO 8601).
    """

    id: str
    kind: str
    text: str
    state: str
    created: str


@dataclass(frozen=True)
class HarnessLine:
    """A metric of a task of lm-eval.

    Attributes:
        task, metric: as lm-eval names them; a metric's filter is behind a comma.
        base, now: the figure on both sides.
        stderr: lm-eval's standard error of `now`; None where it gives none.
        n: examples.
        higher_is_better: as lm-eval says; None where it doesn't.
    """

    task: str
    metric: str
    base: float
    now: float
    stderr: float | None
    n: int
    higher_is_better: bool | None


@dataclass(frozen=True, repr=False)
class Report:
    """A model after learning, against its base.

    Attributes:
        model: name of the model.
        log: the log in a line.
        created: when, in UTC (ISO 8601).
        seed: of what was sampled.
        tasks: new-task performance.
        ability: general text: cross-entropy on both sides and KL; None where none could be asked.
        to_skills: share of general texts that inference gives to a skill.
        knowledge: facts that nobody asked to change; None where none could be asked.
        drift: answers to generic prompts; None where none could be asked.
        survival: logged facts; None without any.
        spent: what each entry has cost.
        n_parameters: of the base model.
        deciding: seconds that decisions took.
        steps: decisions, with their reasons.
        moments: the log, in order.
        harness: figures of lm-eval.
        notes: what could not be measured, and why.
        seconds: what the report took.
    """

    model: str
    log: str
    created: str
    seed: int
    tasks: tuple[TaskLine, ...]
    ability: Damage | None
    to_skills: float
    knowledge: Knowledge | None
    drift: Drift | None
    survival: Survival | None
    spent: tuple[Spent, ...]
    n_parameters: int
    deciding: float
    steps: tuple[Step, ...]
    moments: tuple[Moment, ...]
    harness: tuple[HarnessLine, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    # -- as data ----------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        knowledge = self.knowledge
        return {
            "model": self.model,
            "log": self.log,
            "created": self.created,
            "seed": self.seed,
            "tasks": [asdict(one) for one in self.tasks],
            "ability": None if self.ability is None else self.ability.to_dict(),
            "to_skills": self.to_skills,
            "knowledge": None if knowledge is None else _knowledge_json(knowledge),
            "drift": None if self.drift is None else self.drift.to_dict(),
            "survival": survival_json(self.survival),
            "cost": {
                "seconds": self.learning_seconds,
                "deciding": self.deciding,
                "numbers": sum(one.numbers for one in self.spent),
                "bytes": sum(one.n_bytes for one in self.spent),
                "n_parameters": self.n_parameters,
                "entries": [asdict(one) for one in self.spent],
            },
            "decisions": [step.to_json() for step in self.steps],
            "timeline": [asdict(one) for one in self.moments],
            "lm_eval": [asdict(one) for one in self.harness],
            "notes": list(self.notes),
            "seconds": self.seconds,
        }

    @property
    def learning_seconds(self) -> float:
        """What edits and trainings took together."""
        return sum(one.seconds for one in self.spent)

    # -- to read ----------------------------------------------------------------------------------

    def rows(self) -> list[tuple[str, str, str, str]]:
        """The checklist, a row a measure, under the columns of `HEAD`."""
        from editcl.reporting.checklist import checklist

        return checklist(self)

    def __repr__(self) -> str:
        from editcl.reporting.checklist import HEAD

        lines = [HEAD, *self.rows()]
        widths = [max(len(line[i]) for line in lines) for i in range(3)]
        text = [
            f"  {line[0]:<{widths[0]}}  {line[1]:>{widths[1]}}  {line[2]:>{widths[2]}}  {line[3]}"
            for line in lines
        ]
        notes = [f"  note: {one_line(note)}" for note in self.notes]
        head = f"Report({self.model}, {one_line(self.log)}, {self.seconds:.1f} s"
        return "\n".join([head, *(line.rstrip() for line in text), *notes]) + ")"

    def _repr_html_(self) -> str:
        from editcl.reporting.checklist import HEAD
        from editcl.reporting.page import table

        title = html.escape(one_line(f"{self.model}: {self.log}"))
        notes = "".join(f"<div>{html.escape(one_line(note))}</div>" for note in self.notes)
        return f"<div><b>{title}</b>{table(HEAD, self.rows(), numbers=(1, 2))}{notes}</div>"

    def plot(self, *, path: str | Path | None = None) -> Figure:
        """Shares on both sides, and what each entry has cost; see `plot_report`."""
        from editcl.reporting.pictures import plot_report

        return plot_report(self, path=path)

    def save(self, path: str | Path) -> Path:
        """Writes one HTML page that holds everything: table, plots, decisions, log.

        Args:
            path: the file; one that is there is replaced, in one step.

        Raises:
            EditclError: it is a directory, or can't be written.
        """
        from editcl.reporting.page import page, require_place, write_page

        return write_page(page(self), require_place(path))


def _knowledge_json(found: Knowledge) -> dict[str, Any]:
    groups = {name: {"known": known, "kept": kept} for name, (known, kept) in found.groups.items()}
    return asdict(found) | {"share": found.share, "groups": groups}
