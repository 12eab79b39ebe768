"""A pool of plain texts that strategies draw from: general ones, or a domain's.

Knows nothing of what they are used for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from editcl.embedded import data_folder
from editcl.errors import EditclError
from editcl.evaluation.damage import EVERY, UNKNOWN
from editcl.learning.batches import Encoded, encode_examples
from editcl.learning.tasks import TEXT, Example
from editcl.model import EditableModel

PIECE = 128  # the most tokens of a row: longer texts are cut into pieces


class Texts:
    """Texts, and between `encode` and `forget` their rows.

    Attributes:
        rows: what is drawn from; of no task.
        digest: of the texts, to tell pools apart.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        if isinstance(texts, str) or not texts:
            raise EditclError(f"{texts!r} is no list of texts; give at least one text in a list.")
        self._texts = tuple(texts)
        self.rows: list[Encoded] = []
        self.digest = hashlib.sha256(repr(self._texts).encode()).hexdigest()[:16]

    def encode(self, model: EditableModel) -> None:
        """Makes the rows.

        Raises:
            TaskError: a text is blank, or too short to learn from.
        """
        examples = [Example("", text) for text in self._texts]
        longest = min(PIECE, model.max_tokens)
        self.rows = encode_examples(model, examples, kind=TEXT, max_tokens=longest)

    def forget(self) -> None:
        """Drops the rows, which the texts give again."""
        self.rows = []

    def draw(self, count: int, generator: torch.Generator) -> list[Encoded]:
        """So many rows, with repetition."""
        drawn = torch.randint(len(self.rows), (count,), generator=generator)
        return [self.rows[i] for i in drawn.tolist()]

    @property
    def n_bytes(self) -> int:
        """What the texts take."""
        return sum(len(text.encode()) for text in self._texts)


def plain_texts() -> tuple[str, ...]:
    """Plain sentences about everyday things, none of those that general damage is measured on."""
    lines = (data_folder() / "general.txt").read_text(encoding="utf-8").splitlines()
    return tuple(line for i, line in enumerate(lines[:-UNKNOWN]) if i % EVERY and line.strip())
