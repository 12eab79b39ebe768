"""l2sp, l1sp, ewc, lwf: their terms are alive, and those of a naive computation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lessons import QUICK, answered, labelled, session
from oracles import example_by_example

from editcl.errors import EditclError
from editcl.learning.batches import encode_examples
from editcl.learning.session import Route
from editcl.learning.strategies import (
    EWC,
    L1SP,
    L2SP,
    BottomFreezing,
    LwF,
    ModularL2SP,
    PerTask,
    Replay,
    Sequential,
    Strategy,
    combine,
)
from editcl.learning.strategies.l1sp import soft
from editcl.learning.strategies.lwf import distillation
from editcl.learning.train import train

ONE, TWO = labelled("one"), labelled("two", ("red", "blue"))


class Watch(Strategy):
    """Takes down the parameters that each step's penalty is of."""

    name = "watch"

    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []

    def penalty(self, session, output):
        self.seen.append({n: p.detach().clone() for n, p in session.training.items()})
        return {}


def learn(strategy: Strategy, tasks=(ONE, TWO), settings=QUICK, own=None):
    """The session, the last result, and the parameters at each step of the last task."""
    own = own or session()
    for task in tasks:
        watch = Watch()
        parts = combine(strategy, watch)
        result = train(own, task, parts, settings, show=False)
    return own, result, watch.seen


def shared(own) -> dict[str, torch.Tensor]:
    return {f"shared/{name}": tensor for name, tensor in own.adapters.state("shared").items()}


def far(start, end) -> float:
    return sum(float((end[name] - start[name]).square().sum()) for name in start)


# -- l2sp and l1sp --------------------------------------------------------------------------------


def test_l2sp_is_the_distance_from_where_the_task_began() -> None:
    strategy = L2SP(0.7)
    own, _, _ = learn(strategy, (ONE,))
    start = shared(own)
    _, result, seen = learn(strategy, (TWO,), own=own)
    wanted = [0.7 * sum(float(((now[n] - start[n]) ** 2).sum()) for n in start) for now in seen]
    assert result.penalties["l2sp"] == pytest.approx(wanted, rel=1e-5)
    assert wanted[0] == 0 and min(wanted[1:]) > 0


def test_a_stronger_l2sp_holds_nearer() -> None:
    distances = []
    for strength in (1e-6, 1.0, 100.0):
        own, _, _ = learn(Sequential(), (ONE,))
        start = shared(own)
        learn(L2SP(strength), (TWO,), replace(QUICK, steps=15), own)
        distances.append(far(start, shared(own)))
    assert distances[0] > distances[1] > distances[2] > 0


def test_modular_l2sp_weighs_each_kind_of_module() -> None:
    strategy = ModularL2SP({"mlp.c_proj": 2.0, "attention": 0.5})
    _, result, seen = learn(strategy, (ONE,))
    start = seen[0]
    for value, now in zip(result.penalties["modular_l2sp"], seen, strict=True):
        wanted = 0.0
        for name in now:
            weight = 2.0 if ".mlp.c_proj." in name else 0.5 if ".attn." in name else 0.0
            wanted += weight * float(((now[name] - start[name]) ** 2).sum())
        assert value == pytest.approx(wanted, rel=1e-5, abs=1e-12)
    assert value > 0 and any(".mlp.c_fc." in name for name in start)
    equal = learn(ModularL2SP({"attention": 0.7, "mlp": 0.7}), (ONE,))[1]
    assert equal.penalties["modular_l2sp"] == pytest.approx(
        learn(L2SP(0.7), (ONE,))[1].penalties["l2sp"], rel=1e-6
    )
    with pytest.raises(EditclError, match="strength for 'q_proj', but no parameter"):
        learn(ModularL2SP({"q_proj": 1.0, "mlp": 1.0}), (ONE,))


def test_modular_l2sp_holds_what_an_adapter_has() -> None:
    own = session()
    own.settings = replace(own.settings, targets="attention")
    _, result, _ = learn(ModularL2SP(), (ONE,), own=own)
    assert result.penalties["modular_l2sp"][-1] > 0
    with pytest.raises(EditclError, match="'attention', but no parameter of the adapters shared"):
        learn(ModularL2SP(), (ONE,), own=session(kind="prompt"))


def test_the_soft_threshold_minimises_what_it_should() -> None:
    change = torch.linspace(-1, 1, 41)
    found = soft(change, 0.3)
    grid = torch.linspace(-1, 1, 4001)
    cost = 0.5 * (grid - change[:, None]) ** 2 + 0.3 * grid.abs()
    torch.testing.assert_close(found, grid[cost.argmin(1)], atol=1e-3, rtol=0)
    assert (found == 0).sum() == (change.abs() <= 0.3).sum() > 0


