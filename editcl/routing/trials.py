"""Signals that have to be tried: a short training, a trial edit, the room there is for edits.

They cost seconds rather than milliseconds and are taken only while cheaper signals leave a task
undecided. Whatever they change is gone when they return: the adapter is one of a bank of its own,
trial edits are taken back bit for bit, and neither is logged.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from editcl.editing.choices import choose_layers
from editcl.editing.covariance import Covariance, covariances
from editcl.editing.methods import METHODS
from editcl.editing.trial import tried
from editcl.editing.way import plan_for, way_of
from editcl.encoding import Sentence
from editcl.errors import EditclError
from editcl.evaluation.answers import answers as answers_to
from editcl.facts import Fact
from editcl.learning.lora import Adapters
from editcl.learning.predict import score_task
from editcl.learning.session import Route, Session
from editcl.learning.settings import TrainSettings
from editcl.learning.strategies import Sequential
from editcl.learning.tasks import CLASSIFICATION, COMPLETION, Example, Task
from editcl.learning.train import train
from editcl.model import EditableModel
from editcl.routing.reading import read

METHOD = "memit"
ROWS = 8  # of a step of the short training
STEPS = 16
LR = 6e-3  # few steps need long ones
JUDGED = 24  # held-out examples of the short training
TRIED = 1  # facts of a trial edit; each takes as long as a short training
#: Of the keys. In one batch on the embedded model, whose keys have 970 directions, 100 facts come
#: to a score of 97, 200 to 93, 300 in ten batches to 80, and 1,000 to that of a destroyed model.
FACTS_PER_DIRECTION = 0.2
WATCHED = 8  # prompts whose answers a trial edit should leave alone


def transfer_probe(
    model: EditableModel,
    examples: Sequence[Example],
    subjects: Sequence[Hashable],
    *,
    steps: int = STEPS,
    max_tokens: int | None = None,
    seed: int = 0,
    show: bool = False,
) -> tuple[list[int], list[bool], list[bool]]:
    """Trains a LoRA adapter on half of the subjects for a few steps and asks for the other half.

    Answers that recur are judged as labels, by which of them is likeliest; others by exact greedy
    decoding. The model is not changed.

    Args:
        model: frozen.
        examples: of the task, at least four.
        subjects: what they are about; no subject is in both halves.
        steps: of the optimiser, with ROWS rows each.
        max_tokens: longer prompts lose their middle; by default the model's longest row.
        seed: of the halves and of the training.
        show: draws a progress bar in terminals.

    Returns:
        Which examples were judged; whether each is right after the training; and before it.
    """
    learnt, judged = _halves(examples, subjects, seed)
    chosen = [examples[i] for i in judged]
    train_part = tuple(examples[i] for i in learnt)
    labels = {example.completion for example in train_part}
    closed = 1 < len(labels) <= len(train_part) // 2
    if closed:
        judged = [i for i in judged if examples[i].completion in labels]
        chosen = [examples[i] for i in judged]
    if not chosen or len(train_part) < 2:
        return [], [], []
    task = Task(
        "probe",
        train_part,
        tuple(chosen),
        CLASSIFICATION if closed else COMPLETION,
        max_tokens=max_tokens or model.max_tokens,
    )
    session = Session(model, Adapters(model), seed=seed)
    settings = TrainSettings(steps=steps, batch_size=ROWS, lr=LR, seed=seed, autocast="off")
    train(session, task, Sequential(), settings, show=show)
    after = score_task(session, task, Route(session.adapters.names))
    # Of answers that don't recur the end isn't judged: what the model knows, it needn't end.
    before = score_task(session, task).correct if closed else read(model, chosen).exact
    return judged, list(after.correct), list(before)


def _halves(
    examples: Sequence[Example], subjects: Sequence[Hashable], seed: int
) -> tuple[list[int], list[int]]:
    """Examples to learn from, and at most JUDGED others to be judged by; subjects apart."""
    distinct = list(dict.fromkeys(subjects))
    random.Random(f"halves {seed}").shuffle(distinct)
    left = set(distinct[: (len(distinct) + 1) // 2])
    learnt = [i for i, subject in enumerate(subjects) if subject in left]
    others = [i for i, subject in enumerate(subjects) if subject not in left]
    if len(others) > JUDGED:
        others = sorted(random.Random(f"judged {seed}").sample(others, JUDGED))
    return learnt, others


@dataclass(frozen=True)
class TrialEdit:
    """What an edit of a few of the facts does.

    Attributes:
        efficacy: share of them that the model says afterwards.
        specificity: share of the other prompts after which it says what it said before.
    """

    efficacy: float
    specificity: float


def trial_edit(
    model: EditableModel, facts: Sequence[Fact], others: Sequence[str], *, seed: int = 0
) -> TrialEdit:
    """Edits a fact or a few, looks, and takes them back.

    Args:
        model: as before, bit for bit, afterwards.
        facts: at least one; TRIED of them, drawn by seed, are edited.
        others: prompts that are not about these facts; WATCHED of them are watched.
        seed: of what is drawn.
    """
    drawn = random.Random(f"trial {seed}").sample(list(facts), min(TRIED, len(facts)))
    asked = {fact.sentence for fact in drawn}
    watched = [prompt for prompt in dict.fromkeys(others) if prompt not in asked][:WATCHED]
    before = _first_tokens(model, watched)
    way = way_of(model, METHOD)  # the seed of `edit_csv`, whose covariances it shares
    # Whether the model takes such facts is asked, not what they do to earlier ones.
    plan = replace(plan_for(model, drawn, way), earlier=())
    solution = way.editor(model, drawn, plan)
    stated = [Sentence(fact.prompt, fact.subject, fact.new_object) for fact in drawn]
    with tried(model, solution.updates):
        found = answers_to(model, stated)
        after = _first_tokens(model, watched)
    efficacy = sum(found[sentence].exact for sentence in stated) / len(stated)
    kept = [a == b for a, b in zip(before, after, strict=True)]
    return TrialEdit(efficacy, sum(kept) / len(kept) if kept else 1.0)


def _first_tokens(model: EditableModel, prompts: Sequence[str]) -> list[int]:
    if not prompts:
        return []
    rows = model.encode([Sentence(prompt) for prompt in prompts])
    last = torch.tensor([len(row.ids) - 1 for row in rows], device=model.device)
    number = torch.arange(len(rows), device=model.device)
    with torch.inference_mode():
        logits = model.forward(model.pad([row.ids for row in rows]), at=(number, last))
    return logits[0].argmax(-1).tolist()


def known_covariances(model: EditableModel) -> dict[int, Covariance]:
    """C of the layers whose covariance is in memory: those that edits of this model have needed.

    Where there are none, a trial edit would first have to measure them, which takes far longer.
    """
    return {c.layer: c for c in model.memo.values() if isinstance(c, Covariance)}


def edit_covariances(model: EditableModel) -> dict[int, Covariance]:
    """C of the layers that an edit would change, measured if need be, as the edit itself would do.

    {} where no layer can be chosen: then there is no edit either, and no capacity to speak of.
    """
    try:
        return covariances(model, choose_layers(model, METHODS[METHOD], None))
    except EditclError:
        return {}


def capacity(known: Mapping[int, Covariance]) -> float:
    """How many facts edits are expected to hold in layers with these covariances, at least one.

    A batch edit stores facts along directions of the keys, so that what it holds grows with the
    effective rank of the keys' covariance in the layers that it changes.
    """
    return FACTS_PER_DIRECTION * sum(effective_rank(one) for one in known.values())


def effective_rank(covariance: Covariance) -> float:
    """exp of the entropy of C's eigenvalues, as shares of their sum; at most d_mlp."""
    values = covariance.spectrum().clamp_min(0)
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())
