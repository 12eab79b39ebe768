"""Signals of a task's surface: counted in its texts, no model is asked.

Each is one function of a Material, and lies in [0, 1] unless it says otherwise. A template is a
prompt with its subject masked. Knows nothing of what the signals are used for.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from types import MappingProxyType

from editcl.routing.material import Material
from editcl.routing.named import named
from editcl.routing.subjects import n_words, spans_of

ASKED = 64  # test prompts that are looked at


def items(what: Material) -> float:
    """How many distinct examples there are; a number of at least 0."""
    return float(len(what.examples))


def fact_share(what: Material) -> float:
    """Share of examples with a subject in the prompt and a short completion, as facts have."""
    return _mean(fact is not None for fact in what.facts)


def named_share(what: Material) -> float:
    """Share of examples that are facts by what the caller said, or by their words: given as Facts,
    or in a phrasing of a relation of the catalogue."""
    return _mean(named(what))


def object_words(what: Material) -> float:
    """Mean number of words and signs of a completion; facts have few."""
    return _mean(n_words(example.completion) for example in what.examples)


def distinct_share(what: Material) -> float:
    """Distinct completions by examples: near 1 for names and codes, near 0 for a set of labels."""
    distinct = {example.completion.strip() for example in what.examples}
    return len(distinct) / max(1, len(what.examples))


def answer_entropy(what: Material) -> float:
    """Entropy of the completions by the most it could be: 1 if each is another."""
    return _entropy(example.completion.strip() for example in what.examples)


def template_entropy(what: Material) -> float:
    """The same of the templates: 0 if all prompts are alike but for their subjects."""
    return _entropy(templates(what))


def copy_share(what: Material) -> float:
    """Share of completions that stand in their prompt, minus the share that stand in the prompt of
    another example: 1 where answers are to be found in the prompt, 0 where all prompts name the
    same choices."""
    pairs = [(example.prompt, example.completion.strip()) for example in what.examples]
    others = [pairs[i - 1 - len(pairs) // 2][0] for i in range(len(pairs))]
    own = _mean(_stands_in(answer, prompt) for prompt, answer in pairs)
    chance = _mean(
        _stands_in(answer, prompt) for (_, answer), prompt in zip(pairs, others, strict=True)
    )
    return max(0.0, own - chance) if len(pairs) > 1 else own


def subject_repeats(what: Material) -> float:
    """Mean number of examples of one subject, at least 1; 0 if no example has one."""
    subjects = Counter(fact.subject for fact in what.facts if fact is not None)
    return subjects.total() / len(subjects) if subjects else 0.0


def new_subjects(what: Material) -> float:
    """Share of test prompts that name none of the subjects that are learnt: more is asked for than
    is taught. 0 without a test."""
    subjects = {fact.subject for fact in what.facts if fact is not None}
    if not subjects:
        return 0.0
    return _mean(
        subjects.isdisjoint(example.prompt[a:b] for a, b in spans_of(example.prompt))
        for example in what.test[:ASKED]
    )


def template_rule(what: Material) -> float:
    """Share of examples whose template alone tells the answer (it is the commonest answer of the
    template's other examples), minus `majority`; 0 with one template."""
    counts: dict[str, Counter[str]] = {}
    own = list(zip(templates(what), answers_of(what), strict=True))
    for template, answer in own:
        counts.setdefault(template, Counter())[answer] += 1
    if len(counts) < 2:
        return 0.0
    right = _mean(_most_of_rest(counts[template], answer) for template, answer in own)
    return max(0.0, right - majority(what))


def majority(what: Material) -> float:
    """Share of the commonest completion: what saying always the same would get."""
    counts = Counter(answers_of(what))
    return max(counts.values(), default=0) / max(1, len(what.examples))


SIGNALS: Mapping[str, Callable[[Material], float]] = MappingProxyType(
    {
        "items": items,
        "fact_share": fact_share,
        "named_share": named_share,
        "object_words": object_words,
        "distinct_share": distinct_share,
        "answer_entropy": answer_entropy,
        "template_entropy": template_entropy,
        "template_rule": template_rule,
        "copy_share": copy_share,
        "subject_repeats": subject_repeats,
        "majority": majority,
        "new_subjects": new_subjects,
    }
)


def surface(what: Material) -> dict[str, float]:
    """All of them."""
    return {name: signal(what) for name, signal in SIGNALS.items()}


def templates(what: Material) -> list[str]:
    """Of each example the prompt with its subject masked, or the whole prompt without one."""
    pairs = zip(what.examples, what.facts, strict=True)
    return [example.prompt if fact is None else fact.prompt for example, fact in pairs]


def answers_of(what: Material) -> list[str]:
    """The completions without white space around them."""
    return [example.completion.strip() for example in what.examples]


def _stands_in(answer: str, prompt: str) -> bool:
    """As words of its own."""
    if answer not in prompt:
        return False
    return re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", prompt) is not None


def _most_of_rest(counts: Counter[str], answer: str) -> bool:
    """Whether the answer is the commonest one where one of its kind is taken out; ties lose."""
    own = counts[answer] - 1
    return own > 0 and all(own > n for other, n in counts.items() if other != answer)


def _entropy(values: Iterable[Hashable]) -> float:
    counts = Counter(values)
    total = counts.total()
    if total < 2:
        return 0.0
    shares = (count / total for count in counts.values())
    return abs(sum(share * math.log(share) for share in shares) / math.log(total))


def _mean(values: Iterable[float]) -> float:
    kept = list(values)
    return sum(kept) / len(kept) if kept else 0.0
