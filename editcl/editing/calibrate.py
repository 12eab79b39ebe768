"""calibrate(): which layer to edit on this model, by trial edits of facts that it knows.

Layers from another model's table mean nothing on yours. For each candidate layer a handful of the
model's own facts is edited on trial, one at a time, and every edit judged by efficacy,
paraphrase, specificity and same-subject specificity, as far as the unedited model has any of the
latter two; the best layer wins, the smaller change among equals. The result is cached with its
evidence. Knows nothing of the log.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from editcl.catalogue import facts_by_relation, relations
from editcl.editing.cache import cache_folder, keep
from editcl.editing.contexts import DEFAULT_CONTEXTS, rephrasings
from editcl.editing.covariance import base_fingerprint, covariances
from editcl.editing.essence import essence_prompts
from editcl.editing.keys import subject_keys
from editcl.editing.rome import context_direction, rank_one
from editcl.editing.trial import tried
from editcl.editing.values import ValueSettings, optimise_values
from editcl.embedded import data_folder
from editcl.encoding import Sentence
from editcl.errors import EditclError
from editcl.evaluation import Case, Evaluation, evaluate
from editcl.evaluation.cases import case_of
from editcl.model import EditableModel
from editcl.progress import progress
from editcl.tracing.locate import LayerEvidence, Location, locate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GAINS, KEEPS = ("efficacy", "paraphrase"), ("specificity", "same_subject")  # by an edit
JUDGED = (*GAINS, *KEEPS)
KNOWN = 0.5  # least share of the unedited model, for what an edit keeps to tell layers apart
LEAST = 0.01  # what a measure of nought counts as
LEAST_FACTS = 4


@dataclass(frozen=True, eq=False)
class Calibration:
    """The layer to edit on one model, and why.

    Attributes:
        location: the candidate layers with what trial edits gave there: a score, the measures of
            `evaluate` behind it, and |delta| / |h|.
        facts: the sentences that were edited on trial.
        fingerprint: of the base model that it holds for.
    """

    location: Location
    facts: tuple[str, ...]
    fingerprint: str

    @property
    def layer(self) -> int:
        """The layer to edit."""
        return self.location.layer

    def plot(self, *, path: str | Path | None = None) -> Figure:
        """Scores by layer, the chosen one marked."""
        return self.location.plot(path=path)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON-able values."""
        location = self.location.to_dict()
        return {"layer": self.layer, "facts": list(self.facts), "fingerprint": self.fingerprint} | {
            "evidence": location["evidence"]
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """The calibration again; anything amiss raises KeyError, TypeError or ValueError."""
        evidence = tuple(
            LayerEvidence(
                int(e["layer"]),
                float(e["score"]),
                {str(name): float(value) for name, value in e["details"].items()},
            )
            for e in values["evidence"]
        )
        if not evidence:
            raise ValueError("a calibration without evidence")
        facts = tuple(str(fact) for fact in values["facts"])
        return cls(Location("sweep", evidence), facts, str(values["fingerprint"]))

    def __repr__(self) -> str:
        return f"Calibration from {len(self.facts)} trial edits a layer\n{self.location!r}"


def calibrate(
    model: EditableModel,
    *,
    layers: Sequence[int] | None = None,
    cases: Sequence[Case] | None = None,
    n_facts: int = 16,
    settings: ValueSettings | None = None,
    seed: int = 0,
    refresh: bool = False,
) -> Calibration:
    """Finds the layer to edit by trial edits; the model is as before afterwards.

    Args:
        model: the model; its base weights are tried on, edits in its log are lifted meanwhile.
        layers: candidates; by default every layer below the top quarter.
        cases: facts with probes to try; by default catalogue facts that the model knows.
        n_facts: how many catalogue facts.
        settings: how v* is sought; by default the scale-free default.
        seed: which facts are drawn.
        refresh: measure again even if a cached result is there.

    Raises:
        EditclError: the model knows too few facts of the catalogue and no cases are given.
    """
    candidates = list(range(max(1, model.n_layers * 3 // 4))) if layers is None else list(layers)
    chosen_settings = settings or ValueSettings()
    own_cases = cases is not None
    key = _key(model, candidates, chosen_settings, n_facts, seed)
    if not own_cases and not refresh:
        stored = model.memo.get(key) or _read(key)
        if stored is not None:
            model.memo[key] = stored
            return stored
    with model.at_base():  # what is logged now must not decide for later sessions
        found = known_cases(model, n_facts, seed) if cases is None else list(cases)
        location = try_layers(model, found, candidates, chosen_settings, seed)
    facts = tuple(str(case.fact) for case in found)
    result = Calibration(location, facts, base_fingerprint(model))
    if not own_cases:
        model.memo[key] = result
        _write(key, result)
    return result


def try_layers(
    model: EditableModel,
    cases: Sequence[Case],
    layers: Sequence[int],
    settings: ValueSettings,
    seed: int,
) -> Location:
    """Edits each case at each layer on trial, one at a time, and measures every edit."""
    covariance = covariances(model, layers, seed=seed)
    facts = [case.fact for case in cases]
    essence = essence_prompts(model, facts)
    rephrased = [rephrasings(fact) for fact in facts]
    unedited = evaluate(model, cases).summary()
    judged = judged_by(unedited)
    bar = progress(layers, "calibrating: trial edits by layer")

    def try_layer(layer: int) -> dict[str, float]:
        next(bar, None)
        keys = subject_keys(model, facts, [layer], DEFAULT_CONTEXTS, rephrased)[layer]
        values = optimise_values(
            model, facts, layer, DEFAULT_CONTEXTS, essence, settings, rephrased=rephrased
        )
        results = []
        for i, case in enumerate(cases):
            u = context_direction(covariance[layer].damped(), keys[i])
            with tried(model, [rank_one(model.down_projection(layer), u, values.delta[i])]):
                results.append(evaluate(model, [case]))
        size = float((values.delta.norm(dim=-1) / values.residual_norm).mean())
        return _scores(Evaluation.join(results), judged, size)

    location = locate(model, (), by="sweep", try_layer=try_layer, layers=layers)
    next(bar, None)
    return location


def known_cases(model: EditableModel, count: int, seed: int) -> list[Case]:
    """Catalogue facts that the model answers rightly, over as many relations as possible.

    Raises:
        EditclError: fewer than four are known.
    """
    rng = random.Random(seed)
    grouped = facts_by_relation()
    drawn = [
        fact
        for name in relations()
        if len({f.object for f in grouped.get(name, ())}) > 1
        for fact in rng.sample(grouped[name], min(12, len(grouped[name])))
    ]
    prompts = [Sentence(relations()[f.relation].prompt, f.subject, f.object) for f in drawn]
    right = model.score(prompts).exact.tolist()
    by_relation: dict[str, list] = {}
    for fact, known in zip(drawn, right, strict=True):
        if known:
            by_relation.setdefault(fact.relation, []).append(fact)
    taken: list = []
    while len(taken) < count and any(by_relation.values()):
        for name in rng.sample(sorted(by_relation), len(by_relation)):
            if by_relation[name] and len(taken) < count:
                taken.append(by_relation[name].pop())
    if len(taken) < min(count, LEAST_FACTS):
        raise EditclError(
            f"the model answers only {len(taken)} of {len(drawn)} catalogue facts, too few to "
            "calibrate on. Pass cases=[Case(Fact(...), ...)] with facts that it knows, or name "
            "the layer: edit(..., layer=5)."
        )
    return [case_of(fact, rng) for fact in taken]


def judged_by(unedited: Mapping[str, float | None]) -> tuple[str, ...]:
    """What tells layers apart, by the shares of the unedited model.

    An edit can keep no more than is there: what the model gets wrong without any says nothing.
    """
    kept = [name for name in KEEPS if (unedited.get(name) or 0.0) >= KNOWN]
    return (*GAINS, *kept)


def layer_score(measures: Mapping[str, float], judged: Sequence[str]) -> float:
    """Harmonic mean of the measures that are judged, or of all where none of these is there.

    A nought counts as LEAST: it would hide what the other measures say.
    """
    chosen = [name for name in measures if name in judged] or list(measures)
    return len(chosen) / sum(1 / max(measures[name], LEAST) for name in chosen) if chosen else 0.0


def _scores(evaluation: Evaluation, judged: Sequence[str], size: float) -> dict[str, float]:
    """CounterFact's score together with the same subject, as far as they tell layers apart."""
    summary = evaluation.summary()
    measures = {name: summary[name] for name in JUDGED if summary.get(name) is not None}
    return {"score": layer_score(measures, judged), **measures, "delta_over_residual": size}


def _key(
    model: EditableModel, layers: Sequence[int], settings: ValueSettings, n_facts: int, seed: int
) -> str:
    rule = [JUDGED, KNOWN, LEAST]
    parts = [base_fingerprint(model), list(layers), asdict(settings), n_facts, seed, rule]
    return f"calibration-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]}"


def _read(key: str) -> Calibration | None:
    """A result from the user's cache, or one that ships with the embedded model."""
    for path in (cache_folder() / f"{key}.json", shipped(key)):
        try:
            return Calibration.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return None


def shipped(key: str) -> Path:
    """Where the calibration of the embedded model is shipped."""
    return data_folder() / "calibration" / f"{key}.json"


def _write(key: str, calibration: Calibration) -> None:
    keep(cache_folder() / f"{key}.json", json.dumps(calibration.to_dict(), indent=1).encode())
