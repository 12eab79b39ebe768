"""Logged facts are asked for with and without adapters."""

from __future__ import annotations

import pytest
import streams
import torch

import editcl
from editcl.errors import EditclError
from editcl.learning.kinds import AdapterSettings
from editcl.learning.lora import Adapters
from editcl.learning.session import Route, Session
from editcl.learning.settings import TrainSettings
from editcl.learning.strategies import Sequential
from editcl.learning.survival import Survival, SurvivalWatch, active_facts, edit_survival
from editcl.learning.train import train
from editcl.model import EditableModel

FACTS = (("Eiffel Tower", " Rome"), ("Beats Music", " Paris"))


@pytest.fixture
def edited(model: EditableModel) -> EditableModel:
    for subject, new in FACTS:
        editcl.edit(
            model,
            subject,
            new,
            prompt="{} is in",
            old_object=" city",
            layer=1,
            contexts=("",),
            essence=(),
        )
    return model


def test_every_fact_survives_adapters_that_do_nothing(edited: EditableModel) -> None:
    bank = Adapters(edited)
    bank.add("new", AdapterSettings(), seed=0)
    found = edit_survival(bank, Route(("new",)))
    assert found.n_facts == 2 and found.before == found.kept >= 1
    assert found.share == 1.0 and found.lost == ()


def test_facts_that_an_adapter_contradicts_are_lost_by_name(edited: EditableModel) -> None:
    bank = Adapters(edited)
    bank.add("broken", AdapterSettings(rank=2), seed=0)
    held = edit_survival(bank, Route())
    assert held.before == 2, "both edits must hold for this test to tell anything"
    lost = Survival(2, 2, 2, ())
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in bank.trainable("broken").values():
                parameter.copy_(2 * torch.randn(parameter.shape, generator=generator))
        lost = edit_survival(bank, Route(("broken",)))
        if lost.lost:
            break
    assert lost.kept + len(lost.lost) == 2 and lost.share < 1.0
    assert any(subject in lost.lost[0] for subject, _ in FACTS)
    assert "lost" in repr(lost)
    # Routed to the base, the same facts hold.
    assert edit_survival(bank, lambda rows: Route(rows=("__base__",) * len(rows))).share == 1.0


def test_facts_that_were_rolled_back_do_not_count(edited: EditableModel) -> None:
    edited.log.rollback(edited.log.entries[0])
    assert [fact.subject for fact in active_facts(edited)] == ["Beats Music"]
    edited.log.rollback("all")
    with pytest.raises(EditclError, match="no active facts"):
        edit_survival(Adapters(edited), Route())


def test_survival_is_watched_while_a_training_goes_on(edited: EditableModel) -> None:
    session = Session(edited, Adapters(edited), settings=AdapterSettings(rank=2))
    watch = SurvivalWatch(session, every=2)
    settings = TrainSettings(steps=5, batch_size=6, autocast="off")
    task = streams.conflicting()[0]
    train(session, task, Sequential(), settings, callbacks=[watch], show=False)
    assert [step for step, _ in watch.found] == [1, 3]
    assert watch.found[0][1].n_facts == 2
    with pytest.raises(EditclError, match="at least 1"):
        SurvivalWatch(session, every=0)
