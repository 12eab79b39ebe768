"""The arms of a posed task, measured: what editing, training and splitting each come to.

    utility = success + generalisation + specificity - damage - 0.1 * share of the arms' seconds

Success is the share of the items that are answered right, generalisation that of the held-out ones,
specificity that of catalogue facts about other subjects which the model still gets, damage the rise
of the cross-entropy of plain sentences. Every prompt goes where the Learner's inference sends it;
no task is told. An arm is learnt by a Learner and rolled back.

Doing nothing (to abstain) is worth what the base model gets by itself, at no cost. The best of
these is the task's label. Knows nothing of routing.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from editcl.benchmarks.posed import MIXED, Posed
from editcl.catalogue import known_facts, relations
from editcl.editing.contexts import DEFAULT_CONTEXTS
from editcl.errors import EditclError
from editcl.evaluation.damage import general_texts
from editcl.facts import Fact, fill
from editcl.learner import EditSettings, Learner
from editcl.learning.answers import around
from editcl.learning.batches import encode_examples, visible
from editcl.learning.predict import scores_of_rows
from editcl.learning.skills import INFER
from editcl.learning.tasks import TEXT, Example
from editcl.model import EditableModel
from editcl.routing.decision import ABSTAIN, EDIT, SPLIT, TRAIN

ARMS = (EDIT, TRAIN, SPLIT)
JUDGED = 40  # items, and held-out items, of a task
PROBES, NEIGHBOURS = 40, 20  # facts about other subjects: of any relation, of the task's own
COST = 0.1
#: Edits as a Learner makes them, but for fewer texts in front of the prompts: on four tasks shares
#: within 0.05 of those with all texts, in about 0.7 of the processor time.
EDITS = EditSettings(contexts=DEFAULT_CONTEXTS[:3])


@dataclass(frozen=True)
class Arm:
    """What an arm came to.

    Attributes:
        success, generalisation, specificity: shares.
        damage: nats per token of plain sentences, in [0, 1].
        seconds: of learning, without measuring.
        changed: whether it changed the model at all; facts that the model says are left alone.
    """

    success: float
    generalisation: float
    specificity: float
    damage: float
    seconds: float
    changed: bool = True

    def utility(self, all_seconds: float) -> float:
        """By the module's equation."""
        cost = COST * self.seconds / all_seconds if all_seconds else 0.0
        return self.success + self.generalisation + self.specificity - self.damage - cost


