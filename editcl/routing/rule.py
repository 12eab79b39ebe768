"""The rule: from signals to a verdict, by explicit steps over thresholds that were fitted.

In this order, with e = the best evidence that answers carry over between examples:

    edit       plain texts of which enough sentences state facts; other texts: train
    abstain    the model says the answers already
    split      one part of the task carries over, another doesn't and states facts in words that
               the model knows; or e >= train and single facts are out of line
    train      e >= train, or e >= labels where answers recur, or a few examples show a skill, or
               the answers stand in the prompts or are long
    train      facts in words or about names that are strange to the model
    train      a trial edit failed
    edit       enough examples state facts, with short objects
    train      none of this: what can't be edited and carries nothing over is learnt by heart
    abstain    the same of a single example, which can't be trained, or of plain text, which would
               then be answered as the task is

Whatever would be edited must find room: more facts than edits of the model hold are asked about;
those that it does not hold together with the ones edited before are trained, and so are many facts
about each subject, since all of them are written at one key. Facts that are called so (`named`) are
edited beside whatever the rest is: if that is to be trained the verdict is split.

How sure a verdict is follows from its margin, the distance of its signals to the thresholds:
likely = 1 / (1 + exp(-(base + slope margin))). That was fitted to tasks of a fair size; what is
unlike them, few examples, a full model or an edit in doubt, is trusted less:

    confidence = chance + trust (likely - chance)

`fit` finds thresholds and confidence from tasks of which it was measured what they need. Long
because a rule and its fit are read together. Knows nothing of models, texts and words.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from editcl.embedded import data_folder
from editcl.errors import EditclError
from editcl.progress import progress
from editcl.routing.decision import ABSTAIN, EDIT, SPLIT, TRAIN

#: Names of the steps that a verdict may come from.
(
    PARTS, EXCEPTIONS, TRANSFER, FEW, COPY, LONG, TEXTS, FACTS, STRANGE, UNFIT, ROTE, FULL,
    MATES, CROWDED, NEITHER, KNOWN,
) = (
    "parts", "exceptions", "transfer", "few", "copy", "long", "texts", "facts", "strange", "unfit",
    "rote", "full", "mates", "crowded", "neither", "known",
)  # fmt: skip
ASKING = (CROWDED, NEITHER, KNOWN)  # from which a verdict is to ask

DOUBT = 6.0  # how fast strange prompts take the margin away; unknown names half as fast
UNSURE = 0.5  # trust in what the fit never saw, a full model, and in what is learnt by heart
LABELS = 0.25  # share of distinct answers up to which they recur as labels do
CHANCE = 0.25  # of being right by guessing one of the four kinds


@dataclass(frozen=True)
class Thresholds:
    """What the rule compares signals with.

    Attributes:
        train: least evidence that answers carry over.
        labels: the same where a few answers recur, as labels do.
        known: share of answers that the model says already from which nothing is to be done.
        unknown: `strangeness` of prompts from which facts are trained: an edit moves what the model
            says of a subject, a training also teaches it the words.
        keep: evidence below which a part of a task counts as not carrying over.
        facts: least share of examples that state facts.
        object_words: most words of an object, on average.
        copy: share of answers that are found in their own prompt alone, from which that is the
            skill, where nothing better tells.
        few: examples below which transfer can't be told from chance.
        repeats: share of distinct answers up to which a few examples show a skill.
        exceptions: least share of examples that are clearly out of line with the others.
        spelling: `spelling` of the objects above which an edit is in doubt.
        pieces: tokens of a subject's word above which an edit is in doubt.
        load: facts by capacity, with those edited before or without, from which the model is too
            full to be edited.
        mates: facts about each subject, on average, above which they are trained.
        base, slope: of the confidence.
    """

    train: float = 0.4
    labels: float = 0.3
    known: float = 0.9
    unknown: float = 0.6
    keep: float = 0.25
    facts: float = 0.6
    object_words: float = 5.0
    copy: float = 0.5
    few: float = 8.0
    repeats: float = 0.7
    exceptions: float = 0.04
    spelling: float = 0.5
    pieces: float = 2.8
    load: float = 1.5
    mates: float = 3.4
    base: float = 0.0
    slope: float = 5.0

    @classmethod
    def read(cls, path: Path | None = None) -> Thresholds:
        """Those of a file as `write` leaves it; by default the shipped ones.

        Raises:
            EditclError: it can't be read, or lacks a threshold.
        """
        place = path or data_folder() / "routing" / "router.json"
        try:
            found = json.loads(place.read_text(encoding="utf-8"))["thresholds"]
            return cls(**{one.name: float(found[one.name]) for one in fields(cls)})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EditclError(
                f"{place} holds no thresholds of the router ({error!r}). Install editcl again, or "
                "fit them with `editcl bench route`."
            ) from None

    def write(self, path: Path, about: str) -> None:
        """Writes them, with a line on where they come from."""
        held = {"about": about, "thresholds": {n.name: getattr(self, n.name) for n in fields(self)}}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(held, indent=2) + "\n", encoding="utf-8")


@cache
def shipped() -> Thresholds:
    """The shipped thresholds."""
    return Thresholds.read()


@dataclass(frozen=True)
class Verdict:
    """What the rule says.

    Attributes:
        kind: "edit", "train", "split" or "abstain".
        step: which step of the rule said it.
        margin: the distance of the signals to the thresholds, in [0, 1].
        confidence: how likely the verdict is right; see the module.
    """

    kind: str
    step: str
    margin: float
    confidence: float


def evidence(signals: Mapping[str, float]) -> float:
    """That answers carry over: by ridge regression, by a short training, by templates; the best."""
    names = ("feature_transfer", "probe_transfer", "template_rule")
    return max((signals[name] for name in names if name in signals), default=0.0)


def judge(signals: Mapping[str, float], thresholds: Thresholds) -> Verdict:
    """Applies the rule."""
    t = thresholds
    kind, step, margin = _steps(signals, t)
    if signals.get("apart"):
        kind = {TRAIN: SPLIT, ABSTAIN: EDIT}.get(kind, kind)
    if kind in (EDIT, SPLIT):
        kind, step, margin = _room(signals, t) or (kind, step, margin)
    # A few examples can't make sure of anything, and neither can edits of strange or many prompts.
    n, sound = signals.get("items", 0.0), soundness(signals, t) if kind == EDIT else 1.0
    margin = max(0.0, min(1.0, margin)) * n / (n + 4) * sound
    trust = min(1.0, n / t.few) * sound * (UNSURE if step in (FULL, ROTE) else 1.0)
    return Verdict(kind, step, margin, CHANCE + trust * (confidence(margin, t) - CHANCE))


def soundness(signals: Mapping[str, float], thresholds: Thresholds) -> float:
    """How far an edit is free of doubts: 1 without any, towards 0 with strange prompts, unknown
    names, objects that the model can't spell, or more facts than it holds."""
    s, t = signals, thresholds
    return math.exp(
        -DOUBT * _excess(s.get("strangeness", 0.0), t.unknown)
        - DOUBT / 2 * _excess(s.get("pieces", 0.0), t.pieces)
        - DOUBT / 2 * _excess(s.get("spelling", 0.0), t.spelling)
        - _excess(s.get("fill", 0.0), t.load)
    )


