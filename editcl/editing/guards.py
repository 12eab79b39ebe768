"""Guards: after each batch of a sequence, is the model still itself?

Three cheap checks: how far the edited weights have moved, what plain text costs now, and how many
of a sample of earlier edits still hold. Sequential editing ends in collapse sooner or later, and a
collapsed model answers everything wrongly without an error; a guard stops before it is handed over.
Knows nothing of how edits are solved for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from editcl.encoding import Sentence
from editcl.evaluation.damage import damage
from editcl.facts import Fact
from editcl.log import EditLog
from editcl.model import EditableModel

TINY = 1e-30  # keeps the growth of an all-zero matrix defined


@dataclass(frozen=True)
class Guard:
    """What a healthy model may look like; None switches a check off.

    Attributes:
        max_growth: of ||W' - W|| / ||W||, the largest over the edited matrices; wide,
            since a change where keys never point is large and harmless.
        max_divergence: of KL(base || now) on plain text, in nats per token.
        min_retention: least share of sampled earlier facts with p(new) > p(old).
        sample: how many earlier facts are asked, spread over the log.
    """

    max_growth: float | None = 1000.0
    max_divergence: float | None = 1.0
    min_retention: float | None = 0.5
    sample: int = 64


@dataclass(frozen=True)
class Health:
    """A model's state after a batch.

    Attributes:
        entry: the entry of the log that was the last one.
        n_facts: active facts.
        growth: largest ||W' - W|| / ||W|| of the edited matrices.
        divergence: KL(base || now) on plain text, nats per token.
        cross_entropy: of plain text, nats per token.
        retention: share of sampled earlier facts that hold; None if none can be asked.
    """

    entry: str
    n_facts: int
    growth: float
    divergence: float
    cross_entropy: float
    retention: float | None

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON-able data."""
        return asdict(self)

    def verdict(self, guard: Guard) -> str | None:
        """Why the guard stops here, in words; None if it doesn't. NaN is within no limit."""
        if guard.max_growth is not None and not self.growth <= guard.max_growth:
            return (
                f"the edited weights have moved by {self.growth:.2f} of their norm "
                f"(limit {guard.max_growth:g})"
            )
        if guard.max_divergence is not None and not self.divergence <= guard.max_divergence:
            return (
                f"plain text is predicted differently by {self.divergence:.2f} nats per token "
                f"(limit {guard.max_divergence:g})"
            )
        if (
            guard.min_retention is not None
            and self.retention is not None
            and self.retention < guard.min_retention
        ):
            return (
                f"only {self.retention:.0%} of sampled edits hold, the last ones among them "
                f"(limit {guard.min_retention:.0%})"
            )
        return None


def check_health(model: EditableModel, guard: Guard) -> Health:
    """Measures the model as its log has it now."""
    log = model.log
    found = damage(model)
    earlier = active_facts(log)
    # Of facts with one subject and prompt only the latest can hold.
    latest = {(fact.subject, fact.prompt): fact for fact in earlier}.values()
    asked = [fact for fact in latest if fact.old_object is not None]
    chosen = asked[:: max(1, -(-len(asked) // guard.sample))] if guard.sample else []
    return Health(
        entry=log.entries[-1].id if log.entries else "",
        n_facts=len(earlier),
        growth=_growth(log, model),
        divergence=found.kl,
        cross_entropy=found.cross_entropy,
        retention=_retained(model, chosen),
    )


def active_facts(log: EditLog) -> list[Fact]:
    """Facts that are in the weights, in the order of the log."""
    return [
        fact
        for entry in log.entries
        for fact, on in zip(entry.facts, log.active_facts(entry), strict=True)
        if on
    ]


def _growth(log: EditLog, model: EditableModel) -> float:
    named = dict(model.hf.named_parameters())
    shares = [
        float((named[name].detach().cpu().float() - base.float()).norm())
        / max(float(base.float().norm()), TINY)
        for name, base in log.base_weights().items()
    ]
    return max(shares, default=0.0)


def _retained(model: EditableModel, facts: Sequence[Fact]) -> float | None:
    if not facts:
        return None
    sentences = [Sentence(f.prompt, f.subject, f.new_object) for f in facts]
    sentences += [Sentence(f.prompt, f.subject, f.old_object or "") for f in facts]
    log_p = model.score(sentences).log_prob
    return float((log_p[: len(facts)] > log_p[len(facts) :]).float().mean())