def test_l1sp_leaves_many_parameters_exactly_as_they_were() -> None:
    changed = {}
    for strength in (0.01, 0.5):
        own, _, _ = learn(Sequential(), (ONE,))
        start = shared(own)
        learn(L1SP(strength), (TWO,), own=own)
        end = shared(own)
        same = sum(int((end[n] == start[n]).sum()) for n in start)
        changed[strength] = 1 - same / sum(t.numel() for t in start.values())
    assert 0 < changed[0.5] < 0.9 * changed[0.01]


def test_l1sp_steps_as_its_equation_says() -> None:
    strategy = L1SP(0.4)
    own, _, _ = learn(strategy, (ONE,))
    start, moved = {}, {}

    class Around(Strategy):
        name = "around"

        def __init__(self, before: bool) -> None:
            self.before = before

        def after_step(self, session, step, total):
            if self.before:
                moved.update({n: p.clone() for n, p in session.training.items()})
                return
            for name, parameter in session.training.items():
                change = moved[name] - start[name]
                size = torch.clamp(change.abs() - session.lr * 0.4, min=0)
                assert torch.equal(parameter, start[name] + change.sign() * size)

    start = shared(own)
    train(own, TWO, combine(Around(True), strategy, Around(False)), QUICK, show=False)
    assert far(start, shared(own)) > 0


# -- ewc ------------------------------------------------------------------------------------------


def fisher(own, task):
    """F_t by the definition, at the parameters as they are."""
    rows = encode_examples(own.model, task.train, kind=task.kind)
    parameters = own.adapters.trainable("shared")
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    with own.adapters.using(("shared",)):
        found = example_by_example(own, rows, parameters)
    return {f"shared/{name}": squares / len(rows) for name, squares in found.items()}


@pytest.mark.parametrize("keeps", ["summed", "online"])
def test_ewc_is_its_equation_with_the_fisher_of_each_finished_task(keeps) -> None:
    strategy, own = EWC(30.0, keeps=keeps, decay=0.6), session()
    kept = []
    for task in (ONE, answered("two")):
        learn(strategy, (task,), own=own)
        kept.append((fisher(own, task), shared(own)))
        tensors = strategy.tensors()
        if keeps == "summed":
            wanted = {n: sum(f[n] for f, _ in kept) for n in kept[0][0]}
        else:
            wanted = kept[0][0]
            for found, _ in kept[1:]:
                wanted = {n: 0.6 * f + found[n] for n, f in wanted.items()}
        for name, f in wanted.items():
            error = (tensors[f"importance/{name}"] - f).abs().max()
            assert error <= 1e-5 * f.max(), name
    _, result, seen = learn(strategy, (labelled("three", ("red", "blue")),), own=own)
    for value, now in zip(result.penalties["ewc"], seen, strict=True):
        pairs = kept if keeps == "summed" else [(wanted, kept[-1][1])]
        naively = sum(float((f[n] * (now[n] - old[n]) ** 2).sum()) for f, old in pairs for n in f)
        assert value == pytest.approx(0.5 * 30.0 * naively, rel=1e-4, abs=1e-6)
    assert min(result.penalties["ewc"][1:]) > 0


def test_ewc_has_no_term_in_the_first_task_and_one_in_the_second() -> None:
    strategy = EWC()
    own, first, _ = learn(strategy, (ONE,))
    assert first.penalties == {}
    _, second, _ = learn(strategy, (TWO,), own=own)
    assert second.penalties["ewc"][0] == 0 and min(second.penalties["ewc"][1:]) > 0


def test_ewc_holds_what_matters_to_the_first_task() -> None:
    losses = []
    for strategy in (Sequential(), EWC(1e4)):
        own, _, _ = learn(strategy, (ONE,), replace(QUICK, steps=30))
        learn(strategy, (TWO,), replace(QUICK, steps=30), own)
        rows = encode_examples(own.model, ONE.train, kind=ONE.kind)
        with torch.no_grad():
            losses.append(float(own.forward(rows, route=Route(("shared",))).loss))
    assert losses[1] < 0.5 * losses[0]


def test_ewc_draws_from_large_tasks_and_holds_twice_the_adapter() -> None:
    strategy = EWC(examples=5)
    own, _, _ = learn(strategy)
    size = sum(t.numel() * 4 for t in own.adapters.state("shared").values())
    assert strategy.memory() == 2 * size + 4


def test_ewc_counts_frozen_layers_as_they_are() -> None:
    strategy = EWC()
    own, result, _ = learn(combine(BottomFreezing(), strategy))
    assert min(result.penalties["ewc"][1:]) > 0
    assert {n.partition("/")[2] for n in strategy.tensors() if "/" in n} == set(shared(own))


def test_ewc_over_an_adapter_for_each_task_is_refused() -> None:
    with pytest.raises(EditclError, match="nothing to hold: two did not train"):
        learn(combine(PerTask(), EWC()))


# -- lwf ------------------------------------------------------------------------------------------


