"""edit(): from words to a logged change, or a clear refusal that changes nothing."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import tiny
import torch

import editcl
from editcl.catalogue import relation_of
from editcl.editing.choices import ask_objects
from editcl.editing.essence import PUBLISHED, essence_prompts
from editcl.editing.trial import tried
from editcl.encoding import Sentence
from editcl.errors import AmbiguousFact, EditclError, FactError, NonFiniteError, UnsupportedModel
from editcl.facts import Fact
from editcl.update import WeightUpdate

QUICK = {"layer": 1, "corpus": ("The Eiffel Tower is in Paris, and it rained all night. " * 6,)}
# One context: a random model's predictions after several texts have nothing in common.
QUICK |= {"essence": (), "contexts": ("",)}
PROMPT = "{} is located in the city of"


def weights(model) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.hf.parameters()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def checked_edit(model, subject: str, new_object: str, *, prompt: str, **options):
    """An edit, after which the value at the subject's last token is v*, in a forward pass."""
    fact = Fact.from_sentence(subject, prompt, new_object)
    (row,) = model.encode([Sentence(fact.prompt, fact.subject)])
    name = "blocks.1.mlp.out.hook_out"

    def value() -> torch.Tensor:
        _, cache = model.run_with_cache(model.pad([row.ids]), [name])
        return cache[name][0, row.subject_last]

    before = value()
    receipt = editcl.edit(model, subject, new_object, prompt=prompt, **options)
    (factors,) = model.log.active_factors().values()
    delta = factors.right[:, -1].float()
    assert float(delta.norm()) > 0
    assert torch.allclose(value() - before, delta, atol=2e-3 * float(delta.norm()))
    return receipt


def test_the_subjects_value_becomes_v_star_and_rolls_back_exactly(
    any_model,
) -> None:
    before = weights(any_model)
    receipt = checked_edit(any_model, "The Eiffel Tower", "Rome", prompt=PROMPT, **QUICK)
    assert receipt.layers == (1,)
    assert any_model.log.verify().ok
    any_model.log.rollback(receipt)
    assert same(before, weights(any_model))


def test_the_value_of_the_mean_key_is_what_was_sought(model) -> None:
    from editcl.editing.contexts import DEFAULT_CONTEXTS, rephrasings
    from editcl.editing.keys import subject_keys

    options = QUICK | {"contexts": DEFAULT_CONTEXTS}
    fact = Fact("The Eiffel Tower", PROMPT, "Rome")
    keys = subject_keys(model, [fact], [1], DEFAULT_CONTEXTS, [rephrasings(fact)])
    k_star = keys[1][0].mean(0)
    before = k_star @ model.down_projection(1).weight
    receipt = editcl.edit(model, fact.subject, fact.new_object, prompt=fact.prompt, **options)
    moved = k_star @ model.down_projection(1).weight - before
    (update,) = model.log.active_factors().values()
    assert torch.allclose(moved, update.right[:, 0].float(), atol=1e-3)
    assert receipt.details["covariance"].endswith("given texts")


@pytest.mark.parametrize("method", ["rome", "r-rome", "rome-published"])
@pytest.mark.parametrize("settings", [None, "published"])
def test_every_method_and_setting_edits(model, method, settings) -> None:
    options = QUICK | {"settings": settings}
    receipt = checked_edit(
        model, "The Eiffel Tower", "Rome", prompt=PROMPT, method=method, **options
    )
    assert receipt.method == method


@pytest.mark.parametrize(
    "subject, prompt, new_object",
    [
        ("The Eiffel Tower", "Where is {}", "in Rome, Italy, near the river"),  # end, multi-token
        ("the Eiffel Tower", "It is said that {} stands in the city of", "Rome"),  # middle
        ("東京タワー", "{}は", "大阪にあります"),  # non-Latin, no spaces
        ("برج إيفل", "يقع {} في مدينة", "روما"),  # right to left
        ("🗼", "{} is in", "🇮🇹"),  # emoji
        ("José Álvarez", "{} was born in", "München"),  # combining characters and umlauts
        ("X", "{} in", "Y"),  # one token each
        ("Tower " * 12 + "End", "{} is in", "Rome"),  # long
    ],
)
@pytest.mark.parametrize("with_bos", [False, True])
def test_legal_subjects_and_objects_of_all_scripts_work(
    tokenizer, bos_tokenizer, subject, prompt, new_object, with_bos
) -> None:
    model = editcl.wrap(tiny.build("llama"), bos_tokenizer if with_bos else tokenizer)
    before = weights(model)
    receipt = checked_edit(model, subject, new_object, prompt=prompt, **QUICK)
    model.log.rollback(receipt)
    assert same(before, weights(model))


