"""The loop: against a naive one; accumulation, early stopping, precision, watchers, failures."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import tiny
import torch
from lessons import QUICK, answered, labelled, session

import editcl
from editcl.errors import EditclError, NonFiniteError
from editcl.learning.batches import encode_examples, epoch_order
from editcl.learning.callbacks import Callback
from editcl.learning.settings import TrainSettings
from editcl.learning.strategies import PerTask, Sequential, Strategy
from editcl.learning.tasks import Example, Task
from editcl.learning.train import mean_loss, precision, train


def trained(settings: TrainSettings, task: Task | None = None, **options):
    own = session(**options)
    result = train(own, task or labelled("one"), Sequential(), settings, show=False)
    return own, result


def test_a_training_is_that_of_a_naive_loop_over_the_peft_model() -> None:
    settings = replace(QUICK, steps=8, weight_decay=0.1, clip=0.5, warmup=0.3)
    task = answered("one")
    own, result = trained(settings, task)

    other = session()
    other.new_adapter("shared")
    rows = encode_examples(other.model, task.train)
    order = [
        batch
        for epoch in range(3)
        for batch in epoch_order([len(row.ids) for row in rows], 4, seed=0, epoch=epoch)
    ]
    parameters = list(other.adapters.trainable("shared").values())
    optimiser = torch.optim.AdamW(parameters, lr=1.0, weight_decay=0.1, fused=False)
    with other.adapters.using(("shared",)):
        for step in range(8):
            optimiser.param_groups[0]["lr"] = settings.rate(step, 8)
            batch = [rows[i] for i in order[step]]
            inputs = other.model.pad([row.ids for row in batch])
            labels = torch.full_like(inputs["input_ids"], -100)
            for i, row in enumerate(batch):
                labels[i, row.start : len(row.ids)] = torch.tensor(row.ids[row.start :])
            loss = other.adapters.view.hf(**inputs, labels=labels).loss
            assert result.losses[step] == pytest.approx(loss.item(), rel=1e-4)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 0.5)
            optimiser.step()
    # AdamW divides by square roots of squares: where a gradient is rounding alone, so is a step.
    for name, tensor in own.adapters.state("shared").items():
        torch.testing.assert_close(
            tensor, other.adapters.state("shared")[name], rtol=1e-2, atol=2e-4
        )


def test_the_rate_warms_up_and_falls_to_nothing_along_half_a_cosine() -> None:
    settings = TrainSettings(lr=1.0, warmup=0.2)
    rates = [settings.rate(step, 100) for step in range(100)]
    assert rates[:20] == sorted(rates[:20]) and max(rates) == rates[20] == 1.0
    assert rates[60] == pytest.approx(0.5) and rates[99] < 1e-3
    assert replace(settings, schedule="constant").rate(99, 100) == 1.0
    assert TrainSettings(epochs=2.5, batch_size=4, accumulate=2).total(20) == 8
    assert TrainSettings(epochs=0.01).total(20) == 1


@pytest.mark.parametrize("accumulate", [2, 3])
def test_accumulation_equals_a_larger_batch(accumulate) -> None:
    size = 4 * accumulate
    _, parts = trained(replace(QUICK, batch_size=4, accumulate=accumulate), answered("one", 30))
    _, whole = trained(replace(QUICK, batch_size=size), answered("one", 30))
    assert parts.losses[0] == pytest.approx(whole.losses[0], rel=1e-6)
    assert parts.steps == whole.steps and parts.examples == whole.examples
    assert parts.losses == pytest.approx(whole.losses, rel=1e-4)


def test_the_gradient_of_parts_is_that_of_the_whole_to_rounding() -> None:
    seen: dict[int, dict[str, torch.Tensor]] = {}

    class Watch(Strategy):
        name = "watch"

        def penalty(self, session, output):
            return {"norm": sum(p.square().sum() for p in session.training.values())}

        def after_backward(self, session):
            seen.setdefault(self.parts, {n: p.grad.clone() for n, p in session.training.items()})

    values = []
    for parts in (1, 3):
        watch = Watch()
        watch.parts = parts
        settings = replace(QUICK, steps=1, batch_size=12 // parts, accumulate=parts)
        result = train(session(), answered("one"), watch, settings, show=False)
        values.append(result.penalties["norm"][0])
    assert values[0] == pytest.approx(values[1], rel=1e-6) and values[0] > 0
    for name, gradient in seen[1].items():
        error = (seen[3][name] - gradient).abs().max()
        assert error <= 1e-6 * max(1.0, float(gradient.abs().max()))


def test_early_stopping_takes_the_best_parameters_back() -> None:
    looks = []

    class Ruin(Strategy):
        """Learns, then unlearns, whatever the gradients say."""

        name = "ruin"

        def after_step(self, session, step, total):
            if step >= 6:
                for parameter in session.training.values():
                    parameter.add_(0.5)
            looks.append({n: p.clone() for n, p in session.training.items()})

    own = session()
    settings = replace(QUICK, steps=40, patience=2, evaluate_every=1, held_out=0.25)
    result = train(own, labelled("one"), Ruin(), settings, show=False)
    assert result.stopped_early and result.steps < 40
    best = min(result.held_out, key=lambda look: look[1])
    assert result.best == best[0] == result.steps - 2
    for name, tensor in own.adapters.state("shared").items():
        assert torch.equal(tensor, looks[result.best - 1][f"shared/{name}"])
    assert "stopped early" in repr(result)


def test_held_out_rows_are_not_trained_on() -> None:
    trained_on = set()

    class Watch(Strategy):
        name = "watch"

        def examples(self, session, batch, step):
            trained_on.update(batch)
            return batch

        def dataset(self, session, task, rows):
            self.given = set(rows)
            return rows

    watch, task = Watch(), answered("one", 20)
    own = session()
    train(own, task, watch, replace(QUICK, steps=20, patience=9, held_out=0.2), show=False)
    assert trained_on == watch.given and len(watch.given) == 16
    same = Task("same", (Example("a", "b"),) * 3)
    with pytest.raises(EditclError, match="nothing can be held out"):
        train(own, same, watch, replace(QUICK, patience=1), show=False)


def test_bf16_is_chosen_where_it_helps_and_nowhere_else(monkeypatch) -> None:
    own = session()
    for found in (True, False):
        monkeypatch.setattr("editcl.learning.train._multiplies_bf16", lambda found=found: found)
        assert precision(own, TrainSettings()) == (torch.bfloat16 if found else None)
    monkeypatch.setattr("editcl.learning.train._multiplies_bf16", lambda: True)
    assert precision(own, TrainSettings(autocast="off")) is None
    half = session(editcl.wrap(tiny.build("gpt2").to(torch.bfloat16), tiny.byte_tokenizer()))
    assert precision(half, TrainSettings()) is None
    assert precision(half, TrainSettings(autocast="bf16")) == torch.bfloat16


def test_bf16_learns_about_the_same_and_leaves_full_precision_behind() -> None:
    _, full = trained(replace(QUICK, steps=20))
    own, cast = trained(replace(QUICK, steps=20, autocast="bf16"))
    assert own.precision is None
    assert cast.losses != full.losses
    assert cast.losses[-1] == pytest.approx(full.losses[-1], abs=0.5)
    assert all(t.dtype == torch.float32 for t in own.adapters.state("shared").values())


def test_the_same_seed_gives_the_same_bits_and_another_one_others() -> None:
    found = []
    for seed in (3, 3, 4):
        own = session(dropout=0.2)
        torch.manual_seed(len(found))
        state = torch.get_rng_state()
        train(own, labelled("one"), Sequential(), replace(QUICK, seed=seed), show=False)
        assert torch.equal(torch.get_rng_state(), state), "the caller's random state has changed"
        found.append(own.adapters.state("shared"))
    first, second, other = found
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_dropout_works_in_training_only() -> None:
    own = session(dropout=0.5)
    train(own, labelled("one"), PerTask(), QUICK, show=False)
    rows = encode_examples(own.model, labelled("one").test, kind="classification")
    with own.adapters.using(("one",)), torch.no_grad():
        still = own.forward(rows)
        assert torch.equal(still.logits, own.forward(rows).logits)
        assert not torch.equal(still.logits, own.forward(rows, dropout=True).logits)
        assert mean_loss(own, rows) == pytest.approx(float(still.loss), rel=1e-5)


class Told(Callback):
    def __init__(self) -> None:
        self.calls, self.steps = [], []

    def on_start(self, info) -> None:
        self.calls.append("start")
        self.info = info

    def on_step(self, step, values) -> None:
        self.calls.append("step")
        self.steps.append((step, values))

    def on_evaluate(self, step, values) -> None:
        self.calls.append("evaluate")
        self.values = values

    def on_end(self, result) -> None:
        self.calls.append("end")
        self.result = result


def test_watchers_are_told_plain_numbers() -> None:
    told = Told()
    settings = replace(QUICK, steps=4, patience=9, evaluate_every=2)
    result = train(session(), labelled("one"), Sequential(), settings, callbacks=[told], show=False)
    assert told.calls == ["start", "step", *["evaluate", "step"], "step", "evaluate", "step", "end"]
    assert told.info["task"] == "one" and told.info["total"] == 4
    assert told.info["parameters"] == result.parameters > 0
    assert [step for step, _ in told.steps] == [0, 1, 2, 3]
    for i, (_, values) in enumerate(told.steps):
        assert values["loss"] == result.losses[i]
        assert all(type(value) is float for value in values.values())
        assert {"lr", "gradient_norm", "examples_per_second"} <= set(values)
    assert set(told.values) == {"held_out_loss", "best"} and told.result is result


def bits(own):
    return {name: own.adapters.state(name) for name in own.adapters.names}


@pytest.mark.parametrize("at", ["first task", "second task"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_training_that_fails_leaves_no_trace(at, error) -> None:
    class Break(Callback):
        def on_step(self, step, values) -> None:
            if step == 3:
                raise error

    own, strategy = session(), Sequential()
    if at == "second task":
        train(own, labelled("one"), strategy, QUICK, show=False)
    before, seen = bits(own), list(own.seen)
    with pytest.raises(error):
        train(own, labelled("two"), strategy, QUICK, callbacks=[Break()], show=False)
    assert own.adapters.active == () and own.training == {} and own.task is None
    assert own.seen == seen and bits(own).keys() == before.keys()
    for name, tensors in before.items():
        assert all(torch.equal(own.adapters.state(name)[key], t) for key, t in tensors.items())
    train(own, labelled("two"), strategy, QUICK, show=False)


def test_a_loss_that_is_no_number_is_told_before_it_reaches_a_parameter() -> None:
    class Poison(Strategy):
        name = "poison"

        def penalty(self, session, output):
            return {"poison": output.loss * math.nan}

    own = session()
    with pytest.raises(NonFiniteError, match="step 0: gradient_norm, poison|step 0: poison"):
        train(own, labelled("one"), Poison(), QUICK, show=False)
    assert own.adapters.names == ()


def test_a_strategy_that_trains_nothing_is_refused() -> None:
    class Freeze(Strategy):
        name = "freeze"

        def begin(self, session, task):
            session.training.clear()

    own = session()
    with pytest.raises(EditclError, match="freeze leaves nothing to train on GPT2LMHeadModel"):
        train(own, labelled("one"), Freeze(), QUICK, show=False)
    assert own.adapters.names == ()


def test_a_task_is_learnt_once() -> None:
    own = session()
    train(own, labelled("one"), Sequential(), QUICK, show=False)
    with pytest.raises(EditclError, match="learnt a task 'one' before"):
        train(own, labelled("one"), Sequential(), QUICK, show=False)


def test_a_completion_longer_than_the_context_is_told_before_anything_is_made() -> None:
    own = session()
    long = Task("long", (Example("a", "Music " * 200), Example("b", "c")))
    with pytest.raises(EditclError, match="example 0: its completion has"):
        train(own, long, PerTask(), QUICK, show=False)
    assert own.adapters.names == () and own.seen == []


@pytest.mark.parametrize("values, message", [
    ({"batch_size": 0}, "batch_size is 0"),
    ({"steps": 1.5}, "steps is 1.5"),
    ({"lr": -1.0}, "lr is -1.0"),
    ({"epochs": math.inf}, "epochs is inf"),
    ({"warmup": 1.0}, r"warmup is 1.0; give a number in \[0, 1.0\)"),
    ({"autocast": "fp8"}, "autocast is 'fp8'; choose one of auto, bf16, off"),
    ({"schedule": "steps"}, "schedule is 'steps'"),
    ({"patience": 0}, "patience is 0"),
])  # fmt: skip
def test_settings_out_of_range_are_refused(values, message) -> None:
    with pytest.raises(EditclError, match=message):
        TrainSettings(**values)


def test_text_is_learnt_whole() -> None:
    texts = tuple(Example("", f"The Eiffel Tower number {i} is in the city") for i in range(6))
    _, result = trained(replace(QUICK, steps=30), Task("towers", texts, texts[:2], "text"))
    assert result.losses[-1] < 0.6 * result.losses[0]
