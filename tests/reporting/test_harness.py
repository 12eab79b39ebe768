"""Tasks of lm-eval on both sides, by a local task and a computation of its own."""

from __future__ import annotations

import json
import math
import random
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from histories import ASKED, COLOURS, KNOWN, TEXTS, bare
from lessons import QUICK

from editcl.errors import EditclError
from editcl.evaluation.compare import weight_checksums
from editcl.learner import Learner
from editcl.learner.judge import Judge
from editcl.learning.kinds import AdapterSettings
from editcl.reporting import HarnessLine, report
from editcl.reporting.harness import harness, require_harness
from editcl.reporting.sides import Sides

pytestmark = [
    pytest.mark.skipif(
        find_spec("lm_eval") is None, reason="needs the extra: pip install 'editcl[lm-eval]'"
    ),
    # lm-eval's and its dependencies' own affairs.
    pytest.mark.filterwarnings("default"),
]

ROWS = [
    {"q": f"The Tower {i} is in the city of", "choices": ["Paris", "Rome"], "gold": i % 2}
    for i in range(6)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("lm-eval")
    lines = "\n".join(json.dumps(row) for row in ROWS)
    (place / "rows.jsonl").write_text(lines, encoding="utf-8")
    return place


@pytest.fixture(scope="module")
def learner() -> Learner:
    """One skill, and every prompt goes to it."""
    one = Learner(bare(), abstain=None)
    one.learn(COLOURS, "train", settings=QUICK, show=False)
    return one


@pytest.fixture(scope="module")
def sides(learner: Learner) -> Sides:
    return Sides(Judge(learner.skills, learner.abstain))


def local(folder: Path, name: str, **config: Any) -> dict[str, Any]:
    kwargs = {
        "data_files": {"test": str(folder / "rows.jsonl")},
        "cache_dir": str(folder / "cache"),
    }
    common = {"dataset_path": "json", "dataset_kwargs": kwargs, "test_split": "test"}
    return {"task": name, **common, **config}


def choice(folder: Path) -> dict[str, Any]:
    return local(
        folder,
        "local_choice",
        output_type="multiple_choice",
        doc_to_text="{{q}}",
        doc_to_choice="{{choices}}",
        doc_to_target="{{gold}}",
        metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    )


def rolling(folder: Path) -> dict[str, Any]:
    return local(
        folder,
        "local_text",
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{q}}",
        metric_list=[{"metric": "word_perplexity"}],
    )


def run(sides: Sides, tasks: list[Any], seed: int = 0) -> list[HarnessLine]:
    return harness(sides, tasks, require_harness(tasks), seed=seed)


def sum_log_prob(hf: Any, ids: list[int], begin: int) -> float:
    with torch.no_grad():
        scores = hf(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(float(scores[at - 1, ids[at]]) for at in range(begin, len(ids)))


def accuracy(hf: Any, tokenizer: Any) -> float:
    right = 0
    for row in ROWS:
        prompt = tokenizer(row["q"])["input_ids"]
        ends = [tokenizer(f" {word}")["input_ids"] for word in row["choices"]]
        sums = [sum_log_prob(hf, prompt + end, len(prompt)) for end in ends]
        right += sums.index(max(sums)) == row["gold"]
    return right / len(ROWS)


def perplexity(hf: Any, tokenizer: Any) -> float:
    texts = [row["q"] for row in ROWS]
    end = tokenizer.eos_token_id
    total = sum(sum_log_prob(hf, [end, *tokenizer(text)["input_ids"]], 1) for text in texts)
    return math.exp(-total / sum(len(text.split()) for text in texts))


def test_figures_of_both_sides_are_those_of_plain_forward_passes(folder, sides, learner) -> None:
    found = {f"{o.task} {o.metric}": o for o in run(sides, [choice(folder), rolling(folder)])}
    tokenizer, untouched = learner.model.tokenizer, bare().hf
    adapters = learner.skills.adapters
    acc, text = found["local_choice acc"], found["local_text word_perplexity"]
    assert acc.base == accuracy(untouched, tokenizer)
    assert text.base == pytest.approx(perplexity(untouched, tokenizer), rel=1e-4)
    with adapters.using(("colours",)):
        assert acc.now == accuracy(adapters.view.hf, tokenizer)
        assert text.now == pytest.approx(perplexity(adapters.view.hf, tokenizer), rel=1e-4)
    assert text.now != pytest.approx(text.base, rel=1e-3), "a positive control: the skill shows"
    assert acc.n == text.n == len(ROWS)
    assert acc.higher_is_better is True and text.higher_is_better is False
    assert acc.stderr is not None


def test_a_prompt_that_inference_gives_to_no_skill_is_answered_by_the_base(folder, learner) -> None:
    far = Sides(Judge(learner.skills, 1e-6))
    (line,) = run(far, [rolling(folder)])
    assert line.now == pytest.approx(line.base, rel=1e-6)


def test_a_yaml_file_is_a_task_and_limits_hold(folder, learner) -> None:
    file = folder / "say.yaml"
    config = local(
        folder,
        "local_say",
        output_type="generate_until",
        doc_to_text="{{q}}",
        doc_to_target="{{choices[gold]}}",
        generation_kwargs={"until": ["."], "max_gen_toks": 3},
        metric_list=[
            {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True},
        ],
    )
    file.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    found = report(
        learner, lm_eval=[file], limit=4, facts=KNOWN, texts=TEXTS, instructions=ASKED, show=False
    )
    (line,) = found.harness
    assert (line.task, line.metric, line.n) == ("local_say", "exact_match", 4)
    assert 0 <= line.base <= 1 and found.to_json()["lm_eval"][0]["task"] == "local_say"
    assert "local_say: exact_match" in repr(found)


def test_weights_and_random_states_are_left_as_they_were(folder, sides, learner) -> None:
    def states() -> tuple[Any, ...]:
        return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()

    weights, before = weight_checksums(learner.model), states()
    run(sides, [choice(folder)], seed=5)
    assert states() == before and weight_checksums(learner.model) == weights


def test_unknown_tasks_files_and_data_are_named(folder, sides) -> None:
    with pytest.raises(EditclError, match=r"no task 'hellaswig'; did you mean .*hellaswag"):
        require_harness(["hellaswig"])
    with pytest.raises(EditclError, match="put 'hellaswag' in brackets"):
        require_harness("hellaswag")
    with pytest.raises(EditclError, match="no file"):
        require_harness([folder / "nowhere.yaml"])
    with pytest.raises(EditclError, match="needs its name"):
        require_harness([{"dataset_path": "json"}])
    lost = choice(folder)
    lost["dataset_kwargs"] = {"data_files": {"test": str(folder / "nowhere.jsonl")}}
    with pytest.raises(EditclError, match="lm-eval can't run local_choice"):
        run(sides, [lost])


def test_adapters_that_put_tokens_in_front_are_refused(folder) -> None:
    one = Learner(bare(), abstain=None)
    kind = AdapterSettings("prompt", virtual_tokens=2)
    one.learn(COLOURS, "train", settings=QUICK, adapter=kind, show=False)
    with pytest.raises(EditclError, match="through a prompt adapter"):
        run(Sides(Judge(one.skills, None)), [choice(folder)])
