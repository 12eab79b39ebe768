"""edit(): one fact, from words to a logged change of the weights.

Steps: make the fact (infer the relation if there is no prompt, ask the model for the old object),
choose layer and settings, solve, append to the log, measure. Everything before the append leaves
the model untouched; the append is atomic. Knows nothing of the equations.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from editcl.editing.calibrate import calibrate
from editcl.editing.contexts import DEFAULT_CONTEXTS
from editcl.editing.covariance import covariances
from editcl.editing.essence import PUBLISHED, essence_prompts
from editcl.editing.methods import METHODS, PUBLISHED_SETTINGS, Plan, preset_of
from editcl.editing.relation import infer_relation
from editcl.editing.values import ValueSettings
from editcl.encoding import Sentence
from editcl.errors import EditclError, FactError
from editcl.evaluation import case_for
from editcl.evaluation import evaluate as evaluate_cases
from editcl.facts import Fact
from editcl.loading import wrap
from editcl.log import Edit, Probability
from editcl.model import EditableModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OLD_OBJECT_TOKENS = 10


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
        method: a name in METHODS: "rome", "r-rome" (one mean key) or "rome-published".
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
    if method not in METHODS:
        raise EditclError(f"unknown method {method!r}; choose one of {', '.join(METHODS)}.")
    if not contexts or contexts[0] != "":
        raise EditclError('the first context must be "", the bare prompt; texts may follow it.')
    fact, inferred = _fact(model, subject, new_object, prompt, old_object)
    layer = choose_layer(model, fact, layer)
    model.check_finite([layer])
    chosen = resolve_settings(model, settings)
    plan = Plan(
        layers=(layer,),
        settings=chosen,
        covariances=covariances(model, [layer], texts=corpus, seed=seed),
        essence=[essence] if essence is not None else default_essence(model, [fact], chosen),
        contexts=contexts,
    )
    case = case_for(model, fact) if evaluate else None
    before = probabilities(model, [fact])
    solution = METHODS[method](model, [fact], plan)
    used = plan.covariances[layer]
    details = {
        **solution.details,
        "settings": asdict(chosen),
        "seed": seed,
        "contexts": len(contexts),
        "essence": list(plan.essence[0]),
        "covariance": f"{used.tokens} tokens of {used.source}",
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
        layers=[layer],
        before=before,
        seconds=time.perf_counter() - started,
        details=details,
        measure=measure,
    )


def probabilities(model: EditableModel, facts: Sequence[Fact]) -> list[Probability]:
    """p(old) and p(new) of each fact now: exp of the mean log-probability per token."""
    new = [Sentence(f.prompt, f.subject, f.new_object) for f in facts]
    with_old = [f for f in facts if f.old_object is not None]
    old = [Sentence(f.prompt, f.subject, f.old_object or "") for f in with_old]
    p = model.score(new + old).prob.tolist()
    p_old = dict(zip(map(id, with_old), p[len(new) :], strict=True))
    return [Probability(p_old.get(id(f)), p[i]) for i, f in enumerate(facts)]


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
        said = ask_object(model, fact.sentence)
        if said and said.casefold() == fact.new_object.casefold():
            raise FactError(
                f"the model already says {said!r} after {fact.sentence!r}: new_object equals the "
                "old one, there is nothing to edit."
            )
        if said:
            fact = Fact(fact.subject, fact.prompt, fact.new_object, said)
    return fact, inferred


def ask_object(model: EditableModel, sentence: str) -> str | None:
    """What the model says after a sentence start, up to the first punctuation; None if nothing."""
    (text,) = model.generate([sentence], OLD_OBJECT_TOKENS)
    head = re.split(r"[.,;:!?\n()\[\]\"”]", text.strip(), maxsplit=1)[0].strip()
    return head if any(char.isalnum() for char in head) else None


def choose_layer(model: EditableModel, fact: Fact, layer: int | None) -> int:
    """The given layer, the papers' for the family, or the one that calibration finds."""
    if layer is not None:
        return model.down_projection(layer).layer
    preset = preset_of(model)
    return preset.layer if preset is not None else calibrate(model).layer


def resolve_settings(model: EditableModel, settings: ValueSettings | str | None) -> ValueSettings:
    """Settings by object or name.

    Raises:
        EditclError: an unknown name.
    """
    if settings is None:
        return ValueSettings()
    if isinstance(settings, ValueSettings):
        return settings
    if settings == "published":
        preset = preset_of(model)
        return PUBLISHED_SETTINGS if preset is None else preset.settings
    raise EditclError(f"unknown settings {settings!r}; use 'published' or a ValueSettings.")


def default_essence(
    model: EditableModel, facts: Sequence[Fact], settings: ValueSettings
) -> list[tuple[str, ...]]:
    """The essence prompts that go with the settings: the paper's one, or the model's own."""
    if settings.scale == "absolute":
        return [PUBLISHED for _ in facts]
    return essence_prompts(model, facts)
