"""Both sides of every question, against an untouched model and one prompt at a time."""

from __future__ import annotations

import pytest
import torch
from histories import COLOURS, TEXTS, bare, taught

from editcl.evaluation.compare import weight_checksums
from editcl.evaluation.damage import damage
from editcl.learner import Learner
from editcl.learner.judge import Judge
from editcl.learning.batches import Encoded, encode_prompts
from editcl.learning.tasks import Example
from editcl.model import EditableModel
from editcl.reporting.sides import Sides

PROMPTS = (*(example.prompt for example in COLOURS.test[:3]), "The Eiffel Tower is in", "Music")


@pytest.fixture(scope="module")
def learner() -> Learner:
    return taught()


@pytest.fixture(scope="module")
def untouched() -> EditableModel:
    return bare()


@pytest.fixture(scope="module")
def sides(learner: Learner) -> Sides:
    return Sides(Judge(learner.skills, learner.abstain))


def plain_log_probs(model: EditableModel, ids: tuple[int, ...]) -> torch.Tensor:
    with torch.no_grad():
        return model.hf(torch.tensor([ids])).logits[0].double().log_softmax(-1)


def test_answers_of_the_base_are_those_of_an_untouched_model(sides, untouched, learner) -> None:
    asked = [Example(prompt, word) for prompt in PROMPTS for word in ("Paris", "Rome")]
    base, now = sides.right(asked, ("Paris", "Rome"))
    judge = Learner(untouched)
    assert base == judge.correct(asked, ("Paris", "Rome"))
    assert now == learner.correct(asked, ("Paris", "Rome"))
    assert base != now, "a positive control: learning has changed answers"


def test_what_the_base_says_is_what_an_untouched_model_says(sides, untouched) -> None:
    rows = encode_prompts(sides.model, PROMPTS)
    base, now = sides.say(rows, 5)
    end = untouched.tokenizer.eos_token_id
    for row, said in zip(rows, base, strict=True):
        ids = row.ids
        for token in said:
            assert token == int(plain_log_probs(untouched, ids)[-1].argmax())
            ids = (*ids, token)
        assert len(said) == 5 or said[-1] == end
    assert base != now, "a positive control"


def test_cross_entropies_and_divergence_are_those_of_two_models(sides, untouched, learner) -> None:
    found = sides.compare_texts(TEXTS)
    rows = encode_prompts(sides.model, TEXTS)
    before = now = kl = 0.0
    count = 0
    for row in rows:
        ((_, way),) = learner.skills.ways([row], "infer", abstain=learner.abstain)
        with way.session.adapters.using(way.route.names), torch.no_grad():
            hf = way.session.adapters.view.hf
            log_q = hf(torch.tensor([row.ids])).logits[0].double().log_softmax(-1)
        log_p = plain_log_probs(untouched, row.ids)
        for at, token in enumerate(row.ids[1:]):
            before -= float(log_p[at, token])
            now -= float(log_q[at, token])
            kl += float((log_p[at].exp() * (log_p[at] - log_q[at])).sum())
            count += 1
    assert found is not None and found.n_tokens == count
    assert found.base_cross_entropy == pytest.approx(before / count, rel=1e-5)
    assert found.cross_entropy == pytest.approx(now / count, rel=1e-5)
    assert found.kl == pytest.approx(kl / count, rel=1e-3) and found.kl > 5e-5


def test_without_skills_general_text_is_judged_as_damage_does() -> None:
    one = taught()
    one.rollback("colours")
    found = Sides(Judge(one.skills, one.abstain)).compare_texts(TEXTS)
    wanted = damage(one.model, TEXTS)
    assert found is not None and found.n_tokens == wanted.n_tokens
    assert found.kl == pytest.approx(wanted.kl, rel=1e-4) and found.kl > 0
    assert found.cross_entropy == pytest.approx(wanted.cross_entropy, rel=1e-6)


def test_asking_changes_neither_weights_nor_log(sides, learner) -> None:
    weights, entries = weight_checksums(learner.model), len(learner.log.everything)
    sides.compare_texts(TEXTS)
    sides.say(encode_prompts(sides.model, PROMPTS[:1]), 2)
    assert weight_checksums(learner.model) == weights
    assert len(learner.log.everything) == entries
    assert learner.log.verify().ok


def test_weights_are_back_when_a_question_fails(sides, learner) -> None:
    weights = weight_checksums(learner.model)
    with pytest.raises(RuntimeError, match="halfway"), sides.at(True):
        assert weight_checksums(learner.model) != weights
        raise RuntimeError("halfway")
    assert weight_checksums(learner.model) == weights


def test_texts_of_one_token_give_nothing(sides) -> None:
    assert sides.compare_texts(["a"]) is None
    assert sides.compare([Encoded((5, 6), 1)]).n_tokens == 1
