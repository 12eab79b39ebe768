"""The model seen through adapters: hooks, scores and generation."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from adapters import SMALL, inputs_of, trained

import editcl
from editcl.encoding import Sentence
from editcl.errors import EditclError
from editcl.learning.kinds import KINDS, AdapterSettings
from editcl.learning.lora import Adapters
from editcl.model import EditableModel

SETTINGS = {kind: AdapterSettings(kind, rank=2, virtual_tokens=3) for kind in KINDS}
SENTENCES = [
    Sentence("{} is in", "The Eiffel Tower", "Rome"),
    Sentence("{} is owned by", "Beats Music", "Apple"),
]


@pytest.fixture
def bank(model: EditableModel) -> Adapters:
    found = Adapters(model)
    for i, kind in enumerate(KINDS):
        trained(found, kind, SETTINGS[kind], seed=i)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_logits_row_by_row(bank: Adapters, kind: str) -> None:
    with bank.using([kind]):
        scores = bank.view.score(SENTENCES)
        for sentence, score in zip(SENTENCES, scores.log_prob, strict=True):
            (row,) = bank.model.encode([sentence])
            with torch.no_grad():
                logits = bank.logits({"input_ids": torch.tensor([row.ids])})[0]
            log_probs = logits.log_softmax(-1)
            naive = [
                float(log_probs[i - 1, row.ids[i]]) for i in range(row.target_start, len(row.ids))
            ]
            assert float(score) == pytest.approx(sum(naive) / len(naive), abs=1e-4)
    assert not torch.allclose(scores.log_prob, bank.model.score(SENTENCES).log_prob, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_kept_positions_are_those_of_all_logits(bank: Adapters, kind: str) -> None:
    inputs, keep = inputs_of(bank.model), torch.tensor([1, 3])
    rows, positions = torch.tensor([0, 2, 1]), torch.tensor([4, 0, 2])
    with torch.no_grad(), bank.using([kind]):
        every = bank.logits(inputs)
        kept = bank.logits(inputs, keep=keep)
        at = bank.view.forward(inputs, at=(rows, positions))
    torch.testing.assert_close(kept, every[:, keep], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(at[0], every[rows, positions], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_texts_are_those_of_the_logits_token_by_token(bank: Adapters, kind: str) -> None:
    rows = [[5, 6, 7, 8], [9, 10], [11, 12, 13, 14]]
    with bank.using([kind]):
        new = bank.view.generate_ids(rows, 4)
        assert torch.equal(
            bank.view.generate_ids(rows, 4, seed=3), bank.view.generate_ids(rows, 4, seed=3)
        )
    for row, tokens in zip(rows, new.tolist(), strict=True):
        ids = list(row)
        for token in tokens:
            with torch.no_grad(), bank.using([kind]):
                logits = bank.logits({"input_ids": torch.tensor([ids])})[0, -1]
            logits[0] = float("-inf")  # the end of the text
            assert float(logits[token]) == pytest.approx(float(logits.max()), abs=1e-4)
            ids.append(token)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_hooks_see_what_the_adapters_make_of_the_model(name: str, tokenizer: Any) -> None:
    bank = Adapters(editcl.wrap(tiny.build(name), tokenizer))
    trained(bank, "x", SMALL)
    points = ["blocks.1.mlp.hook_post", "blocks.1.mlp.out.hook_out", "blocks.2.hook_resid_post"]
    inputs = inputs_of(bank.model)
    with bank.using(["x"]):
        logits, seen = bank.view.run_with_cache(inputs, points)
        weight = bank.view.hf.get_submodule(str(bank.view.map.path("blocks.1.mlp.out")))
        with torch.no_grad():
            value = weight(seen["blocks.1.mlp.hook_post"])
    torch.testing.assert_close(seen["blocks.1.mlp.out.hook_out"], value)
    base = bank.model.run_with_cache(inputs, points)[1]
    assert all(not torch.allclose(seen[point], base[point], atol=1e-3) for point in points)
    assert logits.shape[:2] == inputs["input_ids"].shape


def test_virtual_tokens_take_room_and_no_cache(bank: Adapters) -> None:
    for kind in ("prefix", "prompt"):
        with bank.using([kind]):
            assert bank.view.max_tokens == bank.model.max_tokens - 3
            with pytest.raises(EditclError, match="no cache"):
                bank.view.forward_caching(inputs_of(bank.model))
            with pytest.raises(EditclError, match="beside the 3 virtual"):
                bank.view.generate_ids([[5] * 90], 5)
            with pytest.raises(EditclError, match="position_ids"):
                bank.logits(
                    {"input_ids": torch.ones(1, 2).long(), "position_ids": torch.ones(1, 2)}
                )
    with bank.using(["lora"]):
        assert bank.view.max_tokens == bank.model.max_tokens


def test_a_view_is_at_base_when_its_model_is_and_shares_its_log(bank: Adapters) -> None:
    assert bank.view.log is bank.model.log
    with bank.view.at_base():
        pass
    base = bank.model.fingerprint()
    assert bank.view.fingerprint() == base
    prints = set()
    for kind in KINDS:
        with bank.using([kind]):
            prints.add(bank.view.fingerprint())
    assert len(prints) == len(KINDS) and base not in prints
