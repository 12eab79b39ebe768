"""Models with a history that the tests of reports share: tiny, with a log in memory."""

from __future__ import annotations

from lessons import labelled
from pupils import fresh, learn, learner

from editcl.facts import Fact
from editcl.learner import Learner
from editcl.learning.drift import Constraint, Instruction
from editcl.model import EditableModel

FACTS = (
    Fact("The Eiffel Tower", "{} is located in the city of", "Rome", "Paris"),
    Fact("Beats <b>Music", "{} is owned by", "<script>alert(1)</script>", "Apple"),
)
WRONG = (Fact("München", "{} liegt in", "Rome", "Bayern"),)
KNOWN = tuple(
    Fact(f"{word} {i}", "Of {} we say", "Paris" if i % 2 else "Rome")
    for i, word in enumerate(("Tower", "Music", "city", "Apple", "Bayern", "Brücke"))
)
TEXTS = ("The city of Rome is not the city of Paris.", "Music and the Tower.", "Brücke")
ASKED = (
    Instruction("The Eiffel Tower is", "in Paris", (Constraint("at_least_words", 1),)),
    Instruction("Beats Music is owned by", "Apple", (Constraint("contains", "zzzz"),)),
    Instruction("Say", "yes"),
)
COLOURS = labelled("colours")


def bare() -> EditableModel:
    """A tiny model, always the same, with an empty log."""
    return fresh()


def taught() -> Learner:
    """Facts that were edited, a task that was trained, and a fact that was taken back."""
    one = learner()
    learn(one, list(FACTS), "edit", name="facts")
    learn(one, COLOURS, "train")
    learn(one, list(WRONG), "edit", name="mistake")
    one.rollback("mistake")
    return one
