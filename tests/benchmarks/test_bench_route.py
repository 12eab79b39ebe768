"""`editcl bench route`: the tasks are what they say, the arithmetic is right, and it all runs."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import tiny

import editcl
from editcl import cli
from editcl.benchmarks.arms import COST, EDITS, Arm, ArmJudge, Measured, measure, probes
from editcl.benchmarks.families import FAMILIES, TEST, checksum, make_tasks
from editcl.benchmarks.posed import KINDS, KNOWLEDGE, MIXED, SKILL, UNDECIDABLE, Posed
from editcl.benchmarks.route import RouteBenchmark, bench_route
from editcl.benchmarks.route_stream import both_costs, run_stream, stream_tasks
from editcl.benchmarks.verdicts import (
    CountRule,
    Decided,
    Said,
    brier,
    by_family,
    figures,
    held_out,
    mean_regret,
    reliability,
    score,
)
from editcl.editing.values import ValueSettings
from editcl.embedded import data_folder
from editcl.errors import EditclError
from editcl.evaluation.compare import weight_checksums
from editcl.evaluation.damage import general_texts
from editcl.learner import EditSettings, Learner
from editcl.learning.tasks import Example, Task
from editcl.model import EditableModel
from editcl.routing.rule import Thresholds, ascend, judge

KEYS = {
    "families", "tasks", "macro_f1", "cheap_macro_f1", "regret", "regret_always_edit",
    "regret_always_train", "regret_count_only", "decision_cost_ratio", "stream",
}  # fmt: skip
#: One layer, one text in front of prompts, and a covariance of few tokens.
FAST = replace(EDITS, layers=(1,), contexts=("",), corpus=general_texts())
#: As cheap as it gets, where it doesn't matter what is learnt.
CHEAP = EditSettings(layers=(1,), settings=ValueSettings(steps=2, scale="absolute"), contexts=("",))
#: Families of the test half, whichever these are.
TESTED = [name for name, family in FAMILIES.items() if family.half == TEST]
CHECKSUM = "7e4a808df8212858de65ba60d50fd2083a20d96703ed3740d105aee2df5b3132"


@pytest.fixture(scope="module")
def every() -> tuple[Posed, ...]:
    return make_tasks()


@pytest.fixture(scope="module")
def embedded() -> EditableModel:
    return editcl.load()


# -- the tasks ------------------------------------------------------------------------------------


def test_there_are_enough_tasks_and_families_of_every_kind_on_both_sides(every) -> None:
    assert len(every) >= 60 and len({one.family for one in every}) >= 12
    for half in ("calibration", "test"):
        kinds = Counter(family.kind for family in FAMILIES.values() if family.half == half)
        assert all(kinds[kind] >= 2 for kind in KINDS), (half, kinds)


def test_the_tasks_are_the_same_anywhere(every) -> None:
    assert checksum(every) == CHECKSUM
    assert checksum(make_tasks(seed=1)) != CHECKSUM


def test_a_task_depends_on_its_family_and_number_alone() -> None:
    (alone,) = make_tasks(["kinds"], per_family=1)
    assert alone == make_tasks(["codes", "kinds"], per_family=2)[2]


def test_no_held_out_item_was_shown_and_no_task_contradicts_itself(every) -> None:
    for one in every:
        shown = {row.prompt: row.completion for row in one.task.train}
        assert len(shown) == len(one.task.train), one
        assert not shown.keys() & {row.prompt for row in one.task.test}, one
        assert len(one.task.test) >= 15, one


def test_facts_are_held_out_in_other_words_and_skills_on_other_inputs(every) -> None:
    for one in every:
        answers = {row.completion for row in one.task.train}
        if one.kind == KNOWLEDGE:
            assert {row.completion for row in one.task.test} <= answers, one
        if one.kind == SKILL and one.family in ("kinds", "topics", "five_shot", "teams", "turns"):
            assert {row.completion for row in one.task.test} == answers, one
        if one.kind == MIXED:
            facts = {(fact.sentence, fact.new_object) for fact in one.facts}
            rows = {(row.prompt, row.completion) for row in one.task.train}
            assert facts < rows and len(rows - facts) >= 12, one


def test_what_is_handed_over_tells_neither_the_test_nor_the_facts(every) -> None:
    for one in every:
        assert isinstance(one.what, str) or not (one.what.test or one.what.facts)
    texts = [one for one in every if isinstance(one.what, str)]
    assert texts
    for one in texts:
        assert all(f"{row.prompt} {row.completion}." in one.what for row in one.task.train)


def test_no_wording_of_a_calibration_family_is_in_a_tested_one(every) -> None:
    """But for phrasings of the catalogue, which any task may use."""
    from editcl.catalogue import known_facts, relations

    known = {phrasing for relation in relations().values() for phrasing in relation.phrasings}
    names = sorted({fact.subject for fact in known_facts()}, key=len, reverse=True)

    def wording(prompt: str) -> str:
        return next((prompt.replace(n, "{}", 1) for n in names if n in prompt), prompt)

    sides: dict[str, set[str]] = {"calibration": set(), "test": set()}
    for one in every:
        if one.kind != UNDECIDABLE and one.family != "many":
            sides[FAMILIES[one.family].half] |= {wording(row.prompt) for row in one.task.train}
    assert not (sides["calibration"] & sides["test"]) - known


def test_probes_are_about_subjects_that_no_item_names(every) -> None:
    for one in every[::7]:
        shown = " ".join(row.prompt for row in one.task.train)
        asked = probes(one)
        assert len(asked) >= 40
        subjects = {fact.subject for fact in _facts() if fact.subject in shown}
        assert not [row for row in asked if any(row.prompt.endswith(s + " is") for s in subjects)]


def _facts():
    from editcl.catalogue import known_facts

    return known_facts()


def test_bad_choices_of_families_are_told() -> None:
    with pytest.raises(EditclError, match="no family 'magic'"):
        make_tasks(["magic"])
    with pytest.raises(EditclError, match="named twice"):
        make_tasks(["kinds", "kinds"])
    with pytest.raises(EditclError, match="1 or more"):
        make_tasks(per_family=0)


# -- the arithmetic -------------------------------------------------------------------------------


def measured(
    name: str, family: str, edit: Arm | None, train: Arm | None, *, items: int = 20
) -> Measured:
    arms = {n: arm for n, arm in (("edit", edit), ("train", train)) if arm is not None}
    base = Arm(0.25, 0.1, 1.0, 0.0, 0.0)
    kind = FAMILIES[family].kind
    return Measured(name, family, kind, items, base, arms, {})


GOOD = Arm(1.0, 0.9, 0.95, 0.01, 6.0)
BY_HEART = Arm(1.0, 0.3, 0.9, 0.0, 2.0)


def test_utility_is_what_its_equation_says() -> None:
    found = measured("a", "kinds", BY_HEART, GOOD).utilities()
    assert found["train"] == pytest.approx(1.0 + 0.9 + 0.95 - 0.01 - COST * 6 / 8)
    assert found["edit"] == pytest.approx(1.0 + 0.3 + 0.9 - COST * 2 / 8)
    assert found["abstain"] == pytest.approx(0.25 + 0.1 + 1)


def test_the_label_is_what_is_worth_most() -> None:
    assert measured("a", "kinds", BY_HEART, GOOD).label == "train"
    assert measured("a", "kinds", GOOD, None).label == "edit"
    worse = replace(BY_HEART, success=0.2, damage=0.4)
    assert measured("a", "kinds", worse, worse).label == "abstain"


def test_an_arm_that_is_not_possible_leaves_the_model_as_it_is() -> None:
    one = measured("a", "kinds", None, GOOD)
    assert one.utility_of("edit") == pytest.approx(0.25 + 0.1 + 1)
    assert one.regret("train") == 0.0
    assert one.regret("edit") == pytest.approx(one.utilities()["train"] - 1.35)


def decided(one: Measured, kind: str, confidence: float = 0.9, items: float = 20.0) -> Decided:
    said = Said(kind, confidence, 0.5, {"items": items, "fact_share": 1.0, "feature_transfer": 0.9})
    return Decided(one, {"full": said, "cheap": replace(said, kind="edit", seconds=0.1)})


ROWS = (
    decided(measured("a", "kinds", BY_HEART, GOOD), "train", 0.9),
    decided(measured("b", "codes", GOOD, BY_HEART, items=10), "edit", 0.8),
    decided(measured("c", TESTED[0], BY_HEART, GOOD, items=5), "train", 0.7),
    decided(measured("d", TESTED[1], GOOD, BY_HEART, items=30), "train", 0.6),
)


def test_macro_f1_and_regret_are_those_of_a_naive_count() -> None:
    test = [one for one in ROWS if one.half == "test"]
    assert [one.measured.task for one in test] == ["c", "d"]
    # train: 1 hit, 1 false alarm; edit: 1 miss.
    assert score(test) == pytest.approx((2 / 3 + 0) / 2)
    edit = ROWS[3].measured.utilities()
    worst = edit["edit"] - edit["train"]
    found = figures(ROWS, Thresholds())
    assert found["regret"] == pytest.approx(worst / 2)
    assert found["regret_always_train"] == pytest.approx(worst / 2)
    assert found["regret_always_edit"] == pytest.approx(ROWS[2].measured.regret("edit") / 2)
    assert found["cheap_macro_f1"] == pytest.approx((2 / 3 + 0) / 2)
    assert found["decision_cost_ratio"] == pytest.approx(0.5 / 2.0)
    assert found["cheap_seconds"] == 0.1


def test_the_count_rule_is_the_best_one_on_the_calibration_half() -> None:
    rows = [one for one in ROWS if one.half == "calibration"]
    best = CountRule.fitted(rows)
    assert [best.kind(one.measured.items) for one in rows] == ["train", "edit"]
    assert mean_regret(rows, best.regret) == 0.0
    every = figures(ROWS, Thresholds())["regret_count_only"]
    assert every == pytest.approx(mean_regret([ROWS[2], ROWS[3]], best.regret)) and every > 0


def test_a_split_of_its_own_is_judged_by_what_it_came_to() -> None:
    one = ROWS[0]
    own = replace(one.said["full"], kind="split", own=replace(GOOD, generalisation=0.8))
    split = replace(one, said={**one.said, "full": own})
    assert 0.09 < split.regret() < 0.14
    assert Decided.from_json(json.loads(json.dumps(split.to_json()))) == split


def test_confidence_is_binned_and_scored() -> None:
    assert sum(n for _, _, n in reliability(ROWS)) == 4
    assert reliability(ROWS)[0] == (0.6, 0.0, 1)
    assert brier(ROWS) == pytest.approx((0.01 + 0.04 + 0.09 + 0.36) / 4)


def test_each_family_is_judged_by_a_rule_that_has_not_seen_it() -> None:
    thresholds = Thresholds(base=1.0, slope=2.0)
    found = held_out(ROWS, thresholds)
    for one, other in zip(ROWS, found, strict=True):
        rest = [row.row() for row in ROWS if row.measured.family != one.measured.family]
        own = replace(ascend(rest, Thresholds()), base=1.0, slope=2.0)
        verdict = judge(one.said["full"].signals, own)
        assert other.said["full"].confidence == verdict.confidence
        same = verdict.kind == judge(one.said["full"].signals, thresholds).kind
        assert other.said["full"].kind == (one.said["full"].kind if same else verdict.kind)
    assert held_out(ROWS[:1], thresholds) == list(ROWS[:1])
    assert set(by_family(ROWS)) == {row.measured.family for row in ROWS}
    assert by_family(ROWS)[TESTED[1]]["right"] == 0.0


# -- measuring ------------------------------------------------------------------------------------


def short(family: str, kind: str, rows: tuple[tuple[str, str, str], ...], test) -> Posed:
    train = tuple(Example(prompt.replace("{}", name), said) for prompt, name, said in rows)
    return Posed(family, kind, Task(f"{family}-short", train, test))


SWAPPED = short(
    "one_relation",
    KNOWLEDGE,
    (
        ("The capital city of {} is called", "France", "Madrid"),
        ("The capital city of {} is called", "Spain", "Vienna"),
    ),
    (
        Example("France is governed from its capital,", "Madrid"),
        Example("Spain is governed from its capital,", "Vienna"),
    ),
)


def test_editing_facts_carries_over_and_everything_is_taken_back(embedded) -> None:
    before = weight_checksums(embedded)
    judge = ArmJudge(Learner(embedded, edits=FAST), SWAPPED)
    base = judge.measured(0.0)
    assert (base.success, base.generalisation, base.specificity, base.damage) == (0, 0, 1, 0)
    arm = judge.arm("edit", seed=0)
    assert arm.success == 1.0 and arm.generalisation >= 0.5  # positive control
    assert arm.specificity > 0.8 and arm.damage < 0.1 and arm.seconds > 0 and arm.changed
    assert judge.measured(0.0) == base
    assert weight_checksums(embedded) == before


def test_facts_that_the_model_knows_leave_nothing_to_change(embedded) -> None:
    (known,) = make_tasks(["known_facts"], per_family=1)
    judge = ArmJudge(Learner(embedded), known)
    arm = judge.arm("edit", seed=0)
    assert arm.success > 0.9 and not arm.changed


# -- the whole ------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def layer_named():
    """Random weights know no facts that a layer could be found by."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("arms", "route", "route_stream"):
            patch.setattr(f"editcl.benchmarks.{module}.EDITS", CHEAP)
        yield


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> tuple[RouteBenchmark, Path]:
    """On a tiny random model, on which every arm runs and nothing is learnt well."""
    place = tmp_path_factory.mktemp("route")
    model = editcl.wrap(tiny.build("gpt2"), tiny.byte_tokenizer())
    return bench_route(model, tasks=TINY, stream=0, keep=place / "kept.json", fit_to=place), place