def _steps(s: Mapping[str, float], t: Thresholds) -> tuple[str, str, float]:
    e = evidence(s)
    share, words = s.get("fact_share", 0.0), s.get("object_words", 0.0)
    if s.get("texts"):
        clear = abs(share - t.facts)
        return (EDIT, FACTS, clear) if share >= t.facts else (TRAIN, TEXTS, clear)
    if s.get("known", 0.0) >= t.known:
        return ABSTAIN, KNOWN, s["known"] - t.known + 0.3
    if is_split(s, t):
        return SPLIT, PARTS, min(s["best_part"] - t.train, t.keep - s["worst_part"]) / t.train
    if s.get("exceptions", 0.0) >= t.exceptions and e >= t.train:
        return SPLIT, EXCEPTIONS, s["exceptions"] / t.exceptions - 1
    least = needed(s, t)
    if e >= least:
        return TRAIN, TRANSFER, (e - least) / (1 - least)
    # One example can't be trained.
    n, factual = s.get("items", 0.0), _states_facts(s, t)
    if n < t.few and _shows_skill(s, t):
        return TRAIN, FEW, 0.5 * (1 - s.get("distinct_share", 1.0))
    if "probe_transfer" not in s and s.get("copy_share", 0.0) >= t.copy:
        return TRAIN, COPY, 0.5 * (s["copy_share"] - t.copy)
    if words > t.object_words:
        return TRAIN, LONG, 0.2 * min(1.0, words / t.object_words - 1)
    strange = s.get("strangeness", 0.0) / t.unknown
    if factual and n >= 2 and strange >= 1:
        return TRAIN, STRANGE, 0.5 * min(1.0, strange - 1)
    if factual and n >= 2 and s.get("trial_efficacy", 1.0) < 0.5:
        return TRAIN, UNFIT, 0.4 * (0.5 - s["trial_efficacy"])
    if factual:
        return EDIT, FACTS, min((least - e) / least, 0.5 + share - t.facts, max(0.0, 1 - strange))
    if n >= 2 and (strange >= 1 or _recur(s, t)):
        return TRAIN, ROTE, min(t.facts - share, least - e)
    return ABSTAIN, NEITHER, min(t.facts - share, least - e)