def divergence(old, new, temperature: float) -> float:
    """T^2 KL(old || new), row by row and token by token."""
    total = 0.0
    for a, b in zip(old, new, strict=True):
        p, q = (a / temperature).softmax(-1), (b / temperature).softmax(-1)
        total += float(sum(p[v] * (p[v] / q[v]).log() for v in range(len(p))))
    return temperature**2 * total / len(old)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_distillation_is_its_equation_in_this_order(temperature) -> None:
    old, new = torch.randn(3, 7) * 3, torch.randn(3, 7) * 3
    found = float(distillation(old, new, temperature))
    assert found == pytest.approx(divergence(old, new, temperature), rel=1e-4)
    assert found != pytest.approx(divergence(new, old, temperature), rel=1e-2)
    assert float(distillation(old, old, temperature)) == pytest.approx(0, abs=1e-6)


TEXTS = ("The city of Rome is old", "Apple has Music and more", "Paris")


@pytest.mark.parametrize("texts", [(), TEXTS])
def test_lwf_compares_with_the_model_before_the_task_on_the_same_rows(texts) -> None:
    strategy = LwF(0.7, texts=texts)
    own, first, _ = learn(strategy, (ONE,))
    assert list(first.penalties) == (["lwf_texts"] if texts else [])
    own.adapters.load("before", own.settings, own.adapters.state("shared"))
    pairs = []

    class Both(Strategy):
        name = "both"

        def penalty(self, session, output):
            with torch.no_grad(), session.adapters.using(("before",)):
                old = session.forward([*output.batch.rows]).logits
            pairs.append((old, output.logits.detach()))
            return {}

    settings = replace(QUICK, steps=3)
    result = train(own, answered("two"), combine(Replay(1.0), strategy, Both()), settings,
                   show=False)  # fmt: skip
    found = result.penalties["lwf"]
    assert found[0] == pytest.approx(0, abs=1e-6) and found[1] > 0
    wanted = [0.7 * divergence(old, new, 2.0) for old, new in pairs]
    assert found == pytest.approx(wanted, rel=1e-3, abs=1e-6)
    assert own.adapters.names == ("shared", "before"), "the copy is gone"
    if texts:
        assert result.penalties["lwf_texts"][1] > 0
        assert strategy.memory() == sum(map(len, TEXTS))


def test_lwf_answers_as_before_where_it_is_strong() -> None:
    kept = []
    for strength in (1e-6, 30.0):
        own, _, _ = learn(Sequential(), (ONE,), replace(QUICK, steps=20))
        rows = encode_examples(own.model, TWO.train, kind=TWO.kind)
        own.adapters.load("before", own.settings, own.adapters.state("shared"))
        learn(LwF(strength), (TWO,), replace(QUICK, steps=20), own)
        with torch.no_grad():
            old, new = (own.forward(rows, route=Route((n,))).logits for n in ("before", "shared"))
        kept.append(float(distillation(old, new, 1.0)))
    assert kept[1] < 0.1 * kept[0]


@pytest.mark.parametrize("kind", ["dora", "ia3", "prefix", "prompt"])
def test_all_work_with_every_kind_of_adapter(kind) -> None:
    parts = combine(LwF(), EWC(), L2SP(), L1SP())
    own, result, _ = learn(parts, own=session(kind=kind), settings=replace(QUICK, steps=3))
    for name in ("lwf", "ewc", "l2sp"):
        first, *later = result.penalties[name]
        assert first == pytest.approx(0, abs=1e-5) and max(later) > 1e-12, name
    assert own.adapters.names == ("shared",)


def test_a_failed_lwf_leaves_no_copy_behind() -> None:
    class Break(Strategy):
        name = "break"

        def after_step(self, session, step, total):
            assert "lwf/shared" in session.adapters.names
            raise KeyboardInterrupt

    own, _, _ = learn(LwF(), (ONE,))
    with pytest.raises(KeyboardInterrupt):
        train(own, TWO, combine(LwF(), Break()), QUICK, show=False)
    assert own.adapters.names == ("shared",)


@pytest.mark.parametrize("make, message", [
    (lambda: L2SP(0), "strength of l2sp is 0"),
    (lambda: L1SP(-1.0), "strength of l1sp is -1.0"),
    (lambda: ModularL2SP({}), "no strengths"),
    (lambda: ModularL2SP({"mlp": 0}), "strength for 'mlp' is 0"),
    (lambda: EWC(-1), "strength of ewc is -1"),
    (lambda: EWC(keeps="all"), "can't keep 'all'"),
    (lambda: EWC(decay=2.0), "decay of ewc is 2.0"),
    (lambda: EWC(examples=0), "needs examples"),
    (lambda: LwF(temperature=0), "temperature of lwf is 0"),
    (lambda: LwF(texts_per_pass=0), "texts_per_pass is 0"),
])  # fmt: skip
def test_settings_that_make_no_sense_are_refused(make, message) -> None:
    with pytest.raises(EditclError, match=message):
        make()
