"""Signals from a reading of the frozen model: what it says now, and what its states foretell.

The principle behind them: what is learnt of one example of a skill helps with the next one, what is
learnt of a fact helps with no other. Whether answers carry over is asked in closed form, by ridge
regression from the model's states x to the answers' vectors y (output embedding and identity),

    s_i = k_i (K + lambda I)^-1 Y,    K = X X^T,    K and Y without the examples of i's fold,

where examples of one subject share a fold. Nothing is trained, nothing is changed.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import layer_norm, normalize

from editcl.catalogue import known_facts, relations
from editcl.encoding import Sentence
from editcl.errors import FactError
from editcl.model import EditableModel
from editcl.routing.reading import Reading
from editcl.routing.subjects import n_words

RIDGE = 0.3  # lambda, by the mean squared length of a state
FOLDS = 10  # examples are held out one by one up to LEAVE_ONE_OUT subjects
LEAVE_ONE_OUT = 48
SURE = 0.5  # probability from which the model counts as confident
SHUFFLES = 8
ASKED = 128  # subjects whose tokens are counted
WELL_KNOWN, MOST_KNOWN = 32, 0.5
TELLING = 0.5  # template_rule from which the template counts as part of the skill
_EPS = 1e-9


@dataclass(frozen=True)
class Held:
    """What states foretell of examples that were held out.

    Attributes:
        hits: whether the answer of an example is foretold, of all answers of the task.
        lead: by how much another answer leads over the true one; 0 for a hit. Scores of true
            answers are about 1, of others about 0.
        base_hits: whether the model by itself puts the answer first among the task's answers,
            judged by first tokens, or says it exactly.
    """

    hits: tuple[bool, ...]
    lead: tuple[float, ...]
    base_hits: tuple[bool, ...]


# -- what the model says --------------------------------------------------------------------------


def known(reading: Reading) -> float:
    """Share of completions that the model says by itself, by greedy decoding."""
    return sum(reading.exact) / len(reading.exact)


def conflict(reading: Reading) -> float:
    """Share of prompts after which the model is confident of another token than the answer's."""
    best = reading.first.max(1)
    other = best.indices != reading.answers
    return float((other & (best.values.exp() >= SURE)).double().mean())


def strangeness(model: EditableModel, reading: Reading, known: float) -> float:
    """How strange the prompts are, between statements about well-known things and guessing.

        (loss - known) / (1 - known),   losses: mean cross-entropy of prompts' tokens by ln d_vocab

    0 where they are as familiar as those or more, about 1 and above for nonsense, unknown languages
    and names that the model never met. Large models find any name a little surprising, small ones
    only those that they were not trained on: hence the comparison.

    Args:
        model: for the size of its vocabulary.
        reading: of the prompts.
        known: as `known_loss` gives it.
    """
    measured = reading.prompt_loss[~reading.prompt_loss.isnan()]
    if not len(measured):
        return 0.0
    return max(0.0, (float(measured.mean()) / math.log(model.d_vocab) - known) / (1 - known))


def known_loss(model: EditableModel) -> float:
    """Cross-entropy of WELL_KNOWN prompts of the catalogue, by that of guessing; at most
    MOST_KNOWN, for models of another world."""
    facts = random.Random("well known").sample(known_facts(), WELL_KNOWN)
    rows = []
    for fact in facts:
        try:
            (row,) = model.encode([Sentence(relations()[fact.relation].prompt, fact.subject)])
        except FactError:  # words that the tokenizer doesn't have
            continue
        rows.append(torch.tensor(row.ids))
    if not rows:
        return MOST_KNOWN
    with torch.inference_mode():
        log_probs = model.forward(model.pad([row.tolist() for row in rows])).float().log_softmax(-1)
    pairs = zip(rows, log_probs.cpu(), strict=True)
    losses = [-float(own[: len(row) - 1].gather(1, row[1:, None]).mean()) for row, own in pairs]
    return min(MOST_KNOWN, sum(losses) / len(losses) / math.log(model.d_vocab))


