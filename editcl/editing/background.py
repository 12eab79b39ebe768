"""Background: ordinary text, and the base weights whose predictions on it are to stay.

Knows nothing of facts but their subjects' names.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from editcl.editing.covariance import corpus_rows, sample_rows
from editcl.model import EditableModel

ROWS = 128  # of text
TOKENS = 96  # of a row at most
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class Background:
    """Ordinary text and weights of the base.

    Attributes:
        rows: token ids.
        weights: matrices of the base that edits change, by parameter.
    """

    rows: Sequence[Sequence[int]]
    weights: Mapping[str, Tensor]

    @classmethod
    def of(
        cls,
        model: EditableModel,
        layers: Sequence[int],
        *,
        texts: Sequence[str] | None = None,
        seed: int = 0,
    ) -> Background:
        """Text as the covariance has it, kept in memory, and the base weights of some layers.

        Weights that are on trial count as the base's; those in the log don't.

        Args:
            model: whose text and weights.
            layers: that will be edited.
            texts: a corpus; without it the base model samples its own text.
            seed: of the sampling and the draw.
        """
        said = "" if texts is None else hashlib.sha256("\0".join(texts).encode()).hexdigest()
        key = f"background-{said}-{seed}"
        if key not in model.memo:
            with model.at_base():
                if texts is None:
                    found = sample_rows(model, ROWS * TOKENS, seed)
                else:
                    drawn = random.Random(seed).sample(list(texts), min(ROWS, len(texts)))
                    found = corpus_rows(model, drawn)
            model.memo[key] = [row[:TOKENS] for row in found[:ROWS]]
        known = model.log.base_weights()
        chosen = [model.down_projection(layer) for layer in layers]
        weights = {p.name: p.parameter.detach().clone() for p in chosen if p.name not in known}
        weights |= {name: weight.to(model.device) for name, weight in known.items()}
        return cls(model.memo[key], weights)


def unrelated(
    model: EditableModel, rows: Sequence[Sequence[int]], subjects: Iterable[str]
) -> list[list[int]]:
    """The text of the rows without the sentences that name one of the subjects.

    What is said of an edited subject is not to be held: it is the old object, in any phrasing.
    """
    names = "|".join(map(re.escape, sorted(set(subjects), key=len, reverse=True)))
    named = re.compile(rf"(?<!\w)(?:{names})(?!\w)", re.IGNORECASE)
    kept = []
    for text in model.tokenizer.batch_decode(list(map(list, rows)), skip_special_tokens=True):
        rest = [s for s in SENTENCE_END.split(text) if s.strip() and not named.search(s)]
        kept.append(" ".join(rest))
    texts = [text for text in kept if text]
    return [row[:TOKENS] for row in corpus_rows(model, texts)] if texts else []


__all__ = ["Background", "unrelated"]
