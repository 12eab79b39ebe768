from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import tiny
import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast

import editcl
from editcl.encoding import Sentence
from editcl.errors import EditclError, FactError, NonFiniteError, UnsupportedModel
from editcl.model import EditableModel, micro_batches, tensor_bytes

SENTENCES = [
    Sentence("{} is located in the city of", "The Eiffel Tower", "Rome"),
    Sentence("{} is in", "Beats Music", "the city of Paris and more"),
    Sentence("In the city of Rome stands {} since", "the Colosseum", "80"),
    Sentence("{}位于", "埃菲尔铁塔", "罗马"),
    Sentence("a", target="b"),
    Sentence("{} is in", "X", "Y", context="It rained all night, and the river rose."),
]


def naive_score(model: EditableModel, sentence: Sentence) -> tuple[float, bool]:
    """One sentence, one forward pass of the Hugging Face model, one token after the other."""
    (row,) = model.encode([sentence])
    with torch.no_grad():
        logits = model.hf(torch.tensor([row.ids], device=model.device)).logits[0]
    total, exact = 0.0, True
    for position in range(row.target_start, len(row.ids)):
        scores = logits[position - 1].log_softmax(-1)
        total += float(scores[row.ids[position]])
        exact &= int(scores.argmax()) == row.ids[position]
    return total / row.n_target, exact


def test_scores_are_those_of_one_sentence_at_a_time(any_model: EditableModel) -> None:
    scores = any_model.score(SENTENCES, tokens_per_batch=40)
    for i, sentence in enumerate(SENTENCES):
        log_prob, exact = naive_score(any_model, sentence)
        assert float(scores.log_prob[i]) == pytest.approx(log_prob, rel=1e-4, abs=1e-4)
        assert float(scores.prob[i]) == pytest.approx(math.exp(log_prob), rel=1e-3)
        assert bool(scores.exact[i]) == exact


def test_a_target_is_exact_where_the_model_says_it_by_itself(model: EditableModel) -> None:
    """Prompts after which the model says a word; that word is exact there, and no other one."""
    prompts = [f"{word} is in" for word in tiny.TEXT.split()]
    words = {p: text[1:] for p in prompts if (text := model.generate([p], 1)[0]).startswith(" ")}
    assert words, "the random model says no words; take another seed"
    vocabulary = [token[1:] for token in model.tokenizer.get_vocab() if token[:1] == "Ġ"]
    candidates = [word for word in vocabulary if word.isascii() and word]
    pairs = [(prompt, word) for prompt in words for word in candidates]
    scores = model.score([Sentence(prompt, target=word) for prompt, word in pairs])
    said = [words[prompt] == word for prompt, word in pairs]
    assert scores.exact.tolist() == said
    assert 0 < sum(said) < len(said)


def test_a_sentence_without_target_has_no_score(model: EditableModel) -> None:
    with pytest.raises(FactError, match="no object to score"):
        model.score([Sentence("{} is in", "The Tower")])


def test_no_sentences_no_scores(model: EditableModel) -> None:
    assert model.score([]).log_prob.shape == (0,)
    assert model.generate([], 3) == []


def test_only_kept_positions_are_unembedded(any_model: EditableModel) -> None:
    inputs = any_model.pad([[5, 6, 7, 8], [9, 10]])
    with torch.no_grad():
        whole = any_model.forward(inputs)
        kept = any_model.forward(inputs, keep=torch.tensor([0, 2]))
    torch.testing.assert_close(kept, whole[:, [0, 2]], rtol=1e-4, atol=1e-5)


def test_token_types_are_not_passed_on(hf_model: torch.nn.Module) -> None:
    """GPT-2 adds the embedding of a token type to every position if a tokenizer names them."""
    unasked = tiny.byte_tokenizer(
        model_input_names=["input_ids", "token_type_ids", "attention_mask"]
    )
    assert "token_type_ids" in unasked("a b")
    noisy = EditableModel(hf_model, unasked)
    quiet = EditableModel(hf_model, tiny.byte_tokenizer())
    assert torch.equal(noisy.score(SENTENCES).log_prob, quiet.score(SENTENCES).log_prob)
    assert noisy.generate(["The Eiffel"], 4) == quiet.generate(["The Eiffel"], 4)
    for i, sentence in enumerate(SENTENCES):
        expected, _ = naive_score(noisy, sentence)
        assert float(noisy.score(SENTENCES).log_prob[i]) == pytest.approx(expected, rel=1e-4)


