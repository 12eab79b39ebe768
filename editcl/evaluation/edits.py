"""Efficacy, paraphrase, specificity: what edits did and what they left alone.

CounterFact's comparisons (ROME, arXiv:2202.05262, section 3.3): efficacy and paraphrase success
are shares of prompts with p(new) > p(old), neighbourhood specificity the share with p(true) >
p(new), p the exponential of the mean log-probability per token; the score is their harmonic mean,
the magnitudes are the differences themselves. zsRE counts target tokens that are the argmax, which
needs no old object. Teacher forcing flatters, so the greedy continuation is judged beside it
(`free_running`), and the subject's other relations count as a measure of their own
(`same_subject`: still answered right). Knows nothing of how an edit was made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from editcl.encoding import Sentence
from editcl.evaluation.answers import Answer, answers
from editcl.evaluation.cases import Case, Probe
from editcl.evaluation.results import CaseResult, Evaluation, share
from editcl.model import EditableModel

#: From a case to the text in front of each of its prompts.
ContextFor = Callable[[Case], str]


def evaluate(
    model: EditableModel,
    cases: Sequence[Case],
    *,
    context_for: ContextFor | None = None,
    tokens_per_batch: int | None = None,
) -> Evaluation:
    """Measures the model as it is now on every case, batched over all of their prompts.

    Every distinct prompt is run once, however many cases and targets ask for it. After a batch of
    edits this measures the state after the last one.

    Args:
        model: the model as it is now; it is not changed.
        cases: what to measure.
        context_for: gives the text in front of every prompt of a case (in-context editing).
        tokens_per_batch: bounds the padded tokens of a forward pass; by default what suits the
            device.

    Raises:
        FactError: a text can't be encoded, or is longer than the model takes.
    """
    contexts = ["" if context_for is None else context_for(case) for case in cases]
    scored: list[Sentence] = []
    spoken: list[Sentence] = []
    for case, context in zip(cases, contexts, strict=True):
        asked = questions(case, context)
        scored += asked[0]
        spoken += asked[1]
    found = answers(model, scored, spoken, tokens_per_batch=tokens_per_batch)
    judged = [judge(case, context, found) for case, context in zip(cases, contexts, strict=True)]
    return Evaluation(tuple(judged))


def questions(case: Case, context: str = "") -> tuple[list[Sentence], list[Sentence]]:
    """The sentences whose targets a case needs scored, and those to be spoken freely."""
    fact = case.fact
    own = (fact.sentence, *case.paraphrases)
    spoken = [Sentence(prompt, target=fact.new_object, context=context) for prompt in own]
    scored = list(spoken)
    if fact.old_object is not None:
        scored += [Sentence(prompt, target=fact.old_object, context=context) for prompt in own]
    for probe in case.neighbours:
        scored += _told(probe, context)
        scored.append(Sentence(probe.prompt, target=fact.new_object, context=context))
    for probe in case.same_subject:
        scored += _told(probe, context)
    for probe in case.portability:
        scored += _told(probe, context)
        spoken += _told(probe, context)
    return scored, spoken


def judge(case: Case, context: str, found: Mapping[Sentence, Answer]) -> CaseResult:
    """One case's measures from the answers to its `questions`."""
    fact = case.fact

    def of(prompt: str, target: str) -> Answer:
        return found[Sentence(prompt, target=target, context=context)]

    def true(probe: Probe) -> list[Answer]:
        return [found[sentence] for sentence in _told(probe, context)]

    new = [of(prompt, fact.new_object) for prompt in (fact.sentence, *case.paraphrases)]
    comparisons: dict[str, float | None] = {}
    if fact.old_object is not None:
        old = [of(prompt, fact.old_object) for prompt in (fact.sentence, *case.paraphrases)]
        wins = [_wins([n], o) for n, o in zip(new, old, strict=True)]
        gaps = [_gap([n], o) for n, o in zip(new, old, strict=True)]
        comparisons = {
            "efficacy": wins[0],
            "paraphrase": share(wins[1:]),
            "efficacy_magnitude": gaps[0],
            "paraphrase_magnitude": share(gaps[1:]),
        }
    near = [(true(probe), of(probe.prompt, fact.new_object)) for probe in case.neighbours]
    ported = [true(probe) for probe in case.portability]
    return CaseResult(
        specificity=share([_wins(kept, other) for kept, other in near]),
        specificity_magnitude=share([_gap(kept, other) for kept, other in near]),
        same_subject=share([_exact(true(probe)) for probe in case.same_subject]),
        portability=share([_exact(told) for told in ported]),
        free_running=float(bool(new[0].said)),
        free_paraphrase=share([float(bool(answer.said)) for answer in new[1:]]),
        free_portability=share([float(any(a.said for a in told)) for told in ported]),
        token_accuracy=new[0].token_accuracy,
        paraphrase_token_accuracy=share([answer.token_accuracy for answer in new[1:]]),
        locality_accuracy=share([max(a.token_accuracy for a in kept) for kept, _ in near]),
        fact=str(fact),
        **comparisons,
    )


def _told(probe: Probe, context: str) -> list[Sentence]:
    """A probe's prompt with its object and with each alias."""
    names = dict.fromkeys((probe.object, *probe.aliases))
    return [Sentence(probe.prompt, target=name, context=context) for name in names]


def _wins(ours: Sequence[Answer], theirs: Answer) -> float:
    return float(max(answer.log_prob for answer in ours) > theirs.log_prob)


def _gap(ours: Sequence[Answer], theirs: Answer) -> float:
    return math.exp(max(answer.log_prob for answer in ours)) - math.exp(theirs.log_prob)


def _exact(told: Sequence[Answer]) -> float:
    return float(any(answer.exact for answer in told))
