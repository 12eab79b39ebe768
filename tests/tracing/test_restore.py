"""Fast cells equal the published procedure's on every architecture, wherever the subject stands."""

from __future__ import annotations

import pytest
import tiny
import torch

import editcl
from editcl.kernels import fused_activations
from editcl.model import EditableModel
from editcl.tracing.cells import KINDS, Cell, cell, default_window
from editcl.tracing.reference import published_cells
from editcl.tracing.restore import null_cells_hold, restored_cells
from editcl.tracing.runs import Corruption, Runs, ask, gaussian, run

PROMPT = "Today, {} is located in the"
SUBJECT = "The Eiffel Tower"


def corrupted(
    model: EditableModel, subject: str = SUBJECT, prompt: str = PROMPT, samples: int = 2
) -> tuple[Runs, Corruption]:
    with torch.inference_mode():
        question = ask(model, subject, prompt)
        corruption = gaussian(model, question, 1.0, samples, 0)
        return run(model, question, corruption), corruption


def all_cells(runs: Runs, window: int = 2, kinds: tuple[str, ...] = KINDS) -> list[Cell]:
    n_layers = runs.model.n_layers
    return [
        cell(kind, token, layer, window, n_layers)
        for kind in kinds
        for token in range(runs.n_tokens)
        for layer in range(n_layers)
    ]


def largest_error(
    runs: Runs, corruption: Corruption, cells: list[Cell], sever: str | None = None
) -> float:
    """Of log p, because a tiny random model's probabilities are small themselves."""
    with torch.inference_mode():
        fast = restored_cells(runs, cells, sever=sever)
    slow = published_cells(runs.model, runs.question, corruption, runs.answer, cells, sever=sever)
    assert (slow.log() - runs.corrupted.log()).abs().max() > 1e-2, "the test has no power"
    return float((fast.log() - slow.log()).abs().max())


def test_every_architecture_gives_the_published_values(any_model: EditableModel) -> None:
    runs, corruption = corrupted(any_model)
    if type(any_model.hf).__name__ == "BloomForCausalLM":
        pytest.skip("Bloom builds position biases for a fixed batch; see the test below")
    assert null_cells_hold(runs)
    assert largest_error(runs, corruption, all_cells(runs)) < 1e-3


@pytest.mark.parametrize("architecture", ["gpt2", "gptj", "gemma2"])
@pytest.mark.parametrize("sever", ["mlp", "attn"])
def test_severed_cells_equal_the_published_ones(architecture: str, sever: str, tokenizer) -> None:
    runs, corruption = corrupted(editcl.wrap(tiny.build(architecture), tokenizer))
    cells = all_cells(runs, kinds=("hidden",))
    assert largest_error(runs, corruption, cells, sever) < 1e-3
    with torch.inference_mode():
        assert not torch.equal(
            restored_cells(runs, cells), restored_cells(runs, cells, sever=sever)
        )


@pytest.mark.parametrize(
    ("subject", "prompt"),
    [
        ("The Eiffel Tower", "{} is in the"),
        ("Tower", "In the city, near the {} in"),
        ("the Colosseum", "Everybody knows {}"),
        ("埃菲尔铁塔", "The city of {} is"),
        ("🗼 tower", "{} is in"),
        ("برج إيفل", "We like {} in"),
    ],
)
@pytest.mark.parametrize("start_token", [False, True])
def test_the_subject_may_stand_anywhere(
    subject: str, prompt: str, start_token: bool, tokenizer, bos_tokenizer
) -> None:
    chosen = bos_tokenizer if start_token else tokenizer
    runs, corruption = corrupted(editcl.wrap(tiny.build("llama"), chosen), subject, prompt)
    text = runs.model.tokenizer.decode(runs.question.ids[slice(*runs.question.span)])
    assert text.strip() == subject
    assert largest_error(runs, corruption, all_cells(runs, window=1)) < 1e-3


