"""Rows of a table of facts: what they hold, and the table.

Knows nothing of files.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from editcl.errors import FactError
from editcl.evaluation.cases import Case, Probe
from editcl.facts import Fact


@dataclass(frozen=True)
class FactRow:
    """One fact to edit, with what tells whether the edit is a good one.

    Attributes:
        number: rows of delimited text count from 1; records, rows of data frames and items from 0.
        id: the row's own name; its number if it has none.
        subject: what the fact is about.
        prompt: a sentence start with one `{}`; None if the relation is still to be inferred.
        new_object: what the model shall say.
        old_object: what is true or what it says now; None if the model is still to be asked.
        paraphrases: other sentence starts after which the new object must follow.
        neighbours: prompts about other subjects whose object must stay.
        open_neighbours: such prompts of which the object isn't known; the model is to be asked.
        same_subject: prompts about other facts of the subject, whose object must stay.
        portability: prompts whose answer follows from the new fact.
        generation: sentence starts to be continued freely.
        with_facts: further facts that the portability prompts take for edited too.
        line: the line of the file on which the row begins, if it is a file of lines.
    """

    number: int
    id: str
    subject: str
    prompt: str | None
    new_object: str
    old_object: str | None = None
    paraphrases: tuple[str, ...] = ()
    neighbours: tuple[Probe, ...] = ()
    open_neighbours: tuple[str, ...] = ()
    same_subject: tuple[Probe, ...] = ()
    portability: tuple[Probe, ...] = ()
    generation: tuple[str, ...] = ()
    with_facts: tuple[Fact, ...] = ()
    line: int | None = None

    @property
    def place(self) -> str:
        """Where it is in its source."""
        return f"row {self.number}" + ("" if self.line is None else f" (line {self.line})")

    def fact(self) -> Fact:
        """The fact of a row that has a prompt.

        Raises:
            FactError: the row has none.
        """
        if self.prompt is None:
            raise FactError(
                f"row {self.id!r} has no prompt for {self.subject!r}; infer its relation first, or "
                "write a prompt."
            )
        return Fact(self.subject, self.prompt, self.new_object, self.old_object)

    def case(self, fact: Fact | None = None, *, answers: Sequence[str] = ()) -> Case:
        """The fact with the row's probes.

        Args:
            fact: the fact as it is edited, if prompt or old object had to be found out; by default
                the row's own.
            answers: what the model says after each of `open_neighbours`; without them these are
                left out.

        Raises:
            FactError: there is no fact, or not one answer for each open neighbour.
        """
        if answers and len(answers) != len(self.open_neighbours):
            raise FactError(
                f"row {self.id!r} has {len(self.open_neighbours)} open neighbours, got "
                f"{len(answers)} answers; give one for each."
            )
        asked = zip(self.open_neighbours, answers, strict=False)
        return Case(
            fact=self.fact() if fact is None else fact,
            paraphrases=self.paraphrases,
            neighbours=self.neighbours + tuple(Probe(prompt, said) for prompt, said in asked),
            same_subject=self.same_subject,
            portability=self.portability,
            generation=self.generation,
            with_facts=self.with_facts,
            id=self.id,
        )

    @property
    def states(self) -> tuple[str, str] | None:
        """Subject and prompt, alike for any Unicode form; None without a prompt."""
        return None if self.prompt is None else (_form(self.subject), _form(self.prompt))

    @property
    def key(self) -> tuple[str, str, str]:
        """What is alike in rows that say the same."""
        return _form(self.subject), _form(self.prompt or ""), _form(self.new_object)


@dataclass(frozen=True, repr=False)
class FactTable:
    """A validated table of facts.

    Attributes:
        rows: in the order of the source, none twice.
        source: the file's name, or what else was read.
        kind: its format, one of `editcl.readers.KINDS`.
        digest: SHA-256 of the file's bytes; of other sources, of the rows.
        warnings: what was settled in reading, a line each.
    """

    rows: tuple[FactRow, ...]
    source: str
    kind: str
    digest: str
    warnings: tuple[str, ...] = field(default=())

    @property
    def contradictions(self) -> tuple[tuple[FactRow, ...], ...]:
        """Groups of rows with one subject and prompt but several objects: never edit two at once.

        Only published files have them, whose records are edited one at a time.
        """
        groups: dict[tuple[str, str], list[FactRow]] = defaultdict(list)
        for row in self.rows:
            if row.states is not None:
                groups[row.states].append(row)
        return tuple(tuple(group) for group in groups.values() if len(group) > 1)

    def __repr__(self) -> str:
        warned = f", {len(self.warnings)} warnings" if self.warnings else ""
        return (
            f"FactTable({len(self.rows):,} rows of kind {self.kind!r} from {self.source}{warned})"
        )


def _form(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", text)
