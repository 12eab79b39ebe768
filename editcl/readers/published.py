"""The published files as they are: CounterFact, zsRE, MQuAKE and KnowEdit.

One function a format turns a record into rows; `recognise` tells formats by their keys. Of zsRE,
`pred` and `cond` (another model's answer) are left out, of CounterFact `attribute_prompts`, of
MQuAKE the single hops. Texts stay as they are but for white space at their ends.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from editcl.evaluation.cases import Probe
from editcl.facts import Fact
from editcl.readers.fields import Fields, first_other
from editcl.readers.rows import FactRow

FIELDS = {  # of each format, those included that aren't read
    "counterfact": "case_id requested_rewrite paraphrase_prompts neighborhood_prompts "
    "attribute_prompts generation_prompts pararel_idx",
    "counterfact_flat": "case_id subject prompt target_new ground_truth rephrase_prompt "
    "locality_prompt locality_ground_truth",
    "knowedit": "case_id subject prompt target_new ground_truth rephrase portability locality",
    "mquake": "case_id requested_rewrite questions answer answer_alias new_answer "
    "new_answer_alias single_hops new_single_hops orig",
    "zsre": "case_id subject src pred rephrase alt answers loc loc_ans cond portability",
}
_ABOUT_THE_SUBJECT = frozenset({"Relation_Specificity", "Forgetfulness"})  # KnowEdit's locality


def recognise(keys: Collection[str], lists: bool) -> str | None:
    """The published format that has these keys; None if none has.

    Args:
        keys: of all records together.
        lists: whether a `requested_rewrite` is a list, which tells MQuAKE from CounterFact.
    """
    if "requested_rewrite" in keys:
        return "mquake" if lists else "counterfact"
    if {"src", "alt"} <= set(keys):
        return "zsre"
    if not {"subject", "prompt", "target_new"} <= set(keys) or "new_object" in keys:
        return None
    return "knowedit" if {"portability", "locality"} & set(keys) else "counterfact_flat"


def counterfact_rows(fields: Fields) -> list[FactRow]:
    """CounterFact as ROME published it: neighbours share the old object."""
    _must_have(fields, "paraphrase_prompts", "neighborhood_prompts")
    rewrite = fields.object("requested_rewrite")
    fact = _rewrite(rewrite)
    if fact is None:
        return []
    near = fields.texts("neighborhood_prompts")
    old = fact.old_object
    return _row(
        fields,
        fact,
        paraphrases=fields.texts("paraphrase_prompts"),
        neighbours=() if old is None else tuple(Probe(prompt, old) for prompt in near),
        open_neighbours=near if old is None else (),
        generation=fields.texts("generation_prompts"),
    )


def counterfact_flat_rows(fields: Fields) -> list[FactRow]:
    """CounterFact with one paraphrase and one neighbour a record, the prompt a sentence."""
    fact = _flat_fact(fields)
    prompts, answers = fields.texts("locality_prompt"), fields.answers("locality_ground_truth")
    known = tuple(Probe(prompt, answers[0], answers[1:]) for prompt in prompts if answers)
    return _row(
        fields,
        fact,
        paraphrases=fields.texts("rephrase_prompt"),
        neighbours=known,
        open_neighbours=() if answers else prompts,
    )


def knowedit_rows(fields: Fields) -> list[FactRow]:
    """KnowEdit: each question in a named group; an answer is a list of lists of aliases.

    The groups Relation_Specificity and Forgetfulness ask about the subject, other locality about
    others.
    """
    fact = _flat_fact(fields)
    ported = fields.object("portability")
    local = fields.object("locality")
    own = [p for g in local.values if g in _ABOUT_THE_SUBJECT for p in _group(local, g)]
    near = [p for g in local.values if g not in _ABOUT_THE_SUBJECT for p in _group(local, g)]
    return _row(
        fields,
        fact,
        paraphrases=fields.texts("rephrase"),
        neighbours=tuple(near),
        same_subject=tuple(own),
        portability=tuple(p for group in ported.values for p in _group(ported, group)),
    )


def zsre_rows(fields: Fields) -> list[FactRow]:
    """ZsRE in MEND's format: questions, after which the answer follows; `alt` is the new object.

    The old object is the first true answer that isn't the new one.
    """
    subject, prompt, new = (fields.needed(name) for name in ("subject", "src", "alt"))
    old = _old(fields, "answers", new)
    names = {"prompt": "src", "new_object": "alt", "old_object": "answers"}
    fact = fields.fact(subject, prompt, new, old, names) if prompt else None
    prompts, answers = fields.texts("loc"), fields.answers("loc_ans")
    asked = fields.object("portability")
    question, said = asked.text("New Question"), asked.answers("New Answer")
    if question is not None and not said:
        asked.fail("New Answer", "a question without an answer; give it, or delete the question.")
    return _row(
        fields,
        fact,
        paraphrases=fields.texts("rephrase"),
        neighbours=tuple(Probe(near, answers[0], answers[1:]) for near in prompts if answers),
        open_neighbours=() if answers else prompts,
        portability=(Probe(question, said[0], said[1:]),) if question and said else (),
    )


def mquake_rows(fields: Fields) -> list[FactRow]:
    """MQuAKE: a row for each rewrite; the first carries the questions and the other rewrites.

    A rewrite's own question is its paraphrase.
    """
    _must_have(fields, "questions")
    parts = fields.objects("requested_rewrite")
    facts = [_rewrite(part) for part in parts]
    if not parts:
        fields.fail("requested_rewrite", "it is empty or missing; give at least one rewrite.")
    answer, questions = fields.needed("new_answer"), fields.texts("questions")
    aliases = fields.texts("new_answer_alias")
    own_id = fields.text("case_id") or str(fields.place.row)
    rows: list[FactRow] = []
    for i, (part, fact) in enumerate(zip(parts, facts, strict=True)):
        rows += _row(
            fields,
            fact,
            own_id=f"{own_id}/{i}" if len(parts) > 1 else own_id,
            paraphrases=part.texts("question"),
            portability=() if i else tuple(Probe(q, answer, aliases) for q in questions),
            with_facts=()
            if i
            else tuple(other for other in facts[1:] if other not in (None, fact)),
        )
    return rows


def _must_have(fields: Fields, *names: str) -> None:
    for name in names:
        if name not in fields.values:
            fields.fail(name, "it is missing; give it, if only as an empty list.")


def _rewrite(rewrite: Fields) -> Fact | None:
    subject, prompt = rewrite.needed("subject"), rewrite.needed("prompt")
    new = rewrite.object("target_new").needed("str")
    old = rewrite.object("target_true").text("str")
    names = {"new_object": "target_new.str", "old_object": "target_true.str"}
    return rewrite.fact(subject, prompt, new, old, names) if prompt else None


def _flat_fact(fields: Fields) -> Fact | None:
    subject, prompt, new = (fields.needed(name) for name in ("subject", "prompt", "target_new"))
    old = _old(fields, "ground_truth", new)
    names = {"new_object": "target_new", "old_object": "ground_truth"}
    return fields.fact(subject, prompt, new, old, names) if prompt else None


def _old(fields: Fields, name: str, new_object: str) -> str | None:
    """The first answer that isn't the new object; a warning where there is none but that."""
    answers = fields.answers(name)
    old = first_other(answers, new_object)
    if answers and old is None:
        fields.warn(
            name,
            f"the new object {new_object!r} is the recorded answer itself; the old object is left "
            "open.",
        )
    return old


