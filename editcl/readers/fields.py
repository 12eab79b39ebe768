"""The values of one record, each checked as it is taken; all that is wrong is noted, not raised.

A text is what can be encoded and has no NUL; numbers count as texts; None and blank text are
absent. Knows nothing of what the names mean.
"""

from __future__ import annotations

import math
import numbers
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from editcl.errors import FactError
from editcl.facts import PLACEHOLDER, Fact
from editcl.readers.problems import Place, Problems, shown

MAX_CELL = 100_000  # characters of one text
MAX_COLUMNS = 1_000
_EXACT = 2**53  # below it a float tells neighbouring integers apart
_SAME_NAMES: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Fields:
    """A record, or an object within one.

    Attributes:
        place: where the record stands.
        values: by name.
        problems: where errors are noted.
        path: the name of the object within the record, with a dot, or "".
    """

    place: Place
    values: Mapping[str, Any]
    problems: Problems
    path: str = ""

    def fail(self, name: str, message: str) -> None:
        """Notes an error in one value."""
        self.problems.add(self.place, message, self.path + name)

    def warn(self, name: str, message: str) -> None:
        """Notes what was settled in one value."""
        self.problems.warn(self.place, message, self.path + name)

    def text(self, name: str) -> str | None:
        """The stripped text, None if it is absent."""
        return self._text(name, self.values.get(name))

    def needed(self, name: str) -> str:
        """The same where it must be there; "" after an error."""
        before = len(self.problems.errors)
        found = self.text(name)
        if found is None and len(self.problems.errors) == before:
            missing = "is empty" if name in self.values else "is missing"
            self.fail(name, f"it {missing}; give it some text.")
        return found or ""

    def texts(self, name: str) -> tuple[str, ...]:
        """The texts of a list, or a single one; absent ones are left out."""
        return tuple(text for text in self.items(name) if text is not None)

    def items(self, name: str) -> tuple[str | None, ...]:
        """The same with None where a text is absent."""
        value = self.values.get(name)
        items = value if isinstance(value, (list, tuple)) else [value]
        return tuple(self._text(name, item) for item in items)

    def answers(self, name: str) -> tuple[str, ...]:
        """The texts of a list of lists, of a list, or a single one, none twice."""
        value = self.values.get(name)
        items = value if isinstance(value, (list, tuple)) else [value]
        flat = [x for item in items for x in (item if isinstance(item, (list, tuple)) else [item])]
        found = (self._text(name, item) for item in flat)
        return tuple(dict.fromkeys(text for text in found if text is not None))

    def object(self, name: str) -> Fields:
        """An object within; empty if it is absent or, after an error, none."""
        return self._within(name, self.values.get(name))

    def objects(self, name: str) -> list[Fields]:
        """The objects of a list, or a single one."""
        value = self.values.get(name)
        if not isinstance(value, (list, tuple)):
            return [] if value is None else [self._within(name, value)]
        return [self._within(f"{name}[{i}]", item) for i, item in enumerate(value)]

    def fact(
        self,
        subject: str,
        prompt: str | None,
        new_object: str,
        old_object: str | None = None,
        names: Mapping[str, str] = _SAME_NAMES,
    ) -> Fact | None:
        """The fact, its prompt a template or a sentence start; None after an error.

        A subject that the prompt writes with other capitals is taken as the prompt writes it, with
        a warning. Without a prompt, the prompt is a bare `{}`, to be replaced.

        Args:
            subject, prompt, new_object, old_object: as in Fact.
            names: what the record calls them, where it differs.
        """
        if not subject or not new_object:
            return None  # noted when they were taken
        if prompt is None:
            prompt = PLACEHOLDER
        elif PLACEHOLDER not in prompt:
            subject = self._as_written(subject, prompt, names.get("subject", "subject"))
        try:
            return Fact.from_sentence(subject, prompt, new_object, old_object)
        except FactError as error:
            message = str(error)
            first = message.split(" ", 1)[0]
            if "is not in the prompt" in message:
                first = "prompt"
            self.fail(names.get(first, first), message)
            return None

    def _as_written(self, subject: str, prompt: str, name: str) -> str:
        if subject in prompt:
            return subject
        pattern = rf"(?<!\w){re.escape(subject)}(?!\w)"
        found = re.search(pattern, prompt, re.IGNORECASE)
        if found is None:
            form = unicodedata.normalize("NFC", subject)
            if form in unicodedata.normalize("NFC", prompt):
                self.fail(name, "subject and prompt are in different Unicode forms; use NFC.")
            return subject
        self.warn(name, f"{shown(subject)} is taken as the prompt has it: {shown(found.group())}.")
        return found.group()

    def _within(self, name: str, value: Any) -> Fields:
        if value is not None and not isinstance(value, dict):
            self.fail(name, f"expected an object {{...}}, found {shown(value)}.")
            value = None
        return Fields(self.place, value or {}, self.problems, f"{self.path}{name}.")

    def _text(self, name: str, value: Any) -> str | None:
        if value is None:
            return None
        if not isinstance(value, str):
            number = _digits(value)
            if number is None:
                self.fail(name, f"expected a text, found {shown(value)}; convert it to text.")
                return None
            value = number
        value = value.strip()
        if len(value) > MAX_CELL:
            self.fail(
                name, f"it has {len(value):,} characters, {MAX_CELL:,} are the limit; shorten it."
            )
        elif "\0" in value:
            self.fail(name, f"it holds a NUL byte: {shown(value)}; delete it.")
        elif not value.isascii() and (at := _surrogate(value)) is not None:
            self.fail(
                name,
                f"it is not valid Unicode (lone surrogate at character {at}): {shown(value)}; "
                "decode its source with the right encoding.",
            )
        else:
            return value or None
        return None


def _digits(value: Any) -> str | None:
    """A number as text, 1998.0 (as pandas has years beside gaps) as 1998; None of what is none."""
    if isinstance(value, bool):
        return None
    try:
        if isinstance(value, numbers.Integral):
            return str(int(value))
        if not isinstance(value, numbers.Real) or not math.isfinite(value):
            return None
    except (OverflowError, ValueError):  # more digits than Python converts
        return None
    number = float(value)
    return str(int(number)) if number.is_integer() and abs(number) < _EXACT else str(number)


def _surrogate(text: str) -> int | None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return error.start
    return None


def first_other(answers: Sequence[str], new_object: str) -> str | None:
    """The first answer that isn't the new object."""
    return next((answer for answer in answers if answer != new_object), None)
