"""The errors a user can cause, each with a remedy in its message.

All are `ValueError`s, so that `except ValueError` catches what bad input gives; invariants of
the library itself are asserts. A raised error means: model and log are as they were before.
"""

from __future__ import annotations


class EditclError(ValueError):
    """Something the caller can mend; the message says what was found, where, and what to do."""


class FactError(EditclError):
    """A fact that can't be edited as it stands (placeholder, subject, objects, tokens)."""


class AmbiguousFact(FactError):  # noqa: N818 - the name is the field's question, not a suffix
    """The relation of a prompt-less edit can't be told; `candidates` lists the closest sentences.

    Attributes:
        candidates: (sentence, score) pairs, best first; scores are log-probabilities per token.
    """

    def __init__(self, message: str, candidates: tuple[tuple[str, float], ...] = ()) -> None:
        super().__init__(message)
        self.candidates = candidates


class TableError(FactError):
    """A table of facts can't be read; nothing of it was. All problems are collected first.

    Attributes:
        problems: every problem found, one line each: file, row, column, what was found, what to do;
            the message shows the first ones.
    """

    def __init__(self, message: str, problems: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.problems = problems


class UnsupportedModel(EditclError):  # noqa: N818
    """The architecture has no writable dense down-projection, or something needed is missing."""


class NonFiniteError(EditclError):
    """NaN or infinity in weights, activations or a solved update."""


class LogError(EditclError):
    """The edit log can't do what was asked (unknown entry, wrong model, broken file, locked)."""
