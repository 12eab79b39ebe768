"""The judge: what a model with skills says, each prompt going where inference sends it.

    way(prompt) = skill of the nearest centroid, or the base model if that is too far

Facts, completions and labels are judged along these ways, so that a fact which a skill's adapter
shadows counts as lost, and a skill whose prompts go to the base model as unlearnt. Knows nothing of
logs' notes and of how anything was learnt.
"""

from __future__ import annotations

from collections.abc import Sequence

from editcl.errors import EditclError
from editcl.facts import Fact
from editcl.learner.steps import Kept, Step
from editcl.learning.answers import Answer, around, best_labels
from editcl.learning.batches import encode_examples, encode_prompts
from editcl.learning.predict import scores_of_rows
from editcl.learning.session import Route
from editcl.learning.skills import INFER, Skills
from editcl.learning.survival import Survival, holding
from editcl.learning.tasks import CLASSIFICATION, TEXT, Example, Task
from editcl.log import EditLog
from editcl.log.weakening import Place

PLENTY = 1_000_000  # of tokens: rows are cut only where the model's own limit asks for it


class Judge:
    """Asks a model and its skills.

    Args:
        skills: of the model.
        abstain: radii from the nearest centroid beyond which a prompt is the base model's.
    """

    def __init__(self, skills: Skills, abstain: float | None) -> None:
        self.skills, self.model, self.abstain = skills, skills.model, abstain

    def using(self, task: str | None) -> str | None:
        """What `Skills` calls a task: inferred where none is told, base where none is learnt."""
        if task is None:
            return INFER if self.skills.tasks else None
        return task if task in self.skills.tasks else None

    def predict(self, texts: Sequence[str], task: str | None, max_new_tokens: int) -> list[Answer]:
        """Answers of the told task, or of the inferred ones."""
        return self.skills.predict(
            texts, self.using(task), max_new_tokens=max_new_tokens, abstain=self.abstain
        )

    def holds(self, facts: Sequence[Fact]) -> list[bool]:
        """Whether facts hold, as `edit_survival` judges it, each prompt going its way."""
        if not facts:
            return []
        rows = encode_prompts(self.model, [fact.sentence for fact in facts])
        found: dict[int, bool] = {}
        for chosen, way in self.skills.ways(rows, self.using(None), abstain=self.abstain):
            own = [facts[i] for i in chosen]
            with around(way):
                found |= zip(chosen, holding(way.session.adapters, own, way.route), strict=True)
        return [found[i] for i in range(len(facts))]

    def holds_in_weights(self, facts: Sequence[Fact]) -> list[bool]:
        """The same without skills."""
        return holding(self.skills.adapters, facts, Route()) if facts else []

    def survival(self, facts: Sequence[Fact]) -> Survival | None:
        """How many of the facts that hold without skills hold with them; None without facts."""
        if not facts:
            return None
        before, now = self.holds_in_weights(facts), self.holds(facts)
        held = [i for i, holds in enumerate(before) if holds]
        lost = tuple(str(facts[i]) for i in held if not now[i])
        return Survival(len(facts), len(held), len(held) - len(lost), lost)

    def correct(
        self, examples: Sequence[Example], labels: Sequence[str] = (), task: str | None = None
    ) -> list[bool]:
        """Whether each completion is what the model would answer.

        With labels that is the best of them; otherwise each token of the completion must be the
        most probable one. What would come after it is not judged: an edited fact has no end.

        Raises:
            EditclError: a completion is none of the labels.
        """
        if not examples:
            return []
        unknown = [e.completion for e in examples if labels and e.completion not in labels]
        if unknown:
            raise EditclError(f"{unknown[0]!r} is none of the labels {', '.join(labels)}.")
        kind = CLASSIFICATION  # rows without an end token
        rows = encode_examples(self.model, examples, kind=kind, max_tokens=PLENTY)
        found: dict[int, bool] = {}
        for chosen, way in self.skills.ways(rows, self.using(task), abstain=self.abstain):
            if labels:
                prompts = [examples[i].prompt for i in chosen]
                said = best_labels([way], prompts, labels, max_tokens=PLENTY)
                right = [
                    label == examples[i].completion
                    for i, (label, _) in zip(chosen, said, strict=True)
                ]
            else:
                with around(way):
                    own = [rows[i] for i in chosen]
                    scores = scores_of_rows(way.session.adapters, own, way.route)
                right = (scores.hits == scores.n_targets).tolist()
            found |= zip(chosen, right, strict=True)
        return [found[i] for i in range(len(examples))]

    def score(self, kept: Kept, task: str) -> float:
        """How well a step's kept test is done, untold; of texts, told: -log perplexity."""
        if kept.kind != TEXT:
            right = self.correct(kept.examples, kept.labels)
            return sum(right) / len(right)
        own = Task(task, kept.examples, kept.examples, TEXT, max_tokens=kept.max_tokens)
        return self.skills.evaluate(own, self.using(task)).score

    def bleed(self, texts: Sequence[str]) -> float:
        """The share of texts that go to a skill."""
        if not self.skills.tasks:
            return 0.0
        found = self.skills.infer(texts, abstain=self.abstain)
        return sum(name is not None for name in found) / len(texts)


def current_facts(log: EditLog, steps: Sequence[Step]) -> dict[Place, Fact]:
    """The facts that shall hold, by place; of several about one prompt the last.

    Args:
        log: its active facts count.
        steps: and what the active ones of these found said already; their place is the step's.
    """
    listed = [
        ((step.id, j), fact) for step in steps if step.active for j, fact in enumerate(step.said)
    ]
    for edit in log.entries:
        pairs = zip(edit.facts, log.active_facts(edit), strict=True)
        listed += [((edit.id, j), fact) for j, (fact, on) in enumerate(pairs) if on]
    last: dict[str, tuple[Place, Fact]] = {}
    for place, fact in listed:
        last.pop(fact.sentence, None)
        last[fact.sentence] = place, fact
    return dict(last.values())