def test_a_start_token_is_part_of_what_is_scored(
    bos_tokenizer: PreTrainedTokenizerFast, tokenizer: PreTrainedTokenizerFast
) -> None:
    hf = tiny.build("llama")
    started = EditableModel(hf, bos_tokenizer)
    for i, sentence in enumerate(SENTENCES):
        expected, _ = naive_score(started, sentence)
        assert float(started.score(SENTENCES).log_prob[i]) == pytest.approx(expected, rel=1e-4)
    plain = EditableModel(hf, tokenizer)
    assert not torch.allclose(started.score(SENTENCES).prob, plain.score(SENTENCES).prob)


# -- generation ---------------------------------------------------------------------------------

PROMPTS = ["The Eiffel Tower is located", "a", "Beats Music is owned by Apple and the"]


def greedy(model: EditableModel, ids: tuple[int, ...], n_new: int) -> list[int]:
    """Token by token, without cache or padding; the end token is never said."""
    row = list(ids)
    for _ in range(n_new):
        with torch.no_grad():
            logits = model.hf(torch.tensor([row], device=model.device), use_cache=False).logits[
                0, -1
            ]
        logits[0] = -torch.inf
        row.append(int(logits.argmax()))
    return row[len(ids) :]


def test_a_batch_is_generated_as_row_by_row(any_model: EditableModel) -> None:
    rows = [row.ids for row in any_model.encode([Sentence(p) for p in PROMPTS])]
    together = any_model.generate_ids(rows, 5)
    assert together.tolist() == [greedy(any_model, row, 5) for row in rows]
    alone = any_model.hf.generate(
        torch.tensor([rows[0]], device=any_model.device),
        max_new_tokens=5,
        min_new_tokens=5,
        do_sample=False,
    )
    assert together[0].tolist() == alone[0, len(rows[0]) :].tolist()
    texts = any_model.generate(PROMPTS, 5, batch_size=2)
    assert texts == any_model.tokenizer.batch_decode(together, skip_special_tokens=True)


def test_sampling_follows_its_seed(model: EditableModel) -> None:
    first = model.generate(PROMPTS, 12, seed=3)
    assert first == model.generate(PROMPTS, 12, seed=3)
    assert first != model.generate(PROMPTS, 12, seed=4)
    assert first != model.generate(PROMPTS, 12)


def test_the_global_random_state_is_untouched(model: EditableModel) -> None:
    before = torch.random.get_rng_state()
    model.generate(PROMPTS, 3, seed=1)
    model.generate(PROMPTS, 3)
    model.score(SENTENCES)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_checkpoints_generation_settings_do_not_count(model: EditableModel) -> None:
    expected = model.generate(PROMPTS, 8)
    settings = GenerationConfig(
        repetition_penalty=9.0, num_beams=3, temperature=0.2, do_sample=True, eos_token_id=0
    )
    model.hf.generation_config = settings
    assert model.generate(PROMPTS, 8) == expected
    assert model.hf.generation_config is settings


# -- bounds and bad input -----------------------------------------------------------------------


def test_too_long_a_text_is_refused(model: EditableModel) -> None:
    assert model.max_tokens == tiny.POSITIONS
    with pytest.raises(FactError, match=r"tokens; the model takes at most 96. Shorten"):
        model.encode([Sentence("{} is in", "x" * 300, "Rome")])
    assert model.encode([Sentence("{} is in", "x" * 90, "Rome")])


def test_generating_beyond_the_positions_is_refused(model: EditableModel) -> None:
    with pytest.raises(EditclError, match="takes at most 96. Generate fewer"):
        model.generate(["The Tower"], 95)


def test_a_tokenizer_of_another_model_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    small = EditableModel(tiny.build("gpt2", vocab_size=100), tokenizer)
    with pytest.raises(UnsupportedModel, match="don't belong together"):
        small.encode([Sentence("The Eiffel Tower")])


def test_a_model_without_tokenizer_is_refused(hf_model: torch.nn.Module) -> None:
    with pytest.raises(UnsupportedModel, match="has no tokenizer. Pass tokenizer="):
        EditableModel(hf_model, None)


