"""From a caller's wishes to plans: what all batches of a call share, and the plan of each batch.

Single edits, tables and comparisons plan alike, here. Knows nothing of equations, and of the log
only which facts are active.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from editcl.editing.background import Background
from editcl.editing.choices import (
    choose_layers,
    choose_method,
    default_covariances,
    default_essence,
    resolve_settings,
)
from editcl.editing.contexts import DEFAULT_CONTEXTS, rephrasings
from editcl.editing.guards import active_facts
from editcl.editing.methods import Editor
from editcl.editing.plan import Plan
from editcl.editing.refine import Refinement
from editcl.editing.resume import Checkpoint
from editcl.editing.values import ValueSettings, tokens_that_fit
from editcl.encoding import Sentence
from editcl.facts import Fact
from editcl.model import EditableModel


@dataclass(frozen=True)
class Way:
    """How facts are edited: everything that is the same for all batches of a call.

    Attributes:
        method: name of the editor.
        editor: the editor itself.
        layers: edited layers.
        settings: how v* is sought.
        contexts: texts in front of the prompts.
        preservation: see `Plan`.
        corpus: texts for the covariance, or None.
        resume: keep finished values on disk until they are logged.
        seed: of everything random.
        refinement: how solutions are trained further, or None.
    """

    method: str
    editor: Editor
    layers: tuple[int, ...]
    settings: ValueSettings
    contexts: tuple[str, ...]
    preservation: float
    corpus: Sequence[str] | None
    resume: bool
    seed: int
    refinement: Refinement | None = None


def way_of(
    model: EditableModel,
    method: str,
    *,
    layers: Sequence[int] | None = None,
    settings: ValueSettings | str | None = None,
    contexts: Sequence[str] = DEFAULT_CONTEXTS,
    preservation: float = Plan.preservation,
    corpus: Sequence[str] | None = None,
    resume: bool = False,
    seed: int = 0,
    refine: bool = False,
) -> Way:
    """How a method edits, with what the caller left out filled in.

    `refine` trains the solutions further (refine.py) where the method's columns each belong to a
    fact, and the settings are not the published ones.

    Raises:
        EditclError: unknown method, layer or settings.
    """
    editor = choose_method(method)
    chosen = resolve_settings(model, editor, settings, refine=refine)
    refined = refine and editor.refines and chosen.scale == "residual"
    return Way(
        method,
        editor,
        choose_layers(model, editor, layers),
        chosen,
        tuple(contexts),
        preservation,
        corpus,
        resume,
        seed,
        Refinement(seed=seed) if refined else None,
    )


def plan_for(
    model: EditableModel,
    facts: Sequence[Fact],
    way: Way,
    *,
    earlier: Sequence[Fact] = (),
    essence: Sequence[Sequence[str]] | None = None,
    background: Background | None = None,
) -> Plan:
    """The plan of one batch on the model as it is now.

    Args:
        model: the model.
        facts: the batch.
        way: how it is edited.
        earlier: facts that are in the weights on trial; those in the log are known.
        essence: per fact, the prompts to hold; by default those that the model chooses.
        background: text for a refinement, with the base's weights; by default those that the log
            and the model have.
    """
    earlier = [*active_facts(model.log), *earlier]
    scale_free = way.settings.scale == "residual"
    values = way.editor.values
    if essence is None:
        none: list[tuple[str, ...]] = [()] * len(facts)
        essence = default_essence(model, facts, way.settings, earlier) if values else none
    rephrased = [rephrasings(fact) for fact in facts] if scale_free else None
    if way.refinement is not None and background is None:
        background = background_for(model, way)
    checkpoint = None
    if way.resume and values and len(facts) > 1:
        stated = [Sentence(fact.prompt, fact.subject, fact.new_object) for fact in facts]
        question = [
            [asdict(fact) for fact in facts],
            [row.ids for row in model.encode(stated)],
            essence,
            rephrased,
            asdict(way.settings),
            way.contexts,
            way.layers,
            way.method,
            tokens_that_fit(model, way.layers[-1]),  # parts are found again by their numbers
        ]
        checkpoint = Checkpoint.of(model, question)
    return Plan(
        layers=way.layers,
        settings=way.settings,
        covariances=(
            default_covariances(model, way.layers, way.settings, texts=way.corpus, seed=way.seed)
            if way.editor.covariance
            else {}
        ),
        essence=essence,
        contexts=way.contexts,
        rephrased=rephrased,
        preservation=way.preservation,
        earlier=earlier,
        checkpoint=checkpoint,
        refinement=way.refinement,
        background=background,
    )


def background_for(model: EditableModel, way: Way) -> Background | None:
    """Text for the way's refinement, with the weights as they are now; None without one."""
    if way.refinement is None:
        return None
    return Background.of(model, way.layers, texts=way.corpus, seed=way.seed)
