"""edit(): one fact, from words to a logged change of the weights.

Steps: make the fact (infer the relation if there is no prompt, ask the model for the old object),
choose layer and settings, solve, append to the log, measure. Everything before the append leaves
the model untouched; the append is atomic. Knows nothing of the equations.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from editcl.editing.choices import ask_objects, check_contexts, choose_method
from editcl.editing.contexts import DEFAULT_CONTEXTS
from editcl.editing.relation import infer_relation
from editcl.editing.values import ValueSettings
from editcl.editing.way import plan_for, way_of
from editcl.encoding import Sentence
from editcl.errors import FactError
from editcl.evaluation import case_for
from editcl.evaluation import evaluate as evaluate_cases
from editcl.facts import Fact
from editcl.loading import wrap
from editcl.log import Edit, Probability
from editcl.log.weakening import probabilities
from editcl.model import EditableModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def edit(
    model: EditableModel | PreTrainedModel,
    subject: str,
    new_object: str,
    *,
    prompt: str | None = None,
    old_object: str | None = None,
    method: str = "rome",
    layer: int | None = None,
    settings: ValueSettings | str | None = None,
    contexts: Sequence[str] = DEFAULT_CONTEXTS,
    essence: Sequence[str] | None = None,
    corpus: Sequence[str] | None = None,
    tokenizer: Any = None,
    evaluate: bool = False,
    seed: int = 0,
) -> Edit:
    """Makes the model say something else about a subject, in place, and logs it.

    Args:
        model: from `editcl.load` or `editcl.wrap`, or a Hugging Face model (with `tokenizer`).
        subject: what the fact is about, as it is written in running text.
        new_object: what the model shall say.
        prompt: a sentence start with `{}` for the subject, or one that names it; the object is to
            follow. Without it the relation is inferred from subject and object.
        old_object: what the model says now; asked of the model if absent.
        method: a name in METHODS: "rome", "r-rome" (one mean key), "rome-published" or another.
        layer: whose down-projection to change; by default the papers' layer for the family, or
            what `calibrate` finds on this model.
        settings: how v* is sought; None for the scale-free default, "published" for the paper's
            values (those of the family if it has any).
        contexts: texts in front of the prompt over which key and loss are averaged; first "".
        essence: prompts with `{}` whose predictions are held; chosen by the model if absent.
        corpus: texts for the covariance; the model samples its own if absent.
        tokenizer: only with a Hugging Face model.
        evaluate: also measure paraphrases, neighbours and the subject's other relations.
        seed: of everything random.

    Returns:
        The receipt, which is the entry in `model.log`.

    Raises:
        FactError: the fact can't be edited as it stands; the message says why.
        AmbiguousFact: no prompt, and several relations fit.
        EditclError: unknown method or layer.
        NonFiniteError: weights, activations or the update are not finite.
    """
    started = time.perf_counter()
    model = model if isinstance(model, EditableModel) else wrap(model, tokenizer)
    choose_method(method)
    check_contexts(contexts)
    model.check_finite()
    fact, inferred = _fact(model, subject, new_object, prompt, old_object)
    way = way_of(
        model,
        method,
        layers=None if layer is None else [layer],
        settings=settings,
        contexts=contexts,
        corpus=corpus,
        seed=seed,
    )
    plan = plan_for(model, [fact], way, essence=None if essence is None else [tuple(essence)])
    case = case_for(model, fact) if evaluate else None
    before = probabilities(model, [fact])
    solution = way.editor(model, [fact], plan)
    used = plan.covariances.get(way.layers[0])
    details = {
        **solution.details,
        "settings": asdict(way.settings),
        "seed": seed,
        "contexts": len(contexts),
        "essence": list(plan.essence[0]),
        **({"covariance": f"{used.tokens} tokens of {used.source}"} if used else {}),
        **({"relation": inferred} if inferred else {}),
    }

    def measure() -> list[Probability]:
        if case is not None:
            details["evaluation"] = evaluate_cases(model, [case]).summary()
        return probabilities(model, [fact])

    return model.log.append(
        solution.updates,
        [fact],
        method=method,
        layers=way.layers,
        before=before,
        seconds=time.perf_counter() - started,
        details=details,
        measure=measure,
    )


def _fact(
    model: EditableModel, subject: str, new_object: str, prompt: str | None, old_object: str | None
) -> tuple[Fact, str | None]:
    """The fact with its old object, and the name of the relation if it was inferred."""
    inferred = None
    if prompt is None:
        relation = infer_relation(model, subject, new_object)
        prompt, inferred = relation.prompt, relation.name
    fact = Fact.from_sentence(subject, prompt, new_object, old_object)
    model.encode([Sentence(fact.prompt, fact.subject, fact.new_object)])
    if fact.old_object is None:
        (said,) = ask_objects(model, [fact.sentence])
        if said and said.casefold() == fact.new_object.casefold():
            raise FactError(
                f"the model already says {said!r} after {fact.sentence!r}: new_object equals the "
                "old one, there is nothing to edit."
            )
        if said:
            fact = Fact(fact.subject, fact.prompt, fact.new_object, said)
    return fact, inferred
