"""Means, intervals and forms of an evaluation, against naive recomputation."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from editcl.evaluation import CaseResult, Evaluation
from editcl.evaluation.results import MAGNITUDES, MEASURES, SHARES


def made(count: int = 40, seed: int = 0) -> Evaluation:
    rng = random.Random(seed)
    return Evaluation(
        tuple(
            CaseResult(
                efficacy=float(rng.random() < 0.8),
                paraphrase=rng.random() if i % 3 else None,
                specificity=rng.random(),
                efficacy_magnitude=rng.uniform(-1, 1),
                fact=f"fact <{i}>",
            )
            for i in range(count)
        )
    )


def test_measures_are_the_fields_of_a_case() -> None:
    assert set(MEASURES) | {"fact"} == set(CaseResult.__dataclass_fields__)
    assert not set(SHARES) & set(MAGNITUDES)


def test_only_what_is_present_is_shown() -> None:
    found = made()
    assert list(found.summary()) == ["efficacy", "paraphrase", "specificity", "score"]
    assert list(found.magnitudes()) == ["efficacy_magnitude"]
    assert "same_subject" not in repr(found) and "same subject" not in found._repr_html_()
    alone = Evaluation((CaseResult(token_accuracy=0.5),))
    assert alone.summary() == {"token_accuracy": 0.5}
    assert alone.score is None and list(alone.intervals()) == ["token_accuracy"]
    assert Evaluation(()).summary() == {} and Evaluation(()).intervals() == {}


def test_the_score_is_the_harmonic_mean() -> None:
    three = Evaluation((CaseResult(efficacy=1.0, paraphrase=0.5, specificity=0.25),))
    assert three.score == pytest.approx(3 / (1 + 2 + 4))
    assert Evaluation((CaseResult(efficacy=0.0, paraphrase=0.5, specificity=1.0),)).score == 0.0


def test_intervals_are_percentiles_of_resampled_means() -> None:
    found = made()
    interval = found.intervals(seed=3, resamples=200)
    rng = np.random.default_rng(3)
    means: dict[str, list[float]] = {"efficacy": [], "paraphrase": [], "score": []}
    for _ in range(200):
        drawn = [found.results[i] for i in rng.integers(0, 40, 40)]
        part = Evaluation(tuple(drawn))
        for name, values in means.items():
            values.append(part.summary()[name])
    for name, values in means.items():
        low, high = np.percentile(values, [2.5, 97.5])
        assert interval[name].low == pytest.approx(low)
        assert interval[name].high == pytest.approx(high)
        assert interval[name].mean == pytest.approx(found.summary()[name])
        assert interval[name].low < interval[name].mean < interval[name].high
    assert interval["paraphrase"].n_cases == 26 and interval["efficacy"].n_cases == 40


def test_intervals_repeat_with_their_seed_and_narrow_with_cases() -> None:
    assert made().intervals() == made().intervals()
    assert made().intervals(seed=1) != made().intervals(seed=2)
    few, many = made(40).intervals()["specificity"], made(1000).intervals()["specificity"]
    assert many.high - many.low < 0.3 * (few.high - few.low)


def test_a_measure_that_one_case_has_survives_resampling() -> None:
    rare = Evaluation((CaseResult(efficacy=1.0, portability=0.5), *made(60).results))
    interval = rare.intervals()["portability"]
    assert (interval.mean, interval.low, interval.high, interval.n_cases) == (0.5, 0.5, 0.5, 1)


def test_frames_and_json_tell_the_same() -> None:
    found = made()
    frame = found.to_frame()
    assert list(frame.columns) == ["fact", *MEASURES] and len(frame) == 40
    assert frame["paraphrase"].isna().sum() == 14
    assert frame["efficacy"].mean() == pytest.approx(found.mean("efficacy"))
    table = found.table()
    assert table.loc["specificity", "mean"] == pytest.approx(found.mean("specificity"))
    data = json.loads(found.to_json())
    assert data["measures"]["score"]["mean"] == pytest.approx(found.score)
    assert Evaluation.from_dict(data) == found
    assert found._repr_html_().count("<tr>") == 1 + len(table)


def test_evaluations_join() -> None:
    found = made()
    assert Evaluation.join([Evaluation(found.results[:7]), Evaluation(found.results[7:])]) == found