TINY = tuple(
    replace(
        SWAPPED,
        family=family,
        task=replace(SWAPPED.task, name=f"{family}-tiny"),
    )
    for family in ("one_relation", TESTED[0])
)


def test_it_measures_what_it_names(found) -> None:
    benchmark, _ = found
    said = json.loads(json.dumps(benchmark.to_dict()))
    assert set(said) >= KEYS
    assert said["families"] == said["tasks"] == 2
    assert {row["task"] for row in said["measured"]} == {"one_relation-tiny", f"{TESTED[0]}-tiny"}
    for row in said["measured"]:
        assert set(row["arms"]) == {"edit", "train"} and not row["refused"]


def test_thresholds_come_from_the_calibration_half_alone(found) -> None:
    benchmark, place = found
    assert Thresholds.read(place / "router.json") == benchmark.thresholds
    kept = json.loads((place / "measured.json").read_text(encoding="utf-8"))
    assert [row["task"] for row in kept["tasks"]] == ["one_relation-tiny"]
    assert kept["tasks"][0]["said"]["full"]["signals"]
    assert "bench route --fit" in kept["about"]


def test_the_shipped_measurements_are_of_calibration_families_alone() -> None:
    place = data_folder() / "routing" / "measured.json"
    kept = [Decided.from_json(row) for row in json.loads(place.read_text("utf-8"))["tasks"]]
    own = {name for name, family in FAMILIES.items() if family.half == "calibration"}
    assert {one.measured.family for one in kept} == own


