"""Our own columns: subject, prompt, new_object and what may stand beside them, in any container.

A paraphrase or neighbour may be one of several columns (`paraphrase_1`, `paraphrase_2`) or a list.
Knows nothing of the published formats.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from editcl.catalogue import relations
from editcl.evaluation.cases import Probe
from editcl.facts import PLACEHOLDER, Fact, fill
from editcl.readers.fields import MAX_COLUMNS, Fields
from editcl.readers.problems import Problems, shown
from editcl.readers.rows import FactRow

NEEDED = ("subject", "new_object")
_SINGLE = ("subject", "prompt", "new_object", "old_object", "id")
_NESTED = ("same_subject", "portability", "generation", "with_facts")  # of JSON records
_PARAPHRASE = re.compile(r"paraphrases?(_?\d+)?")
_NEIGHBOUR = re.compile(r"(?:neighbou?rhoods?|neighbou?rs?)_?(\d*)(_object)?")
_OFFERED = (*_SINGLE, *_NESTED, "paraphrase", "neighbourhood", "neighbourhood_object")
_NAME_LENGTH = 40  # what is longer is nobody's slip for a name
_ELSEWHERE = {  # what others call our columns
    "target_new": "new_object", "target": "new_object", "new": "new_object", "alt": "new_object",
    "object": "new_object", "ground_truth": "old_object", "target_true": "old_object",
    "old": "old_object", "relation": "prompt", "src": "prompt", "rephrase": "paraphrase",
    "rephrase_prompt": "paraphrase", "locality_prompt": "neighbourhood",
}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """Which names of a record are which columns.

    Attributes:
        named: the record's name of each single column.
        paraphrases: the names that hold paraphrases.
        neighbours: the names of a neighbour and of its object, if that is there.
        problems: (name, message) of each that is unknown, doubled or alone.
    """

    named: dict[str, str]
    paraphrases: tuple[str, ...]
    neighbours: tuple[tuple[str, str | None], ...]
    problems: tuple[tuple[str, str], ...]


def known(name: str) -> bool:
    """Whether a name is that of a column, one of a published format included."""
    plain = _plain(name)
    return plain in _OFFERED or plain in _ELSEWHERE or bool(_column(plain))


@lru_cache(maxsize=256)
def layout(names: tuple[str, ...]) -> Layout:
    """Assigns the names of a header or record to columns."""
    named: dict[str, str] = {}
    paraphrases: list[str] = []
    prompts: dict[str, str] = {}
    objects: dict[str, str] = {}
    problems: list[tuple[str, str]] = []
    for name in names:
        kind, key = _column(_plain(name)) or ("", "")
        place = {"single": named, "neighbour": prompts, "object": objects}.get(kind)
        if kind == "paraphrase":
            paraphrases.append(name)
        elif place is None:
            problems.append((name, f"unknown column; {_nearest(name)}"))
        elif key in place:
            problems.append((name, f"means the same as column {shown(place[key])}; delete one."))
        else:
            place[key] = name
    problems += [
        (objects[key], "an object without a neighbourhood column; add that column.")
        for key in objects.keys() - prompts.keys()
    ]
    pairs = tuple((name, objects.get(key)) for key, name in prompts.items())
    return Layout(named, tuple(paraphrases), pairs, tuple(problems))


def check_header(names: tuple[str, ...], problems: Problems) -> None:
    """Raises for all that is wrong with a header, and what was noted of broken rows after it."""
    if names and not any(known(name) for name in names):
        problems.fail(
            "the header",
            f"none of {', '.join(map(shown, names[:3]))} is a column's name; is the line of names "
            "missing? Begin with subject,prompt,new_object.",
        )
    found = layout(names)
    for name, message in found.problems:
        problems.add("the header", message, name)
    for name in NEEDED:
        if name not in found.named:
            problems.add("the header", f"the column is missing; {_nearest_of(name, names)}", name)
    if found.problems or any(name not in found.named for name in NEEDED):
        problems.raise_all()


def rows_of(fields: Fields) -> list[FactRow]:
    """The row of one record; none after an error."""
    if len(fields.values) > MAX_COLUMNS:
        fields.problems.add(
            fields.place,
            f"it has {len(fields.values):,} fields, {MAX_COLUMNS:,} are the limit; delete some.",
        )
        return []
    columns = layout(tuple(fields.values))
    for name, message in columns.problems:
        fields.fail(name, message)
    subject = fields.needed(columns.named.get("subject", "subject"))
    new_object = fields.needed(columns.named.get("new_object", "new_object"))
    prompt, old_object, own_id = (
        fields.text(columns.named.get(name, name)) for name in ("prompt", "old_object", "id")
    )
    if prompt is not None:
        prompt = _prompt(fields, subject, prompt, columns.named["prompt"])
    fact = fields.fact(subject, prompt, new_object, old_object, columns.named)
    near, open_near = _neighbours(fields, columns, old_object)
    named = columns.named
    probes = (_probes(fields, named.get(name, name)) for name in ("same_subject", "portability"))
    same_subject, portability = probes
    row = FactRow(
        number=fields.place.row,
        line=fields.place.line,
        id=own_id or str(fields.place.row),
        subject=subject if fact is None else fact.subject,
        prompt=None if fact is None or prompt is None else fact.prompt,
        new_object=new_object,
        old_object=old_object,
        paraphrases=tuple(_paraphrases(fields, columns, subject)),
        neighbours=near,
        open_neighbours=open_near,
        same_subject=same_subject,
        portability=portability,
        generation=fields.texts(named.get("generation", "generation")),
        with_facts=tuple(_facts(fields, named.get("with_facts", "with_facts"))),
    )
    return [] if fact is None else [row]


def _prompt(fields: Fields, subject: str, prompt: str, name: str) -> str:
    """The prompt, or the canonical one of the relation that it names."""
    if PLACEHOLDER in prompt:
        return prompt
    relation = relations().get(re.sub(r"[\s-]+", "_", prompt.lower()))
    if relation is not None:
        return relation.prompt
    if len(prompt) <= _NAME_LENGTH and subject and subject.lower() not in prompt.lower():
        near = difflib.get_close_matches(prompt.lower(), list(relations()), 1)
        if near:
            fields.fail(
                name,
                f"no relation is called {shown(prompt)}; the nearest is {near[0]!r}. A sentence "
                "start needs {} where the subject stands.",
            )
            return PLACEHOLDER  # so that the row's other errors are found, but this one once
    return prompt


def _paraphrases(fields: Fields, columns: Layout, subject: str) -> Iterable[str]:
    for name in columns.paraphrases:
        for text in fields.texts(name):
            if text.count(PLACEHOLDER) > 1:
                fields.fail(name, f"more than one {{}} in {shown(text)}; the subject goes in one.")
            yield fill(text, subject)


def _neighbours(
    fields: Fields, columns: Layout, old_object: str | None
) -> tuple[tuple[Probe, ...], tuple[str, ...]]:
    """Neighbours with an object, by default the old one, and those without."""
    probes: list[Probe] = []
    open_prompts: list[str] = []
    for name, object_name in columns.neighbours:
        for prompt, own_object, aliases in _neighbours_in(fields, name, object_name):
            said = own_object or old_object
            if PLACEHOLDER in prompt:
                fields.fail(name, f"a {{}} in {shown(prompt)}; name the other subject there.")
            elif said is None:
                open_prompts.append(prompt)
            else:
                probes.append(Probe(prompt, said, aliases))
    return tuple(probes), tuple(open_prompts)


def _neighbours_in(
    fields: Fields, name: str, object_name: str | None
) -> list[tuple[str, str | None, tuple[str, ...]]]:
    """(prompt, own object, aliases) of each neighbour in a column: a text, a list, or objects."""
    value = fields.values[name]
    if isinstance(value, dict) or (isinstance(value, list) and _has_objects(value)):
        parts = fields.objects(name)
        return [(p.needed("prompt"), p.text("object"), p.texts("aliases")) for p in parts]
    prompts = fields.items(name)
    if object_name is None:
        objects: tuple[str | None, ...] = (None,) * len(prompts)
    else:
        objects = fields.items(object_name)
        if not isinstance(fields.values[object_name], (list, tuple)):
            objects *= len(prompts)  # one for all
        if len(objects) != len(prompts):
            fields.fail(
                object_name,
                f"{len(objects)} objects for {len(prompts)} neighbours; give one for each.",
            )
            return []
        if any(p is None and o is not None for p, o in zip(prompts, objects, strict=True)):
            fields.fail(object_name, "an object without a neighbour; give its prompt, or none.")
    pairs = zip(prompts, objects, strict=True)
    return [(prompt, own_object, ()) for prompt, own_object in pairs if prompt is not None]


def _has_objects(values: list[object]) -> bool:
    return any(isinstance(value, dict) for value in values)


def _probes(fields: Fields, name: str) -> tuple[Probe, ...]:
    return tuple(
        Probe(part.needed("prompt"), part.needed("object"), part.texts("aliases"))
        for part in fields.objects(name)
    )


def _facts(fields: Fields, name: str) -> Iterable[Fact]:
    for part in fields.objects(name):
        fact = part.fact(
            part.needed("subject"),
            part.needed("prompt"),
            part.needed("new_object"),
            part.text("old_object"),
        )
        if fact is not None:
            yield fact


def _plain(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def _column(plain: str) -> tuple[str, str] | None:
    """(kind, key) of a column's plain name; None if it is unknown."""
    if plain in _SINGLE or plain in _NESTED:
        return "single", plain
    if _PARAPHRASE.fullmatch(plain):
        return "paraphrase", plain
    match = _NEIGHBOUR.fullmatch(plain)
    return None if match is None else ("object" if match[2] else "neighbour", match[1])


def _nearest(name: str) -> str:
    plain = _plain(name)
    near = difflib.get_close_matches(plain[:_NAME_LENGTH], _OFFERED, 1, 0.5)
    best = _ELSEWHERE.get(plain, near[0] if near else None)
    if best is None:
        return f"delete it, or use one of {', '.join(_OFFERED)}."
    return f"did you mean {best!r}?"


def _nearest_of(wanted: str, names: tuple[str, ...]) -> str:
    plain = {_plain(name)[:_NAME_LENGTH]: name for name in names}
    near = difflib.get_close_matches(wanted, list(plain), 1, 0.5)
    best = next((n for p, n in plain.items() if _ELSEWHERE.get(p) == wanted), None)
    best = best or (plain[near[0]] if near and not _column(near[0]) else None)
    return f"rename column {shown(best)}?" if best else "add it."