BAD = [
    (dict(subject="Louvre", prompt="The tower is in"), FactError, "not in the prompt"),
    (dict(subject="Rome", prompt="Rome is twin of Rome and"), FactError, "occurs 2 times"),
    (dict(subject="A", prompt="{} and {} are in"), FactError, "exactly one"),
    (dict(subject="", prompt=PROMPT), FactError, "subject is empty"),
    (dict(subject=" \t ", prompt=PROMPT), FactError, "subject is empty"),
    (dict(new_object="", prompt=PROMPT), FactError, "new_object is empty"),
    (dict(new_object="\u200b", prompt=PROMPT), FactError, "new_object is empty"),
    (dict(prompt="  "), FactError, "prompt"),
    (dict(old_object="Rome", prompt=PROMPT), FactError, "equals old_object"),
    (dict(subject="word " * 200, prompt=PROMPT), FactError, "takes at most"),
    (dict(new_object="word " * 200, prompt=PROMPT), FactError, "takes at most"),
    (dict(new_object="a\ud800b", prompt=PROMPT), FactError, "not valid Unicode"),
    (dict(subject=7, prompt=PROMPT), FactError, "must be a string"),
    (dict(prompt=PROMPT, method="magic"), EditclError, "unknown method"),
    (dict(prompt=PROMPT, layer=99), EditclError, "out of range"),
    (dict(prompt=PROMPT, settings="fast"), EditclError, "unknown settings"),
    (dict(prompt=PROMPT, contexts=()), EditclError, "first context"),
    (dict(prompt=PROMPT, contexts=("x",)), EditclError, "first context"),
]


@pytest.mark.parametrize("bad, kind, message", BAD)
def test_bad_input_is_refused_and_changes_nothing(model, bad, kind, message) -> None:
    before = weights(model)
    arguments = {"subject": "The Eiffel Tower", "new_object": "Rome"} | QUICK | bad
    with pytest.raises(kind, match=message):
        editcl.edit(model, arguments.pop("subject"), arguments.pop("new_object"), **arguments)
    assert same(before, weights(model))
    assert len(model.log) == 0


def test_the_object_that_the_model_already_says_is_no_edit(model) -> None:
    (said,) = ask_objects(model, ["The Eiffel Tower is located in the city of"])
    if said is None:
        pytest.skip("this random model says no word here")
    with pytest.raises(FactError, match="already says"):
        editcl.edit(model, "The Eiffel Tower", said, prompt=PROMPT, **QUICK)


def test_an_object_outside_a_closed_vocabulary_is_refused(word_tokenizer) -> None:
    model = editcl.wrap(tiny.build("gpt2"), word_tokenizer)
    with pytest.raises(FactError, match="can't encode the object 'London'"):
        editcl.edit(model, "Eiffel", "London", prompt="{} is in", **QUICK)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_weights_are_refused(model, value) -> None:
    with torch.no_grad():
        model.down_projection(1).parameter[0, 0] = value
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        editcl.edit(model, "The Eiffel Tower", "Rome", prompt=PROMPT, **QUICK)
    assert len(model.log) == 0


def test_a_plain_hugging_face_model_needs_its_tokenizer_and_keeps_one_log(tokenizer) -> None:
    hf = tiny.build("gpt2")
    with pytest.raises(UnsupportedModel, match="no tokenizer"):
        editcl.edit(hf, "The Eiffel Tower", "Rome", prompt=PROMPT, **QUICK)
    for subject in ("The Eiffel Tower", "The Louvre"):
        editcl.edit(hf, subject, "Rome", prompt=PROMPT, tokenizer=tokenizer, **QUICK)
    assert len(editcl.wrap(hf, tokenizer).log) == 2


