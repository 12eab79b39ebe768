"""Records: a skill as the log keeps it, and back.

Beside the adapter, an entry holds what its strategy keeps between tasks (importance, rows to
replay, prototypes) and centroids of the task's prompts, so that a log alone can go on learning and
tell prompts apart:

    <peft's names>     the adapter's own tensors
    strategy/<name>    the strategy's, as they were after the task
    centroids          [n_centroids, d_model], of the base model's pooled states of prompts
    radius             [n_centroids], how far prompts of the task are from them

Knows nothing of training and of what is active.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from editcl.errors import EditclError
from editcl.learning.checkpoint import within
from editcl.learning.settings import TrainResult, TrainSettings
from editcl.learning.strategies import STRATEGIES, Strategy, combine, title
from editcl.learning.tasks import Task
from editcl.log.skill import Skill

OF_STRATEGY, CENTROIDS, RADIUS = "strategy/", "centroids", "radius"

Makers = Mapping[str, Callable[[], Strategy]]


@dataclass(frozen=True)
class Content:
    """The tensors of an entry.

    Attributes:
        adapter: by peft's own names.
        strategy: what the strategy keeps.
        centroids: of the task's prompts.
        radius: of each centroid; None in an entry from before radii were kept.
    """

    adapter: Mapping[str, Tensor]
    strategy: Mapping[str, Tensor]
    centroids: Float[Tensor, "n_centroids d_model"]
    radius: Float[Tensor, " n_centroids"] | None = None

    def tensors(self) -> dict[str, Tensor]:
        """All by the names of the file."""
        own = {f"{OF_STRATEGY}{name}": tensor for name, tensor in self.strategy.items()}
        radius = {} if self.radius is None else {RADIUS: self.radius}
        return {**self.adapter, **own, CENTROIDS: self.centroids, **radius}

    @classmethod
    def of(cls, skill: Skill, tensors: Mapping[str, Tensor]) -> Content:
        """What an entry holds.

        Raises:
            EditclError: it is none that `Skills` has written.
        """
        if CENTROIDS not in tensors or "strategy" not in skill.details:
            raise EditclError(
                f"{skill.id} ({skill.task}) holds no skill that Skills.learn has written; use "
                "Adapters.load with its tensors, or roll it back."
            )
        extras = {CENTROIDS, RADIUS, *(name for name in tensors if name.startswith(OF_STRATEGY))}
        adapter = {name: tensor for name, tensor in tensors.items() if name not in extras}
        kept = within(tensors, OF_STRATEGY)
        return cls(adapter, kept, tensors[CENTROIDS], tensors.get(RADIUS))


def details_of(
    task: Task,
    strategy: Strategy,
    settings: TrainSettings,
    result: TrainResult,
    *,
    on: Sequence[str],
    scores: Mapping[str, float | None],
    seed: int,
) -> dict[str, Any]:
    """What an entry says of a training, as JSON.

    Args:
        task: what was learnt.
        strategy: after it.
        settings: of the training.
        result: of the training.
        on: other adapters that were active in it.
        scores: of the task, "before" and "after".
        seed: of the session.
    """
    return {
        "kind": task.kind,
        "labels": list(task.labels),
        "max_tokens": task.max_tokens,
        "examples": len(task.train),
        "score": dict(scores),
        "loss": {"first": result.losses[0], "last": result.losses[-1]},
        "steps": result.steps,
        "examples_per_second": result.examples_per_second,
        "parameters": result.parameters,
        "training": asdict(settings),
        "seed": seed,
        "on": list(on),
        "strategy": {"settings": plain(strategy.settings()), "state": plain(strategy.state())},
    }


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as they come back from JSON."""
    return json.loads(json.dumps(values))


# -- strategies -----------------------------------------------------------------------------------


def remade(skill: Skill, makers: Makers) -> Strategy:
    """A fresh strategy like the one that trained a skill, without what it kept.

    Args:
        skill: of the log.
        makers: what makes strategies that can't be made from their settings, by title.

    Raises:
        EditclError: the strategy is not known, or can't be made with the settings that it had.
    """
    wanted = skill.details["strategy"]["settings"]
    if skill.strategy in makers:
        found = makers[skill.strategy]()
    else:
        names = skill.strategy.split(" + ")
        own = [wanted] if len(names) == 1 else [wanted.get(name, {}) for name in names]
        parts = [_made(name, values) for name, values in zip(names, own, strict=True)]
        found = combine(*parts)
    if title(found) != skill.strategy or plain(found.settings()) != wanted:
        raise EditclError(
            f"{skill.id} ({skill.task}) was trained by {skill.strategy} with {wanted}, and what is "
            f"made now is {title(found)} with {plain(found.settings())}. Pass what makes it: "
            f"Skills(model, strategies={{{skill.strategy!r}: lambda: ...}})."
        )
    return found


def _made(name: str, settings: Mapping[str, Any]) -> Strategy:
    """By the plain name; what differs from the defaults goes to arguments of the same name."""
    named = [found for found in (make() for make in STRATEGIES.values()) if title(found) == name]
    if not named:
        known = ", ".join(STRATEGIES)
        raise EditclError(
            f"the log has a skill of the strategy {name!r}, which can't be made by name alone "
            f"(those are {known}). Pass what makes it: Skills(model, strategies={{{name!r}: "
            "lambda: ...})."
        )
    for found in named:
        if plain(found.settings()) == settings:
            return found
    kind, usual = type(named[0]), plain(named[0].settings())
    other = {key: value for key, value in settings.items() if usual.get(key) != value}
    arguments = inspect.signature(kind.__init__).parameters
    return kind(**other) if other.keys() <= arguments.keys() else named[0]