def spelling(model: EditableModel, reading: Reading) -> float:
    """Mean cross-entropy of the completions' tokens behind the first, by that of guessing.

    High where the model has never said these words: an edit moves one state and can make it begin
    a word, but how the word goes on the model must know.
    """
    return float(reading.rest_loss.mean()) / math.log(model.d_vocab)


def answer_loss(reading: Reading) -> float:
    """Mean cross-entropy of the completions' tokens (nats): how far the model is from them."""
    return -float(reading.log_prob.mean())


def pieces(model: EditableModel, subjects: Sequence[str]) -> float:
    """Mean number of tokens of a subject's word; high for names that the tokenizer never met.

    0 without subjects; the first ASKED count.
    """
    asked = [subject for subject in dict.fromkeys(subjects) if n_words(subject)][:ASKED]
    if not asked:
        return 0.0
    # Within a text a space stands in front, which tokenizers take into the first token.
    spaced = [f" {subject}" for subject in asked]
    ids = model.tokenizer(spaced, add_special_tokens=False, verbose=False)["input_ids"]
    return sum(len(own) / n_words(s) for own, s in zip(ids, asked, strict=True)) / len(asked)


# -- what carries over ----------------------------------------------------------------------------


def held_out(
    model: EditableModel,
    reading: Reading,
    answers: Sequence[str],
    subjects: Sequence[Hashable],
    *,
    seed: int = 0,
) -> Held:
    """Foretells each answer from the states of the examples in the other folds.

    Args:
        model: for its output embeddings.
        reading: of the examples.
        answers: their completions.
        subjects: what they are about; those of one subject are held out together.
        seed: of the folds.
    """
    kinds = list(dict.fromkeys(answers))
    truth = torch.tensor([kinds.index(answer) for answer in answers])
    tokens = torch.zeros(len(kinds), dtype=torch.long).scatter(0, truth, reading.answers)
    vectors = answer_vectors(model, tokens)
    scores = torch.full((len(answers), len(kinds)), -torch.inf)
    kernel = state_kernel(reading)
    fold = folds(subjects, seed=seed)
    for k in range(int(fold.max()) + 1):
        inside, outside = fold == k, fold != k
        if bool(outside.any()):
            own, products = kernel[outside][:, outside], kernel[inside][:, outside]
            scores[inside] = ridge(own, vectors[truth[outside]], products) @ vectors.T
    best = scores.max(1)
    lead = best.values - scores.gather(1, truth[:, None])[:, 0]
    hits = (best.indices == truth) & best.values.isfinite()
    ranked = reading.first[:, tokens].argmax(1)
    base = tokens[ranked] == tokens[truth]
    base &= torch.tensor([len(kinds) > 1])
    return Held(
        tuple(hits.tolist()),
        tuple(lead.nan_to_num(1.0).tolist()),
        tuple(a or b for a, b in zip(base.tolist(), reading.exact, strict=True)),
    )


def answer_vectors(
    model: EditableModel, tokens: Int[Tensor, " n_answers"]
) -> Float[Tensor, "n_answers d"]:
    """A unit vector for each answer: half its first token's output embedding (centred over the
    answers), by which alike answers share what is learnt; half an axis of its own."""
    weight = model.hf.get_output_embeddings().weight
    rows = weight.detach()[tokens.to(weight.device)].float().cpu()
    own = normalize(rows - rows.mean(0), dim=1, eps=1e-6)
    return torch.cat([own, torch.eye(len(tokens))], 1) / 2**0.5


def state_kernel(reading: Reading) -> Float[Tensor, "n_rows n_rows"]:
    """Inner products of the centred states, each kind scaled to a mean squared length of 1."""
    total = torch.zeros(len(reading.rows), len(reading.rows))
    for state in reading.states.values():
        centred = state - state.mean(0)
        gram = centred @ centred.T
        total += gram / gram.diagonal().mean().clamp_min(_EPS) / len(reading.states)
    return total