def test_fitting_to_nothing_is_told_before_anything_is_measured(model, tmp_path) -> None:
    with pytest.raises(EditclError, match="calibrates the router"):
        bench_route(model, tasks=TINY[1:], fit_to=tmp_path)


def test_a_later_call_goes_on_from_what_was_kept(found, monkeypatch) -> None:
    benchmark, place = found

    def never(*_: object, **__: object) -> None:
        raise AssertionError("measured anew")

    monkeypatch.setattr("editcl.benchmarks.route.measure", never)
    model = editcl.wrap(tiny.build("gpt2"), tiny.byte_tokenizer())
    again = bench_route(model, tasks=TINY, stream=0, keep=place / "kept.json")
    assert [one.measured for one in again.decided] == [one.measured for one in benchmark.decided]
    with pytest.raises(AssertionError, match="measured anew"):
        bench_route(model, tasks=make_tasks(["kinds"], per_family=1), stream=0)
    other = editcl.wrap(tiny.build("gpt2", seed=1), tiny.byte_tokenizer())
    for changed in ({"model": model, "seed": 1}, {"model": other}):
        with pytest.raises(AssertionError, match="measured anew"):
            bench_route(**changed, tasks=TINY, stream=0, keep=place / "kept.json")


def test_a_stream_is_learnt_by_every_policy_and_taken_back() -> None:
    model = editcl.wrap(tiny.build("gpt2"), tiny.byte_tokenizer())
    before = weight_checksums(model)
    lines = run_stream(model, TINY)
    assert set(lines) == {"router", "always edit", "always train"}
    assert lines["always edit"].kinds == {"edit": 2} and lines["always train"].kinds == {"train": 2}
    assert all(0 <= line.OP <= 1 and set(line.by_task) == {t.name for t in TINY}
               for line in lines.values())  # fmt: skip
    assert both_costs(lines) == lines["always edit"].cost + lines["always train"].cost
    assert weight_checksums(model) == before and not model.log.active_skills()


