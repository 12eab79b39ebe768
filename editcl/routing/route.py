"""route(): edit, train, both, or ask, decided before anything is changed.

Signals are taken from cheap to costly, and only as far as they are needed:

    1. surface     counted in the texts                                  milliseconds
    2. reading     one forward pass over a sample, and closed forms      under a second
    3. probe       a short training on half, while undecided             seconds
    4. trial edit  of a fact, if objects are strange to the model and    seconds
                   edits of it have left covariances in memory

For tasks of MANY items or more all of it costs at most SHARE of the cheaper arm, by estimate.
The rule is in `rule`, its words in `words`. The model is as before afterwards, and nothing is
logged.
"""

from __future__ import annotations

import math
import time
from collections.abc import Hashable
from dataclasses import dataclass, replace

from editcl.editing.guards import active_facts
from editcl.errors import EditclError
from editcl.facts import Fact
from editcl.learning.tasks import TEXT, Example, Task
from editcl.model import EditableModel
from editcl.routing import probes, trials
from editcl.routing.decision import (
    ABSTAIN,
    BUDGETS,
    EDIT,
    FULL,
    SPLIT,
    TRAIN,
    Cost,
    Decision,
)
from editcl.routing.material import Material, material, train_only, whole_task
from editcl.routing.named import set_apart
from editcl.routing.parts import exceptions, part_names, part_signals, parts_of
from editcl.routing.reading import SAMPLE, Reading, read
from editcl.routing.rule import (
    ASKING,
    EXCEPTIONS,
    MATES,
    PARTS,
    Thresholds,
    Verdict,
    judge,
    shipped,
    undecided,
)
from editcl.routing.rule import FULL as FULL_STEP
from editcl.routing.surface import answers_of, surface, templates
from editcl.routing.words import reasons, unused_reasons

MANY = 20  # items from which the decision has a limit
SHARE, SHARE_OF_FEW = 0.2, 0.5  # of the cheaper arm's cost
SAMPLE_CHEAP = 96  # examples that are read with budget "cheap"
CROWD = 200  # facts, with those edited before, from which capacity is asked for
MORE = (
    "What else belongs to it? A training takes two examples or more; give some, or choose edit "
    "yourself"
)
#: What things cost, in rows that are read: an edited fact, a trained row, a trial edit. Measured on
#: the embedded model with the defaults of `Learner`. Limits are kept in these
#: rows rather than in seconds, so that a decision doesn't depend on how busy a machine is.
EDIT_ROWS, TRAIN_ROWS, TRIAL_ROWS = 180.0, 3.5, 800.0
TRAIN_STEPS, TRAIN_BATCH = 80, 16
PROBE_ROWS = 1.2 * trials.STEPS * trials.ROWS * TRAIN_ROWS


def route(
    model: EditableModel,
    task: object,
    *,
    budget: str = FULL,
    seed: int = 0,
    show: bool = True,
    thresholds: Thresholds | None = None,
) -> Decision:
    """Decides whether a task is to be edited, trained, split into both, or asked about.

    Args:
        model: frozen, with the edits that are in it; as before afterwards.
        task: a Task, Facts, Examples, (prompt, completion) pairs, a text, a Path, or Material.
        budget: "full", or "cheap": no training and no edit is tried.
        seed: of what is drawn and of the probes.
        show: draws a progress bar in terminals, if it takes long.
        thresholds: of the rule; by default the shipped ones.

    Raises:
        TaskError: the task is empty, contradicts itself, is no text, or can't be encoded.
        TableError: a file can't be read.
        EditclError: there is no such budget, or this is nothing to learn.
    """
    started = time.perf_counter()
    if budget not in BUDGETS:
        raise EditclError(f"there is no budget {budget!r}; choose one of {', '.join(BUDGETS)}.")
    made = task if isinstance(task, Material) else material(task, model=model)
    rest, facts = set_apart(made)
    look = _Look(model, rest, facts, whole_task(made), thresholds or shipped(), seed, show, started)
    if rest.examples:
        look.read(SAMPLE if budget == FULL else SAMPLE_CHEAP)
        if budget == FULL:
            look.try_training()
            look.ask_capacity()
            look.try_edit()
    return look.decision(budget)


