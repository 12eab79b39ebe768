"""Probes, each against a naive computation, with controls that carry over and that don't."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch

import editcl
from editcl.catalogue import known_facts, relations
from editcl.facts import fill
from editcl.learning.tasks import Example
from editcl.model import EditableModel
from editcl.routing import probes
from editcl.routing.reading import Reading, read

WORDS = ("Paris", "Rome", "Apple")


@pytest.fixture
def reading(model: EditableModel) -> Reading:
    return read(model, [Example(f"The {w} {i} is", w) for i in range(8) for w in WORDS])


def planted(reading: Reading, answers: list[str], *, noise: float) -> Reading:
    """The reading with states that tell the answers, up to noise."""
    n, d = reading.states["last"].shape
    kinds = torch.tensor([WORDS.index(a) for a in answers])
    signal = 3 * torch.eye(d)[kinds]
    generator = torch.Generator().manual_seed(0)
    states = {
        name: signal * (noise < 1) + noise * torch.randn(n, d, generator=generator)
        for name in reading.states
    }
    return replace(
        reading, states=states, exact=(False,) * n, first=torch.zeros_like(reading.first)
    )


def test_answers_that_the_states_tell_carry_over_and_others_do_not(
    model: EditableModel, reading: Reading
) -> None:
    answers, subjects = list(WORDS) * 8, list(range(24))
    clear = probes.held_out(model, planted(reading, answers, noise=0.1), answers, subjects)
    blank = probes.held_out(model, planted(reading, answers, noise=1.0), answers, subjects)
    assert all(clear.hits) and max(clear.lead) == 0
    assert sum(blank.hits) < 16 and max(blank.lead) > 0


def test_the_subject_of_an_example_never_foretells_it(
    model: EditableModel, reading: Reading
) -> None:
    """Each answer stands with one subject only, eight times: nothing else can tell it."""
    answers = list(WORDS) * 8
    found = probes.held_out(model, planted(reading, answers, noise=0.1), answers, answers)
    assert not any(found.hits)


def test_ridge_is_the_regression_that_is_solved_in_its_primal_form() -> None:
    generator = torch.Generator().manual_seed(0)
    X, Z = (torch.randn(n, 5, generator=generator) for n in (12, 4))
    Y = torch.randn(12, 3, generator=generator)
    found = probes.ridge(X @ X.T, Y, Z @ X.T)
    W = torch.linalg.solve(X.T @ X + probes.RIDGE * torch.eye(5), X.T @ (Y - Y.mean(0)))
    torch.testing.assert_close(found, Z @ W + Y.mean(0), rtol=1e-4, atol=1e-4)


def test_folds_keep_subjects_together_and_hold_few_out_one_by_one() -> None:
    few = probes.folds(["a", "b", "a", "c"])
    assert few[0] == few[2] and len({*few.tolist()}) == 3
    many = probes.folds(list(range(200)))
    assert len({*many.tolist()}) == probes.FOLDS


def test_transfer_is_the_share_of_what_could_be_gained() -> None:
    answers, alike = ["a", "b"] * 4, ["t"] * 8
    none, all_ = [False] * 8, [True] * 8
    assert probes.transfer(all_, none, answers, alike) == 1
    assert probes.transfer([True, True, True, False] * 2, none, answers, alike) == 0.5
    assert probes.transfer([True, False] * 4, none, answers, alike) == 0
    assert probes.transfer(all_, all_, answers, alike) == 0, "the model knows it all"
    assert probes.transfer(none, none, answers, alike) == -1
    assert probes.transfer([], [], [], []) == 0


def test_what_a_relation_mostly_has_is_no_transfer_but_a_template_that_tells_is() -> None:
    answers = ["a", "a", "x", "b", "b", "y"]
    by_template = ["s"] * 3 + ["t"] * 3
    usual = [True, True, False] * 2
    assert probes.transfer(usual, [False] * 6, answers, by_template) == 0
    told = ["a"] * 3 + ["b"] * 3
    assert probes.transfer([True] * 6, [False] * 6, told, by_template) == 1


def test_what_the_model_says_counts_as_known_and_what_it_is_sure_of_as_conflict(
    reading: Reading,
) -> None:
    n = len(reading.rows)
    first = torch.full_like(reading.first, -20.0)
    first[:, 7] = 0.0
    sure = replace(reading, first=first, exact=(True,) * (n // 2) + (False,) * (n // 2))
    assert probes.conflict(sure) == 1
    assert probes.known(sure) == 0.5
    first = first.scatter(1, reading.answers[:, None], 1.0)
    assert probes.conflict(replace(sure, first=first)) == 0


def test_strangeness_is_one_for_a_model_that_guesses(
    model: EditableModel, reading: Reading
) -> None:
    guess = torch.full_like(reading.prompt_loss, torch.tensor(float(model.d_vocab)).log())
    assert probes.strangeness(
        model, replace(reading, prompt_loss=guess), probes.known_loss(model)
    ) == pytest.approx(1)
    blank = torch.full_like(guess, torch.nan)
    assert (
        probes.strangeness(model, replace(reading, prompt_loss=blank), probes.known_loss(model))
        == 0
    )


def test_strangeness_lies_between_well_known_things_and_guessing() -> None:
    own = editcl.load()

    def asked(prompts: list[str]) -> float:
        reading = read(own, [Example(p, "Oslo") for p in prompts])
        return probes.strangeness(own, reading, probes.known_loss(own))

    known = known_facts()[::300]
    plain = [fill(relations()[fact.relation].prompt, fact.subject) for fact in known]
    assert asked(plain) < 0.1
    assert (
        0.7
        < asked([p.replace(f.subject, "Velmo Tordor") for p, f in zip(plain, known, strict=True)])
        < 1.6
    )
    assert asked(["Zqu xov wrb jjk", "Vbb qrt zzl oik"]) > 1.2


def test_a_tokenizer_without_the_words_of_well_known_things_is_no_hindrance() -> None:
    words = tiny.word_tokenizer()
    own = editcl.wrap(tiny.build("gpt2", vocab_size=len(words)), words)
    found = read(own, [Example("The Tower is in the city of", "Paris")])
    assert probes.strangeness(own, found, probes.known_loss(own)) > 0


def test_spelling_is_one_for_a_model_that_guesses_how_words_go_on(
    model: EditableModel, reading: Reading
) -> None:
    guess = torch.full_like(reading.rest_loss, torch.tensor(float(model.d_vocab)).log())
    assert probes.spelling(model, replace(reading, rest_loss=guess)) == pytest.approx(1)
    assert probes.spelling(model, replace(reading, rest_loss=torch.zeros_like(guess))) == 0


def test_names_that_fall_into_many_tokens_are_seen(model: EditableModel) -> None:
    names = ["The Eiffel Tower", "Rome"]
    lengths = [
        len(model.tokenizer(f" {name}")["input_ids"]) / len(name.split()) for name in names
    ]  # fmt: skip
    assert probes.pieces(model, names) == pytest.approx(sum(lengths) / 2)
    assert probes.pieces(model, ["Xqzwvk Jbhq"]) > probes.pieces(model, names)
    assert probes.pieces(model, []) == probes.pieces(model, ["..."[:0]]) == 0


def test_coherence_is_the_mean_cosine_of_gradients_beyond_shuffled_answers(
    reading: Reading,
) -> None:
    subjects = list(range(len(reading.rows)))
    states = torch.nn.functional.layer_norm(
        reading.states["last"], reading.states["last"].shape[1:]
    )

    def mean(answers: torch.Tensor) -> float:
        rows = []
        for p, x, y in zip(reading.first.exp(), states, answers, strict=True):
            weight = torch.zeros(len(p), len(x), requires_grad=True)
            # Logits p' with softmax(p') = p at weight 0: its gradient is (p - y) x^T.
            loss = torch.nn.functional.cross_entropy((weight @ x + p.log())[None], y[None])
            (gradient,) = torch.autograd.grad(loss, weight)
            rows.append(gradient.flatten())
        unit = torch.nn.functional.normalize(torch.stack(rows), dim=1)
        cosines = unit @ unit.T
        return float(cosines[~torch.eye(len(rows), dtype=torch.bool)].mean())

    import random

    generator, shuffled = random.Random("coherence 0"), []
    for _ in range(probes.SHUFFLES):
        order = list(range(len(subjects)))
        generator.shuffle(order)
        shuffled.append(mean(reading.answers[order]))
    naive = mean(reading.answers) - sum(shuffled) / len(shuffled)
    assert probes.coherence(reading, subjects) == pytest.approx(naive, abs=1e-4)
    assert probes.coherence(reading, ["one"] * len(subjects)) == 0
