"""What tells layers apart: nothing that the unedited model fails, and no nought that hides all."""

from __future__ import annotations

import pytest

from editcl.editing.calibrate import GAINS, JUDGED, LEAST, judged_by, layer_score

GOOD = {"efficacy": 1.0, "paraphrase": 0.5, "specificity": 0.5, "same_subject": 1.0}


def test_what_the_unedited_model_gets_wrong_tells_nothing() -> None:
    whole = dict.fromkeys(JUDGED, 1.0) | {"efficacy": 0.0, "paraphrase": 0.0}
    assert judged_by(whole) == JUDGED
    assert judged_by(whole | {"same_subject": 0.49}) == JUDGED[:-1]
    assert judged_by({"efficacy": 0.0, "specificity": None}) == GAINS


def test_the_score_is_the_harmonic_mean_of_what_is_judged() -> None:
    assert layer_score(GOOD, JUDGED) == pytest.approx(4 / (1 + 2 + 2 + 1))
    assert layer_score(GOOD, GAINS) == pytest.approx(2 / 3)


def test_a_nought_does_not_hide_the_other_measures() -> None:
    better, worse = ({**GOOD, "same_subject": 0.0, "efficacy": e} for e in (0.9, 0.3))
    assert layer_score(better, JUDGED) > layer_score(worse, JUDGED) > 0
    assert layer_score({"efficacy": 0.0}, JUDGED) == pytest.approx(LEAST)


def test_without_any_judged_measure_all_that_there_are_count() -> None:
    assert layer_score({"specificity": 0.4}, GAINS) == pytest.approx(0.4)
    assert layer_score({}, JUDGED) == 0.0
