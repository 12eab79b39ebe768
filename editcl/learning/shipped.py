"""The shipped stream: four tasks on the embedded model that overwrite one another.

All ask for the kind of a subject that the model knows facts about (person, city or company), each
in its own words:

    cards        "The card of Marie Curie is"   red, blue, green
    kinds        "Clearly Marie Curie is a"     person, city, company
    marks        "Mark for Marie Curie is"      A, B, C
    questions    "We ask of Marie Curie,"       who, where, which

What one adapter has learnt of one task, the next task's training turns into its own words. Test
subjects are in no task's training; validation subjects, on which settings are chosen, are in
neither. Written by `python -m editcl.learning.shipped --out FOLDER`; the same facts give the same
bytes. Knows nothing of models.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from editcl.catalogue import known_facts, relations
from editcl.embedded import data_folder
from editcl.learning.task_files import Judge, read_stream
from editcl.learning.tasks import Task

KINDS = ("person", "city", "company")
TRAIN, TEST, VALID = 80, 30, 10  # subjects of each kind
SEED = 0
#: Of each task the prompt, and the answer for each of the KINDS.
TASKS: Mapping[str, tuple[str, tuple[str, ...]]] = MappingProxyType(
    {
        "cards": ("The card of {} is", ("red", "blue", "green")),
        "kinds": ("Clearly {} is a", KINDS),
        "marks": ("Mark for {} is", ("A", "B", "C")),
        "questions": ("We ask of {},", ("who", "where", "which")),
    }
)


def shipped_stream(*, judged_by: Judge = "test") -> tuple[Task, ...]:
    """The four tasks, in the order in which they are learnt.

    Args:
        judged_by: the rows that stand in `Task.test`: those of the test, or those of the
            validation, for whoever chooses settings.

    Raises:
        EditclError: the installation lacks them.
    """
    folder = data_folder() / "streams" / "kinds"
    return read_stream(folder, order=tuple(TASKS), judged_by=judged_by)


def subjects_by_kind() -> dict[str, list[str]]:
    """Subjects that are of one of the KINDS and of nothing else, as their relations tell."""
    allowed: dict[str, set[str]] = {}
    kinds = relation_kinds()
    for fact in known_facts():
        own = kinds[fact.relation]
        allowed[fact.subject] = allowed.get(fact.subject, own) & own
    found: dict[str, list[str]] = defaultdict(list)
    for subject, own in allowed.items():
        if len(own) == 1:
            found[next(iter(own))].append(subject)
    return {kind: sorted(found[kind]) for kind in KINDS}


def relation_kinds() -> dict[str, set[str]]:
    """Of each relation, the kinds of subject that it applies to."""
    path = data_folder() / "relations.json"
    loaded = json.loads(path.read_text(encoding="utf-8"))["relations"]
    return {name: set(loaded[name]["subject_kinds"]) for name in relations()}


def write_stream(folder: Path) -> None:
    """Writes `<task>.train.jsonl`, `<task>.test.jsonl` and `<task>.valid.jsonl` of all tasks."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn: dict[str, list[str]] = {}
    for kind, subjects in subjects_by_kind().items():
        drawn[kind] = random.Random(f"{SEED} {kind}").sample(subjects, TRAIN + TEST)
        left = [subject for subject in subjects if subject not in drawn[kind]]
        drawn[kind] += random.Random(f"{SEED} {kind} valid").sample(left, VALID)
    parts = (
        ("train", slice(TRAIN)),
        ("test", slice(TRAIN, TRAIN + TEST)),
        ("valid", slice(TRAIN + TEST, None)),
    )
    for task, (prompt, answers) in TASKS.items():
        for part, own in parts:
            rows = [
                {"prompt": prompt.replace("{}", subject), "completion": answer}
                for kind, answer in zip(KINDS, answers, strict=True)
                for subject in drawn[kind][own]
            ]
            random.Random(f"{SEED} {task} {part}").shuffle(rows)
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            path = folder / f"{task}.{part}.jsonl"
            path.write_text("".join(lines), encoding="utf-8", newline="\n")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write the shipped stream of tasks.")
    parser.add_argument("--out", type=Path, default=Path("data/streams/kinds"))
    write_stream(parser.parse_args().out)


if __name__ == "__main__":
    main()