def test_sliding_windows_shorter_than_the_sentence_are_kept(tokenizer) -> None:
    for architecture in ("mistral", "gemma3"):
        hf = tiny.build(architecture, sliding_window=4)
        runs, corruption = corrupted(editcl.wrap(hf, tokenizer))
        assert null_cells_hold(runs)
        assert largest_error(runs, corruption, all_cells(runs)) < 1e-3


def test_two_layers_and_one_sample_suffice(tokenizer) -> None:
    hf = tiny.build("gpt2", n_layer=2)
    runs, corruption = corrupted(editcl.wrap(hf, tokenizer), samples=1)
    assert largest_error(runs, corruption, all_cells(runs, window=1)) < 1e-3


def test_small_batches_give_the_same_values(model: EditableModel, monkeypatch) -> None:
    runs, _ = corrupted(model)
    with torch.inference_mode():
        together = restored_cells(runs, all_cells(runs))
        monkeypatch.setattr("editcl.tracing.restore.CPU_BYTES", 1)
        torch.testing.assert_close(restored_cells(runs, all_cells(runs)), together)


def test_a_model_that_cannot_start_in_the_middle_is_noticed(tokenizer) -> None:
    runs, _ = corrupted(editcl.wrap(tiny.build("bloom"), tokenizer))
    with torch.inference_mode():
        assert not null_cells_hold(runs)


def test_without_noise_nothing_changes(model: EditableModel) -> None:
    with torch.inference_mode():
        question = ask(model, SUBJECT, PROMPT)
        runs = run(model, question, gaussian(model, question, 0.0, 2, 0))
        values = restored_cells(runs, all_cells(runs))
    torch.testing.assert_close(values, torch.full_like(values, runs.clean))


def test_restoring_the_last_state_restores_the_answer(model: EditableModel) -> None:
    runs, _ = corrupted(model)
    top = model.n_layers - 1
    with torch.inference_mode():
        values = restored_cells(runs, [Cell("hidden", runs.n_tokens - 1, top, top + 1)])
    torch.testing.assert_close(values, torch.full_like(values, runs.clean))


def test_cells_before_the_subject_change_nothing(model: EditableModel) -> None:
    runs, _ = corrupted(model)
    cells = [Cell(kind, 0, layer, layer + 1) for kind in KINDS for layer in range(model.n_layers)]
    with torch.inference_mode():
        values = restored_cells(runs, cells)
    assert torch.equal(values, runs.corrupted.expand_as(values))


def test_the_model_is_left_as_it_was(model: EditableModel) -> None:
    def footprint() -> list[tuple[int, ...]]:
        return [
            (len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in m.__dict__)
            for m in model.hf.modules()
        ]

    before, weights = footprint(), model.fingerprint()
    runs, _ = corrupted(model)
    with torch.inference_mode():
        restored_cells(runs, all_cells(runs))
    assert footprint() == before
    assert model.fingerprint() == weights


def test_the_fused_activation_is_the_same_function(model: EditableModel) -> None:
    ids = {"input_ids": torch.arange(8)[None]}
    with torch.no_grad():
        plain = model.forward(ids)
        with fused_activations(model.hf):
            torch.testing.assert_close(model.forward(ids), plain, atol=1e-5, rtol=1e-5)


def test_windows_are_cut_at_the_ends() -> None:
    assert [cell("mlp", 0, i, 2, 4) for i in range(4)] == [
        Cell("mlp", 0, 0, 1),
        Cell("mlp", 0, 0, 2),
        Cell("mlp", 0, 1, 3),
        Cell("mlp", 0, 2, 4),
    ]
    assert cell("attn", 1, 20, 10, 48) == Cell("attn", 1, 15, 25)
    assert cell("hidden", 1, 3, 10, 48) == Cell("hidden", 1, 3, 4)
    assert [default_window(n) for n in (2, 8, 12, 48)] == [1, 1, 2, 10]
