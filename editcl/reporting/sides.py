"""Sides: the base model and the model as it is now, asked the same.

    base = all edits out, no adapters
    now  = active edits; each prompt goes to the skill of the nearest centroid, or to none

The base's weights are in place for as long as a question takes, and nothing of that reaches the
log. KL(base || now) and cross-entropies are means over predicted tokens, in nats. Knows nothing of
what is asked and why.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from editcl.evaluation.damage import Damage, divergence
from editcl.learner.judge import Judge
from editcl.learning.answers import Way, around, greedy
from editcl.learning.batches import Encoded, collate, encode_prompts
from editcl.learning.session import kept_logits
from editcl.learning.tasks import Example
from editcl.model import micro_batches

NO_SKILL = ""  # names no task, so a judge asks the model without skills
TOKENS_PER_BATCH = 2048


@final
class Sides:
    """Asks both sides.

    Args:
        judge: of the model; its skills and its distance count.
    """

    def __init__(self, judge: Judge) -> None:
        self.judge, self.model = judge, judge.model

    def at(self, base: bool) -> AbstractContextManager[None]:
        """The weights of a side are in place inside."""
        return self.model.at_base() if base else nullcontext()

    def ways(self, rows: Sequence[Encoded], *, base: bool) -> Iterator[tuple[list[int], Way]]:
        """Which rows go which way on a side; only what is before their `start` is looked at."""
        judge = self.judge
        if base:
            return judge.skills.ways(rows, None)
        return judge.skills.ways(rows, judge.using(None), abstain=judge.abstain)

    def right(
        self, examples: Sequence[Example], labels: Sequence[str] = ()
    ) -> tuple[list[bool], list[bool]]:
        """Whether each completion is what the base would answer, and what the model would now."""
        now = self.judge.correct(examples, labels)
        with self.at(True):
            return self.judge.correct(examples, labels, NO_SKILL), now

    def say(
        self, prompts: Sequence[Encoded], max_new_tokens: int
    ) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
        """Greedy answers of the base and of the model now, each up to its end token."""
        return self._say(prompts, max_new_tokens, True), self._say(prompts, max_new_tokens, False)

    def _say(self, prompts: Sequence[Encoded], count: int, base: bool) -> list[tuple[int, ...]]:
        found: dict[int, tuple[int, ...]] = {}
        with self.at(base):
            for chosen, way in self.ways(prompts, base=base):
                said = greedy([way], [prompts[i] for i in chosen], count)
                found |= zip(chosen, (ids for ids, _ in said), strict=True)
        return [found[i] for i in range(len(prompts))]

    def compare(self, rows: Sequence[Encoded], seen: Sequence[Encoded] | None = None) -> Damage:
        """Cross-entropy of the rows' targets on both sides, and KL(base || now) there.

        Args:
            rows: at least one, each with targets.
            seen: the rows as they are looked at to tell their skill; by default the rows.
        """
        now = before = kl = 0.0
        count = 0
        for chosen, way in self.ways(seen or rows, base=False):
            own = [rows[i] for i in chosen]
            for part in micro_batches([len(row.ids) for row in own], TOKENS_PER_BATCH):
                batch = [own[i] for i in part]
                with self.at(True):
                    ((_, plain),) = self.ways(batch, base=True)
                    log_p = _log_probs(plain, batch)
                log_q = _log_probs(replace(way, route=way.route.of(part)), batch)
                target = collate(batch, self.model.pad_id, self.model.device).targets[:, None]
                before -= float(log_p.gather(1, target).double().sum())
                now -= float(log_q.gather(1, target).double().sum())
                kl += float(divergence(log_p, log_q).double().sum())
                count += len(target)
        return Damage(now / count, before / count, kl / count, count)

    def compare_texts(self, texts: Sequence[str]) -> Damage | None:
        """`compare` of plain texts, all tokens but the first; None if none has two tokens.

        A text that is too long for the model loses its middle.
        """
        seen = encode_prompts(self.model, texts, max_tokens=self.model.max_tokens)
        seen = [row for row in seen if len(row.ids) > 1]
        return self.compare([Encoded(row.ids, 1) for row in seen], seen) if seen else None


def _log_probs(way: Way, rows: Sequence[Encoded]) -> Float[Tensor, "n_kept d_vocab"]:
    """log p at every target of the rows."""
    adapters = way.session.adapters
    batch = collate(rows, adapters.model.pad_id, adapters.model.device)
    with around(way), torch.inference_mode(), adapters.using(way.route.names):
        return kept_logits(adapters, batch, way.route.rows)[0].float().log_softmax(-1)
