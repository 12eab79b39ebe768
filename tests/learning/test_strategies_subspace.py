"""Strategies that keep tasks apart in the space of directions: O-LoRA, InfLoRA, OSF."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from lessons import QUICK, labelled, session

import editcl
from editcl.errors import EditclError
from editcl.learning.batches import encode_examples
from editcl.learning.predict import score_task, score_with
from editcl.learning.session import Route
from editcl.learning.strategies import OSF, InfLoRA, OLoRA, Replay, Strategy, combine
from editcl.learning.strategies.inflora import Space, leading
from editcl.learning.strategies.osf import weight_now
from editcl.learning.strategies.summed import pairs
from editcl.learning.train import train

ONE, TWO = labelled("one"), labelled("two", ("red", "blue"))
MAKE = (OLoRA, InfLoRA, OSF)


def llama():
    return session(editcl.wrap(tiny.build("llama"), tiny.byte_tokenizer()))


class Starts(Strategy):
    """Takes down the new adapter as the first step finds it."""

    name = "starts"

    def before_step(self, session, step, total):
        if step == 0:
            self.state_of_new = session.adapters.state(session.task.name)


def overlap(own, first: str, second: str) -> float:
    return sum(
        float((pair.A @ pairs(own.adapters, second)[path].A.T).square().sum().detach())
        for path, pair in pairs(own.adapters, first).items()
    )


@pytest.mark.parametrize("make", MAKE)
def test_old_tasks_stay_frozen_and_all_are_summed(make) -> None:
    own, strategy = session(), make()
    train(own, ONE, strategy, QUICK, show=False)
    first = own.adapters.state("one")
    result = train(own, TWO, strategy, QUICK, show=False)
    assert all(torch.equal(t, first[key]) for key, t in own.adapters.state("one").items())
    assert strategy.adapters_for(own, None, []) == Route(("one", "two"))
    assert not strategy.must_be_told
    trained = own.adapters.trainable("two")
    changed = sum(
        p.numel() for key, p in trained.items() if make is not InfLoRA or ".lora_B." in key
    )
    assert result.parameters == changed

    rows = encode_examples(own.model, ONE.test, kind=ONE.kind)
    with torch.no_grad():
        found = own.forward(rows, route=Route(("one", "two"))).logits
        with_sums = {
            path: weight_now(own, path, ("one", "two")) for path in pairs(own.adapters, "one")
        }
        for path, W in with_sums.items():
            own.model.hf.get_submodule(path).weight.copy_(W.T)
        torch.testing.assert_close(
            own.forward(rows, route=Route()).logits, found, atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("make", MAKE)
def test_kinds_that_do_not_add_up_are_refused_before_training(make) -> None:
    own = session(kind="ia3")
    with pytest.raises(EditclError, match="only LoRA has"):
        train(own, ONE, make(), QUICK, show=False)
    assert own.adapters.names == ()


# -- O-LoRA ---------------------------------------------------------------------------------------


def test_the_penalty_of_olora_is_the_naive_sum_from_the_second_task_on() -> None:
    own, strategy, starts = session(), OLoRA(0.5), Starts()
    both = combine(strategy, starts)
    assert train(own, ONE, both, QUICK, show=False).penalties == {}
    train(own, TWO, both, QUICK, show=False)
    result = train(own, labelled("three"), both, QUICK, show=False)
    naive = 0.0
    for old in ("one", "two"):
        for key, tensor in own.adapters.state(old).items():
            if "lora_A" in key:
                meeting = tensor.numpy() @ starts.state_of_new[key].numpy().T
                naive += 0.5 * (meeting**2).sum()
    assert result.penalties["olora"][0] == pytest.approx(naive, rel=1e-4) and naive > 0


def test_a_strong_olora_makes_the_rows_of_tasks_orthogonal() -> None:
    found = {}
    for weight in (1e-9, 100.0):
        own, strategy = session(), OLoRA(weight)
        for task in (ONE, TWO):
            train(own, task, strategy, replace(QUICK, steps=60), show=False)
        found[weight] = overlap(own, "one", "two")
    assert found[100.0] < 0.01 * found[1e-9]


# -- InfLoRA --------------------------------------------------------------------------------------


def inputs(own, task, names):
    """What each module that an adapter changes is given, one row a token, run without padding."""
    seen: dict[str, list[np.ndarray]] = {}
    rows = encode_examples(own.model, task.train, kind=task.kind)
    hf = own.adapters.view.hf
    handles = [
        hf.get_submodule(path).register_forward_pre_hook(
            lambda _, args, path=path: seen.setdefault(path, []).append(
                args[0].detach().reshape(-1, args[0].shape[-1]).double().numpy()
            )
        )
        for path in pairs(own.adapters, names[-1])
    ]
    with torch.no_grad(), own.adapters.using(names):
        for row in rows:
            own.adapters.logits({"input_ids": torch.tensor([row.ids])})
    for handle in handles:
        handle.remove()
    return {path: np.concatenate(found) for path, found in seen.items()}


def projector(rows: np.ndarray) -> np.ndarray:
    return rows.T @ np.linalg.pinv(rows.T)


def old_space(strategy, path) -> np.ndarray:
    """The projector onto the space of old tasks' inputs."""
    rows = strategy.tensors()[path].double().numpy()
    onto = rows.T @ rows
    return np.eye(len(onto)) - onto if path in strategy.state()["complements"] else onto


