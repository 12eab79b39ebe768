"""k*: the input of the down-projection at the subject's last token."""

from __future__ import annotations

import torch

from editcl.editing.contexts import DEFAULT_CONTEXTS, sample_contexts
from editcl.editing.keys import subject_keys
from editcl.encoding import Sentence
from editcl.facts import Fact

FACTS = (
    Fact("The Eiffel Tower", "{} is located in the city of", "Rome"),
    Fact("Paris", "The name of the city is {}", "Rome"),
)


def test_keys_equal_those_of_a_full_pass_one_row_at_a_time(any_model) -> None:
    contexts = ("", "It rained all night.")
    keys = subject_keys(any_model, FACTS, [0, 2], contexts, tokens_per_batch=12)
    for layer in (0, 2):
        for i, fact in enumerate(FACTS):
            for j, context in enumerate(contexts):
                sentence = Sentence(fact.prompt, fact.subject, fact.new_object, context)
                row = any_model.encode([sentence])[0]
                name = f"blocks.{layer}.mlp.hook_post"
                _, cache = any_model.run_with_cache(any_model.pad([row.ids]), [name])
                expected = cache[name][0, row.subject_last]
                assert torch.allclose(keys[layer][i, j], expected, atol=1e-4)


def test_sampled_contexts_begin_with_the_bare_prompt_and_repeat_with_the_seed(model) -> None:
    state = torch.random.get_rng_state()
    first = sample_contexts(model, lengths=((5, 4),), seed=3)
    assert first[0] == ""
    assert first == sample_contexts(model, lengths=((5, 4),), seed=3)
    assert first != sample_contexts(model, lengths=((5, 4),), seed=4)
    assert torch.equal(state, torch.random.get_rng_state()), "the global state is untouched"


def test_the_default_contexts_are_one_empty_text_and_sentences() -> None:
    assert DEFAULT_CONTEXTS[0] == ""
    assert all(text.endswith(".") for text in DEFAULT_CONTEXTS[1:])
    assert len(set(DEFAULT_CONTEXTS)) == len(DEFAULT_CONTEXTS)
