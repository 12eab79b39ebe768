"""Parts of a task: what carries over and what doesn't, within one task.

Examples of one template are a part; templates with few examples are one part together. A part's
gain is taken with a standard error against whatever it is to be taken for, so that a few lucky hits
make no part. Facts that are called so stand in no part: `named` sets them apart. Knows nothing of
models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from editcl.routing.probes import Held, transfer

LEAST = 5  # examples of a part
LEAST_EXCEPTIONS = 3
REGULAR = 0.9  # accuracy on the other examples from which there can be exceptions
LEAD = 0.5  # of another answer over an exception's own
OTHERS = ""  # what no template has


@dataclass(frozen=True)
class Part:
    """Examples of a task that belong together.

    Attributes:
        name: their template, or OTHERS.
        chosen: which examples of the reading they are.
        low, high: gain on held-out examples (see `probes.transfer`), minus and plus a standard
            error.
        fact_share: how many of them state facts.
    """

    name: str
    chosen: tuple[int, ...]
    low: float
    high: float
    fact_share: float


def part_names(templates: Sequence[str]) -> list[str]:
    """Of each example the part that it is in."""
    counts = Counter(templates)
    return [template if counts[template] >= LEAST else OTHERS for template in templates]


def parts_of(
    names: Sequence[str],
    held: Held,
    answers: Sequence[str],
    templates: Sequence[str],
    stated: Sequence[bool],
) -> tuple[Part, ...]:
    """The parts of what was read, those with fewer than LEAST examples left out."""
    found = []
    for name in dict.fromkeys(names):
        own = [i for i, other in enumerate(names) if other == name]
        if len(own) < LEAST:
            continue
        hits = [held.hits[i] for i in own]
        gain = transfer(
            hits,
            [held.base_hits[i] for i in own],
            [answers[i] for i in own],
            [templates[i] for i in own],
        )
        p = (sum(hits) + 0.5) / (len(own) + 1)
        error = (p * (1 - p) / len(own)) ** 0.5
        share = sum(stated[i] for i in own) / len(own)
        found.append(Part(name, tuple(own), gain - error, gain + error, share))
    return tuple(found)


def part_signals(parts: Sequence[Part], train: float) -> dict[str, float]:
    """best_part: the highest `low`; worst_part: the lowest `high`; worst_fact_share: the share of
    facts among the examples of the parts that stay below `train`. Nothing for a single part."""
    if len(parts) < 2:
        return {}
    below = [part for part in parts if part.low < train]
    count = sum(len(part.chosen) for part in below)
    facts = sum(part.fact_share * len(part.chosen) for part in below)
    return {
        "best_part": max(part.low for part in parts),
        "worst_part": min(part.high for part in parts),
        "worst_fact_share": facts / count if count else 0.0,
    }


def exceptions(held: Held, stated: Sequence[bool]) -> list[int]:
    """Examples of which another answer is clearly foretold, where nearly all others are regular.

    Empty unless there are at least LEAST_EXCEPTIONS that state facts, and REGULAR of the others
    hit.
    """
    out = [
        i
        for i, (hit, lead, fact) in enumerate(zip(held.hits, held.lead, stated, strict=True))
        if not hit and fact and lead >= LEAD
    ]
    rest = len(held.hits) - len(out)
    if len(out) < LEAST_EXCEPTIONS or len(out) > rest // 3:
        return []
    return out if sum(held.hits) / rest >= REGULAR else []
