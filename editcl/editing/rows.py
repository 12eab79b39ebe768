"""From rows of a table to facts that can be edited: relations, old objects, tokens.

Everything is asked in batches, and every problem is collected before any is raised, with its row.
Knows nothing of equations and of the log.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from editcl.editing.choices import OLD_OBJECT_TOKENS, ask_objects
from editcl.editing.relation import infer_relation
from editcl.encoding import Sentence
from editcl.errors import AmbiguousFact, FactError, TableError
from editcl.facts import Fact
from editcl.model import EditableModel
from editcl.progress import progress
from editcl.readers import FactRow, FactTable
from editcl.readers.problems import cut, shown

SHOWN_PROBLEMS = 20
LONGEST = 200  # characters of a sentence in a message


@dataclass(frozen=True)
class Settled:
    """A row that can be edited.

    Attributes:
        row: the row of the table.
        fact: the fact, with the old object as far as the model says anything.
        inferred: name of the relation, where the row has no prompt.
        said_already: whether the model says the new object before any edit.
    """

    row: FactRow
    fact: Fact
    inferred: str | None = None
    said_already: bool = False


def settle_rows(model: EditableModel, table: FactTable) -> list[Settled]:
    """Every row of a table, ready to edit.

    Raises:
        TableError: rows whose relation can't be told, that can't be encoded, or that contradict
            each other; all are listed.
    """
    problems: list[str] = []
    found: list[Settled] = []
    for row in progress(table.rows, "reading the table with the model"):
        try:
            found.append(_settle(model, row))
        except AmbiguousFact as question:
            candidates = "; ".join(repr(cut(said, LONGEST)) for said, _ in question.candidates)
            what = (
                f"fits several relations: {candidates}; write the one that you mean into the row "
                "as its prompt."
            )
            problems.append(_problem(table, row, what))
        except FactError as error:
            problems.append(_problem(table, row, str(error)))
    problems += _contradictions(table, found)
    if problems:
        first = "\n".join(problems[:SHOWN_PROBLEMS])
        rest = len(problems) - SHOWN_PROBLEMS
        more = f"\n... and {rest} more" if rest > 0 else ""
        raise TableError(f"{first}{more}\nNothing was changed.", tuple(problems))
    open_ = [i for i, settled in enumerate(found) if settled.fact.old_object is None]
    said = ask_objects(model, [found[i].fact.sentence for i in open_])
    for i, object_ in zip(open_, said, strict=True):
        found[i] = _with_old(found[i], object_)
    return found


def _problem(table: FactTable, row: FactRow, what: str) -> str:
    """One line that says where and what."""
    line = " ".join(what.split()).removesuffix(" Nothing was changed.")
    return f"{table.source}, {row.place} ({shown(row.subject)}): {line}"


def _contradictions(table: FactTable, found: list[Settled]) -> list[str]:
    """Rows whose sentence another row ends otherwise, now that every row has its prompt.

    Those that state their prompts are refused by the reader, except in published files.
    """
    first: dict[tuple[str, str] | None, Settled] = {}
    problems = []
    for one in found:
        other = first.setdefault(replace(one.row, prompt=one.fact.prompt).states, one)
        if other.fact.new_object != one.fact.new_object:
            what = (
                f"{one.fact.sentence!r} goes on with {one.fact.new_object!r} here and with "
                f"{other.fact.new_object!r} in {other.row.place}; delete one of the rows."
            )
            problems.append(_problem(table, one.row, what))
    return problems


def _settle(model: EditableModel, row: FactRow) -> Settled:
    inferred = None
    if row.prompt is None:
        relation = infer_relation(model, row.subject, row.new_object)
        fact = Fact(row.subject, relation.prompt, row.new_object, row.old_object)
        inferred = relation.name
    else:
        fact = row.fact()
    objects = [fact.new_object] + ([fact.old_object] if fact.old_object is not None else [])
    rows = model.encode([Sentence(fact.prompt, fact.subject, o) for o in objects])
    if fact.old_object is None and rows[0].target_start + OLD_OBJECT_TOKENS > model.max_tokens:
        raise FactError(
            f"the prompt takes {rows[0].target_start} tokens, so that the model (at most "
            f"{model.max_tokens}) can't be asked for the old object; give it, or a shorter prompt."
        )
    return Settled(row, fact, inferred)


def _with_old(settled: Settled, said: str | None) -> Settled:
    """The row with what the model says as the old object, unless that is the new one."""
    fact = settled.fact
    if said is None:
        return settled
    if said.casefold() == fact.new_object.casefold():
        return replace(settled, said_already=True)
    return replace(settled, fact=Fact(fact.subject, fact.prompt, fact.new_object, said))
