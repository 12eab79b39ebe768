"""Readings: one batched pass equals one example at a time."""

from __future__ import annotations

import pytest
import torch

from editcl.learning.tasks import Example, TaskError
from editcl.model import EditableModel
from editcl.routing.reading import read, sample

EXAMPLES = [
    Example("The Eiffel Tower is in", "Paris"),
    Example("Rome", "is a city"),
    Example("The Colosseum is located in the city of", "Rome and Paris"),
]


def test_a_reading_is_what_one_example_at_a_time_gives(any_model: EditableModel) -> None:
    model = any_model
    found = read(model, EXAMPLES)
    names = [f"blocks.{i}.hook_resid_post" for i in (model.n_layers // 2, model.n_layers - 1)]
    for i, row in enumerate(found.rows):
        ids = torch.tensor([row.ids], device=model.device)
        logits, cache = model.run_with_cache({"input_ids": ids}, names)
        logs = logits[0].float().log_softmax(-1).cpu()
        at = row.start - 1
        middle, last = (cache[name][0].float().cpu() for name in names)
        for state, value in (("middle", middle[at]), ("last", last[at])):
            torch.testing.assert_close(found.states[state][i], value, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(
            found.states["mean"][i], middle[: at + 1].mean(0), rtol=1e-3, atol=1e-3
        )
        torch.testing.assert_close(found.first[i], logs[at], rtol=1e-3, atol=1e-3)
        own = range(row.start, len(row.ids) - 1)  # the end token aside
        scores = torch.stack([logs[j - 1, row.ids[j]] for j in own])
        torch.testing.assert_close(found.log_prob[i], scores.mean(), rtol=1e-3, atol=1e-3)
        rest = -scores[1:].mean() if len(scores) > 1 else torch.tensor(0.0)
        torch.testing.assert_close(found.rest_loss[i], rest, rtol=1e-3, atol=1e-3)
        assert found.exact[i] == all(int(logs[j - 1].argmax()) == row.ids[j] for j in own)
        prompt = torch.stack(
            [-logs[j - 1, row.ids[j]] for j in range(1, row.start)] or [at * torch.nan]
        )
        if at:
            torch.testing.assert_close(found.prompt_loss[i], prompt.mean(), rtol=1e-3, atol=1e-3)


def test_what_the_model_says_is_exact(model: EditableModel) -> None:
    (said,) = model.generate(["The Eiffel Tower"], 2)
    found = read(model, [Example("The Eiffel Tower", said), Example("The Eiffel Tower", "of Rome")])
    assert found.exact == (True, False)


def test_a_sample_is_drawn_by_seed_and_in_order() -> None:
    assert sample(5, at_most=9) == [0, 1, 2, 3, 4]
    drawn = sample(1000, seed=1, at_most=50)
    assert drawn == sorted(set(drawn)) and len(drawn) == 50
    assert drawn == sample(1000, seed=1, at_most=50) != sample(1000, seed=2, at_most=50)


def test_long_prompts_lose_their_middle_and_long_answers_are_refused(model: EditableModel) -> None:
    read(model, [Example("The city " * 200, "Rome")])
    with pytest.raises(TaskError, match="completion"):
        read(model, [Example("The", "city of Rome " * 200)])
