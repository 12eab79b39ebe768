"""Traces: parity with the authors' code, invariants, and what bad input gets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

import editcl
from editcl.errors import EditclError, FactError, NonFiniteError
from editcl.model import EditableModel
from editcl.tracing import trace

SUBJECT, PROMPT = "The Eiffel Tower", "{} is located in the"


@pytest.fixture(scope="module")
def parity_model(shared: Callable[[str], Path]) -> EditableModel:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = shared("parity") / "model"
    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return editcl.wrap(hf, AutoTokenizer.from_pretrained(folder))


def test_values_equal_those_of_the_authors_code(parity_model, shared) -> None:
    from safetensors.numpy import load_file

    cases = json.loads((shared("parity") / "cases.json").read_text())
    published = load_file(shared("parity") / "trace.safetensors")
    for i, (case, request) in enumerate(zip(cases["trace"], cases["requests"], strict=False)):
        settings = {"samples": case["samples"], "noise": case["noise"], "seed": 1, "window": 2}
        found = trace(
            parity_model, request["subject"], request["prompt"], answer=case["answer"], **settings
        )
        assert [token.strip() for token in found.tokens] == [t.strip() for t in case["tokens"]]
        assert list(found.span) == case["subject_span"]
        assert found.answer_token == case["answer_token"]
        assert found.clean == pytest.approx(case["clean"], abs=1e-4)
        assert found.corrupted == pytest.approx(case["corrupted"], abs=1e-4)
        for kind in found.kinds:
            np.testing.assert_allclose(found.probability[kind], published[f"{i}.{kind}"], atol=1e-4)


def test_facts_are_read_at_the_subjects_last_token_in_early_mlps(parity_model, shared) -> None:
    """The positive control: this model reads facts there by the way it was trained."""
    requests = json.loads((shared("parity") / "cases.json").read_text())["requests"]
    early = []
    for request in requests:
        found = trace(parity_model, request["subject"], request["prompt"], kinds="mlp", samples=4)
        last = found.span[1] - 1
        effect = found.indirect_effect("mlp")
        early.append(found.peak("mlp", last).layer < 2 and effect[last].max() > effect[:last].max())
    assert sum(early) >= len(requests) - 1


def test_the_same_seed_gives_the_same_bits_and_another_one_other_noise(model) -> None:
    first, second, other = (trace(model, SUBJECT, PROMPT, samples=2, seed=s) for s in (3, 3, 4))
    for kind in first.kinds:
        assert np.array_equal(first.probability[kind], second.probability[kind])
    assert first.corrupted != other.corrupted


def test_without_noise_every_state_gives_the_clean_answer(model) -> None:
    found = trace(model, SUBJECT, PROMPT, samples=2, noise=0.0)
    assert found.total_effect == pytest.approx(0.0, abs=1e-6)
    for kind in found.kinds:
        np.testing.assert_allclose(found.probability[kind], found.clean, rtol=1e-5)


def test_noise_may_be_given_sample_by_sample(model) -> None:
    drawn = np.random.RandomState(5).randn(2, 3, model.d_model)
    subject = "the city of"
    by_seed = trace(model, subject, "{} is", samples=2, seed=5, noise=0.5)
    n_subject = by_seed.span[1] - by_seed.span[0]
    drawn = np.random.RandomState(5).randn(2, n_subject, model.d_model) * 0.5
    given = trace(model, subject, "{} is", noise_samples=drawn)
    assert given.samples == 2
    np.testing.assert_allclose(given.probability["mlp"], by_seed.probability["mlp"], rtol=1e-5)
    with pytest.raises(EditclError, match="noise_samples must be"):
        trace(model, subject, "{} is", noise_samples=drawn[:, :1, :3])


def test_a_sentence_may_name_the_subject_itself(model) -> None:
    template = trace(model, SUBJECT, PROMPT, samples=1, kinds="hidden")
    sentence = trace(model, SUBJECT, PROMPT.format(SUBJECT), samples=1, kinds="hidden")
    assert sentence.tokens == template.tokens
    assert np.array_equal(sentence.probability["hidden"], template.probability["hidden"])


def test_the_answers_first_token_is_measured(model) -> None:
    found = trace(model, SUBJECT, PROMPT, answer="Paris", samples=1, kinds="hidden")
    row = model.tokenizer(f"{SUBJECT} is located in the Paris")["input_ids"]
    assert found.answer_token == row[len(found.tokens)]
    own = trace(model, SUBJECT, PROMPT, samples=1, kinds="hidden")
    assert own.clean >= found.clean


def test_another_subject_may_take_the_place_of_noise(model) -> None:
    found = trace(model, "Rome", "{} is in the", corruption="Rome", kinds="hidden")
    assert (found.corrupted, found.noise) == (pytest.approx(found.clean), None)
    with torch.no_grad():
        ids = torch.tensor([model.tokenizer("The city is in the")["input_ids"]])
        direct = model.forward({"input_ids": ids})[0, -1].softmax(-1)
    found = trace(model, "city", "The {} is in the", corruption=["city", "Tower"], kinds="hidden")
    assert (found.samples, found.others) == (2, ("city", "Tower"))
    assert found.clean == pytest.approx(float(direct[found.answer_token]), rel=1e-4)
    assert "Tower" in repr(found)
    with pytest.raises(EditclError, match="tokens"):
        trace(model, "Rome", "{} is in the", corruption="a much longer name than Rome")
    with pytest.raises(EditclError, match="corruption must be"):
        trace(model, "Rome", "{} is in the", corruption=[])


def test_bloom_is_traced_the_published_way_with_a_warning(tokenizer) -> None:
    model = editcl.wrap(tiny.build("bloom"), tokenizer)
    with pytest.warns(UserWarning, match="one forward pass a cell"):
        found = trace(model, "Rome", "{} is in the", samples=1, kinds="hidden")
    assert found.probability["hidden"][-1, -1] == pytest.approx(found.clean, rel=1e-4)


def test_half_precision_models_are_traced(tokenizer) -> None:
    model = editcl.wrap(tiny.build("llama").to(torch.bfloat16), tokenizer)
    found = trace(model, "Rome", "{} is in the", samples=2)
    assert found.probability["hidden"][-1, -1] == pytest.approx(found.clean, rel=1e-2)


def test_a_trace_prints_and_is_jsonable(model) -> None:
    found = trace(model, SUBJECT, PROMPT, samples=2, sever="mlp")
    assert "severed" in repr(found) and SUBJECT in found._repr_html_()
    back = json.loads(json.dumps(found.to_dict()))
    np.testing.assert_allclose(back["probability"]["hidden"], found.probability["hidden"])
    with pytest.raises(EditclError, match="no kind 'mlp'"):
        found.peak("mlp")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples": 0}, "samples must be"),
        ({"window": 0}, "window must be"),
        ({"kinds": ("mpl",)}, "kinds must be"),
        ({"kinds": ()}, "kinds must be"),
        ({"noise": float("nan")}, "noise must be"),
        ({"noise_multiple": -1.0}, "noise_multiple must be"),
        ({"sever": "hidden"}, "sever"),
        ({"sever": "mlp", "kinds": ("attn",)}, "sever"),
    ],
)
def test_arguments_out_of_range_are_refused(model, arguments, message) -> None:
    with pytest.raises(EditclError, match=message):
        trace(model, SUBJECT, PROMPT, **arguments)


def test_a_subject_that_is_not_in_the_prompt_is_refused(model) -> None:
    with pytest.raises(FactError, match="not in the prompt"):
        trace(model, "The Colosseum", "The Eiffel Tower is in")
    with pytest.raises(FactError, match="2 times"):
        trace(model, "city", "A city is a city in")
    with pytest.raises(FactError, match="answer is empty"):
        trace(model, SUBJECT, PROMPT, answer=" ")


def test_an_answer_the_tokenizer_cannot_encode_is_refused(word_tokenizer) -> None:
    model = editcl.wrap(tiny.build("gpt2"), word_tokenizer)
    with pytest.raises(FactError, match="can't encode the object"):
        trace(model, "Eiffel Tower", "The {} is in", answer="Lutetia")


@pytest.mark.parametrize("name", ["transformer.wte.weight", "transformer.h.1.mlp.c_proj.weight"])
def test_a_model_with_nan_is_refused(hf_model, tokenizer, name) -> None:
    with torch.no_grad():
        hf_model.get_parameter(name).fill_(float("nan"))
    with pytest.raises(NonFiniteError):
        trace(editcl.wrap(hf_model, tokenizer), SUBJECT, PROMPT)
