"""A bank of adapters over a model that stays as it was."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from adapters import SMALL, inputs_of, logits, shake, step, trained
from peft import get_peft_model_state_dict
from torch import Tensor

import editcl
from editcl.errors import EditclError, NonFiniteError, UnsupportedModel
from editcl.facts import Fact
from editcl.learning.kinds import KINDS, AdapterSettings, peft_config
from editcl.learning.lora import Adapters
from editcl.learning.twins import Twin
from editcl.model import EditableModel
from editcl.update import WeightUpdate

SETTINGS = {
    "lora": SMALL,
    "dora": AdapterSettings("dora", rank=2),
    "ia3": AdapterSettings("ia3"),
    "prefix": AdapterSettings("prefix", virtual_tokens=3),
    "prompt": AdapterSettings("prompt", virtual_tokens=3),
}


@pytest.fixture
def bank(model: EditableModel) -> Adapters:
    return Adapters(model)


@pytest.fixture(params=KINDS)
def settings(request: pytest.FixtureRequest) -> AdapterSettings:
    return SETTINGS[request.param]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


# -- the model stays as it is, on every architecture ----------------------------------------------


def test_every_kind_trains_on_every_architecture_and_leaves_the_model_alone(
    any_model: EditableModel, tmp_path: Path
) -> None:
    hf = any_model.hf
    with torch.no_grad():
        base = hf(**inputs_of(any_model)).logits
    state = {name: tensor.clone() for name, tensor in hf.state_dict().items()}
    modules = [(name, type(module)) for name, module in hf.named_modules()]
    bank = Adapters(any_model)
    for kind in KINDS:
        bank.add(kind, SETTINGS[kind], seed=1)
        shake(bank, kind, size=0.01)
        before = bank.state(kind)
        losses = [step(bank, (kind,)) for _ in range(3)]
        assert losses[2] < losses[0], kind
        now = bank.state(kind)
        assert all(not torch.equal(before[name], now[name]) for name in before), kind
        assert not torch.allclose(logits(bank, kind), base, atol=1e-3), kind
    assert torch.equal(logits(bank), base)
    assert same(state, hf.state_dict()) and list(state) == list(hf.state_dict())
    assert modules == [(name, type(module)) for name, module in hf.named_modules()]
    assert all(p.requires_grad and p.grad is None for p in hf.parameters())
    hf.save_pretrained(tmp_path / "model")
    again = type(hf).from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        assert torch.equal(again(**inputs_of(any_model)).logits.to(base.device), base)


@pytest.mark.parametrize("name", ["gpt2", "llama", "phi3", "falcon"])
def test_a_new_adapter_in_modules_changes_nothing(name: str, tokenizer: Any) -> None:
    bank = Adapters(editcl.wrap(tiny.build(name), tokenizer))
    base = logits(bank)
    for kind in ("lora", "dora", "ia3"):
        bank.add(kind, SETTINGS[kind], seed=0)
        torch.testing.assert_close(logits(bank, kind), base, rtol=1e-5, atol=1e-5)


def test_flags_of_the_model_stay_what_they_were(model: EditableModel, bank: Adapters) -> None:
    for i, parameter in enumerate(model.hf.parameters()):
        parameter.requires_grad_(i % 2 == 0)
    flags = [p.requires_grad for p in model.hf.parameters()]
    bank.add("x", SMALL, seed=0)
    step(bank, ("x",))
    bank.remove("x")
    assert [p.requires_grad for p in model.hf.parameters()] == flags
    assert all(p.grad is None for p in model.hf.parameters())


def test_sixteen_bits_train_in_thirty_two(tokenizer: Any) -> None:
    bank = Adapters(editcl.wrap(tiny.build().to(torch.bfloat16), tokenizer))
    trained(bank, "x")
    assert {p.dtype for p in bank.trainable("x").values()} == {torch.float32}
    assert logits(bank, "x").dtype == torch.bfloat16
    assert not torch.equal(logits(bank, "x"), logits(bank))


# -- edits ----------------------------------------------------------------------------------------


def test_an_edit_of_the_base_shows_through_every_adapter(
    model: EditableModel, bank: Adapters, settings: AdapterSettings
) -> None:
    trained(bank, "x", settings)
    before, base = logits(bank, "x"), logits(bank)
    update = WeightUpdate(
        model.down_projection(1).name, torch.randn(model.d_mlp, 1), torch.randn(model.d_model, 1)
    )
    fact = Fact("The Eiffel Tower", "{} is in", "Rome")
    model.log.append([update], [fact], method="test", layers=(1,))
    assert not torch.allclose(logits(bank, "x"), before, atol=1e-3)
    with torch.no_grad():
        assert torch.equal(logits(bank), model.forward(inputs_of(model)))
    fresh = Adapters(model)
    fresh.load("x", settings, bank.state("x"))
    assert torch.equal(logits(fresh, "x"), logits(bank, "x"))
    model.log.rollback("all")
    assert torch.equal(logits(bank, "x"), before) and torch.equal(logits(bank), base)
    assert model.log.verify().ok


def test_a_model_that_has_moved_is_noticed(model: EditableModel, bank: Adapters) -> None:
    bank.add("x", SMALL, seed=0)
    model.hf.half()
    with pytest.raises(EditclError, match="new bank"):
        logits(bank, "x")


# -- naming, adding, removing ---------------------------------------------------------------------


def test_names_may_be_anything_but_two_of_a_kind(bank: Adapters) -> None:
    for name in ("a.b/c", "lora_A", "default", "Straße", "0", "weight"):
        trained(bank, name, seed=len(bank.names))
    assert len({logits(bank, name).sum().item() for name in bank.names}) == 6
    for name in ("", "__base__"):
        with pytest.raises(EditclError, match="can't be named"):
            bank.add(name, SMALL, seed=0)
    with pytest.raises(EditclError, match="already"):
        bank.add("0", SMALL, seed=0)
    with pytest.raises(EditclError, match=r"no adapter 'x'.*'a.b/c'"):
        bank.state("x")


def test_the_seed_decides_and_the_global_random_state_is_left(
    model: EditableModel, settings: AdapterSettings
) -> None:
    states = []
    for seed in (3, 3, 4):
        before = torch.get_rng_state()
        bank = Adapters(model)
        bank.add("x", settings, seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        states.append(bank.state("x"))
    assert same(states[0], states[1])
    assert same(states[0], states[2]) == (settings.kind == "ia3")  # ones, whatever the seed


def test_an_adapter_does_not_depend_on_its_neighbours(
    model: EditableModel, settings: AdapterSettings
) -> None:
    alone, among = Adapters(model), Adapters(model)
    trained(alone, "x", settings)
    for i, kind in enumerate(KINDS):
        trained(among, kind, SETTINGS[kind], seed=10 + i)
    trained(among, "x", settings)
    assert torch.equal(logits(alone, "x"), logits(among, "x"))
    with torch.no_grad():
        assert torch.equal(logits(among), model.forward(inputs_of(model)))


def test_an_adapter_that_would_train_nothing_is_refused_and_not_kept(
    bank: Adapters, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = logits(bank)
    monkeypatch.setattr(Twin, "parameters", lambda *_: {})
    with pytest.raises(UnsupportedModel, match="lora trains nothing on a GPT2LMHeadModel"):
        bank.add("x", SMALL, seed=0)
    monkeypatch.undo()
    assert bank.names == () and torch.equal(logits(bank), base)
    with pytest.raises(EditclError, match="ends in 'nope'"):
        bank.add("x", AdapterSettings(targets=("nope",)), seed=0)
    assert bank.names == ()
    bank.add("x", SMALL, seed=0)
    assert bank.trainable("x")


def test_a_removed_adapter_is_gone_and_the_others_stay(
    bank: Adapters, settings: AdapterSettings
) -> None:
    trained(bank, "x", settings)
    trained(bank, "y", settings, seed=5)
    y = logits(bank, "y")
    with bank.using(["x"]), pytest.raises(EditclError, match="is active"):
        bank.remove("x")
    bank.remove("x")
    assert bank.names == ("y",) and torch.equal(logits(bank, "y"), y)
    bank.remove("y")
    assert bank.names == () and not torch.equal(logits(bank), y)
    trained(bank, "y", settings, seed=5)
    assert torch.equal(logits(bank, "y"), y)


def test_adapters_come_and_go_while_another_is_active(bank: Adapters) -> None:
    trained(bank, "x")
    x = logits(bank, "x")
    with torch.no_grad(), bank.using(["x"]):
        trained(bank, "y", seed=4)
        assert torch.equal(bank.logits(inputs_of(bank.model)), x)
        bank.remove("y")
        assert torch.equal(bank.logits(inputs_of(bank.model)), x)


# -- switching ------------------------------------------------------------------------------------


def test_using_may_be_nested_and_is_undone_by_errors(bank: Adapters) -> None:
    for kind in ("lora", "ia3", "prompt"):
        trained(bank, kind, SETTINGS[kind])
    alone = {name: logits(bank, name) for name in ((), *bank.names) if name}
    base = logits(bank)
    with torch.no_grad(), bank.using(["lora"]):
        for kind in ("ia3", "prompt", "lora"):
            with bank.using([kind]):
                assert bank.active == (kind,)
                assert torch.equal(bank.logits(inputs_of(bank.model)), alone[kind])
        with pytest.raises(KeyError), bank.using(()):
            assert torch.equal(bank.logits(inputs_of(bank.model)), base)
            raise KeyError
        assert torch.equal(bank.logits(inputs_of(bank.model)), alone["lora"])
    assert bank.active == () and torch.equal(logits(bank), base)


def test_switching_leaves_the_flags_of_gradients_alone(bank: Adapters) -> None:
    trained(bank, "old")
    trained(bank, "new", seed=2)
    for parameter in bank.trainable("old").values():
        parameter.requires_grad_(False)
    before = bank.state("old")
    with bank.using(()), bank.using(["old"]), bank.using(["new", "old"]):
        pass
    flags = {name: {p.requires_grad for p in bank.trainable(name).values()} for name in bank.names}
    assert flags == {"old": {False}, "new": {True}}
    step(bank, ("old", "new"))
    assert same(before, bank.state("old"))


@pytest.mark.parametrize("names", [["lora", "ia3"], ["dora", "lora"], ["prefix", "prompt"]])
def test_what_does_not_add_up_is_refused(bank: Adapters, names: list[str]) -> None:
    for name in names:
        bank.add(name, SETTINGS[name], seed=0)
    with pytest.raises(EditclError, match="only the changes of LoRA"), bank.using(names):
        pass
    with pytest.raises(EditclError, match="named twice"), bank.using([names[0]] * 2):
        pass
    with pytest.raises(EditclError, match="no adapter 'z'"), bank.using(["z"]):
        pass
    assert bank.active == ()


def test_dropout_works_where_it_is_asked_for_and_only_in_adapters(model: EditableModel) -> None:
    bank = Adapters(model)
    trained(bank, "x", AdapterSettings(rank=2, dropout=0.5))
    still = logits(bank, "x")
    assert torch.equal(still, logits(bank, "x"))
    with torch.no_grad(), bank.using(["x"]):
        with bank.dropping():
            one, two = (bank.logits(inputs_of(model)) for _ in range(2))
        assert not torch.equal(one, two)
        assert torch.equal(bank.logits(inputs_of(model)), still)
    with torch.no_grad(), bank.using(()), bank.dropping():  # GPT-2 has dropout of its own
        assert torch.equal(bank.logits(inputs_of(model)), model.forward(inputs_of(model)))


# -- sums and rows --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox"])
def test_active_adapters_add_up(name: str, tokenizer: Any) -> None:
    model = editcl.wrap(tiny.build(name), tokenizer)
    bank = Adapters(model)
    trained(bank, "x", AdapterSettings(rank=2, targets="mlp"))
    trained(bank, "y", AdapterSettings(rank=3, alpha=2.0, targets="attention"), seed=7)
    summed = copy.deepcopy(model.hf)
    for one in ("x", "y"):
        state = bank.state(one)
        for key in [key for key in state if ".lora_A." in key]:
            path = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            product = state[key.replace("lora_A", "lora_B")] @ state[key]
            delta = bank.settings(one).scale * product
            weight = summed.get_submodule(path).weight.data
            weight += (delta.T if name == "gpt2" else delta).to(weight)
    with torch.no_grad():
        expected = summed(**inputs_of(model)).logits
    torch.testing.assert_close(logits(bank, "x", "y"), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kinds", [("lora", "lora"), KINDS, ("dora", "dora"), ("ia3", "prompt")])
def test_rows_through_their_own_adapters_are_what_each_gives_alone(
    bank: Adapters, kinds: tuple[str, ...]
) -> None:
    for i, kind in enumerate(kinds):
        trained(bank, f"t{i}", SETTINGS[kind], seed=i)
    names = ["t1", "__base__", "t0", *bank.names]
    rows = [[5 + i, 6, 7, 8 + i, 9][: 5 - i % 2] for i in range(len(names))]
    inputs = bank.model.pad(rows)
    with torch.no_grad():
        together = bank.logits(inputs, rows=names)
        last = torch.tensor([0, 3])
        kept = bank.logits(inputs, rows=names, keep=last)
        for i, name in enumerate(names):
            one = {key: value[i : i + 1] for key, value in inputs.items()}
            with bank.using(() if name == "__base__" else [name]):
                alone = bank.logits(one)[0]
            n = len(rows[i])
            torch.testing.assert_close(together[i, :n], alone[:n], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(kept[i], together[i, last], rtol=1e-5, atol=1e-5)
    assert bank.one_pass(names) == (set(kinds) == {"lora"})


def test_rows_of_one_adapter_need_no_mixing(bank: Adapters) -> None:
    trained(bank, "x")
    with torch.no_grad():
        inputs = inputs_of(bank.model)
        assert torch.equal(bank.logits(inputs, rows=["x"] * 3), logits(bank, "x"))
        assert torch.equal(bank.logits(inputs, rows=["__base__"] * 3), logits(bank))
    for rows in (["x"], ["x", "y", "x"]):
        with pytest.raises(EditclError):
            bank.logits(inputs, rows=rows)
    assert bank.active == ()


# -- states ---------------------------------------------------------------------------------------


def test_a_state_holds_what_peft_would_save(bank: Adapters, settings: AdapterSettings) -> None:
    trained(bank, "x", settings)
    trained(bank, "y", settings, seed=1)
    adapter = bank._adapters["x"]
    peft = bank._twins[adapter.family].peft
    theirs = get_peft_model_state_dict(peft, adapter_name=adapter.key, save_embedding_layers=False)
    state = bank.state("x")
    assert list(state) == sorted(theirs) and same(state, {n: t.cpu() for n, t in theirs.items()})
    assert list(bank.trainable("x")) == list(state)


def test_a_state_is_a_copy_and_loads_bit_for_bit(
    model: EditableModel, settings: AdapterSettings
) -> None:
    bank, other = Adapters(model), Adapters(model)
    trained(bank, "x", settings)
    state, before = bank.state("x"), logits(bank, "x")
    shake(bank, "x", 9)
    assert not torch.equal(logits(bank, "x"), before)
    parameters = bank.trainable("x")
    bank.load("x", settings, state)
    assert torch.equal(logits(bank, "x"), before)
    assert all(bank.trainable("x")[n] is p for n, p in parameters.items())  # optimisers keep them
    other.load("y", settings, state)
    assert torch.equal(logits(other, "y"), before) and same(other.state("y"), state)


def test_tensors_of_another_adapter_are_refused_and_nothing_is_left(
    bank: Adapters, tokenizer: Any
) -> None:
    trained(bank, "x")
    state, before = bank.state("x"), logits(bank, "x")
    other = Adapters(editcl.wrap(tiny.build("llama"), tokenizer))
    trained(other, "x")
    wide = Adapters(editcl.wrap(tiny.build(n_inner=48), tokenizer))
    trained(wide, "x")
    first = next(iter(state))
    for tensors, settings, match in (
        (other.state("x"), SMALL, "another base model"),
        (wide.state("x"), SMALL, "another base model"),
        (state, AdapterSettings(rank=4), "another rank"),
        (state, AdapterSettings("ia3"), "other settings"),
        (state, AdapterSettings(targets="mlp"), "not its own"),
        ({}, SMALL, "missing"),
    ):
        with pytest.raises(EditclError, match=match):
            bank.load("new", settings, tensors)
        assert bank.names == ("x",)
    with pytest.raises(NonFiniteError, match=first):
        bank.load("x", SMALL, state | {first: state[first] * float("nan")})
    with pytest.raises(EditclError, match="has other settings"):
        bank.load("x", AdapterSettings(rank=4), state)
    assert torch.equal(logits(bank, "x"), before)


def test_a_bank_reads_well(bank: Adapters) -> None:
    assert repr(bank).endswith("none)")
    bank.add("x", SMALL, seed=0)
    assert "x (lora)" in repr(bank) and bank.settings("x") == SMALL
    assert peft_config(bank.model, SMALL).r == 2
