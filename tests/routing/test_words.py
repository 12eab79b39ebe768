"""Every step of the rule has its sentence, with the figures it went by."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from editcl.routing import rule, surface
from editcl.routing.rule import ASKING, Thresholds, Verdict
from editcl.routing.words import reasons

#: All that `route` finds.
SIGNALS = (
    *surface.SIGNALS,
    *("known", "conflict", "strangeness", "spelling", "pieces", "answer_loss", "feature_transfer"),
    *(
        "coherence",
        "exceptions",
        "best_part",
        "worst_part",
        "worst_fact_share",
        "worst_strangeness",
    ),
    "probe_transfer",
    *("trial_efficacy", "trial_specificity", "load", "fill", "mates", "trainable"),
)
SOURCE = Path(rule.__file__).read_text(encoding="utf-8")
#: Step constants that `_steps` and `_room` return, by their names in the source.
STEPS = sorted({
    getattr(rule, name)
    for name in re.findall(r"return (?:EDIT|TRAIN|SPLIT|ABSTAIN), ([A-Z]+)", SOURCE)
    + re.findall(r"\((?:EDIT|TRAIN), ([A-Z]+), clear\)", SOURCE)
})  # fmt: skip


def test_the_steps_are_found() -> None:
    assert len(STEPS) >= 14 and set(ASKING) <= set(STEPS)


@pytest.mark.parametrize("step", STEPS)
def test_every_step_has_its_sentence(step: str) -> None:
    signals = dict.fromkeys(SIGNALS, 0.37) | {"items": 40.0, "feature_transfer": 0.6}
    kind = "abstain" if step in ASKING else "edit"
    told = reasons(Verdict(kind, step, 0.5, 0.9), signals, Thresholds())
    assert re.search(r"\d", told[0]), "no figure"
    assert (step in ASKING) == ("?" in told[0]), "to abstain is to ask"