def _states_facts(s: Mapping[str, float], t: Thresholds) -> bool:
    """Enough examples state facts, with short objects."""
    return s.get("fact_share", 0.0) >= t.facts and s.get("object_words", 0.0) <= t.object_words


def _recur(s: Mapping[str, float], t: Thresholds) -> bool:
    """A few answers, as labels are, after prompts that are not called facts."""
    return s.get("distinct_share", 1.0) <= LABELS and s.get("named_share", 0.0) < t.facts


def needed(s: Mapping[str, float], t: Thresholds) -> float:
    """The least evidence that answers carry over."""
    return min(t.train, t.labels) if _recur(s, t) else t.train


def _room(s: Mapping[str, float], t: Thresholds) -> tuple[str, str, float] | None:
    """What to do instead of an edit that the model has no room for; None if it has."""
    if s.get("load", 0.0) > t.load:
        return ABSTAIN, CROWDED, 0.5 * min(1.0, s["load"] / t.load - 1)
    if s.get("fill", 0.0) > t.load and s.get("trainable", 1.0):
        return TRAIN, FULL, 0.5 * min(1.0, s["fill"] / t.load - 1)
    if s.get("mates", 0.0) > t.mates and s.get("items", 0.0) >= 2 and s.get("trainable", 1.0):
        return TRAIN, MATES, 0.5 * min(1.0, s["mates"] / t.mates - 1)
    return None


def _shows_skill(s: Mapping[str, float], t: Thresholds) -> bool:
    """Of a few examples that are not called facts: answers recur, or other subjects are asked for
    than are taught."""
    if s.get("items", 0.0) < 2 or s.get("named_share", 0.0) >= t.facts:
        return False
    return s.get("distinct_share", 1.0) <= t.repeats or s.get("new_subjects", 0.0) >= 0.5


def is_split(signals: Mapping[str, float], thresholds: Thresholds) -> bool:
    """Whether one part carries over and another doesn't and states facts, in words that the model
    knows."""
    t = thresholds
    return (
        signals.get("best_part", 0.0) >= t.train
        and signals.get("worst_part", 1.0) < t.keep
        and signals.get("worst_fact_share", 0.0) >= t.facts
        and signals.get("worst_strangeness", 0.0) < t.unknown
    )


def undecided(signals: Mapping[str, float], thresholds: Thresholds) -> bool:
    """Whether a short training would tell more than the cheap signals do."""
    s, t = signals, thresholds
    e = evidence(s)
    if "probe_transfer" in s or s.get("items", 0.0) < t.few or s.get("texts"):
        return False
    if s.get("known", 0.0) >= 0.5 or s.get("object_words", 0.0) > t.object_words:
        return False
    if not _states_facts(s, t) or s.get("strangeness", 0.0) >= t.unknown:
        return False  # it is trained either way, or, with exceptions, hardly ever split
    return e < needed(s, t) and not is_split(s, t) and s.get("named_share", 0.0) < t.facts


def confidence(margin: float, thresholds: Thresholds) -> float:
    """How likely a verdict of this margin is right, on tasks like those of the fit."""
    return 1 / (1 + math.exp(-(thresholds.base + thresholds.slope * margin)))


def _excess(value: float, limit: float) -> float:
    return max(0.0, value / limit - 1)


