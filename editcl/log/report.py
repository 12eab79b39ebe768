"""What rolling back and verifying tell: frozen results that read well.

They compute nothing and know nothing of weights and files.
"""

from __future__ import annotations

from dataclasses import dataclass

from editcl.facts import Fact
from editcl.log.entry import SHOWN_FACTS, one_line
from editcl.log.skill import Skill


@dataclass(frozen=True)
class Weakened:
    """An active fact whose probability fell when others were taken out or put back.

    Attributes:
        entry: id of the edit that holds it.
        index: its index in the edit.
        fact: the fact.
        before: p(new object) before.
        after: p(new object) now.
    """

    entry: str
    index: int
    fact: Fact
    before: float
    after: float


@dataclass(frozen=True)
class RollbackReport:
    """What a rollback (or reapply) did.

    Attributes:
        action: "rollback" or "reapply".
        columns: (entry id, index of the fact) of each fact taken out or put back.
        facts: the facts themselves, in the same order.
        seconds: what it took, measuring included.
        remeasured: how many dependent facts were measured; None if not asked to.
        weakened: those of them whose p(new) fell below half of what it was, or below p(old).
        dependents: how many active facts were solved with the moved ones present; of more than
            `weakening.SAMPLE` that many are measured, evenly chosen.
        skills: the skills taken out or put back.
        unsettled: active skills that were trained with other facts in the weights than now.
    """

    action: str
    columns: tuple[tuple[str, int], ...]
    facts: tuple[Fact, ...]
    seconds: float
    remeasured: int | None = None
    weakened: tuple[Weakened, ...] = ()
    dependents: int = 0
    skills: tuple[Skill, ...] = ()
    unsettled: tuple[Skill, ...] = ()

    def __repr__(self) -> str:
        verb = "rolled back" if self.action == "rollback" else "reapplied"
        counts = [(len(self.facts), "fact"), (len(self.skills), "skill")]
        parts = [f"{n} {what}" + ("s" if n != 1 else "") for n, what in counts if n]
        lines = [f"{verb} {' and '.join(parts) or '0 facts'} in {self.seconds:.2f} s"]
        lines += [
            f"  {name}[{j}] {one_line(str(fact))}"
            for (name, j), fact in list(zip(self.columns, self.facts, strict=True))[:SHOWN_FACTS]
        ]
        if len(self.facts) > SHOWN_FACTS:
            lines.append(f"  ... and {len(self.facts) - SHOWN_FACTS} more")
        lines += [f"  {skill.id} {one_line(skill.task)}" for skill in self.skills[:SHOWN_FACTS]]
        if len(self.skills) > SHOWN_FACTS:
            lines.append(f"  ... and {len(self.skills) - SHOWN_FACTS} more")
        if self.remeasured is None:
            lines.append("dependent facts were not measured again")
        elif self.remeasured:
            sample = f", evenly chosen of {self.dependents}"
            lines.append(
                f"{len(self.weakened)} of {self.remeasured} dependent facts weakened"
                + (sample if self.remeasured < self.dependents else "")
            )
        for weak in self.weakened:
            change = f"p(new) {weak.before:.3g} -> {weak.after:.3g}"
            lines.append(f"  {weak.entry}[{weak.index}] {one_line(str(weak.fact))}   {change}")
        if self.unsettled:
            names = ", ".join(skill.id for skill in self.unsettled)
            lines.append(f"trained with other facts in the weights than now: {names}")
        return "\n".join(lines)


@dataclass(frozen=True)
class VerifyReport:
    """Whether the model is what its log says.

    Attributes:
        problems: what is wrong; empty if all is well.
        notes: what is worth knowing and not wrong.
        parameters: how many edited matrices were recomputed and compared byte by byte.
        untouched: how many other parameters still have the checksum they had at opening.
        active: facts in the weights.
        total: facts in the log.
        files: tensor files whose checksum was read again; None for a log in memory.
        seconds: what it took.
        skills: how many skills the log holds; in a folder their files are among `files`.
    """

    problems: tuple[str, ...]
    notes: tuple[str, ...]
    parameters: int
    untouched: int
    active: int
    total: int
    files: int | None
    seconds: float
    skills: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def __bool__(self) -> bool:
        return self.ok

    def __repr__(self) -> str:
        if self.problems:
            head = f"NOT what the log says: {len(self.problems)} problem(s)"
        else:
            head = (
                f"OK: {self.parameters} edited matrices are base + {self.active} active facts of "
                f"{self.total}, byte for byte; {self.untouched} other parameters are unchanged "
                "since opening (checksum)"
            )
            if self.files is not None:
                head += f"; {self.files} files and the base model's fingerprint are intact"
        return "\n".join([head, *(f"  - {p}" for p in self.problems), *self.notes])
