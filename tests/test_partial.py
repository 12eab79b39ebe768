"""Passes that recompute little, against plain ones."""

from __future__ import annotations

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import MptConfig, MptForCausalLM

import editcl
from editcl import partial
from editcl.model import EditableModel
from editcl.partial import SuffixRun, reading_alone, shared_heads

#: Rows that begin alike, one of which is there twice, and one without anything in front.
ROWS = [
    (7, 8, 9, 10, 21, 22),
    (7, 8, 9, 10, 30, 31, 32),
    (7, 8, 9, 10, 21, 40),
    (7, 8, 9, 10, 21, 40),
    (7, 8, 50, 51),
    (60, 61),
]
STARTS = [4, 5, 5, 5, 2, 0]
AT = (torch.tensor([0, 1, 2, 3, 4, 5]), torch.tensor([1, 1, 0, 0, 1, 1]))


def plain(model: EditableModel, shifts: torch.Tensor, layer: int) -> torch.Tensor:
    """Logits at AT, row by row, nothing skipped."""
    found = []
    for i, (row, start) in enumerate(zip(ROWS, STARTS, strict=True)):

        def add(residual: torch.Tensor, _hook, i: int = i, start: int = start) -> torch.Tensor:
            shift = torch.zeros_like(residual)
            shift[0, start] = shifts[i]
            return residual + shift

        with model.hooks({f"blocks.{layer}.hook_resid_pre": add}):
            logits = model.forward(model.pad([row]))
        found.append(logits[0, start + int(AT[1][i])])
    return torch.stack(found)


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("costs", [0, 10**9], ids=["shared", "apart"])
def test_a_suffix_run_is_the_plain_one(any_model, monkeypatch, costs: int, narrow: bool) -> None:
    monkeypatch.setattr(partial, "pass_costs", lambda _: costs)
    layer = any_model.n_layers - 1
    run, _ = SuffixRun.prepare(any_model, ROWS, STARTS, layer)
    gradients, values = [], []
    for ours in (True, False):
        shifts = torch.randn(len(ROWS), any_model.d_model, generator=torch.manual_seed(0))
        shifts.requires_grad_(True)
        logits = run.logits(AT, shifts, narrow=narrow) if ours else plain(any_model, shifts, layer)
        values.append(logits.detach())
        gradients.append(torch.autograd.grad(logits.log_softmax(-1)[:, 3].sum(), shifts)[0])
    torch.testing.assert_close(values[0], values[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-5)
    assert float(gradients[0].abs().max()) > 1e-4


def test_what_rows_share_is_run_once(model, monkeypatch) -> None:
    counted = []
    forward = model.hf.forward

    def counting(*args, **kwargs):
        counted.append(int(kwargs["input_ids"].numel()))
        return forward(*args, **kwargs)

    monkeypatch.setattr(partial, "pass_costs", lambda _: 0)
    reading_alone(model, 1)  # tries once what it says
    monkeypatch.setattr(model.hf, "forward", counting)
    rows = [(*range(10, 30), 100 + i, 5, 6) for i in range(8)]
    SuffixRun.prepare(model, rows + rows, [21] * 16, 1)
    # The head, what is each row's own in front of its start (once), the suffixes (twice), and the
    # first block of them again, for what it holds.
    assert counted == [20, 8, 16 * 2, 16 * 2]


def test_queries_keys_and_values_read_each_position_by_itself(any_model) -> None:
    for layer in (0, any_model.n_layers - 1):
        found = reading_alone(any_model, layer)
        assert found and len(found) in (1, 3)
        out = any_model.map.path(f"blocks.{layer}.attn.o")
        assert out is not None and out not in found


def test_what_reads_alone_is_asked_anew_when_an_adapter_comes_or_goes(model) -> None:
    class Around(nn.Module):
        def __init__(self, base: nn.Module) -> None:
            super().__init__()
            self.base_layer = base

        def forward(self, x):
            return self.base_layer(x)

    attention = model.map.find("blocks.1.attn")
    (plain,), own = reading_alone(model, 1), attention.c_attn
    attention.c_attn = Around(own)
    assert reading_alone(model, 1) == (f"{plain}.base_layer",)
    attention.c_attn = own
    assert reading_alone(model, 1) == (plain,)


def test_models_that_count_padding_see_no_gap(tokenizer, monkeypatch) -> None:
    """MPT takes no positions, and its alibi counts every place between two tokens."""
    monkeypatch.setattr(partial, "pass_costs", lambda _: 0)
    config = MptConfig(d_model=32, n_heads=4, n_layers=3, vocab_size=tiny.VOCABULARY)
    model = editcl.wrap(MptForCausalLM(config).eval(), tokenizer)
    with torch.no_grad():
        for parameter in model.hf.parameters():
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
        shifts = torch.ones(len(ROWS), model.d_model)
        run, _ = SuffixRun.prepare(model, ROWS, STARTS, model.n_layers - 1)
        expected = plain(model, shifts, model.n_layers - 1)
        torch.testing.assert_close(run.logits(AT, shifts), expected, rtol=1e-4, atol=1e-4)


def test_sliding_windows_see_no_gap(tokenizer, monkeypatch) -> None:
    monkeypatch.setattr(partial, "pass_costs", lambda _: 0)
    model = editcl.wrap(tiny.build("mistral", sliding_window=4), tokenizer)
    shifts = torch.ones(len(ROWS), model.d_model)
    run, _ = SuffixRun.prepare(model, ROWS, STARTS, model.n_layers - 1)
    with torch.no_grad():
        expected = plain(model, shifts, model.n_layers - 1)
        torch.testing.assert_close(run.logits(AT, shifts), expected, rtol=1e-4, atol=1e-4)


def run_tokens(shared: dict[tuple[int, ...], int]) -> int:
    heads = {prompt[:n] for prompt, n in shared.items()}
    return sum(map(len, heads)) + sum(len(prompt) - n for prompt, n in shared.items())


def test_shared_beginnings_are_found() -> None:
    prompts = sorted([(1, 2, 3, 4), (1, 2, 3, 5), (1, 2, 9), (8, 8), (5,)])
    shared = shared_heads(prompts)
    assert shared[(1, 2, 3, 4)] == shared[(1, 2, 9)] == 2
    assert shared[(8, 8)] == shared[(5,)] == 0
    assert run_tokens(shared) == sum(map(len, prompts)) - 4
    assert shared_heads([]) == {}


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=6).map(tuple), max_size=9))
def test_no_single_cut_saves_more(prompts: list[tuple[int, ...]]) -> None:
    prompts = sorted(set(prompts))
    shared = shared_heads(prompts)
    assert all(0 <= n < len(prompt) for prompt, n in shared.items())
    for depth in range(6):
        cut = {p: min(depth, len(p) - 1) for p in prompts}
        assert run_tokens(shared) <= run_tokens(cut)
