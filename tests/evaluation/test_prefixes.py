"""Sharing changes what is computed, never what comes out: against plain forward passes."""

from __future__ import annotations

import random

import pytest
import tiny
import torch

import editcl
from editcl import partial
from editcl.encoding import Row
from editcl.evaluation.prefixes import follow
from editcl.model import EditableModel

HEADS = [(7, 8, 9, 10, 11), (7, 8, 20), (30,)]


def made_rows(count: int = 24, seed: int = 0) -> list[Row]:
    """Rows of all lengths, many of which begin alike, some of which have the same prompt."""
    rng = random.Random(seed)
    prompts = [
        (*rng.choice(HEADS)[: rng.randint(1, 5)], *(rng.randrange(2, 500) for _ in range(n % 6)))
        for n in range(count // 2)
    ]
    rows = []
    for n in range(count):
        prompt = prompts[n % len(prompts)]
        target = tuple(rng.randrange(2, 500) for _ in range(1 + n % 4))
        rows.append(Row((*prompt, *target), -1, -1, len(prompt)))
    return rows


def naive(model: EditableModel, row: Row) -> tuple[list[float], list[bool], list[int]]:
    with torch.no_grad():
        logits = model.hf(torch.tensor([row.ids])).logits[0].double()
    at = range(row.target_start, len(row.ids))
    log_probs = [float(logits[i - 1].log_softmax(-1)[row.ids[i]]) for i in at]
    greedy = logits.argmax(-1)[row.target_start - 1 :].tolist()
    return log_probs, [g == row.ids[i] for g, i in zip(greedy, at, strict=False)], greedy


@pytest.mark.parametrize("tokens_per_batch", [20, 1000])
def test_every_target_has_the_numbers_of_a_forward_pass_of_its_own(
    any_model, monkeypatch, tokens_per_batch: int
) -> None:
    monkeypatch.setattr(partial, "pass_costs", lambda _: 2)
    rows = made_rows()
    for row, found in zip(
        rows, follow(any_model, rows, tokens_per_batch=tokens_per_batch), strict=True
    ):
        log_probs, hits, greedy = naive(any_model, row)
        assert found.log_probs == pytest.approx(log_probs, abs=1e-5)
        assert found.hits == hits
        assert found.greedy == greedy[: len(found.greedy)]
        assert len(found.greedy) == row.n_target


def test_fewer_tokens_are_run_than_there_are(model, monkeypatch) -> None:
    counted = []
    forward = model.hf.forward

    def counting(*args, **kwargs):
        counted.append(int(kwargs["input_ids"].numel()))
        return forward(*args, **kwargs)

    monkeypatch.setattr(model.hf, "forward", counting)
    monkeypatch.setattr(partial, "pass_costs", lambda _: 0)
    rows = made_rows(200)
    follow(model, rows, tokens_per_batch=4096)
    assert sum(counted) < 0.7 * sum(len(row.ids) for row in rows)


def test_the_token_behind_a_greedy_target_is_known_where_asked(model) -> None:
    prompt = (7, 8, 9)
    said = tuple(model.generate_ids([prompt], 4)[0].tolist())
    rows = [Row(prompt + said[:n], -1, -1, 3) for n in (1, 2, 3)]
    found = follow(model, rows, beyond=[0, 2], never=[0], tokens_per_batch=100)
    assert [one.greedy for one in found] == [list(said[:2]), list(said[:2]), list(said)]
    assert all(all(one.hits) for one in found)


def test_greedy_says_no_token_that_generation_suppresses(model) -> None:
    row = Row((7, 8, 9, 3), -1, -1, 3)
    first = follow(model, [row], tokens_per_batch=100)[0].greedy[0]
    second = follow(model, [row], never=[first], tokens_per_batch=100)[0].greedy[0]
    assert second != first


def test_windows_smaller_than_the_text_are_left_alone(tokenizer, monkeypatch) -> None:
    """Positions hidden between head and rest would count as part of a sliding window."""
    monkeypatch.setattr(partial, "pass_costs", lambda _: 40)
    model = editcl.wrap(tiny.build("mistral", sliding_window=4), tokenizer)
    rows = made_rows(200)
    for row, found in zip(rows, follow(model, rows, tokens_per_batch=1000), strict=True):
        assert found.log_probs == pytest.approx(naive(model, row)[0], abs=1e-5)
