"""What an edit needs that the caller did not say: layers, settings, prompts, old objects.

Knows nothing of equations and of the log.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence

from editcl.editing.calibrate import calibrate
from editcl.editing.covariance import Covariance, covariances
from editcl.editing.essence import PUBLISHED, essence_prompts
from editcl.editing.methods import METHODS, PLAIN_PRESET, Editor, preset_of
from editcl.editing.values import ValueSettings
from editcl.errors import EditclError
from editcl.facts import Fact
from editcl.model import EditableModel

OLD_OBJECT_TOKENS = 10
#: Where an object ends: at punctuation, but not at the period of an initial or of "St.".
END = re.compile(r"[,;:!?\n()\[\]\"”]|(?<!\b[A-Z])(?<!\bSt)(?<!\bMt)(?<!\bDr)\.")
NEAR_BEST = 0.04  # of a layer's score, to be edited beside the best one


def choose_method(method: str) -> Editor:
    """The method of that name.

    Raises:
        EditclError: there is none.
    """
    if method not in METHODS:
        near = difflib.get_close_matches(method.lower(), METHODS, 1)
        meant = f"did you mean {near[0]!r}? All: " if near else "choose one of "
        raise EditclError(f"unknown method {method!r}; {meant}{', '.join(METHODS)}.")
    return METHODS[method]


def check_contexts(contexts: Sequence[str]) -> None:
    """EditclError unless the bare prompt comes first."""
    if not contexts or contexts[0] != "":
        raise EditclError('the first context must be "", the bare prompt; texts may follow it.')


def check_amounts(batch_size: int | None, preservation: float) -> None:
    """EditclError unless batches hold something and what the model knows has a finite weight."""
    if batch_size is not None and (type(batch_size) is not int or batch_size < 1):
        raise EditclError(f"batch_size must be a whole number of at least 1, got {batch_size!r}.")
    if not 0 < preservation < math.inf:
        raise EditclError(f"preservation must be positive and finite, got {preservation}.")


def ask_objects(model: EditableModel, sentences: Sequence[str]) -> list[str | None]:
    """What the model says after each sentence start, up to punctuation; None if nothing."""
    heads = [
        END.split(text.strip(), maxsplit=1)[0].strip()
        for text in model.generate(list(sentences), OLD_OBJECT_TOKENS)
    ]
    return [head if any(char.isalnum() for char in head) else None for head in heads]


def choose_layers(
    model: EditableModel, editor: Editor, layers: Sequence[int] | None
) -> tuple[int, ...]:
    """The given layers, the papers' for the family, or those that calibration finds.

    A method of one layer gets the best one. Others get the layers around it whose score in the
    calibration is within `NEAR_BEST` of the best, without a gap.

    Raises:
        EditclError: a layer is out of range or given twice, or several for a method of one.
    """
    if layers is not None:
        chosen = tuple(sorted(model.down_projection(layer).layer for layer in layers))
        if not chosen or len(set(chosen)) != len(chosen) or (editor.one_layer and len(chosen) > 1):
            wanted = "one layer" if editor.one_layer else "one or several different layers"
            raise EditclError(f"this method edits {wanted}, got {list(layers)}.")
        return chosen
    if editor.last_layers:
        return tuple(range(max(0, model.n_layers - editor.last_layers), model.n_layers))
    preset = preset_of(model)
    if preset is not None and (editor.one_layer or preset.layers):
        return (preset.layer,) if editor.one_layer else preset.layers
    calibration = calibrate(model)
    if editor.one_layer:
        return (calibration.layer,)
    score = {e.layer: e.score for e in calibration.location.evidence}
    first = last = calibration.layer
    while score.get(first - 1, -1.0) >= score[calibration.layer] - NEAR_BEST:
        first -= 1
    while score.get(last + 1, -1.0) >= score[calibration.layer] - NEAR_BEST:
        last += 1
    return tuple(range(first, last + 1))


#: Where a refinement follows: shorter and more steps, with which v* meets its object with a third
#: less of a change, so that hundreds of edits disturb each other and the rest less.
CAREFUL = ValueSettings(lr=0.05, steps=80)


def resolve_settings(
    model: EditableModel,
    editor: Editor,
    settings: ValueSettings | str | None,
    *,
    refine: bool = False,
) -> ValueSettings:
    """Settings by object or name; the papers' are ROME's or, for batch methods, MEMIT's.

    Raises:
        EditclError: an unknown name.
    """
    if settings is None:
        return CAREFUL if refine and editor.refines else ValueSettings()
    if isinstance(settings, ValueSettings):
        return settings
    if settings == "published":
        preset = preset_of(model) or PLAIN_PRESET
        return preset.settings if editor.single else preset.batch
    raise EditclError(f"unknown settings {settings!r}; use 'published' or a ValueSettings.")


def default_covariances(
    model: EditableModel,
    layers: Sequence[int],
    settings: ValueSettings,
    *,
    texts: Sequence[str] | None,
    seed: int,
) -> dict[int, Covariance]:
    """C of each layer, damped unless the published procedure is asked for."""
    found = covariances(model, layers, texts=texts, seed=seed)
    if settings.scale != "residual":
        return found
    return {layer: covariance.damped() for layer, covariance in found.items()}


def default_essence(
    model: EditableModel,
    facts: Sequence[Fact],
    settings: ValueSettings,
    earlier: Sequence[Fact] = (),
) -> list[tuple[str, ...]]:
    """The essence prompts that go with the settings: the paper's one, or the model's own."""
    if settings.scale != "residual":
        return [PUBLISHED for _ in facts]
    return essence_prompts(model, facts, earlier=earlier)
