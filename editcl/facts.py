"""Facts: what an edit states, and how subject, prompt and object become one sentence.

A fact is (subject, prompt, new_object[, old_object]); the prompt holds one `{}` where the subject
stands, and the object follows the prompt. This module knows nothing of models or tokens.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from editcl.errors import FactError

PLACEHOLDER = "{}"
_OPENING = frozenset("([{\"'“‘«„¿¡")
_SPACELESS = (
    "CJK UNIFIED", "IDEOGRAPHIC", "FULLWIDTH", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER",
    "MYANMAR",
)  # fmt: skip


@dataclass(frozen=True)
class Fact:
    """One fact to write into a model.

    Attributes:
        subject: what the fact is about, as it stands in running text ("The Eiffel Tower").
        prompt: a sentence start with one `{}` for the subject ("{} is located in the city of").
        new_object: what the model shall say next ("Rome").
        old_object: what it says now, if known; measured if absent.

    Raises:
        FactError: a field is empty, the prompt has no or several `{}`, names the subject a second
            time, or the new object equals the old one.
    """

    subject: str
    prompt: str
    new_object: str
    old_object: str | None = None

    def __post_init__(self) -> None:
        for name in ("subject", "prompt", "new_object", "old_object"):
            value = getattr(self, name)
            if value is None and name == "old_object":
                continue
            if not isinstance(value, str):
                raise FactError(f"{name} must be a string, got {type(value).__name__}: {value!r}")
            try:
                value.encode("utf-8")
            except UnicodeEncodeError as error:
                raise FactError(
                    f"{name} is not valid Unicode text (lone surrogate at character "
                    f"{error.start}): {value!r}. Decode the source with the right encoding."
                ) from None
            stripped = value.strip()
            if not _has_visible(stripped):
                raise FactError(f"{name} is empty or whitespace: {value!r}. Give it some text.")
            object.__setattr__(self, name, stripped)
        count = self.prompt.count(PLACEHOLDER)
        if count != 1:
            raise FactError(
                f"prompt must hold exactly one {{}} for the subject, found {count}: "
                f"{self.prompt!r}. Write it like '{{}} is located in the city of'."
            )
        if PLACEHOLDER in self.subject:
            raise FactError(f"subject must not hold {{}}: {self.subject!r}.")
        if any(_occurrences(self.subject, part) for part in self.prompt.split(PLACEHOLDER)):
            raise FactError(
                f"subject {self.subject!r} occurs in the prompt beside its {{}}: "
                f"{self.prompt!r}. Name the subject once, as {{}}."
            )
        if self.old_object is not None and self.old_object == self.new_object:
            raise FactError(
                f"new_object equals old_object ({self.new_object!r}); there is nothing to edit."
            )

    @classmethod
    def from_sentence(
        cls, subject: str, prompt: str, new_object: str, old_object: str | None = None
    ) -> Fact:
        """A fact from a prompt with `{}` or from a plain sentence start that names the subject.

        Raises:
            FactError: the sentence does not hold the subject, or holds it twice.
        """
        if isinstance(prompt, str) and isinstance(subject, str) and PLACEHOLDER not in prompt:
            subject = subject.strip()
            spans = _occurrences(subject, prompt) if _has_visible(subject) else []
            if len(spans) > 1:
                raise FactError(
                    f"subject {subject!r} occurs {len(spans)} times in the prompt {prompt!r}. "
                    "Put {} where the edited subject stands and reword the rest."
                )
            if len(spans) == 1:
                start, end = spans[0]
                prompt = prompt[:start] + PLACEHOLDER + prompt[end:]
            elif _has_visible(subject) and _has_visible(prompt):
                raise FactError(
                    f"subject {subject!r} is not in the prompt {prompt!r}. "
                    "Put {} where the subject stands."
                )
        return cls(subject, prompt, new_object, old_object)

    @property
    def sentence(self) -> str:
        """The prompt with the subject in place: what the model is asked."""
        return fill(self.prompt, self.subject)

    def __str__(self) -> str:
        old = f"{self.old_object} -> " if self.old_object else "-> "
        return f"{self.sentence}: {old}{self.new_object}"


def fill(prompt: str, subject: str) -> str:
    """The prompt with the subject in its `{}`; braces in the subject stay as they are."""
    return prompt.replace(PLACEHOLDER, subject, 1)


def separator(prompt: str, target: str) -> str:
    """What stands between a prompt and the object after it: a space, or nothing.

    Nothing beside white space, after an opening bracket or quote, and within scripts that are
    written without spaces (Chinese, Japanese, Thai, but not Korean).
    """
    if not prompt or not target:
        return ""
    if prompt[-1].isspace() or target[0].isspace() or prompt[-1] in _OPENING:
        return ""
    return "" if _spaceless(prompt[-1]) and _spaceless(target[0]) else " "


def _spaceless(char: str) -> bool:
    """Whether the character belongs to a script without spaces between words."""
    return unicodedata.name(char, "").startswith(_SPACELESS)


def _has_visible(text: str) -> bool:
    """Whether the text has a character that is not white space, control or zero-width format."""
    return any(not c.isspace() and unicodedata.category(c) not in ("Cc", "Cf") for c in text)


def _occurrences(subject: str, text: str) -> list[tuple[int, int]]:
    """Where the subject stands in the text as words of its own, as character spans."""
    head = r"(?<!\w)" if subject[:1].isalnum() and not _spaceless(subject[0]) else ""
    tail = r"(?!\w)" if subject[-1:].isalnum() and not _spaceless(subject[-1]) else ""
    return [match.span() for match in re.finditer(head + re.escape(subject) + tail, text)]
