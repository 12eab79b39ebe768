"""The published formats: every record of the real files, and records that are broken."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from editcl.errors import TableError
from editcl.evaluation import Probe
from editcl.facts import Fact, fill
from editcl.readers import KINDS, FactTable, read_table
from editcl.readers.published import FIELDS

FILES = {
    "counterfact": "datasets/counterfact_600.json",
    "counterfact_flat": "datasets/counterfact_short_5000.json",
    "zsre": "datasets/zsre_mend_600.json",
    "mquake": "datasets/mquake_hard_250.json",
    "knowedit": "datasets/knowedit_wiki_counterfact_400.json",
}


def both(shared, kind: str) -> tuple[list[dict[str, Any]], FactTable]:
    path = shared(FILES[kind])
    table = read_table(path)
    assert table.kind == kind
    return json.loads(path.read_text(encoding="utf-8")), table


def test_every_counterfact_record_is_read(shared) -> None:
    records, table = both(shared, "counterfact")
    assert table.warnings == () and len(table.rows) == len(records) == 600
    for record, row in zip(records, table.rows, strict=True):
        rewrite = record["requested_rewrite"]
        true = rewrite["target_true"]["str"]
        case = row.case()
        assert case.fact == Fact(
            rewrite["subject"], rewrite["prompt"], rewrite["target_new"]["str"], true
        )
        assert case.paraphrases == tuple(record["paraphrase_prompts"])
        assert case.neighbours == tuple(Probe(p, true) for p in record["neighborhood_prompts"])
        assert case.generation == tuple(record["generation_prompts"])
        assert case.id == str(record["case_id"])


def test_the_records_that_the_small_model_knows_are_read(shared) -> None:
    assert len(read_table(shared("counterfact-lm/records.json")).rows) == 300


def test_every_flat_counterfact_record_is_read(shared) -> None:
    records, table = both(shared, "counterfact_flat")
    stated = {(row.fact().sentence, row.new_object): row for row in table.rows}
    other: list[str] = []
    for record in records:
        row = stated[record["prompt"], record["target_new"]]
        assert row.subject == record["subject"]
        if row.old_object != record["ground_truth"]:  # of a duplicate, the first's is kept
            other.append(f"kept once, with the old object {row.old_object!r}")
        assert record["rephrase_prompt"] in row.paraphrases
        near = Probe(record["locality_prompt"], record["locality_ground_truth"])
        assert near in row.neighbours
    assert len(table.rows) == len({(r["prompt"], r["target_new"]) for r in records})
    assert len(other) == 1 and any(other[0] in warning for warning in table.warnings)


def test_contradictions_of_a_published_file_are_warned_of(shared) -> None:
    _, table = both(shared, "counterfact_flat")
    assert len(table.contradictions) == 15
    assert all(len({row.new_object for row in group}) > 1 for group in table.contradictions)
    warned = [w for w in table.warnings if "never edit both at once" in w]
    assert len(warned) == sum(len(group) - 1 for group in table.contradictions)


def test_every_zsre_record_is_read(shared) -> None:
    records, table = both(shared, "zsre")
    assert len(table.rows) == len(records)
    for record, row in zip(records, table.rows, strict=True):
        assert row.fact().sentence == record["src"] and row.subject == record["subject"]
        assert row.new_object == record["alt"].strip()
        others = [answer for answer in record["answers"] if answer != row.new_object]
        assert row.old_object == (others[0] if others else None)
        assert row.paraphrases == (record["rephrase"],)
        assert row.neighbours == (Probe(record["loc"], record["loc_ans"]),)
        asked = record["portability"]
        assert row.portability == (Probe(asked["New Question"], asked["New Answer"]),)
    assert len(table.warnings) == sum(row.old_object is None for row in table.rows) == 17


def test_every_mquake_record_is_read(shared) -> None:
    records, table = both(shared, "mquake")
    stated = {(row.subject, row.prompt, row.new_object): row for row in table.rows}
    keys = []
    for record in records:
        parts = record["requested_rewrite"]
        keys += [(p["subject"], p["prompt"], p["target_new"]["str"]) for p in parts]
        first = stated[keys[-len(parts)]]
        for part, key in zip(parts, keys[-len(parts) :], strict=True):
            assert stated[key].old_object == part["target_true"]["str"]
            assert part["question"] in stated[key].paraphrases
        aliases = tuple(record["new_answer_alias"])
        for question in record["questions"]:
            assert Probe(question.strip(), record["new_answer"], aliases) in first.portability
        with_facts = {(f.subject, f.prompt, f.new_object) for f in first.with_facts}
        assert set(keys[1 - len(parts) :]) <= with_facts
    assert len(table.rows) == len(set(keys)) and len(keys) == 1000
    assert len(table.warnings) == 1000 - len(table.rows)


def test_every_knowedit_record_is_read(shared) -> None:
    records, table = both(shared, "knowedit")
    stated = {(row.fact().sentence, row.new_object): row for row in table.rows}
    for record in records:
        row = stated[record["prompt"], record["target_new"]]
        assert row.old_object == record["ground_truth"] and record["rephrase"] in row.paraphrases
        for section, probes in (("portability", row.portability), ("locality", row.same_subject)):
            prompts = Counter(probe.prompt for probe in probes)
            for group in record[section].values():
                for question in group:
                    answers = [alias for answer in question["ground_truth"] for alias in answer]
                    assert prompts[question["prompt"]] > 0
                    assert any(
                        p.prompt == question["prompt"] and {p.object, *p.aliases} == set(answers)
                        for p in probes
                    )


@pytest.mark.parametrize(
    "name, said",
    [
        ("datasets/known_1000.json", "known facts, for tracing"),
        ("datasets/self-instruct.prompts.jsonl", "no record has a field 'subject'"),
        ("datasets/clbench/yelp.test.jsonl", "fields found: task, text, label"),
    ],
)
def test_files_of_other_things_are_refused_in_one_line(shared, refused, name, said) -> None:
    text = refused(shared(name))
    assert said in text and len(text.splitlines()) == 1


ZSRE = {
    "subject": "the IAAF cup",
    "src": "When was The IAAF Cup founded?",
    "pred": "2011",
    "rephrase": "Since when is there The IAAF Cup?",
    "alt": "2006",
    "answers": ["1998"],
    "loc": "nq question: who is who",
    "loc_ans": "nobody",
    "cond": "2011 >> 2006 || When?",
}
FLAT = {
    "subject": "Ann",
    "prompt": "Ann is a",
    "target_new": "cook",
    "ground_truth": ["pilot", "flyer"],
    "rephrase": "Ann works as a",
    "locality": {"Neighborhood": [{"prompt": "Bob is a", "ground_truth": "cook"}]},
}
FULL = {
    "requested_rewrite": {
        "subject": "Ann",
        "prompt": "{} is a",
        "target_new": {"str": "cook"},
        "target_true": {"str": "pilot"},
    },
    "paraphrase_prompts": ["Ann works as a"],
    "neighborhood_prompts": ["Bob is a"],
}


def one(write, record: dict[str, Any]):
    table = read_table(write(json.dumps([record]), "records.json"))
    return table, table.rows[0]


def test_a_zsre_subject_in_other_capitals_is_taken_from_the_question(write) -> None:
    table, row = one(write, ZSRE)
    assert row.fact() == Fact("The IAAF Cup", "When was {} founded?", "2006", "1998")
    assert fill(row.prompt or "", row.subject) == ZSRE["src"]
    assert "is taken as the prompt has it" in table.warnings[0]
    assert row.portability == ()


def test_a_new_answer_that_is_true_already_leaves_the_old_one_open(write) -> None:
    table, row = one(write, {**ZSRE, "subject": "The IAAF Cup", "answers": ["2006"]})
    assert row.old_object is None
    assert (
        "column 'answers': the new object '2006' is the recorded answer itself" in table.warnings[0]
    )
    assert one(write, {**ZSRE, "answers": ["2006", "2007"]})[1].old_object == "2007"


def test_other_locality_of_knowedit_is_about_neighbours(write) -> None:
    table, row = one(write, FLAT)
    assert table.kind == "knowedit" and row.old_object == "pilot"
    assert row.neighbours == (Probe("Bob is a", "cook"),) and row.same_subject == ()


def test_a_counterfact_record_without_a_true_object_leaves_neighbours_open(write) -> None:
    rewrite = {k: v for k, v in FULL["requested_rewrite"].items() if k != "target_true"}
    _, row = one(write, {**FULL, "requested_rewrite": rewrite})
    assert (row.old_object, row.neighbours, row.open_neighbours) == (None, (), ("Bob is a",))


@pytest.mark.parametrize("good", [ZSRE, FLAT, FULL], ids=["zsre", "knowedit", "counterfact"])
def test_any_value_that_is_damaged_names_record_and_field_or_is_not_needed(write, good) -> None:
    """Every field in turn is left out or becomes something else: never another exception."""
    refused = 0
    for name in good:
        for value in (
            None,
            "",
            7,
            0.5,
            True,
            [],
            {},
            [[]],
            [{}],
            [7, [8]],
            {"str": 7},
            "{} \ud800",
        ):
            path = write(
                json.dumps(
                    [
                        {
                            "requested_rewrite"
                            if "requested_rewrite" in good
                            else "subject": good.get("subject", good.get("requested_rewrite")),
                            **good,
                            name: value,
                        },
                        good,
                    ]
                ),
                "records.json",
            )
            try:
                read_table(path)
            except TableError as error:
                refused += 1
                assert "records.json, record 0" in str(error)
    assert refused > 10


def test_a_broken_record_among_good_ones_is_named(write, refused) -> None:
    broken = {**ZSRE, "src": "When was it founded?"}
    text = refused(write(json.dumps([ZSRE, broken]), "records.json"))
    assert "records.json, record 1, column 'src': subject 'the IAAF cup' is not in" in text
    broken = {**FULL, "requested_rewrite": {**FULL["requested_rewrite"], "target_new": "cook"}}
    text = refused(write(json.dumps([FULL, broken]), "records.json"))
    assert "record 1, column 'requested_rewrite.target_new': expected an object" in text


def test_mquake_needs_rewrites_and_an_answer(write, refused) -> None:
    record = {"requested_rewrite": [], "questions": ["Who?"], "new_answer": "x"}
    assert "give at least one rewrite" in refused(write(json.dumps([record]), "records.json"))
    record = {"requested_rewrite": [FULL["requested_rewrite"]], "questions": ["Who?"]}  # no answer
    assert "'new_answer': it is missing" in refused(write(json.dumps([record]), "records.json"))


def test_what_counterfact_always_has_is_missed(write, refused) -> None:
    broken = {k: v for k, v in FULL.items() if k != "paraphrase_prompts"}
    text = refused(write(json.dumps([FULL, broken]), "records.json"))
    assert "record 1, column 'paraphrase_prompts': it is missing" in text


def test_a_field_that_is_not_of_the_format_is_warned_of(write) -> None:
    table, _ = one(write, {**FLAT, "rephrased": "x"})
    assert "the field 'rephrased' is none of knowedit's; it is left out" in table.warnings[0]


def test_every_published_kind_lists_its_fields() -> None:
    assert set(FIELDS) == set(KINDS) - {"facts"}