def _group(parent: Fields, name: str) -> list[Probe]:
    probes = []
    for part in parent.objects(name):
        prompt, answers = part.needed("prompt"), part.answers("ground_truth")
        if not answers:
            part.fail(
                "ground_truth", "the question has no answer; give it, or delete the question."
            )
        elif prompt:
            probes.append(Probe(prompt, answers[0], answers[1:]))
    return probes


def _row(
    fields: Fields,
    fact: Fact | None,
    *,
    own_id: str | None = None,
    paraphrases: Sequence[str] = (),
    neighbours: tuple[Probe, ...] = (),
    open_neighbours: tuple[str, ...] = (),
    same_subject: tuple[Probe, ...] = (),
    portability: tuple[Probe, ...] = (),
    generation: tuple[str, ...] = (),
    with_facts: tuple[Fact, ...] = (),
) -> list[FactRow]:
    if fact is None:
        return []
    number = fields.place.row
    return [
        FactRow(
            number=number,
            line=fields.place.line,
            id=own_id or fields.text("case_id") or str(number),
            subject=fact.subject,
            prompt=fact.prompt,
            new_object=fact.new_object,
            old_object=fact.old_object,
            paraphrases=tuple(paraphrases),
            neighbours=neighbours,
            open_neighbours=open_neighbours,
            same_subject=same_subject,
            portability=portability,
            generation=generation,
            with_facts=with_facts,
        )
    ]
