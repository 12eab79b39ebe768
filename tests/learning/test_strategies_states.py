"""Strategies on hidden states: contrastive, Control LLM's interpolation, gradient reversal."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import tiny
import torch
from lessons import QUICK, answered, labelled, session

import editcl
from editcl.errors import EditclError
from editcl.learning.batches import encode_examples
from editcl.learning.predict import encode_test, score_with
from editcl.learning.session import Route
from editcl.learning.strategies import (
    DANN,
    CoLoR,
    Contrastive,
    Control,
    InstructionReplay,
    PerTask,
    Replay,
    Sequential,
    Strategy,
    combine,
)
from editcl.learning.strategies.contrastive import info_nce
from editcl.learning.strategies.dann import adversary, probe_accuracy, reversed_gradient
from editcl.learning.tasks import Example
from editcl.learning.train import train

ONE, TWO = labelled("one"), labelled("two", ("red", "blue"))


def rows_of(own, task):
    return encode_examples(own.model, task.train, kind=task.kind, task=task.name)


class Watch(Strategy):
    """Takes down what each step's first part was, in front of the others' penalties."""

    name = "watch"

    def __init__(self, look) -> None:
        self.look, self.seen = look, []

    def penalty(self, session, output):
        self.seen.append(self.look(session, output))
        return {}


# -- contrastive ----------------------------------------------------------------------------------


def test_the_contrastive_term_is_the_naive_one_from_the_second_task_on() -> None:
    own, strategy = session(), Contrastive(0.3, temperature=0.2)
    assert train(own, ONE, strategy, QUICK, show=False).penalties == {}

    def naive(_session, output):
        P = strategy.tensors()["prototypes"].double()
        states = []
        for row, hidden in zip(output.batch.rows, output.hidden, strict=True):
            h = hidden[: row.start].detach().double().mean(0)
            z = h / h.norm()
            sims = [math.exp(float(z @ p) / 0.2) for p in P]
            own = ["one", "two", "three"].index(row.task)
            states.append(-math.log(sims[own] / sum(sims)))
        return 0.3 * sum(states) / len(states)

    watch = Watch(naive)
    both = combine(watch, strategy, Replay(0.5))
    result = train(own, TWO, both, QUICK, show=False)
    assert list(result.penalties["contrastive"]) == pytest.approx(watch.seen, rel=1e-4)
    assert all(value > 0 for value in watch.seen)


def test_the_own_prototype_is_the_positive_and_not_the_first_one() -> None:
    P = torch.eye(3, 8)
    for own in range(3):
        z = torch.full((1, 8), 0.1, requires_grad=True)
        info_nce(z, P, torch.tensor([own]), 0.1).backward()
        pulls = [float(-z.grad[0] @ p) for p in P]
        assert pulls[own] > 0 and all(pull < 0 for i, pull in enumerate(pulls) if i != own)
        assert float(info_nce(P[[own]], P, torch.tensor([own]), 0.1)) < 1e-3


def test_tasks_move_apart_under_the_contrastive_term() -> None:
    tasks = (labelled("task a"), labelled("task b"))
    found = {}
    for weight in (1e-9, 3.0):
        own, strategy = session(), Contrastive(weight)
        for task in tasks:
            result = train(own, task, strategy, replace(QUICK, steps=40), show=False)
        found[weight] = result.penalties["contrastive"][-1] / weight
    assert found[3.0] < 0.5 * found[1e-9]


def test_prototypes_are_means_of_what_the_model_gives_after_the_task() -> None:
    own, strategy = session(), Contrastive()
    train(own, ONE, strategy, QUICK, show=False)
    rows = rows_of(own, ONE)
    with torch.no_grad():
        hidden = own.forward(rows, route=Route(("shared",))).hidden.double()
    mean = torch.stack([hidden[i, : row.start].mean(0) for i, row in enumerate(rows)])
    mean = (mean / mean.norm(dim=1, keepdim=True)).mean(0)
    torch.testing.assert_close(
        strategy.tensors()["prototypes"][0].double(), mean / mean.norm(), atol=1e-5, rtol=0
    )
    assert strategy.memory() < 32 * 4 + 50


# -- control --------------------------------------------------------------------------------------


def on(architecture: str):
    return session(editcl.wrap(tiny.build(architecture), tiny.byte_tokenizer()))


def naive_middle(own, ids, name, share=0.5):
    """Logits and gaps, block by block: every block once without and once with the adapter."""
    view = own.adapters.view
    gaps = []
    blocks = list(view.map.blocks)
    plain = [block.forward for block in blocks]

    def first(out):
        return out[0] if isinstance(out, tuple) else out

    def interpolated(forward):
        def run(*args, **kwargs):
            with own.adapters.using(()):
                pre = forward(*args, **kwargs)
            with own.adapters.using((name,)):
                new = forward(*args, **kwargs)
            gaps.append(first(new) - first(pre))
            middle = first(pre) + share * (first(new) - first(pre))
            return (middle, *new[1:]) if isinstance(new, tuple) else middle

        return run

    for block, forward in zip(blocks, plain, strict=True):
        block.forward = interpolated(forward)
    with torch.no_grad():
        logits = view.hf(input_ids=ids, use_cache=False).logits
    for block in blocks:
        del block.forward
    return logits, gaps


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gpt_neox", "opt", "falcon", "bloom"])
def test_blocks_give_the_middle_in_training_and_in_prediction(architecture) -> None:
    own, strategy = on(architecture), Control(2.0)
    train(own, ONE, strategy, QUICK, show=False)
    rows = [row for row in rows_of(own, ONE)][:3]
    batch = own.batch(rows)
    logits, gaps = naive_middle(own, batch.ids, "shared")
    route = strategy.adapters_for(own, None, rows)
    plain = own.forward(batch, route=route).logits.detach()
    with strategy.around(own), own.adapters.using(route.names):
        output = own.forward(batch)
        penalty = strategy.penalty(own, output)["control"].detach()
    expected = logits[batch.row, batch.position]
    torch.testing.assert_close(output.logits.detach(), expected, atol=1e-4, rtol=1e-4)
    assert float((plain - expected).abs().max()) > 1e-3
    inside = batch.mask().bool()
    naive = 2.0 * torch.stack([gap[inside].square().mean() for gap in gaps]).mean()
    assert float(penalty) == pytest.approx(float(naive), rel=1e-4) and float(naive) > 0
    # Outside, all is as it was.
    assert torch.equal(own.forward(batch, route=route).logits.detach(), plain)


def test_control_leaves_the_base_alone_and_its_penalty_is_alive_after_the_first_step() -> None:
    own, strategy = session(), Control()
    result = train(own, ONE, strategy, QUICK, show=False)
    assert result.penalties["control"][0] == 0 and min(result.penalties["control"][1:]) > 0
    rows = rows_of(own, ONE)[:4]
    before = own.forward(rows, route=Route()).logits.detach()
    with strategy.around(own):
        assert torch.equal(own.forward(rows, route=Route()).logits.detach(), before)


def test_gradients_of_the_middle_are_those_of_finite_differences() -> None:
    own, strategy = (
        session(editcl.wrap(tiny.build("gpt2").double(), tiny.byte_tokenizer())),
        Control(),
    )
    own.new_adapter("shared")
    parameters = own.adapters.trainable("shared")
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.copy_(0.05 * torch.randn_like(parameter))
    rows = rows_of(own, ONE)[:2]

    def loss():
        output = own.forward(rows)
        return output.logits.logsumexp(-1).sum() + strategy.penalty(own, output)["control"]

    with strategy.around(own), own.adapters.using(("shared",)):
        loss().backward()
        for parameter in list(parameters.values())[:4]:
            at = tuple(
                int(i) for i in (parameter.grad.abs() == parameter.grad.abs().max()).nonzero()[0]
            )
            values = []
            for step in (1e-4, -1e-4):
                with torch.no_grad():
                    parameter[at] += step
                values.append(float(loss().detach()))
                with torch.no_grad():
                    parameter[at] -= step
            slope = (values[0] - values[1]) / 2e-4
            assert float(parameter.grad[at]) == pytest.approx(slope, rel=2e-2)


def test_a_strong_control_stays_near_the_base() -> None:
    found = {}
    for weight in (0.0, 100.0):
        result = train(session(), ONE, Control(weight), replace(QUICK, steps=30), show=False)
        found[weight] = result.losses[-1]
        if weight:
            assert result.penalties["control"][-1] < 1
    assert found[0.0] < found[100.0]


def test_control_works_by_rows_and_with_strategies_that_choose_adapters() -> None:
    own, strategy = session(), combine(CoLoR(), Control())
    for task in (ONE, answered("two")):
        train(own, task, strategy, QUICK, show=False)
    rows = encode_test(own.model, ONE)[:4]
    names = ("one", "two", "__base__", "one")
    with torch.no_grad(), strategy.around(own):
        mixed = own.forward(rows, route=Route(rows=names))
        one_by_one = [
            own.forward([row], route=Route(() if name == "__base__" else (name,))).logits
            for row, name in zip(rows, names, strict=True)
        ]
    torch.testing.assert_close(mixed.logits, torch.cat(one_by_one), atol=1e-4, rtol=1e-4)
    assert score_with(own, strategy, ONE, known=False).log_prob < 0


def test_what_control_can_not_do_is_said() -> None:
    own = session(kind="prefix")
    with pytest.raises(EditclError, match="adapters are prefix"):
        train(own, ONE, Control(), QUICK, show=False)
    own, strategy = session(), Control()
    train(own, ONE, strategy, replace(QUICK, steps=1), show=False)
    with (
        strategy.around(own),
        own.adapters.using(("shared",)),
        pytest.raises(EditclError, match="don't generate with a cache"),
    ):
        own.adapters.view.generate(["The city of"], 2)


# -- dann -----------------------------------------------------------------------------------------


def test_the_gradient_is_turned_round_and_the_value_is_not() -> None:
    x = torch.randn(5, 4, requires_grad=True)
    C = torch.randn(3, 4)
    found = {}
    for strength in (None, 0.7):
        x.grad = None
        seen = x if strength is None else reversed_gradient(x, strength)
        assert torch.equal(seen.detach(), x.detach())
        torch.nn.functional.cross_entropy(seen @ C.T, torch.tensor([0, 1, 2, 0, 1])).backward()
        found[strength] = x.grad
    torch.testing.assert_close(found[0.7], -0.7 * found[None])


@pytest.mark.parametrize("shape", [(6, 20), (40, 5)])
def test_the_adversary_is_where_its_loss_is_least(shape) -> None:
    x = torch.randn(shape)
    places = torch.tensor([0, 1, 2, 2, 2, 2] * (shape[0] // 6) + [2] * (shape[0] % 6))
    C, b = (found.double().requires_grad_() for found in adversary(x, places, 4))
    losses = torch.nn.functional.cross_entropy(x.double() @ C.T + b, places, reduction="none")
    balanced = sum(losses[places == c].mean() for c in range(3)) / 3
    whole = balanced + 0.05 * (C.square().sum() + b.square().sum())
    whole.backward()
    assert float(C.grad.norm()) < 1e-2 and float(b.grad.norm()) < 1e-2
    assert float(balanced.detach()) < 0.8 * math.log(3)


def test_the_term_of_dann_is_the_naive_cross_entropy() -> None:
    own, strategy = session(), DANN(0.4)
    assert train(own, ONE, strategy, QUICK, show=False).penalties == {}

    def naive(session, output):
        state = session.generator.get_state()
        drawn = torch.randint(24, (4,), generator=session.generator)
        session.generator.set_state(state)
        kept = strategy.tensors()
        ends = kept["places"][:, 0].cumsum(0).tolist()
        hidden = zip(output.batch.rows, output.hidden, strict=True)
        means = [h[: row.start].detach().mean(0) for row, h in hidden]
        for i in drawn.tolist():
            ids = kept["ids"][ends[i] - int(kept["places"][i, 0]) : ends[i]].long()
            states = []
            handle = session.adapters.view.map.unembed.register_forward_pre_hook(
                lambda _, args, states=states: states.append(args[0])
            )
            with torch.no_grad():
                session.adapters.logits({"input_ids": ids[None]})
            handle.remove()
            means.append(states[0][0].mean(0))
        x = torch.stack([(h - h.mean()) / (h.var(unbiased=False) + 1e-5).sqrt() for h in means])
        places = torch.tensor([1] * 4 + [0] * 4)
        C, b = adversary(x, places, 2)
        chances = (x @ C.T + b).log_softmax(1)
        return -0.4 * float(torch.stack([chances[i, places[i]] for i in range(8)]).mean())

    watch = Watch(naive)
    result = train(own, TWO, combine(watch, strategy), QUICK, show=False)
    assert list(result.penalties["dann"]) == pytest.approx(watch.seen, rel=1e-3)
    assert min(watch.seen) > 0


@pytest.mark.parametrize("seed", [0, 1])
def test_dann_makes_tasks_harder_to_tell_apart(seed) -> None:
    tasks = (labelled("task a", n=48), labelled("task b", ("red", "blue"), n=48))
    settings = replace(QUICK, steps=20, batch_size=16)
    found = {}
    for weight in (1e-9, 1.0):
        own, strategy = session(seed=seed), DANN(weight)
        train(own, tasks[0], strategy, settings, show=False)
        train(own, tasks[1], strategy, replace(settings, steps=60), show=False)
        found[weight] = strategy.probes["task b"]
        assert strategy.state()["probes"]["task b"] == list(found[weight])
    assert found[1.0][0] > 0.9, "they can be told apart before"
    assert found[1.0][1] < 0.6 and found[1.0][1] < found[1e-9][1]


def test_the_probe_tells_what_can_be_told() -> None:
    generator = torch.Generator().manual_seed(0)
    places = torch.tensor([0] * 30 + [1] * 90 + [2] * 30)
    noise = torch.randn(150, 8, generator=generator)
    told = noise + 8 * torch.eye(3, 8)[places]
    assert probe_accuracy(told, places) == 1.0
    assert 0.1 < probe_accuracy(noise, places) < 0.6


def test_dann_keeps_prompts_alone_and_so_many() -> None:
    own, strategy = session(), DANN(capacity=10)
    for task in (ONE, answered("two")):
        train(own, task, strategy, QUICK, show=False)
    places = strategy.tensors()["places"].tolist()
    assert [place[2] for place in places] == [0] * 5 + [1] * 5
    assert all(length == start for length, start, _ in places)
    prompts = {len(row.ids[: row.start]) for row in rows_of(own, ONE)}
    assert {length for length, _, task in places if task == 0} <= prompts


def test_dann_goes_with_replay_and_with_rows_of_no_task() -> None:
    pool = [Example("Who is it?", "It is I")]
    own, strategy = session(), combine(PerTask(), Replay(0.5), InstructionReplay(pool, 0.5), DANN())
    for task in (ONE, TWO):
        result = train(own, task, strategy, QUICK, show=False)
    assert min(result.penalties["dann"]) > 0
    assert Sequential().memory() == 0


@pytest.mark.parametrize("make, message", [
    (lambda: Contrastive(0), "weight of 0"),
    (lambda: Contrastive(temperature=-1), "temperature of -1"),
    (lambda: Contrastive(momentum=1.0), "momentum of 1.0"),
    (lambda: Control(-1), "weight of -1"),
    (lambda: Control(share=0), r"share of 0 is not in \(0, 1\]"),
    (lambda: DANN(0), "reverses nothing"),
    (lambda: DANN(capacity=0), "memory of 0 prompts"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(make, message) -> None:
    with pytest.raises(EditclError, match=message):
        make()
