"""Drift: what learning did to what nobody asked it to change.

    general text       cross-entropy and KL(base || now) on plain sentences
    instruction drift  on generic prompts: KL(base || now) per token of the base's own answers, the
                       change of the NLL of reference answers, the share of verifiable constraints
                       that answers keep, and label bleed: answers that are a task's label

The base is the model with its logged edits and without adapters. All measures take a route, or a
function from rows to a route (a strategy's choice where no task is told). Knows nothing of streams
and tasks; `survival` asks the same of logged facts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, TypeAlias, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from editcl.encoding import Sentence
from editcl.errors import EditclError
from editcl.evaluation.damage import Damage, divergence, general_texts
from editcl.learning.batches import Encoded, collate, encode_examples
from editcl.learning.lora import BASE, Adapters
from editcl.learning.session import Route, kept_logits
from editcl.learning.tasks import TEXT, Example
from editcl.model import EditableModel, micro_batches

Item = TypeVar("Item")

#: A route, or what gives one for rows (of which only tokens before `start` may be looked at).
Routing: TypeAlias = Route | Callable[[list[Encoded]], Route]

TOKENS_PER_BATCH = 2048

#: Constraints that a program can verify: from an answer and the constraint's value to whether it
#: is kept.
CHECKS: Mapping[str, Callable[[str, Any], bool]] = MappingProxyType(
    {
        "contains": lambda answer, value: value.casefold() in answer.casefold(),
        "excludes": lambda answer, value: value.casefold() not in answer.casefold(),
        "begins": lambda answer, value: answer.strip().casefold().startswith(value.casefold()),
        "ends": lambda answer, value: answer.strip().casefold().endswith(value.casefold()),
        "at_least_words": lambda answer, value: len(answer.split()) >= value,
        "at_most_words": lambda answer, value: len(answer.split()) <= value,
        "matches": lambda answer, value: re.search(value, answer) is not None,
    }
)


@dataclass(frozen=True)
class Constraint:
    """Something that an answer must keep and a program can verify.

    Attributes:
        kind: one of CHECKS.
        value: what it is about: a text, a number of words, or a regular expression.

    Raises:
        EditclError: there is no such kind, or the value doesn't suit it.
    """

    kind: str
    value: str | int

    def __post_init__(self) -> None:
        if self.kind not in CHECKS:
            kinds = ", ".join(CHECKS)
            raise EditclError(f"there is no constraint {self.kind!r}; choose one of {kinds}.")
        counts = self.kind.endswith("_words")
        if counts != isinstance(self.value, int):
            wanted = "a number of words" if counts else "a text"
            raise EditclError(f"the constraint {self.kind!r} takes {wanted}, not {self.value!r}.")

    def kept(self, answer: str) -> bool:
        """Whether an answer keeps it."""
        return CHECKS[self.kind](answer, self.value)


@dataclass(frozen=True)
class Instruction:
    """A generic prompt, of no task.

    Attributes:
        prompt: what is asked.
        reference: a good answer, or "".
        constraints: what an answer must keep.
    """

    prompt: str
    reference: str = ""
    constraints: tuple[Constraint, ...] = ()


@dataclass(frozen=True)
class Change:
    """A figure before and now.

    Attributes:
        before: of the base.
        now: with the adapters.
    """

    before: float
    now: float

    @property
    def increase(self) -> float:
        """now - before."""
        return self.now - self.before

    def __str__(self) -> str:
        return f"{self.before:.3f} -> {self.now:.3f}"


@dataclass(frozen=True, repr=False)
class Drift:
    """How answers to generic prompts have changed.

    Attributes:
        kl: KL(base || now) per token of the base's own greedy answers, in nats.
        reference: NLL per token of the reference answers; None where no instruction has one.
        constraints: share of the constraints that greedy answers keep; None where there are none.
        bleed: share of the answers that begin with a label; None where no labels were given.
        n_instructions: how many prompts.
    """

    kl: float
    reference: Change | None
    constraints: Change | None
    bleed: Change | None
    n_instructions: int

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON-able data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Drift:
        """The drift that `to_dict` told of."""
        changes = {
            name: None if data[name] is None else Change(**data[name])
            for name in ("reference", "constraints", "bleed")
        }
        return cls(kl=data["kl"], n_instructions=data["n_instructions"], **changes)

    def __repr__(self) -> str:
        named = {
            "reference NLL": self.reference,
            "constraints kept": self.constraints,
            "label bleed": self.bleed,
        }
        parts = [f"{name} {change}" for name, change in named.items() if change is not None]
        figures = ", ".join([f"KL {self.kl:.4f}", *parts])
        return f"Drift({figures}; {self.n_instructions} instructions)"


# -- general text -------------------------------------------------------------------------------


def general_change(
    adapters: Adapters,
    routing: Routing,
    texts: Sequence[str] | None = None,
    *,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> Damage:
    """Cross-entropy of general text and KL(base || now), per token.

    Args:
        adapters: the bank.
        routing: which adapters count.
        texts: by default the sentences of `editcl.evaluation.damage`.
        tokens_per_batch: bounds the padded tokens of a forward pass.

    Raises:
        TaskError: a text can't be encoded.
    """
    plain = [Example("", text) for text in (general_texts() if texts is None else texts)]
    rows = encode_examples(adapters.model, plain, kind=TEXT)
    return compared(adapters, rows, routing, tokens_per_batch=tokens_per_batch)


def compared(
    adapters: Adapters,
    rows: Sequence[Encoded],
    routing: Routing,
    *,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> Damage:
    """Cross-entropy of the rows' targets and KL(base || now) there, means over all targets."""
    route = chosen_route(routing, rows)
    now = before = kl = 0.0
    count = 0
    for chosen in micro_batches([len(row.ids) for row in rows], tokens_per_batch):
        part = [rows[i] for i in chosen]
        base = _log_probs(adapters, part, Route())
        found = _log_probs(adapters, part, route.of(chosen))
        target = collate(part, adapters.model.pad_id, adapters.model.device).targets[:, None]
        now -= float(found.gather(1, target).double().sum())
        before -= float(base.gather(1, target).double().sum())
        kl += float(divergence(base, found).double().sum())
        count += len(target)
    return Damage(now / count, before / count, kl / count, count)