def ridge(
    kernel: Float[Tensor, "n n"], targets: Float[Tensor, "n d"], products: Float[Tensor, "m n"]
) -> Float[Tensor, "m d"]:
    """What the regression of targets on states foretells of m other states, in its dual form.

    Args:
        kernel: inner products of the n states.
        targets: of each of them.
        products: inner products of the m states with the n.
    """
    mean = targets.mean(0)
    weights = torch.linalg.solve(kernel + RIDGE * torch.eye(len(kernel)), targets - mean)
    return products @ weights + mean


def folds(subjects: Sequence[Hashable], *, seed: int = 0) -> Int[Tensor, " n_rows"]:
    """The fold of each example; those of one subject share it."""
    distinct = list(dict.fromkeys(subjects))
    random.Random(f"folds {seed}").shuffle(distinct)
    count = len(distinct) if len(distinct) <= LEAVE_ONE_OUT else FOLDS
    own = {subject: i % count for i, subject in enumerate(distinct)}
    return torch.tensor([own[subject] for subject in subjects])


def transfer(
    hits: Sequence[bool],
    base_hits: Sequence[bool],
    answers: Sequence[str],
    templates: Sequence[str],
) -> float:
    """The share of what could be gained that is gained on held-out examples; at most 1.

        (accuracy - b) / (1 - b),   b = the best of: the model itself, the commonest answer, and
                                        the commonest answer of each template

    The template's answer is no baseline where it tells most answers: then it is the skill.
    0 where nothing could be gained; below 0, down to -1, where the examples mislead.
    """
    n = len(answers)
    if not n:
        return 0.0
    overall = max(Counter(answers).values()) / n
    by_template: dict[str, Counter[str]] = {}
    for template, answer in zip(templates, answers, strict=True):
        by_template.setdefault(template, Counter())[answer] += 1
    # One example of a template or answer is no habit: only what is seen again counts.
    told = sum(max(c.values()) for c in by_template.values() if max(c.values()) > 1) / n
    limits = [overall, sum(base_hits) / n]
    if told - overall < TELLING:
        limits.append(told)
    baseline = max(limits)
    if baseline >= 1:
        return 0.0
    return max(-1.0, (sum(hits) / n - baseline) / (1 - baseline))


def coherence(reading: Reading, subjects: Sequence[Hashable], *, seed: int = 0) -> float:
    """How much alike the gradients of different subjects' examples are, beyond chance.

    The gradient of an example's loss at the unembedding is (p - y) x^T, so that two of them have
    the cosine cos(p_i - y_i, p_j - y_j) cos(x_i, x_j). From its mean over pairs the same with
    shuffled answers is taken: near 0 for facts, above for skills. In closed form.
    """
    states = normalize(layer_norm(reading.states["last"], reading.states["last"].shape[1:]), dim=1)
    gram = states @ states.T
    names = list(dict.fromkeys(subjects))
    group = torch.tensor([names.index(subject) for subject in subjects])
    pairs = (group[:, None] != group[None]).float()
    if not bool(pairs.any()):
        return 0.0
    p = reading.first.exp()
    products = p @ p.T
    generator = random.Random(f"coherence {seed}")

    def mean(answers: Int[Tensor, " n_rows"]) -> float:
        at = p[:, answers]  # p_i of the answer of j
        same = (answers[:, None] == answers[None]).float()
        inner = products - at - at.T + same
        norm = inner.diagonal().clamp_min(_EPS).sqrt()
        cosine = inner / (norm[:, None] * norm[None])
        return float((cosine * gram * pairs).sum() / pairs.sum())

    shuffled = []
    for _ in range(SHUFFLES):
        order = list(range(len(reading.rows)))
        generator.shuffle(order)
        shuffled.append(mean(reading.answers[order]))
    return mean(reading.answers) - sum(shuffled) / len(shuffled)
