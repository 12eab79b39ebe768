"""Kinds of adapter under one loop: sizes are what peft made, memory is what the pass keeps."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import tiny
import torch
from lessons import QUICK, labelled, session

from editcl.benchmarks.learn_kinds import ADAMW, compare_kinds, kinds_table, saved_bytes
from editcl.errors import EditclError
from editcl.learning.kinds import KINDS, AdapterSettings
from editcl.learning.runs import encode_rows

STREAM = (labelled("one"), labelled("two", ("red", "blue")))
SETTINGS = replace(QUICK, steps=2)


def ready(kind: str):
    own = session(kind=kind)
    own.new_adapter("a")
    own.train_adapter("a")
    own.mark_training()
    return own


def test_every_kind_is_measured(model) -> None:
    lines = compare_kinds(model, STREAM, settings=SETTINGS, lrs={"ia3": 0.5})
    assert [line.kind for line in lines] == list(KINDS)
    assert [line.lr for line in lines] == [0.5 if kind == "ia3" else 1e-2 for kind in KINDS]
    by_kind = {line.kind: line for line in lines}
    prompt = AdapterSettings(kind="prompt").virtual_tokens * tiny.D_MODEL
    assert by_kind["prompt"].parameters == prompt
    assert by_kind["ia3"].parameters < by_kind["lora"].parameters < by_kind["dora"].parameters
    for line in lines:
        assert line.bytes_held == 4 * line.parameters
        assert line.bytes_training > ADAMW * line.bytes_held
        told = json.loads(json.dumps(line.to_dict()))
        assert told["new_task"] == told["LA"] and "forgetting" in told
    head, cells = kinds_table(lines)
    assert [row[0] for row in cells] == list(KINDS) and all(len(row) == len(head) for row in cells)


def test_kinds_that_there_are_not_are_refused_before_training(model) -> None:
    with pytest.raises(EditclError, match="unknown kind of adapter 'bottleneck'"):
        compare_kinds(model, STREAM, ("lora", "bottleneck"), settings=SETTINGS)


@pytest.mark.parametrize("kind", ["lora", "prompt"])
def test_what_a_pass_keeps_grows_with_its_rows(kind) -> None:
    own = ready(kind)
    (row, *_) = encode_rows(own.model, STREAM[0])
    with own.adapters.using(("a",)):
        one, two = saved_bytes(own, [row]), saved_bytes(own, [row] * 2)
        state = 4 * len(row.ids) * tiny.D_MODEL * tiny.N_LAYERS
        assert one > state, "at least a state for each layer"
        assert 1.8 * one < two < 2.1 * one


def test_storage_counts_once_and_weights_not_at_all() -> None:
    """One product keeps its input; the hooks of a known graph see what the formula says."""
    own = ready("lora")
    (row, *_) = encode_rows(own.model, STREAM[0])
    kept: list[torch.Tensor] = []
    with (
        own.adapters.using(("a",)),
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t),
    ):
        loss = own.forward([row]).loss
    weights = {
        p.untyped_storage().data_ptr() for p in (*own.model.hf.parameters(), *own.training.values())
    }
    naive = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    naive = {at: size for at, size in naive.items() if at not in weights}
    with own.adapters.using(("a",)):
        found = saved_bytes(own, [row])
    assert loss.requires_grad and found == sum(naive.values())
    assert found < sum(t.numel() * t.element_size() for t in kept)


def test_without_anything_that_trains_there_is_nothing_to_count() -> None:
    own = ready("lora")
    own.training = {}
    own.mark_training()
    rows = encode_rows(own.model, STREAM[0])[:1]
    with own.adapters.using(("a",)), pytest.raises(EditclError, match="nothing trains"):
        saved_bytes(own, rows)
