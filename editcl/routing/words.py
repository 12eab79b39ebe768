"""Reasons: what the rule said and what it was said from, in sentences with figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from editcl.routing import rule
from editcl.routing.rule import Thresholds, Verdict

UNUSED = 3  # sentences that gave nothing, of those that are shown


def reasons(
    verdict: Verdict, signals: Mapping[str, float], thresholds: Thresholds
) -> tuple[str, ...]:
    """The sentence of the step that decided, then what else was found."""
    s, t = signals, thresholds
    told = {
        rule.PARTS: lambda: (
            f"one part of the task carries over to held-out examples (gain "
            f"{s['best_part']:.2f}, {t.train:.2f} are asked for), another does not "
            f"({s['worst_part']:.2f}) and states facts: the facts are edited, the rest is trained"
        ),
        rule.EXCEPTIONS: lambda: (
            f"{_percent(s['exceptions'])} of the examples are clearly out of line with what the "
            "others foretell: they are edited as facts, the rest is trained"
        ),
        rule.TRANSFER: lambda: _carries_over(s, t),
        rule.FEW: lambda: (
            f"{s['items']:.0f} examples are too few to tell whether answers carry over, but "
            + (
                "the test asks for subjects that none of them has"
                if s.get("new_subjects", 0.0) >= 0.5
                else f"answers recur ({_percent(s['distinct_share'])} are distinct)"
            )
            + ": that is taken for a skill"
        ),
        rule.COPY: lambda: (
            f"{_percent(s['copy_share'])} of the answers are found in their own prompt and in no "
            "other one: finding them is a skill, though no training was tried"
        ),
        rule.LONG: lambda: (
            f"answers have {s['object_words']:.0f} words on average, too many for the object of a "
            f"fact ({t.object_words:.0f})"
        ),
        rule.TEXTS: lambda: (
            f"plain texts, of whose sentences {_percent(s['fact_share'])} state facts in a form "
            "that can be edited: the texts are trained as they are"
        ),
        rule.FACTS: lambda: (
            f"{_percent(s['fact_share'])} of the examples state a fact (a subject, and an object "
            f"of {s.get('object_words', 0.0):.1f} words), and nothing that is learnt of one helps "
            f"with another (gain {rule.evidence(s):.2f}, training asks for {rule.needed(s, t):.2f})"
        ),
        rule.STRANGE: lambda: (
            "these look like facts, in words or about names that the model hardly knows (the "
            f"prompts are {_strange(s)}, {t.unknown:g} is allowed): an edit needs what the model "
            "tells apart, a training teaches it"
        ),
        rule.UNFIT: lambda: (
            f"these look like facts, but a trial edit met only {_percent(s['trial_efficacy'])} of "
            "them: they are trained"
        ),
        rule.ROTE: lambda: (
            f"only {_percent(s.get('fact_share', 0.0))} of the examples state a fact (a subject in "
            "the prompt that a short answer follows), and nothing tells that answers carry over "
            f"from one to another (gain {rule.evidence(s):.2f}): they are trained, and may be "
            "known by heart only. If they are facts, give them as Facts"
        ),
        rule.KNOWN: lambda: (
            f"What shall be changed here? The model says {_percent(s['known'])} of the answers "
            "already. Name what is to be otherwise, or choose edit or train yourself"
        ),
        rule.CROWDED: lambda: (
            f"Which of these facts matter? They are {s['load']:.1f} times what edits of this model "
            f"are known to hold ({t.load:g} times are allowed), and a training of the usual length "
            "holds no more. Give fewer, or choose edit or train yourself"
        ),
        rule.FULL: lambda: (
            f"these facts and those edited before are {s['fill']:.1f} times what edits of this "
            f"model are known to hold ({t.load:g} times are allowed): a training leaves the "
            "weights alone"
        ),
        rule.MATES: lambda: (
            f"there are {s['mates']:.1f} facts about each subject ({t.mates:g} are allowed): an "
            "edit writes all of them at the one key that the subject has, a training need not"
        ),
        rule.NEITHER: lambda: (
            f"What shall be learnt here? Only {_percent(s.get('fact_share', 0.0))} of the examples "
            "state a fact (a subject in the prompt that a short answer follows), and answers don't "
            f"carry over from one to another (gain {rule.evidence(s):.2f})"
            + (
                "; the prompts are like plain text, which a training would answer likewise"
                if s.get("items", 0.0) >= 2
                else ""
            )
            + ". Name the subjects by giving Facts, give more examples, or choose edit or train "
            "yourself"
        ),
    }
    apart = (
        f"{_percent(s.get('apart', 0.0))} of the examples are facts, as the caller or their words "
        "say, and are edited; of the rest:"
    )
    said = "apart" in s and verdict.step not in (rule.CROWDED, rule.FULL, rule.MATES)
    return (*([apart] if said else []), told[verdict.step](), *_beside(verdict, s, t))


def unused_reasons(unused: Sequence[str]) -> tuple[str, ...]:
    """What of a text gave nothing."""
    if not unused:
        return ()
    more = f"; and {len(unused) - UNUSED:,} more" if len(unused) > UNUSED else ""
    return (f"{len(unused):,} sentences gave nothing: {'; '.join(unused[:UNUSED])}{more}",)


def _carries_over(s: Mapping[str, float], t: Thresholds) -> str:
    by = {
        "feature_transfer": "the frozen model's states foretell the answers of held-out examples",
        "probe_transfer": "a short training on half of the subjects answers the other half",
        "template_rule": "what the prompt says beside its subject tells the answer",
    }
    name = max((name for name in by if name in s), key=lambda name: s[name])
    return (
        f"{by[name]} ({_percent(s[name])} of what could be gained over the model itself and the "
        f"commonest answer, {_percent(rule.needed(s, t))} are asked for): a skill"
    )


def _beside(verdict: Verdict, s: Mapping[str, float], t: Thresholds) -> list[str]:
    found = []
    if s.get("known", 0.0) >= 0.5 and verdict.step != rule.KNOWN:
        found.append(
            f"the model says {_percent(s['known'])} of the answers already; an edit leaves those "
            "as they are"
        )
    if s.get("conflict", 0.0) >= 0.5 and verdict.kind == "edit":
        found.append(
            f"after {_percent(s['conflict'])} of the prompts the model is sure of another answer"
        )
    if "probe_transfer" in s and verdict.step != rule.TRANSFER:
        found.append(f"a short training on half of the subjects gains {s['probe_transfer']:.2f}")
    if "trial_efficacy" in s and verdict.step != rule.UNFIT:
        found.append(
            f"a trial edit met {_percent(s['trial_efficacy'])} of its facts and left "
            f"{_percent(s['trial_specificity'])} of other answers as they were"
        )
    if verdict.kind != "train" and s.get("strangeness", 0.0) >= t.unknown:
        found.append(
            f"the prompts are {_strange(s)}: an unknown language, unknown names or no language at "
            "all" + "; that lowers the confidence" * (verdict.kind == "edit")
        )
    if verdict.kind == "edit" and s.get("spelling", 0.0) > t.spelling:
        found.append(
            "the model has hardly ever said these objects (their tokens behind the first have "
            f"{s['spelling']:.1f} times the loss of guessing): an edit can make it begin a word, "
            "but not spell one; that lowers the confidence"
        )
    if verdict.kind == "edit" and s.get("pieces", 0.0) > t.pieces:
        found.append(
            f"the subjects' words fall into {s['pieces']:.1f} tokens each: names that the model "
            "has hardly met; that lowers the confidence"
        )
    if verdict.kind in ("edit", "split") and s.get("fill", 0.0) > t.load:
        found.append(
            f"these facts and those edited before are {s['fill']:.1f} times what edits of this "
            "model are known to hold; that lowers the confidence"
        )
    n = s.get("items", 0.0)
    if 0 < n < t.few and verdict.step != rule.FEW:
        few = "1 example is" if n == 1 else f"{n:.0f} examples are"
        found.append(f"{few} few; that lowers the confidence")
    return found


def _strange(s: Mapping[str, float]) -> str:
    return (
        f"strange to the model by {s['strangeness']:.1f} on a scale where plain statements about "
        "well-known things have 0 and guessing has 1"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