# -- fitting --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """A task of which both arms were measured.

    Attributes:
        signals: as the router took them.
        label: the kind that it needs.
        utility: of each kind that was measured; {} if only the label counts.
        family: tasks of one family are alike.
    """

    signals: Mapping[str, float]
    label: str
    utility: Mapping[str, float] = field(default_factory=dict)
    family: str = ""


#: Values that `fit` tries, threshold by threshold in this order.
GRID: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {
        "train": tuple(x / 20 for x in range(3, 18)),
        "labels": tuple(x / 20 for x in range(1, 14)),
        "known": (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 2.0),
        "unknown": (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 9.0),
        "keep": tuple(x / 20 for x in range(1, 11)),
        "facts": tuple(x / 10 for x in range(2, 10)),
        "copy": (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 2.0),
        "few": (3.0, 4.0, 6.0, 8.0, 10.0, 12.0),
        "repeats": (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9),
        "object_words": (3.0, 4.0, 5.0, 6.0, 8.0),
        "mates": (2.5, 3.0, 3.4, 3.8, 4.2, 9.0),
        "exceptions": (0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 2.0),
    }
)
SWEEPS = 3


def fit(rows: Sequence[Measured], *, start: Thresholds | None = None) -> Thresholds:
    """Thresholds that give macro-F1 minus mean regret its maximum on measured tasks.

    Coordinate ascent over GRID; of equally good neighbours the middle one is taken, so that no
    threshold stands at an edge. Then the confidence, by logistic regression on the margin: of each
    task the verdict of thresholds that were fitted without its family, since those of its own fit
    are right more often than a new task's.

    Args:
        rows: at least one.
        start: where to begin; by default the defaults of Thresholds.

    Raises:
        EditclError: there are no rows.
    """
    if not rows:
        raise EditclError("there are no measured tasks to fit the router to; give some.")
    found = ascend(rows, start or Thresholds())
    pairs = held_out(rows, start=start) or [(judge(row.signals, found), row) for row in rows]
    right = [verdict.kind == row.label for verdict, row in pairs]
    base, slope = _logistic([verdict.margin for verdict, _ in pairs], right)
    return replace(found, base=base, slope=slope)


def held_out(
    rows: Sequence[Measured], *, start: Thresholds | None = None
) -> list[tuple[Verdict, Measured]]:
    """Each task with its verdict by a fit to the other families; [] with one family."""
    without = fits_without(rows, start=start)
    return [(judge(row.signals, without[row.family]), row) for row in rows if without]


def fits_without(
    rows: Sequence[Measured], *, start: Thresholds | None = None
) -> dict[str, Thresholds]:
    """For each family thresholds that were fitted to the others; {} with one family."""
    names = list(dict.fromkeys(row.family for row in rows))
    if len(names) < 2:
        return {}
    return {
        name: ascend([row for row in rows if row.family != name], start or Thresholds())
        for name in progress(names, "fitting without each family")
    }


def ascend(rows: Sequence[Measured], found: Thresholds) -> Thresholds:
    """The thresholds of a fit, the confidence left as it is."""
    for _ in range(SWEEPS):
        before = found
        for name, values in GRID.items():
            scores = [objective(rows, _with(found, name, value)) for value in values]
            found = _with(found, name, values[_middle(scores)])
        if found == before:
            break
    return found


def objective(rows: Sequence[Measured], thresholds: Thresholds) -> float:
    """Macro-F1 of the verdicts minus their mean regret, where utilities are known."""
    said = [judge(row.signals, thresholds).kind for row in rows]
    regrets = [
        max(row.utility.values()) - row.utility.get(kind, min(row.utility.values()))
        for row, kind in zip(rows, said, strict=True)
        if row.utility
    ]
    regret = sum(regrets) / len(regrets) if regrets else 0.0
    return macro_f1([row.label for row in rows], said) - regret


def macro_f1(truth: Sequence[str], said: Sequence[str]) -> float:
    """The mean over the true kinds of 2 TP / (2 TP + FP + FN)."""
    scores = []
    for kind in dict.fromkeys(truth):
        pairs = list(zip(truth, said, strict=True))
        hits = sum(a == kind == b for a, b in pairs)
        off = sum((a == kind) != (b == kind) for a, b in pairs)
        scores.append(2 * hits / (2 * hits + off))
    return sum(scores) / len(scores) if scores else 0.0


def _with(thresholds: Thresholds, name: str, value: float) -> Thresholds:
    changed: dict[str, Any] = {name: value}
    return replace(thresholds, **changed)


def _middle(scores: Sequence[float]) -> int:
    """The middle of the longest run of best scores."""
    best, runs = max(scores), list[list[int]]()
    for i, score in enumerate(scores):
        if score < best - 1e-12:
            continue
        if runs and runs[-1][-1] == i - 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    longest = max(runs, key=len)
    return longest[len(longest) // 2]


def _logistic(margins: Sequence[float], right: Sequence[bool]) -> tuple[float, float]:
    """The likeliest base and slope on a grid, weakly pulled towards (0, 5); no slope is negative.

    A grid, because separable verdicts have no finite maximum.
    """

    def loss(base: float, slope: float) -> float:
        pull = 0.02 * (base**2 + (slope - 5) ** 2)
        signs = [1 if hit else -1 for hit in right]
        logits = (base + slope * margin for margin in margins)
        return pull + sum(
            math.log1p(math.exp(-sign * z)) for sign, z in zip(signs, logits, strict=True)
        )

    grid = [(b / 4, s / 4) for b in range(-12, 13) for s in range(49)]
    return min(grid, key=lambda point: loss(*point))
