"""The rule: plain cases by hand, and a fit that finds thresholds again."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from editcl.embedded import data_folder
from editcl.errors import EditclError
from editcl.routing import rule
from editcl.routing.decision import ABSTAIN, EDIT, SPLIT, TRAIN
from editcl.routing.rule import (
    CROWDED,
    FULL,
    Measured,
    Thresholds,
    ascend,
    confidence,
    fit,
    judge,
    macro_f1,
    objective,
    shipped,
    undecided,
)

T = Thresholds()
FACTS = {
    "items": 40.0,
    "fact_share": 1.0,
    "object_words": 1.0,
    "distinct_share": 1.0,
    "feature_transfer": 0.0,
}


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, EDIT),
        ({"feature_transfer": 0.9}, TRAIN),
        ({"probe_transfer": 0.9}, TRAIN),
        ({"template_rule": 0.9}, TRAIN),
        ({"fact_share": 0.0}, ABSTAIN),
        ({"fact_share": 0.0, "items": 1.0}, ABSTAIN),
        ({"fact_share": 0.0, "distinct_share": 0.1}, TRAIN),
        ({"fact_share": 0.0, "strangeness": 1.0}, TRAIN),
        ({"mates": 5.0}, TRAIN),
        ({"mates": 2.0}, EDIT),
        ({"mates": 5.0, "trainable": 0.0}, EDIT),
        ({"mates": 5.0, "items": 1.0}, EDIT),
        ({"fact_share": 0.0, "object_words": 20.0}, TRAIN),
        ({"copy_share": 1.0}, TRAIN),
        ({"copy_share": 1.0, "probe_transfer": 0.0}, EDIT),
        ({"best_part": 0.9, "worst_part": 0.0, "worst_fact_share": 1.0}, SPLIT),
        ({"best_part": 0.9, "worst_part": 0.0, "worst_fact_share": 0.0}, EDIT),
        (
            {"best_part": 0.9, "worst_part": 0.0, "worst_fact_share": 1.0, "strangeness": 1.0}
            | {"worst_strangeness": 1.0},
            TRAIN,
        ),
        ({"feature_transfer": 0.9, "exceptions": 0.1}, SPLIT),
        ({"items": 5.0, "distinct_share": 0.4}, TRAIN),
        ({"items": 5.0, "new_subjects": 1.0}, TRAIN),
        ({"items": 1.0, "new_subjects": 1.0}, EDIT),
        ({"items": 5.0, "distinct_share": 0.4, "named_share": 1.0}, EDIT),
        ({"trial_efficacy": 0.0}, TRAIN),
        ({"trial_efficacy": 0.0, "items": 1.0}, EDIT),
        ({"known": 1.0}, ABSTAIN),
        ({"known": 1.0, "feature_transfer": 0.9}, ABSTAIN),
        ({"named_share": 1.0, "strangeness": 1.0}, TRAIN),
        ({"strangeness": 1.0}, TRAIN),
        ({"strangeness": 0.3}, EDIT),
        ({"strangeness": 1.0, "items": 1.0}, EDIT),
        ({"strangeness": 1.0, "probe_transfer": 0.0}, TRAIN),
        ({"feature_transfer": 0.35}, EDIT),
        ({"feature_transfer": 0.35, "distinct_share": 0.1}, TRAIN),
        ({"feature_transfer": 0.35, "distinct_share": 0.1, "named_share": 1.0}, EDIT),
        ({"strangeness": 1.0, "fact_share": 0.0}, TRAIN),
        ({"strangeness": 1.0, "apart": 0.3}, SPLIT),
        ({"apart": 0.3}, EDIT),
        ({"apart": 0.3, "feature_transfer": 0.9}, SPLIT),
        ({"apart": 0.3, "fact_share": 0.0}, EDIT),
        ({"apart": 0.3, "fact_share": 0.0, "distinct_share": 0.1}, SPLIT),
        ({"apart": 0.3, "mates": 5.0}, TRAIN),
        ({"apart": 0.3, "known": 1.0, "distinct_share": 0.1}, EDIT),
        ({"texts": 3.0, "fact_share": 0.1}, TRAIN),
        ({"texts": 3.0}, EDIT),
    ],
    ids=str,
)
def test_plain_cases(changes: dict[str, float], kind: str) -> None:
    assert judge(FACTS | changes, T).kind == kind


def test_nothing_at_all_is_asked_about() -> None:
    assert judge({}, T).kind == ABSTAIN


def test_doubts_lower_the_confidence() -> None:
    sure = judge(FACTS, T).confidence
    doubts = (
        {"items": 1.0},
        {"texts": 1.0, "strangeness": 3.0},
        {"pieces": 6.0},
        {"spelling": 1.2},
        {"trainable": 0.0, "fill": 9.0},
        {"feature_transfer": 0.3},
    )
    for doubt in doubts:
        assert judge(FACTS | doubt, T).confidence < sure - 0.05


@pytest.mark.parametrize(
    "doubt",
    [
        {"items": 1.0},
        {"texts": 1.0, "strangeness": 3.0},
        {"pieces": 6.0},
        {"spelling": 1.2},
        {"trainable": 0.0, "fill": 9.0},
        {"texts": 1.0, "trainable": 0.0, "fill": 9.0},
    ],
    ids=str,
)
def test_what_the_fit_never_saw_gets_little_confidence_whatever_was_fitted(
    doubt: dict[str, float],
) -> None:
    for thresholds in (shipped(), Thresholds(base=3.0, slope=0.0)):
        assert judge(FACTS, thresholds).confidence > 0.8, "nothing is in doubt"
        found = judge(FACTS | doubt, thresholds)
        assert found.kind == EDIT and found.confidence < 0.5


@pytest.mark.parametrize(
    ("signals", "kind", "step"),
    [
        ({"load": 1.01, "fill": 1.01}, ABSTAIN, CROWDED),
        ({"load": 0.5, "fill": 1.01}, TRAIN, FULL),
        ({"load": 0.99, "fill": 0.99}, EDIT, rule.FACTS),
    ],
)
@pytest.mark.parametrize("more", [{}, {"apart": 1.0}, {"texts": 1.0}], ids=str)
def test_a_full_model_is_not_edited(
    signals: dict[str, float], kind: str, step: str, more: dict[str, float]
) -> None:
    found = judge(FACTS | more | {name: value * T.load for name, value in signals.items()}, T)
    assert (found.kind, found.step) == (kind, step)
    assert (found.confidence < judge(FACTS | more, T).confidence) == (kind != EDIT)


def test_confidence_falls_towards_the_threshold_that_decided() -> None:
    labels = FACTS | {"distinct_share": 0.1}
    below = judge(labels | {"feature_transfer": T.labels - 0.005}, T)
    above = judge(labels | {"feature_transfer": T.labels + 0.005}, T)
    assert (below.kind, above.kind) == (EDIT, TRAIN)
    assert below.margin < 0.05 and above.margin < 0.05


def test_without_any_examples_confidence_is_chance() -> None:
    assert judge({}, shipped()).confidence == pytest.approx(1 / 4)


def test_confidence_is_a_probability_that_rises_with_the_margin() -> None:
    values = [confidence(m / 10, T) for m in range(11)]
    assert values == sorted(values) and 0 < values[0] < values[-1] < 1


def test_a_training_is_tried_only_where_it_could_tell() -> None:
    assert not undecided(FACTS | {"named_share": 1.0}, T), "facts that are called so"
    assert not undecided(FACTS | {"strangeness": 1.0}, T), "trained either way"
    assert not undecided(FACTS | {"fact_share": 0.1}, T), "states no facts: trained either way"
    assert not undecided(FACTS | {"feature_transfer": 0.9}, T), "a plain skill"
    assert not undecided(FACTS | {"copy_share": 1.0, "known": 0.9}, T), "known already"
    assert not undecided(FACTS | {"copy_share": 1.0, "items": 3.0}, T), "too few to halve"
    assert not undecided(FACTS | {"probe_transfer": 0.0}, T), "tried already"
    for doubt in ({}, {"copy_share": 1.0}, {"feature_transfer": 0.3}):
        assert undecided(FACTS | doubt, T)


def rows(train: float, n: int = 80) -> list[Measured]:
    draw = random.Random(0)
    found = []
    for _ in range(n):
        transfer = draw.random()
        signals = FACTS | {"feature_transfer": transfer}
        found.append(Measured(signals, TRAIN if transfer >= train else EDIT))
    return found


@pytest.mark.parametrize("train", [0.25, 0.7])
def test_fit_finds_a_threshold_again(train: float) -> None:
    found = fit(rows(train))
    assert found.train == pytest.approx(train, abs=0.06)
    assert objective(rows(train), found) > objective(rows(train), T)


def test_fit_learns_how_far_to_trust_margins() -> None:
    """Labels by chance: the margin tells nothing, and sureness goes."""
    draw = random.Random(1)
    noise = [Measured(row.signals, draw.choice([EDIT, TRAIN])) for row in rows(0.5, 120)]
    clean, noisy = fit(rows(0.5, 120)), fit(noise)
    assert confidence(0.5, noisy) < 0.8 < 0.95 < confidence(0.5, clean)


def test_regret_counts_beside_the_labels() -> None:
    row = Measured(FACTS, EDIT, {EDIT: 1.0, TRAIN: 0.25})
    assert objective([row], T) == 1
    assert objective([Measured(FACTS, TRAIN, {EDIT: 0.25, TRAIN: 1.0})], T) == pytest.approx(-0.75)


def test_fit_refuses_nothing() -> None:
    with pytest.raises(EditclError, match="no measured tasks"):
        fit([])


def test_macro_f1_is_the_mean_of_the_classes_f1() -> None:
    truth, said = [EDIT, EDIT, TRAIN, TRAIN], [EDIT, TRAIN, TRAIN, TRAIN]
    by_hand = []
    for kind in (EDIT, TRAIN):
        hits = sum(a == b == kind for a, b in zip(truth, said, strict=True))
        precision, recall = hits / said.count(kind), hits / truth.count(kind)
        by_hand.append(2 * precision * recall / (precision + recall))
    assert macro_f1(truth, said) == pytest.approx(sum(by_hand) / 2)
    assert macro_f1(truth, truth) == 1


def test_thresholds_are_read_back_and_a_broken_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "new" / "router.json"
    Thresholds(train=0.3).write(path, "a test")
    assert Thresholds.read(path).train == 0.3
    path.write_text("{}")
    with pytest.raises(EditclError, match="no thresholds"):
        Thresholds.read(path)
    with pytest.raises(EditclError, match="no thresholds"):
        Thresholds.read(tmp_path / "absent.json")


def test_the_shipped_thresholds_tell_the_plain_cases() -> None:
    t = shipped()
    assert judge(FACTS, t).kind == EDIT
    assert judge(FACTS | {"feature_transfer": 0.95}, t).kind == TRAIN


def test_the_shipped_thresholds_are_those_that_fit_gives_to_the_shipped_measurements() -> None:
    found = json.loads((data_folder() / "routing" / "measured.json").read_text(encoding="utf-8"))
    rows = [
        Measured(task["said"]["full"]["signals"], task["label"], task["utilities"], task["family"])
        for task in found["tasks"]
    ]
    assert len(rows) >= 30
    found = ascend(rows, Thresholds())  # the confidence takes as many fits as there are families
    assert replace(found, base=shipped().base, slope=shipped().slope) == shipped()


def test_every_verdict_has_a_confidence_in_its_range() -> None:
    values = (0.0, 0.5, 1.0)
    names = ("fact_share", "feature_transfer", "copy_share", "distinct_share", "exceptions")
    for point in itertools.product(values, repeat=len(names)):
        found = judge(dict(zip(names, point, strict=True)) | {"items": 10.0}, T)
        assert 0 <= found.margin <= 1 and 0 < found.confidence < 1