def test_the_stream_has_tasks_of_all_kinds_and_none_twice() -> None:
    tasks = stream_tasks()
    assert len(tasks) == 20 == len({one.name for one in tasks})
    assert {one.kind for one in tasks} == set(KINDS)
    assert tasks == stream_tasks()


def test_bad_input_is_told_before_anything_is_measured(model, tmp_path) -> None:
    with pytest.raises(EditclError, match="at least one"):
        bench_route(model, tasks=())
    (tmp_path / "kept.json").write_text("[]", encoding="utf-8")
    with pytest.raises(EditclError, match="holds no measured tasks"):
        bench_route(model, tasks=TINY, keep=tmp_path / "kept.json")
    Learner(model).learn(TINY[0].what, "train", show=False)
    with pytest.raises(EditclError, match="log must be empty"):
        bench_route(model, tasks=TINY)
    with pytest.raises(EditclError, match="without edits and skills"):
        measure(model, TINY[0])


def test_the_command_prints_json_and_saves_the_picture(tmp_path, monkeypatch, capsys) -> None:
    place = tmp_path / "model"
    tiny.build("gpt2").save_pretrained(place)
    tiny.byte_tokenizer().save_pretrained(place)
    monkeypatch.setattr("editcl.benchmarks.route.make_tasks", lambda *_, **__: TINY)
    options = ["--model", place, "--stream", 0, "--picture", tmp_path / "route.png", "--json"]
    monkeypatch.setattr(sys, "argv", ["editcl", "bench", "route", *map(str, options)])
    try:
        cli.main()
    except SystemExit as stop:
        assert not stop.code
    assert set(json.loads(capsys.readouterr().out)) >= KEYS
    assert (tmp_path / "route.png").stat().st_size > 10_000


def test_the_table_shows_tasks_families_and_figures(found, monkeypatch, capsys) -> None:
    from editcl.console import show_route_benchmark

    monkeypatch.setenv("COLUMNS", "200")
    show_route_benchmark(found[0])
    out = capsys.readouterr().out
    for word in ("one_relation-tiny", TESTED[0], "macro_f1", "always train", "decision (best)"):
        assert word in out
