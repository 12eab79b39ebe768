"""The protocols run on any domains and models, and their figures are the definitions'."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import streams
import torch

import editcl
from editcl.errors import EditclError
from editcl.learning.kinds import AdapterSettings
from editcl.learning.lora import Adapters
from editcl.learning.predict import score_task
from editcl.learning.protocol_results import PretrainingReport, TimeReport
from editcl.learning.protocols import (
    continual_pretraining,
    domain,
    domain_features,
    similar_order,
    time_stamped,
)
from editcl.learning.settings import TrainSettings
from editcl.learning.tasks import TaskError
from editcl.model import EditableModel

SETTINGS = TrainSettings(epochs=4, batch_size=6, lr=1e-2, autocast="off")
ADAPTER = AdapterSettings(rank=2)


@pytest.fixture(scope="module")
def model(tokenizer) -> EditableModel:
    import tiny

    return editcl.wrap(tiny.build("gpt2"), tokenizer)


@pytest.fixture(scope="module")
def pretrained(model: EditableModel, tokenizer) -> PretrainingReport:
    import tiny

    larger = editcl.wrap(tiny.build("llama"), tokenizer)
    return continual_pretraining(
        {"small": model, "other": larger},
        streams.domains(),
        settings=SETTINGS,
        adapter=ADAPTER,
        seeds=(0,),
    )


@pytest.fixture(scope="module")
def timed(model: EditableModel) -> TimeReport:
    return time_stamped(model, streams.domains(), settings=SETTINGS, adapter=ADAPTER, seeds=(0, 1))


def test_every_model_learns_the_domains_in_every_order(pretrained: PretrainingReport) -> None:
    places = [(run.model, run.order) for run in pretrained.runs]
    assert places == [(m, o) for m in ("small", "other") for o in ("similar", "random")]
    for name in ("small", "other"):
        orders = {pretrained[name, order].result.tasks for order in ("similar", "random")}
        assert len(orders) == 2
    for run in pretrained.runs:
        assert sorted(run.result.tasks) == ["cities", "music", "towns"]
        assert run.n_parameters > 10_000


def test_perplexities_are_those_of_base_single_run_diagonal_and_last_row(
    pretrained: PretrainingReport, model: EditableModel
) -> None:
    run = pretrained["small", "similar"]
    (one,) = run.result.runs
    found = run.perplexity()
    for j, name in enumerate(run.result.tasks):
        (task,) = (t for t in streams.domains() if t.name == name)
        base = score_task(Adapters(model), task).score
        assert found["ZS"][j] == pytest.approx(math.exp(-base))
        assert one.single is not None
        assert found["FT"][j] == pytest.approx(math.exp(-one.single[j]))
        assert found["CPT"][j] == pytest.approx(math.exp(-one.scores[j + 1][j]))
        assert found["LC"][j] == pytest.approx(math.exp(-one.scores[-1][j]))
    assert (found["CPT"] < found["ZS"]).all()
    forgotten = run.forgetting()
    assert forgotten is not None
    assert forgotten.mean == pytest.approx((found["LC"] - found["CPT"])[:2].mean())
    # The first domain of the stream is learnt from the base, like the single run on it.
    assert found["FT"][0] == found["CPT"][0]


def test_alike_domains_stand_next_to_each_other(model: EditableModel) -> None:
    order = similar_order(domain_features(model, streams.domains()))
    assert order == [0, 2, 1]
    features = torch.tensor([[0.0, 1.0], [1.0, -1.0], [0.1, 1.1], [1.1, -1.2]])
    assert similar_order(features) == [0, 2, 3, 1] or similar_order(features) == [0, 2, 1, 3]


def test_a_report_of_pretraining_comes_back_equal_and_reads_well(
    pretrained: PretrainingReport,
) -> None:
    assert PretrainingReport.from_dict(json.loads(pretrained.to_json())) == pretrained
    assert len(pretrained.to_frame()) == 4 * 3
    assert "LC - CPT" in repr(pretrained) and "<table>" in pretrained._repr_html_()
    with pytest.raises(EditclError, match="no run"):
        pretrained["small", "given"]


def test_regret_is_the_oracles_score_less_the_streams(timed: TimeReport) -> None:
    regrets = timed.regrets()
    assert regrets.shape == (2, 3, 3)
    for s, (run, best) in enumerate(zip(timed.result.runs, timed.oracle.runs, strict=True)):
        for i in range(3):
            for j in range(3):
                oracle = best.scores[j + 1][j]
                assert regrets[s, i, j] == pytest.approx(oracle - run.scores[i + 1][j])
    found = timed.summary()
    lower = [regrets[:, i, j] for i in range(3) for j in range(i)]
    assert found["backward"].mean == pytest.approx(float(np.mean(lower)))
    assert found["forward"].mean > found["in_distribution"].mean
    # One step alone is its own oracle.
    assert regrets[0, 0, 0] == pytest.approx(0.0, abs=1e-6)


def test_a_report_over_time_comes_back_equal_and_reads_well(timed: TimeReport) -> None:
    assert TimeReport.from_dict(json.loads(timed.to_json())) == timed
    assert list(timed.to_frame().columns) == ["towns", "music", "cities"]
    assert "in-distribution" in repr(timed) and "<table>" in timed._repr_html_()


def test_both_reports_are_drawn(pretrained: PretrainingReport, timed: TimeReport, tmp_path) -> None:
    for name, report in (("pretraining", pretrained), ("regret", timed)):
        path = tmp_path / f"{name}.png"
        report.plot(path=path)
        assert path.stat().st_size > 10_000


def test_a_domain_is_texts_with_a_share_held_out() -> None:
    texts = [f"sentence number {i}" for i in range(10)]
    task = domain("numbers", texts)
    assert (len(task.train), len(task.test), task.kind) == (8, 2, "text")
    given = domain("numbers", texts, ["another one"])
    assert len(given.train) == 10 and given.test[0].completion == "another one"


def test_what_is_wrong_is_said_before_anything_is_trained(model: EditableModel) -> None:
    domains = streams.domains()
    with pytest.raises(TaskError, match="not 'text'"):
        continual_pretraining(model, streams.conflicting())
    with pytest.raises(EditclError, match=r"no order \['alphabetic'\]"):
        continual_pretraining(model, domains, orders=("alphabetic",))
    with pytest.raises(EditclError, match="no model"):
        continual_pretraining({}, domains)
    with pytest.raises(EditclError, match="Set epochs instead"):
        time_stamped(model, domains, settings=replace(SETTINGS, steps=5))