@pytest.mark.parametrize("build", [session, llama])
def test_inflora_reads_the_leading_directions_off_the_old_space(build) -> None:
    own, strategy = build(), InfLoRA(0.9)
    train(own, ONE, strategy, QUICK, show=False)
    spaces = {path: old_space(strategy, path) for path in strategy.tensors()}
    energies = inputs(own, ONE, ("one",))
    for path, H in energies.items():
        held = (H @ spaces[path] * H).sum() / (H**2).sum()
        values = np.linalg.svd(H, compute_uv=False) ** 2
        dim = round(np.trace(spaces[path]))
        assert held >= 0.9 - 1e-6
        assert values[: dim - 1].sum() / values.sum() < 0.9, "fewer directions hold as much"

    train(own, TWO, strategy, replace(QUICK, steps=1), show=False)
    before = inputs(own, TWO, ("one",))
    for path, pair in pairs(own.adapters, "two").items():
        A = pair.A.detach().double().numpy()
        assert np.abs(A @ spaces[path]).max() < 1e-5
        off = before[path] - before[path] @ spaces[path]
        expected = np.linalg.svd(off, full_matrices=False)[2][:4]
        assert np.allclose(projector(A), projector(expected), atol=1e-3)
        assert np.allclose(A @ A.T, np.eye(4) / 3, atol=1e-5)


def test_what_inflora_learns_does_not_touch_the_old_space_and_a_is_frozen() -> None:
    own, strategy, starts = session(), InfLoRA(0.95), Starts()
    both = combine(strategy, starts)
    train(own, ONE, both, QUICK, show=False)
    spaces = {path: old_space(strategy, path) for path in strategy.tensors()}
    train(own, TWO, both, replace(QUICK, steps=30), show=False)
    moved = 0.0
    for path, pair in pairs(own.adapters, "two").items():
        change = (pair.B @ pair.A).detach().double().numpy()
        moved += np.abs(change).max()
        assert np.abs(change @ spaces[path]).max() <= 1e-5 * np.abs(change).max()
    assert moved > 0.1
    end = own.adapters.state("two")
    assert all(
        torch.equal(t, end[key]) for key, t in starts.state_of_new.items() if "lora_A" in key
    )
    assert strategy.memory() > 0


def test_spaces_are_the_same_whichever_basis_is_kept() -> None:
    generator = torch.Generator().manual_seed(0)
    space, plain = Space(torch.zeros(0, 12)), torch.zeros(0, 12).double()
    flips = []
    for n in (3, 2, 4, 2):
        drawn = space.off(torch.randn(n, 12, generator=generator).double())
        new = torch.linalg.qr(drawn.T).Q.T
        space, plain = space.grown(new), torch.cat([plain, new])
        flips.append(space.complement)
        X = torch.randn(5, 12, generator=generator).double()
        torch.testing.assert_close(space.off(X), X - X @ plain.T @ plain, atol=1e-5, rtol=0)
        assert space.dim == len(plain) and len(space.rows) <= 6
    assert flips == [False, False, True, True]


