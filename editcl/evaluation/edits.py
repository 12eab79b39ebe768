"""Efficacy, paraphrase, specificity: what an edit did and what it left alone.

CounterFact's comparisons (ROME, arXiv:2202.05262, section 3.3): efficacy and paraphrase success
are shares of prompts with p(new) > p(old), neighbourhood specificity the share with p(true) >
p(new), p the exponential of the mean log-probability per token; the score is their harmonic mean.
Teacher forcing flatters, so the greedy continuation is judged beside it (`free_running`), and the
subject's other relations count as a measure of their own (`same_subject`: still answered right).
Knows nothing of how an edit was made.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from editcl.encoding import Sentence
from editcl.evaluation.cases import Case
from editcl.model import EditableModel


@dataclass(frozen=True)
class CaseResult:
    """Shares of one case; None where it has no such prompts.

    Attributes:
        efficacy: p(new) > p(old) after the edit's own prompt.
        paraphrase: the same over the paraphrases.
        specificity: p(true) > p(new) over the neighbours.
        same_subject: the subject's other objects, every token of them the argmax.
        free_running: the greedy continuation of the prompt is the new object.
        free_paraphrase: the same over the paraphrases.
    """

    efficacy: float | None
    paraphrase: float | None
    specificity: float | None
    same_subject: float | None
    free_running: float | None
    free_paraphrase: float | None


@dataclass(frozen=True)
class Evaluation:
    """Means over cases of each share, every case weighing the same."""

    results: tuple[CaseResult, ...]

    def _mean(self, name: str) -> float | None:
        values = [getattr(r, name) for r in self.results if getattr(r, name) is not None]
        return sum(values) / len(values) if values else None

    def summary(self) -> dict[str, float | None]:
        """Each measure by name, and the score."""
        means = {field.name: self._mean(field.name) for field in fields(CaseResult)}
        return {**means, "score": self.score}

    @property
    def score(self) -> float | None:
        """Harmonic mean of efficacy, paraphrase and specificity."""
        parts = [self._mean(name) for name in ("efficacy", "paraphrase", "specificity")]
        present = [p for p in parts if p is not None]
        if len(present) < len(parts):
            return None
        return len(present) / sum(1 / p for p in present) if all(present) else 0.0

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{name} {value:.1%}" for name, value in self.summary().items() if value is not None
        )
        return f"Evaluation({len(self.results)} cases: {shown})"

    @classmethod
    def join(cls, parts: Iterable[Evaluation]) -> Evaluation:
        """One evaluation over the cases of several."""
        return cls(tuple(result for part in parts for result in part.results))


def evaluate(model: EditableModel, cases: Sequence[Case]) -> Evaluation:
    """Measures the model as it is now on every case, batched over all of their prompts.

    Raises:
        FactError: a fact has no old object to compare with, or a text can't be encoded.
    """
    pairs: list[Sentence] = []
    probes: list[Sentence] = []
    prompts: list[str] = []
    for case in cases:
        fact = case.fact
        assert fact.old_object is not None, "a case needs the old object"
        judged = [(prompt, fact.old_object) for prompt in (fact.sentence, *case.paraphrases)]
        judged += [(probe.prompt, probe.object) for probe in case.neighbours]
        for prompt, true in judged:
            pairs += [Sentence(prompt, target=fact.new_object), Sentence(prompt, target=true)]
        probes += [Sentence(probe.prompt, target=probe.object) for probe in case.same_subject]
        prompts += [fact.sentence, *case.paraphrases]
    scores = model.score(pairs + probes)
    log_p = scores.log_prob[: len(pairs)].reshape(-1, 2)
    wins = iter((log_p[:, 0] > log_p[:, 1]).tolist())
    ties = iter((log_p[:, 1] > log_p[:, 0]).tolist())
    right = iter(scores.exact[len(pairs) :].tolist())
    said = iter(_continuations(model, cases, prompts))
    results = []
    for case in cases:
        count = 1 + len(case.paraphrases)
        new_wins = [next(wins) for _ in range(count + len(case.neighbours))]
        old_wins = [next(ties) for _ in range(count + len(case.neighbours))]
        spoken = [begins_with(next(said), case.fact.new_object) for _ in range(count)]
        results.append(
            CaseResult(
                efficacy=float(new_wins[0]),
                paraphrase=_share(new_wins[1:count]),
                specificity=_share(old_wins[count:]),
                same_subject=_share([next(right) for _ in case.same_subject]),
                free_running=float(spoken[0]),
                free_paraphrase=_share(spoken[1:]),
            )
        )
    return Evaluation(tuple(results))


def begins_with(text: str, wanted: str) -> bool:
    """Whether a continuation begins with the object as whole words."""
    return re.match(rf"\s*{re.escape(wanted)}(?!\w)", text) is not None


def _continuations(
    model: EditableModel, cases: Sequence[Case], prompts: Sequence[str]
) -> list[str]:
    """Greedy continuations, one token longer than the longest new object."""
    rows = model.encode([Sentence("x", target=case.fact.new_object) for case in cases])
    return model.generate(prompts, max(row.n_target for row in rows) + 1)


def _share(hits: Sequence[bool]) -> float | None:
    return sum(hits) / len(hits) if hits else None
