"""Settings are chosen on validation rows, with the same effort for every strategy."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from lessons import labelled

from editcl.benchmarks import tune as tuning
from editcl.benchmarks.learn import ALL
from editcl.benchmarks.tune import (
    KIND_LRS,
    LRS,
    TUNED,
    VARIANTS,
    WEIGHTS,
    Trial,
    Tuned,
    read_tuning,
    shipped_tuning,
    tune,
    validation,
)
from editcl.errors import EditclError
from editcl.evaluation.compare import weight_checksums
from editcl.learning.kinds import KINDS
from editcl.learning.runs import JOINT, Bench
from editcl.learning.settings import TrainSettings
from editcl.learning.shipped import KINDS as SUBJECTS
from editcl.learning.shipped import VALID
from editcl.learning.strategies import STRATEGIES
from editcl.learning.tasks import Example, Task, TaskError

STREAM = (labelled("one"), labelled("two", ("red", "blue")), labelled("three", ("up", "down")))
SETTINGS = TrainSettings(steps=3, batch_size=4, lr=1e-2, autocast="off")


def test_every_weight_is_tried_as_often_and_begins_with_the_usual_one() -> None:
    assert set(WEIGHTS) < set(STRATEGIES)
    assert {len(values) for _, values in WEIGHTS.values()} == {3}
    for name, (argument, (first, *others)) in WEIGHTS.items():
        make = STRATEGIES[name]
        usual = make(**{argument: first}).settings()
        assert usual == make().settings(), name
        for value in others:
            assert make(**{argument: value}).settings() != usual, (name, value)


def test_of_equals_the_first_is_chosen() -> None:
    trials = tuple(Trial(lr, None, score, 0.0) for lr, score in ((1, 0.5), (2, 0.7), (3, 0.7)))
    assert Tuned("x", None, trials).best.lr == 2
    assert Tuned("x", None, trials).arguments() == {}
    assert Tuned("x", "weight", (Trial(1, 4.0, 0.1, 0.0),)).arguments() == {"weight": 4.0}


def test_rates_come_first_and_then_weights_at_the_best_rate(model, monkeypatch) -> None:
    score = {LRS[0]: 0.2, LRS[1]: 0.6}
    asked = []

    def run(bench, make, seed, single):
        asked.append((bench.settings.lr, make().weight))

        class Run:
            seconds = (1.0, 2.0)

            def metrics(self):
                return {"OP": score[bench.settings.lr] + 0.01 * make().weight}

        return Run()

    monkeypatch.setattr(tuning, "one_run", run)
    found = tuning.tune_strategy(Bench.of(model, STREAM[:2], SETTINGS, None, (0,), None), "olora")
    assert asked == [*((lr, 0.5) for lr in LRS), (LRS[1], 0.1), (LRS[1], 5.0)]
    assert (found.best.lr, found.best.value, found.best.seconds) == (LRS[1], 5.0, 3.0)


def test_it_learns_the_first_tasks_and_never_looks_at_tests(model, monkeypatch) -> None:
    judged = []
    of = Bench.of

    def watched(model, stream, *others):
        judged.extend(stream)
        return of(model, stream, *others)

    monkeypatch.setattr(Bench, "of", watched)
    before = weight_checksums(model)
    found = tune(
        model, stream=STREAM, strategies=("sequential", JOINT), kinds=("ia3",),
        settings=SETTINGS, n_tasks=2,
    )  # fmt: skip
    assert weight_checksums(model) == before
    assert found.tasks == ("one", "two") and set(found.strategies) == {"sequential", JOINT}
    for given, used in zip(STREAM, judged, strict=False):
        assert set(used.train) | set(used.test) == set(given.train)
        assert not set(used.train) & set(used.test)
    assert found.n_valid == sum(len(task.test) for task in judged)
    assert [t.lr for t in found.kinds["ia3"].trials] == list(KIND_LRS)
    assert all(0 <= t.score <= 1 and t.seconds > 0 for t in found.strategies[JOINT].trials)


def test_what_is_saved_comes_back(tmp_path) -> None:
    found = shipped_tuning()
    found.save(tmp_path / "a.json")
    assert read_tuning(tmp_path / "a.json") == found
    head, rows = found.rows()
    assert all(len(row) == len(head) for row in rows)
    assert sum(row[-1] == "chosen" for row in rows) == len(found.strategies) + len(found.kinds)


def test_the_shipped_settings_are_of_every_strategy_and_kind() -> None:
    found = shipped_tuning()
    assert set(found.strategies) == set(TUNED) and set(found.kinds) == set(KINDS)
    assert {JOINT, *ALL} == {*TUNED, *VARIANTS} and {*VARIANTS.values()} < {*TUNED}
    assert found.of("ewc_online") is found.strategies["ewc"]
    assert found.maker("ewc_online")().keeps == "online"
    assert found.settings == tuning.SETTINGS
    assert found.n_valid == len(found.tasks) * len(SUBJECTS) * VALID
    for name, one in found.strategies.items():
        argument, values = WEIGHTS.get(name, (None, (None,)))
        assert [t.lr for t in one.trials[: len(LRS)]] == list(LRS), name
        tried = [one.trials[0].value, *(t.value for t in one.trials[len(LRS) :])]
        assert (one.argument, tried) == (argument, list(values)), name
        made = found.maker(name)
        assert callable(made) and made().name == STRATEGIES[name]().name
    for one in found.kinds.values():
        assert [trial.lr for trial in one.trials] == list(KIND_LRS)
    assert replace(found, strategies={}).maker("ewc") == "ewc", "the usual one, by its name"


def test_bad_input_is_told(tmp_path, model) -> None:
    with pytest.raises(EditclError, match="no strategy 'magic'"):
        tune(model, stream=STREAM, strategies=("magic",), kinds=())
    with pytest.raises(EditclError, match="forgetting takes two"):
        tune(model, stream=STREAM, strategies=(), kinds=(), n_tasks=1)
    with pytest.raises(EditclError, match="there is no file"):
        read_tuning(tmp_path / "none.json")
    for text in ("{", "[]", json.dumps({"model": "x"})):
        (tmp_path / "bad.json").write_text(text, encoding="utf-8")
        with pytest.raises(EditclError, match="holds no chosen settings"):
            read_tuning(tmp_path / "bad.json")
    few = Task("few", (Example("a", "x"), Example("b", "y")), kind="classification")
    with pytest.raises(TaskError, match="leave none to choose settings on"):
        validation([few])