def test_directions_that_rounding_made_are_left_out() -> None:
    H = torch.randn(20, 3).double() @ torch.randn(3, 12).double()
    values, rows = leading(H.T @ H, Space(torch.zeros(0, 12)))
    assert len(values) == 3 and rows.shape == (3, 12)
    values, rows = leading(H.T @ H, Space(rows.float()))
    assert len(values) == 0


def test_a_full_space_is_told_before_training() -> None:
    own, strategy = session(), InfLoRA()
    train(own, ONE, strategy, replace(QUICK, steps=1), show=False)
    whole = {path: torch.zeros(0, t.shape[1]) for path, t in strategy.tensors().items()}
    strategy.load(whole, {"complements": list(whole)})
    with pytest.raises(EditclError, match="'two' has no room"):
        train(own, TWO, strategy, QUICK, show=False)
    assert own.adapters.names == ("one",)


# -- OSF ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [session, llama])
def test_the_leading_directions_of_the_weights_stay_as_they_are(build) -> None:
    own, strategy = build(), OSF(0.5)
    train(own, ONE, strategy, QUICK, show=False)
    before = {path: weight_now(own, path, ("one",)) for path in pairs(own.adapters, "one")}
    train(own, TWO, strategy, replace(QUICK, steps=20, weight_decay=0.1), show=False)
    for path, pair in pairs(own.adapters, "two").items():
        W = before[path].numpy()
        change = (pair.B @ pair.A).detach().numpy()
        k = min(W.shape) // 2
        U, S, Vh = np.linalg.svd(W)
        size = np.abs(change).max()
        assert size > 1e-3, "it trains on this architecture"
        assert np.abs(U[:, :k].T @ change).max() < 1e-5 * max(1, size)
        assert np.abs(change @ Vh[:k].T).max() < 1e-5 * max(1, size)
        after = W + own.adapters.settings("two").scale * change
        kept = U[:, :k].T @ after @ Vh[:k].T
        assert np.allclose(kept, np.diag(S[:k]), atol=1e-4)


def test_osf_is_an_active_constraint() -> None:
    own, strategy = session(), OLoRA()
    train(own, ONE, strategy, replace(QUICK, steps=20), show=False)
    path, pair = next(iter(pairs(own.adapters, "one").items()))
    change = (pair.B @ pair.A).detach().numpy()
    U = np.linalg.svd(weight_now(own, path, ()).numpy())[0][:, :16]
    assert np.abs(U.T @ change).max() > 0.1 * np.abs(change).max()


def test_osf_decomposes_the_weights_as_edited_now() -> None:
    own = session()
    own.new_adapter("one")
    path = next(iter(pairs(own.adapters, "one")))
    before = weight_now(own, path, ())
    with torch.no_grad():
        own.model.hf.get_submodule(path).weight[0, 1] += 3
    assert float((weight_now(own, path, ()) - before)[1, 0]) == pytest.approx(3, rel=1e-5)


@pytest.mark.parametrize("make", MAKE)
def test_they_combine_with_replay_and_learn(make) -> None:
    own, strategy = session(), combine(make(), Replay(0.25))
    for task in (ONE, TWO):
        result = train(own, task, strategy, replace(QUICK, steps=30), show=False)
        assert result.losses[-1] < 0.7 * result.losses[0]
    learnt = score_with(own, strategy, TWO, known=False).log_prob
    assert learnt > score_task(own, TWO).log_prob + 1


@pytest.mark.parametrize("make, message", [
    (lambda: OLoRA(0), "weight of 0"),
    (lambda: InfLoRA(1.0), r"energy of 1.0 is not in \(0, 1\)"),
    (lambda: InfLoRA(samples=0), "0 rows"),
    (lambda: OSF(0.0), r"kept share of 0.0 is not in \(0, 1\)"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(make, message) -> None:
    with pytest.raises(EditclError, match=message):
        make()