@dataclass(frozen=True, repr=False)
class Measured:
    """A task with all that its arms came to.

    Attributes:
        task, family, kind: of the posed task.
        items: how many it has.
        base: the model without any of it.
        arms: by name; those that were possible.
        refused: by name, why an arm was not possible.
    """

    task: str
    family: str
    kind: str
    items: int
    base: Arm
    arms: Mapping[str, Arm]
    refused: Mapping[str, str]

    def utilities(self) -> dict[str, float]:
        """What each arm that was possible is worth, and abstaining."""
        total = sum(arm.seconds for arm in self.arms.values())
        found = {name: arm.utility(total) for name, arm in self.arms.items()}
        return found | {ABSTAIN: self.base.utility(0.0)}

    @property
    def label(self) -> str:
        """What is best."""
        found = self.utilities()
        return max(found, key=lambda name: found[name])

    def utility_of(self, kind: str) -> float:
        """What a decision is worth; one that can't be carried out leaves the model as it is."""
        found = self.utilities()
        return found.get(kind, found[ABSTAIN])

    def regret(self, kind: str) -> float:
        """How much less than the best a decision is worth."""
        return max(self.utilities().values()) - self.utility_of(kind)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON, with what follows from it."""
        return asdict(self) | {"utilities": self.utilities(), "label": self.label}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Measured:
        """From what `to_json` gave."""
        own = {name: found[name] for name in cls.__dataclass_fields__}
        own["base"] = Arm(**found["base"])
        own["arms"] = {name: Arm(**arm) for name, arm in found["arms"].items()}
        return cls(**own)

    def __repr__(self) -> str:
        worth = ", ".join(f"{name} {value:.2f}" for name, value in self.utilities().items())
        return f"Measured({self.task}: {self.label}; {worth})"


def measure(model: EditableModel, posed: Posed, *, seed: int = 0) -> Measured:
    """Measures the base and every arm; the model is as before afterwards.

    Splitting is an arm of mixed tasks; it is told which items are facts.

    Raises:
        EditclError: the model's log has active entries.
    """
    if any(model.log.active(entry) for entry in model.log.timeline):
        raise EditclError("arms are measured on a model without edits and skills; roll them back.")
    learner = Learner(model, edits=EDITS)
    judge = ArmJudge(learner, posed)
    base = judge.measured(0.0)
    arms, refused = {}, {}
    for name in ARMS if posed.kind == MIXED else ARMS[:2]:
        try:
            arms[name] = judge.arm(name, seed=seed)
        except EditclError as error:
            refused[name] = str(error)
    return Measured(
        posed.name,
        posed.family,
        posed.kind,
        len(posed.task.train),
        base,
        arms,
        refused,
    )


class ArmJudge:
    """Judges one task, whatever a Learner has done about it.

    Args:
        learner: of the model.
        posed: the task.
    """

    def __init__(self, learner: Learner, posed: Posed) -> None:
        self.learner, self.posed = learner, posed
        drawn = random.Random(posed.name)
        self.items = _some(drawn, posed.task.train)
        self.held_out = _some(drawn, posed.task.test)
        asked = probes(posed)
        right = learner.correct(asked)
        self.probes = [row for row, known in zip(asked, right, strict=True) if known]
        self._entropy = cross_entropy(learner)

    def arm(self, name: str, *, seed: int, facts: Sequence[Fact] | None = None) -> Arm:
        """Learns the task by a method, measures, and takes it back.

        Args:
            name: of the method.
            seed: of everything random.
            facts: of a split, the items that are edited; by default those that are facts.

        Raises:
            EditclError: it is not possible.
        """
        what: object = self.posed.what
        if name == SPLIT:
            own = self.posed.facts if facts is None else facts
            what = replace(self.posed.task, test=(), facts=tuple(own))
        outcome = self.learner.learn(what, name, name=self.posed.name, seed=seed, show=False)
        try:
            seconds = self.learner.history()[-1].seconds
            return replace(self.measured(seconds), changed=bool(outcome.entries))
        finally:
            if outcome.entries:
                self.learner.rollback(self.posed.name)

    def measured(self, seconds: float) -> Arm:
        """The model as it is now."""
        labels = self.posed.task.labels
        return Arm(
            share(self.learner.correct(self.items, labels)),
            share(self.learner.correct(self.held_out, labels)),
            share(self.learner.correct(self.probes)),
            min(1.0, max(0.0, cross_entropy(self.learner) - self._entropy)),
            seconds,
        )


def share(right: Sequence[bool]) -> float:
    """Share of what is right; 1 of nothing."""
    return sum(right) / len(right) if right else 1.0


def cross_entropy(learner: Learner) -> float:
    """Of plain sentences, in nats per token, each going where inference sends it."""
    examples = [Example("", text) for text in general_texts()]
    rows = encode_examples(learner.model, examples, kind=TEXT)
    using = INFER if learner.skills.tasks else None
    total = tokens = 0.0
    for chosen, way in learner.skills.ways(visible(rows, TEXT), using, abstain=learner.abstain):
        with around(way):
            found = scores_of_rows(way.session.adapters, [rows[i] for i in chosen], way.route)
        total -= float(found.log_probs.sum())
        tokens += float(found.n_targets.sum())
    return total / tokens


def probes(posed: Posed) -> list[Example]:
    """Facts of the catalogue about subjects that no item names, some of the task's relations.

    The same for every task but for those that it rules out.
    """
    texts = " ".join(row.prompt for row in posed.task.train)
    facts = list(known_facts())
    random.Random("probes").shuffle(facts)
    facts = [fact for fact in facts if fact.subject not in texts]
    own = {name for name, found in relations().items() if _stated(found.phrasings, posed)}
    near = [fact for fact in facts if fact.relation in own][:NEIGHBOURS]
    far = [fact for fact in facts if fact not in near][:PROBES]
    return [
        Example(fill(relations()[fact.relation].prompt, fact.subject), fact.object)
        for fact in (*near, *far)
    ]


def _stated(phrasings: Sequence[str], posed: Posed) -> bool:
    """Whether an item is in one of the phrasings."""
    parts = [phrasing.split("{}") for phrasing in phrasings]
    return any(
        row.prompt.startswith(before) and row.prompt.endswith(after)
        for row in posed.task.train
        for before, after in parts
    )


def _some(drawn: random.Random, rows: Sequence[Example]) -> list[Example]:
    return drawn.sample(list(rows), min(JUDGED, len(rows)))


__all__ = ["ARMS", "COST", "Arm", "ArmJudge", "Measured", "measure"]