# -- instructions -------------------------------------------------------------------------------


def instruction_drift(
    adapters: Adapters,
    instructions: Sequence[Instruction],
    routing: Routing,
    *,
    labels: Sequence[str] = (),
    max_new_tokens: int = 24,
) -> Drift:
    """Measures how answers to generic prompts have changed; see `Drift`.

    Args:
        adapters: the bank.
        instructions: prompts of no task.
        routing: which adapters count.
        labels: label words of the tasks that were learnt.
        max_new_tokens: of an answer.

    Raises:
        EditclError: there are no instructions, or one is longer than the model takes.
    """
    if not instructions:
        raise EditclError("there are no instructions to measure drift on; give at least one.")
    model = adapters.model
    asked = model.encode([Sentence(one.prompt) for one in instructions])
    prompts = [Encoded(row.ids, len(row.ids)) for row in asked]
    route = chosen_route(routing, prompts)
    own = _answers(adapters, prompts, Route(), max_new_tokens)
    new = _answers(adapters, prompts, route, max_new_tokens)
    spoken = [Encoded(row.ids + ids, row.start) for row, ids in zip(prompts, own, strict=True)]
    before, now = ([model.tokenizer.decode(ids) for ids in answers] for answers in (own, new))
    checks = [one.constraints for one in instructions]
    return Drift(
        kl=compared(adapters, spoken, route).kl,
        reference=_reference(adapters, instructions, route),
        constraints=Change(share_kept(checks, before), share_kept(checks, now))
        if any(checks)
        else None,
        bleed=Change(label_bleed(labels, before), label_bleed(labels, now)) if labels else None,
        n_instructions=len(instructions),
    )


def _reference(
    adapters: Adapters, instructions: Sequence[Instruction], route: Route
) -> Change | None:
    told = [i for i, one in enumerate(instructions) if one.reference]
    if not told:
        return None
    pairs = [Example(instructions[i].prompt, instructions[i].reference) for i in told]
    found = compared(adapters, encode_examples(adapters.model, pairs), route.of(told))
    return Change(found.base_cross_entropy, found.cross_entropy)


def _answers(
    adapters: Adapters, prompts: Sequence[Encoded], route: Route, max_new_tokens: int
) -> list[tuple[int, ...]]:
    """Greedy continuations of a fixed length."""

    def speak(view: EditableModel, chosen: list[int]) -> list[tuple[int, ...]]:
        ids = view.generate_ids([prompts[i].ids for i in chosen], max_new_tokens)
        return [tuple(row) for row in ids.tolist()]

    return through_views(adapters, route, len(prompts), speak)


def share_kept(checks: Sequence[tuple[Constraint, ...]], answers: Sequence[str]) -> float:
    """The share of all constraints that their answers keep; there is at least one."""
    pairs = zip(checks, answers, strict=True)
    judged = [one.kept(answer) for constraints, answer in pairs for one in constraints]
    return sum(judged) / len(judged)


def label_bleed(labels: Sequence[str], answers: Sequence[str]) -> float:
    """The share of answers that begin with a label as a whole word."""
    words = "|".join(re.escape(label.strip()) for label in labels)
    pattern = re.compile(rf"\s*(?:{words})(?!\w)", re.IGNORECASE)
    return sum(pattern.match(answer) is not None for answer in answers) / len(answers)


# -- parts --------------------------------------------------------------------------------------


def chosen_route(routing: Routing, rows: Sequence[Encoded]) -> Route:
    """The route itself, or what is chosen for the rows."""
    return routing if isinstance(routing, Route) else routing(list(rows))


def through_views(
    adapters: Adapters,
    route: Route,
    n_rows: int,
    work: Callable[[EditableModel, list[int]], Sequence[Item]],
) -> list[Item]:
    """What `work` gives for each row, in order.

    It is called once for each set of adapters, which is active meanwhile, with the model seen
    through it and the rows that go through it.
    """
    groups: dict[tuple[str, ...], list[int]] = {}
    for i in range(n_rows):
        name = None if route.rows is None else route.rows[i]
        names = route.names if name is None else () if name == BASE else (name,)
        groups.setdefault(names, []).append(i)
    found: dict[int, Item] = {}
    for names, chosen in groups.items():
        with adapters.using(names):
            found |= zip(chosen, work(adapters.view, chosen), strict=True)
    return [found[i] for i in range(n_rows)]


def _log_probs(
    adapters: Adapters, rows: Sequence[Encoded], route: Route
) -> Float[Tensor, "n_kept d_vocab"]:
    batch = collate(rows, adapters.model.pad_id, adapters.model.device)
    with torch.inference_mode(), adapters.using(route.names):
        return kept_logits(adapters, batch, route.rows)[0].float().log_softmax(-1)