def test_a_model_without_weights_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UnsupportedModel, match="meta device: load them first"):
        EditableModel(tiny.build().to("meta"), tokenizer)


@pytest.mark.parametrize("layer", [-1, tiny.N_LAYERS])
def test_layers_out_of_range_are_refused(model: EditableModel, layer: int) -> None:
    with pytest.raises(EditclError, match=f"layer {layer} is out of range: the model has 3"):
        model.down_projection(layer)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(model: EditableModel, value: float) -> None:
    model.check_finite()
    model.down_projection(1).weight[3, 4] = value
    with pytest.raises(NonFiniteError, match=r"h\.1\.mlp\.c_proj\.weight holds NaN or infinite"):
        model.check_finite()


def test_a_weight_that_no_edit_touches_must_be_finite_too(model: EditableModel) -> None:
    with torch.no_grad():
        model.hf.transformer.h[2].mlp.c_fc.weight[0, 0] = float("nan")
    for run in (
        lambda: editcl.edit(model, "Paris", "Rome", prompt="{} is in", layer=1),
        lambda: editcl.edit_csv(model, [editcl.Fact("Paris", "{} is in", "Rome")], layers=[1]),
    ):
        with pytest.raises(NonFiniteError, match="c_fc.weight holds NaN"):
            run()
    assert not len(model.log)


def test_the_name_and_sizes_can_be_read(model: EditableModel) -> None:
    text = repr(model)
    assert "GPT2LMHeadModel" in text
    assert "3 layers, d_model 32, d_mlp 64, float32 on " in text


def test_wrapping_leaves_the_model_in_evaluation_mode(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    assert not editcl.wrap(tiny.build().train(), tokenizer).hf.training


# -- identity -----------------------------------------------------------------------------------


@contextmanager
def changed(parameter: torch.nn.Parameter) -> Iterator[None]:
    before = parameter.data.clone()
    parameter.data.view(-1)[5] += 1e-3
    try:
        yield
    finally:
        parameter.data.copy_(before)


def test_the_fingerprint_is_that_of_the_weights(any_model: EditableModel) -> None:
    before = any_model.fingerprint()
    assert before == any_model.fingerprint()
    for parameter in any_model.hf.parameters():
        with changed(parameter):
            assert any_model.fingerprint() != before
    assert any_model.fingerprint() == before


def test_models_of_other_precision_are_other_models(tokenizer: PreTrainedTokenizerFast) -> None:
    marks = {
        editcl.wrap(tiny.build().to(dtype), tokenizer).fingerprint()
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
    }
    assert len(marks) == 3


def test_the_fingerprint_below_a_layer_covers_what_its_key_depends_on(
    any_model: EditableModel,
) -> None:
    """Whatever changes the key at layer 1 changes the fingerprint; the value's weight does not."""
    before = any_model.fingerprint(below=1)
    name = "blocks.1.mlp.hook_post"
    inputs = any_model.pad([[5, 6, 7, 8]])
    key = any_model.activations(inputs, [name])[name]
    for parameter in any_model.hf.parameters():
        with changed(parameter):
            moved = not torch.equal(any_model.activations(inputs, [name])[name], key)
            if moved:
                assert any_model.fingerprint(below=1) != before
    for layer in (1, 2):
        with changed(any_model.down_projection(layer).parameter):
            assert any_model.fingerprint(below=1) == before
    with changed(any_model.down_projection(0).parameter):
        assert any_model.fingerprint(below=1) != before


def test_tensor_bytes_are_the_tensors_own() -> None:
    tensor = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)
    assert len(tensor_bytes(tensor)) == 12
    assert bytes(tensor_bytes(tensor.T)) == bytes(tensor_bytes(tensor.T.contiguous()))
    assert bytes(tensor_bytes(tensor)) != bytes(tensor_bytes(tensor.T))


@pytest.mark.parametrize("budget", [1, 7, 20, 1000])
def test_micro_batches_hold_every_index_once_within_the_budget(budget: int) -> None:
    lengths = [5, 1, 9, 3, 3, 8, 2]
    groups = list(micro_batches(lengths, budget))
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or max(lengths[i] for i in group) * len(group) <= budget
    assert list(micro_batches([], budget)) == []
