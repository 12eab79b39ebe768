"""Generic prompts with constraints that a program can verify: what instruction drift is asked of.

About everyday things, of no task and no fact of the catalogue. A model that was never taught to
follow instructions keeps few of the constraints; what counts is that learning does not change that.
Values without behaviour.
"""

from __future__ import annotations

from editcl.learning.drift import Constraint, Instruction


def _asks(prompt: str, reference: str, kind: str, value: str | int) -> Instruction:
    return Instruction(prompt, reference, (Constraint(kind, value),))


#: By default what `report` asks.
GENERIC: tuple[Instruction, ...] = (
    _asks("Answer yes or no. Is fire hot?", "Yes", "matches", r"(?i)^\W*(yes|no)\b"),
    _asks("Answer yes or no. Can stones swim?", "No", "matches", r"(?i)^\W*(yes|no)\b"),
    _asks("Name three colours:", "red, green and blue", "at_least_words", 3),
    _asks("Name one fruit in a single word:", "apple", "at_most_words", 1),
    _asks("Count from one to five:", "one, two, three, four, five", "contains", "five"),
    _asks("Repeat the word house:", "house", "contains", "house"),
    _asks("What is two plus two? Answer with a digit:", "4", "matches", r"^\W*4\b"),
    _asks("Write a short greeting:", "Hello, how are you?", "at_least_words", 2),
    _asks("Finish the sentence. The cat sat on the", "mat.", "at_least_words", 1),
    _asks("Finish the sentence. In winter it is", "cold.", "at_least_words", 1),
    _asks("Say good night politely:", "Good night, sleep well.", "contains", "night"),
    _asks("Describe the sea without the word blue:", "It is wide and deep.", "excludes", "blue"),
    _asks("The opposite of hot is", "cold", "contains", "cold"),
    _asks("The day after Monday is", "Tuesday", "contains", "Tuesday"),
    _asks("She opened the window because", "the room was too warm.", "at_least_words", 3),
    _asks("For breakfast we had", "bread and butter.", "at_least_words", 2),
)