@dataclass
class _Look:
    """One look at a task: what is known so far.

    Attributes:
        made: what is looked at.
        named: facts beside it that are called so, and are edited whatever the rest is.
        whole: what would train all of it, the named facts too; None if nothing does.
    """

    model: EditableModel
    made: Material
    named: tuple[Fact, ...]
    whole: Task | None
    thresholds: Thresholds
    seed: int
    show: bool
    started: float

    def __post_init__(self) -> None:
        self.signals = surface(self.made)
        self.templates, self.answers = templates(self.made), answers_of(self.made)
        self.subjects: list[Hashable] = [
            example.prompt if fact is None else fact.subject
            for example, fact in zip(self.made.examples, self.made.facts, strict=True)
        ]
        self.reading: Reading | None = None
        self.spent = 0.0  # rows
        self.facts_by_part: set[str] = set()
        self.out: list[int] = []  # examples out of line with the others
        self.names = part_names(self.templates)
        if self.named:
            self.signals["apart"] = len(self.named) / (len(self.named) + len(self.made.examples))
        if facts := self._facts():
            self.signals["trainable"] = float(self.whole is not None)
            self.signals["mates"] = len(facts) / len({fact.subject for fact in facts})
        if self.made.task is not None and self.made.task.kind == TEXT:
            stated = len(self.made.facts)
            self.signals["texts"] = float(len(self.made.task.train))
            self.signals["fact_share"] = stated / max(1, stated + len(self.made.unused))

    # -- signals ----------------------------------------------------------------------------------

    def read(self, at_most: int) -> None:
        """The forward pass, and what follows from it in closed form."""
        made, t = self.made, self.thresholds
        limit = None if made.task is None else made.task.max_tokens
        found = read(self.model, made.examples, max_tokens=limit, seed=self.seed, at_most=at_most)
        self.reading, self.spent = found, float(len(found.rows) + probes.WELL_KNOWN)
        own = found.chosen
        answers = [self.answers[i] for i in own]
        masked = [self.templates[i] for i in own]
        subjects = [self.subjects[i] for i in own]
        stated = [made.facts[i] is not None for i in own]
        held = probes.held_out(self.model, found, answers, subjects, seed=self.seed)
        known = probes.known_loss(self.model)
        self.signals |= {
            "known": probes.known(found),
            "conflict": probes.conflict(found),
            "strangeness": probes.strangeness(self.model, found, known),
            "spelling": probes.spelling(self.model, found),
            "pieces": probes.pieces(self.model, [f.subject for f in made.facts if f is not None]),
            "answer_loss": probes.answer_loss(found),
            "feature_transfer": probes.transfer(held.hits, held.base_hits, answers, masked),
            "coherence": probes.coherence(found, subjects, seed=self.seed),
        }
        parts = parts_of([self.names[i] for i in own], held, answers, masked, stated)
        self.signals |= part_signals(parts, t.train)
        below = [part for part in parts if part.low < t.train]
        self.facts_by_part = {part.name for part in below}
        if below and len(parts) > 1:
            rest = replace(
                found, prompt_loss=found.prompt_loss[[i for p in below for i in p.chosen]]
            )
            self.signals["worst_strangeness"] = probes.strangeness(self.model, rest, known)
        if len(own) == len(made.examples):
            self.out = exceptions(held, stated)
            self.signals["exceptions"] = len(self.out) / len(own)

    def try_training(self) -> None:
        """The transfer probe, while undecided and as long as it may take."""
        assert self.reading is not None, "the task was not read"
        if not undecided(self.signals, self.thresholds):
            return
        if not self._afford(PROBE_ROWS):
            return
        limit = None if self.made.task is None else self.made.task.max_tokens
        # A sample is enough for so few steps.
        own = self.reading.chosen
        judged, after, before = trials.transfer_probe(
            self.model,
            [self.made.examples[i] for i in own],
            [self.subjects[i] for i in own],
            max_tokens=limit,
            seed=self.seed,
            show=self.show,
        )
        if judged:
            chosen = [own[i] for i in judged]
            self.signals["probe_transfer"] = probes.transfer(
                after,
                before,
                [self.answers[i] for i in chosen],
                [self.templates[i] for i in chosen],
            )

    def try_edit(self) -> None:
        """A trial edit, if facts are to be edited whose objects are strange to the model."""
        facts = self._facts()
        doubtful = self.signals["spelling"] > self.thresholds.spelling
        if self._verdict().kind != EDIT or not doubtful:
            return
        if not trials.known_covariances(self.model) or not self._afford(TRIAL_ROWS):
            return
        others = [fact.sentence for fact in facts]
        found = trials.trial_edit(self.model, facts, others, seed=self.seed)
        self.signals["trial_efficacy"] = found.efficacy
        self.signals["trial_specificity"] = found.specificity

    def ask_capacity(self) -> None:
        """What part of all that edits hold these facts are, and all with them; of many."""
        facts = self._facts()
        stated = {(f.subject, f.prompt) for f in (*facts, *active_facts(self.model.log))}
        if len(stated) < CROWD or self._verdict().kind not in (EDIT, SPLIT):
            return
        # So many facts take so long to edit that C, which an edit needs anyway, is soon had.
        known = trials.edit_covariances(self.model)
        if known:
            holds = trials.capacity(known)
            self.signals |= {"load": len(facts) / holds, "fill": len(stated) / holds}

    # -- cost -------------------------------------------------------------------------------------

    def _arms_in_rows(self) -> tuple[float | None, float | None]:
        """What editing all facts and training on all examples cost; None for what can't be done."""
        n = 0 if self.made.task is None else len(self.made.task.train)
        steps = max(TRAIN_STEPS, math.ceil(n / TRAIN_BATCH))
        return (
            len(self._facts()) * EDIT_ROWS or None,
            steps * TRAIN_BATCH * TRAIN_ROWS if n else None,
        )

    def _afford(self, rows: float) -> bool:
        """Whether something that costs so much stays within the limit; notes it if so."""
        arms = [arm for arm in self._arms_in_rows() if arm is not None]
        share = SHARE if len(self.made.examples) >= MANY else SHARE_OF_FEW
        if self.spent + rows > share * min(arms, default=0.0):
            return False
        self.spent += rows
        return True

    def _cost(self) -> Cost:
        row = 0.0
        if self.reading is not None:
            row = self.reading.row_tokens * self.reading.seconds_per_token
        edit, train = self._arms_in_rows()
        return Cost(
            time.perf_counter() - self.started,
            None if edit is None else edit * row,
            None if train is None else train * row,
        )

    # -- the decision -----------------------------------------------------------------------------

    def _facts(self) -> tuple[Fact, ...]:
        found = (fact for fact in self.made.facts if fact is not None)
        return tuple(dict.fromkeys([*self.named, *found]))

    def _verdict(self) -> Verdict:
        return judge(self.signals, self.thresholds)

    def decision(self, budget: str) -> Decision:
        """What the signals come to, with what an edit would write and a training learn."""
        verdict = self._verdict()
        kind, facts, trains, more = self._arms(verdict)
        told = reasons(verdict, self.signals, self.thresholds)
        if kind == ABSTAIN and verdict.kind != ABSTAIN:
            told = (MORE, *told)
        return Decision(
            task=self.made.name,
            kind=kind,
            confidence=verdict.confidence,
            reasons=(*told, *more, *unused_reasons(self.made.unused)),
            signals=self.signals,
            cost=self._cost(),
            facts=facts,
            trains=trains,
            budget=budget,
        )

    def _arms(self, verdict: Verdict) -> tuple[str, tuple[Fact, ...], Task | None, list[str]]:
        """The kind, the facts, the task, and what has to be said about them."""
        made, facts = self.made, self._facts()
        if verdict.kind == EDIT and verdict.step in ASKING:
            return EDIT, self.named, None, []
        if verdict.kind == EDIT:
            left = sum(fact is None for fact in made.facts)
            said = f"{left:,} examples state no fact and are left out of the edit"
            return EDIT, facts, None, [said] if left else []
        if verdict.step in (FULL_STEP, MATES):
            return TRAIN, (), self.whole, []
        if verdict.kind == TRAIN and made.task is not None:
            # Facts that a task of plain texts names are none of its texts.
            given = made.given if made.task.kind == TEXT else ()
            said = f"{len(given):,} facts that the task names beside its texts are edited"
            return SPLIT if given else TRAIN, given, made.task, [said] if given else []
        if verdict.kind == SPLIT and verdict.step not in (PARTS, EXCEPTIONS):
            return self._split([False] * len(made.examples), [])
        if verdict.kind == SPLIT:
            out = set(self.out) if verdict.step == EXCEPTIONS else None
            chosen = [
                fact is not None and (name in self.facts_by_part if out is None else i in out)
                for i, (fact, name) in enumerate(zip(made.facts, self.names, strict=True))
            ]
            return self._split(chosen, [])
        return ABSTAIN, (), None, []

    def _split(
        self, chosen: list[bool], more: list[str]
    ) -> tuple[str, tuple[Fact, ...], Task | None, list[str]]:
        """Chosen examples are edited, the others trained; all are trained if too few are left."""
        made = self.made
        pairs = zip(made.examples, made.facts, chosen, strict=True)
        facts = list(self.named)
        rest: list[Example] = []
        for example, fact, edited in pairs:
            if edited and fact is not None:
                facts.append(fact)
            else:
                rest.append(example)
        trains = None if made.task is None else train_only(made.task, rest)
        if trains is None and self.named:
            return EDIT, self._facts(), None, ["too little is left to train on: facts are edited"]
        if trains is None:
            assert made.task is not None, "what has parts and names no facts can be trained"
            said = "without the facts too little is left to train on: all of it is trained"
            return TRAIN, (), made.task, [said]
        return SPLIT, tuple(dict.fromkeys(facts)), trains, more