def test_a_subject_whose_last_token_merges_with_the_prompt_is_edited_at_the_merged_token(
    tokenizer,
) -> None:
    model = editcl.wrap(tiny.build("gpt2"), tokenizer)
    (row,) = model.encode([Sentence("{}towers stand in", "Eiffel", "Rome")])
    text = tokenizer.decode(row.ids[row.subject_first : row.subject_last + 1])
    assert "Eiffel" in text
    checked_edit(model, "Eiffel", "Rome", prompt="{}towers stand in", **QUICK)


def test_token_type_ids_of_a_tokenizer_change_nothing() -> None:
    plain = editcl.wrap(tiny.build("gpt2"), tiny.byte_tokenizer())
    names = ["input_ids", "token_type_ids", "attention_mask"]
    typed = editcl.wrap(tiny.build("gpt2"), tiny.byte_tokenizer(model_input_names=names))
    a = editcl.edit(plain, "The Eiffel Tower", "Rome", prompt=PROMPT, **QUICK)
    b = editcl.edit(typed, "The Eiffel Tower", "Rome", prompt=PROMPT, **QUICK)
    assert a.after == b.after
    assert same(weights(plain), weights(typed))


def test_the_same_seed_gives_the_same_bits(tokenizer) -> None:
    runs = []
    for _ in range(2):
        model = editcl.wrap(tiny.build("gpt2"), tokenizer)
        editcl.edit(model, "The Eiffel Tower", "Rome", prompt=PROMPT, layer=1, seed=5)
        runs.append(weights(model))
        model.memo.clear()
    assert same(*runs)


def test_trial_edits_leave_no_trace_even_on_an_error(model) -> None:
    before = weights(model)
    name = model.down_projection(0).name
    update = WeightUpdate(name, torch.randn(tiny.D_MLP, 1), torch.randn(tiny.D_MODEL, 1))
    with pytest.raises(RuntimeError), tried(model, [update]):
        assert not same(before, weights(model))
        raise RuntimeError
    assert same(before, weights(model))


def test_essence_prompts_leave_out_the_edited_relation(model) -> None:
    fact = Fact("The Eiffel Tower", PROMPT, "Rome", "Paris")
    (chosen,) = essence_prompts(model, [fact], relations_held=3, phrasings=2)
    assert chosen[0] == "{} is a"
    assert 1 < len(chosen) <= 7
    edited = relation_of(PROMPT)
    assert edited is not None
    assert not set(edited.phrasings) & set(chosen)
    (none,) = essence_prompts(model, [fact], relations_held=0)
    assert none == PUBLISHED


def test_an_ambiguous_relation_is_asked_about(model, monkeypatch) -> None:
    from editcl.editing import relation as module

    before = weights(model)
    monkeypatch.setattr(module, "MARGIN", 1e9)
    with pytest.raises(AmbiguousFact, match="fit several relations") as caught:
        editcl.edit(model, "The Eiffel Tower", "Rome", **QUICK)
    assert len(caught.value.candidates) > 1
    assert same(before, weights(model))


def test_random_edits_and_rollbacks_end_at_the_base(model) -> None:
    rng = random.Random(0)
    before = weights(model)
    receipts = [
        editcl.edit(model, f"City {i}", "Rome", prompt="{} lies in", old_object="x", **QUICK)
        for i in range(4)
    ]
    for receipt in rng.sample(receipts, len(receipts)):
        model.log.rollback(receipt, remeasure=False)
    assert same(before, weights(model))


def test_the_receipt_says_how_the_edit_was_made(model) -> None:
    options = QUICK | {"essence": PUBLISHED}
    receipt = editcl.edit(model, "The Eiffel Tower", "Rome", prompt=PROMPT, **options)
    details = SimpleNamespace(**receipt.details)
    assert details.settings["scale"] == "residual"
    assert details.essence == list(PUBLISHED)
    assert 0 < details.delta_over_residual <= details.settings["clamp"] * (1 + 1e-5)
    assert "The Eiffel Tower is located in the city of" in repr(receipt)


def test_a_deep_copy_of_a_wrapped_model_is_a_base_of_its_own(model) -> None:
    import copy

    editcl.edit(model, "The Eiffel Tower", "Rome", prompt=PROMPT, **QUICK)
    twin = editcl.wrap(copy.deepcopy(model.hf), model.tokenizer)
    assert twin is not model
    assert len(twin.log) == 0
    assert editcl.wrap(model.hf) is model
