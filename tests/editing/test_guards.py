"""Guards: each limit objects on its own, and health is what the log and the weights say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch
from batches import CONTROL, state
from tables import TINY, control

import editcl
from editcl.editing.guards import Guard, Health, active_facts, check_health
from editcl.evaluation.damage import damage
from editcl.facts import Fact

WELL = Health("e0001", 3, growth=0.5, divergence=0.1, cross_entropy=3.0, retention=0.9)
NAN = float("nan")


def test_a_healthy_model_is_left_alone() -> None:
    assert WELL.verdict(Guard()) is None
    assert replace(WELL, retention=None).verdict(Guard()) is None
    on_the_limit = replace(WELL, growth=1000.0, divergence=1.0, retention=0.5)
    assert on_the_limit.verdict(Guard()) is None


@pytest.mark.parametrize("changes, message", [
    ({"growth": 1001.0}, "have moved by 1001.00 of their norm (limit 1000)"),
    ({"divergence": 1.25}, "1.25 nats per token (limit 1)"),
    ({"retention": 0.25}, "only 25% of sampled edits hold, the last ones among them (limit 50%)"),
    ({"growth": NAN}, "moved by nan"),
    ({"divergence": NAN}, "differently by nan"),
    ({"growth": float("inf")}, "moved by inf"),
])  # fmt: skip
def test_each_limit_objects_in_words_and_none_switches_it_off(changes, message) -> None:
    ill = replace(WELL, **changes)
    assert message in (ill.verdict(Guard()) or "")
    (name,) = changes
    limit = {"growth": "max_growth", "divergence": "max_divergence", "retention": "min_retention"}
    assert ill.verdict(replace(Guard(), **{limit[name]: None})) is None


def test_health_is_that_of_the_base_before_any_edit(model) -> None:
    health = check_health(model, Guard())
    assert (health.entry, health.n_facts, health.growth, health.divergence) == ("", 0, 0.0, 0.0)
    assert health.retention is None and health.cross_entropy > 0


def test_health_is_what_naive_measuring_finds(model) -> None:
    facts, name = control(model), model.down_projection(1).name
    kept = model.down_projection(1).parameter.detach().clone()
    editcl.edit_csv(model, facts, **(TINY | {"layers": [1]}))
    before = state(model)
    health = check_health(model, Guard())
    assert state(model) == before
    now = dict(model.hf.named_parameters())[name].detach()
    assert health.growth == pytest.approx(float((now - kept).norm() / kept.norm()), rel=1e-5)
    assert health.divergence == damage(model).kl > 0
    assert (health.n_facts, health.retention, health.entry) == (3, 1.0, "e0001")
    assert check_health(model, Guard(sample=0)).retention is None
    model.log.rollback(("e0001", 0))
    assert active_facts(model.log) == facts[1:]
    assert check_health(model, Guard()).n_facts == 2


def test_facts_that_no_longer_hold_lower_the_retention(model) -> None:
    facts = control(model)
    (entry,) = editcl.edit_csv(model, facts, **TINY).entries
    assert model.log.active(entry)
    for name, base in model.log.base_weights().items():
        dict(model.hf.named_parameters())[name].data.copy_(base)
    assert check_health(model, Guard()).retention == 0.0


def test_of_facts_edited_twice_only_the_latest_is_asked(model) -> None:
    (first,) = control(model)[:1]
    again = Fact(first.subject, first.prompt, "München", first.new_object)
    for fact in (first, again):
        editcl.edit_csv(model, [fact], **TINY)
    health = check_health(model, Guard())
    assert health.n_facts == 2 and health.retention == 1.0


def test_a_matrix_of_zeros_has_a_growth(tokenizer) -> None:
    hf = tiny.build()
    with torch.no_grad():
        hf.transformer.h[1].mlp.c_proj.weight.zero_()
    model = editcl.wrap(hf, tokenizer)
    editcl.edit_csv(model, list(CONTROL[:1]), **(TINY | {"layers": [1]}))
    assert check_health(model, Guard()).verdict(Guard()) is not None
    model.log.rollback("all")
    assert check_health(model, Guard()).growth == 0.0
