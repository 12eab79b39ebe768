"""A killed run goes on where it stopped, to the same bits; nothing damaged is believed."""

from __future__ import annotations

from functools import cache as cache_results
from pathlib import Path

import pytest
import torch
from batches import FACTS, state
from tables import FAST, wrapped

import editcl
from editcl.editing import values
from editcl.editing.resume import Checkpoint
from editcl.facts import Fact

PARTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2])}

FOUR = (*FACTS, Fact("The Louvre", FACTS[0].prompt, "Rome", "Paris"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("EDITCL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def optimised(monkeypatch) -> list[int]:
    """Every subject is a micro-batch of its own; counts those that are optimised."""
    calls: list[int] = []
    optimise = values._optimise

    def counted(*arguments):
        calls.append(1)
        return optimise(*arguments)

    monkeypatch.setattr(values, "tokens_that_fit", lambda *_: 1)
    monkeypatch.setattr(values, "_optimise", counted)
    return calls


def killed(model, monkeypatch, *, at: int = 3, error=KeyboardInterrupt, **options) -> None:
    """A run that ends in the middle of its micro-batch number `at`."""
    optimise, calls = values._optimise, []

    def dies(*arguments):
        calls.append(1)
        if len(calls) == at:
            raise error
        return optimise(*arguments)

    with monkeypatch.context() as patch, pytest.raises(error):
        patch.setattr(values, "_optimise", dies)
        editcl.edit_csv(model, list(FOUR if at > 3 else FACTS), **(FAST | options))


def folders(cache: Path) -> list[Path]:
    return [*cache.glob("values-*")]


@cache_results
def uninterrupted(facts=FACTS, **options) -> list[bytes]:
    model = wrapped()
    editcl.edit_csv(model, list(facts), resume=False, **(FAST | options))
    return state(model)


# -- a run of edit_csv ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["memit", "pmet", "emmet", "alphaedit"])
def test_a_killed_run_finds_its_finished_parts_and_ends_at_the_same_bits(
    method, cache, optimised, monkeypatch
) -> None:
    wanted, model = uninterrupted(method=method), wrapped()
    base = state(model)
    killed(model, monkeypatch, method=method)
    assert state(model) == base and len(model.log) == 0
    (folder,) = folders(cache)
    assert len([*folder.iterdir()]) == 2
    optimised.clear()
    again = wrapped()  # another process has another copy of the model
    editcl.edit_csv(again, list(FACTS), method=method, **FAST)
    assert len(optimised) == 1
    assert state(again) == wanted != base
    assert not folders(cache), "what is in the log is not kept twice"


def test_a_killed_later_batch_is_found_once_the_earlier_ones_are_back(
    cache, optimised, monkeypatch
) -> None:
    wanted, model = uninterrupted(FOUR, batch_size=2), wrapped()
    base = state(model)
    killed(model, monkeypatch, at=4, batch_size=2)
    assert state(model) == base
    assert len(folders(cache)) == 1, "of the second batch"
    optimised.clear()
    editcl.edit_csv(model, list(FOUR), batch_size=2, **FAST)
    assert len(optimised) == 3, "the first batch, and what of the second was not finished"
    assert state(model) == wanted and not folders(cache)


def test_without_resume_nothing_is_kept(cache, optimised, monkeypatch) -> None:
    killed(wrapped(), monkeypatch, resume=False)
    assert not folders(cache)


@pytest.mark.parametrize("change", [
    {"settings": values.ValueSettings(steps=3, scale="absolute")},
    {"layers": [0]},
    {"method": "pmet"},
    {"contexts": ("", "It rained.")},
], ids=str)  # fmt: skip
def test_what_another_question_found_is_not_used(cache, optimised, monkeypatch, change) -> None:
    model = wrapped()
    killed(model, monkeypatch)
    optimised.clear()
    editcl.edit_csv(model, list(FACTS), **(FAST | change))
    assert len(optimised) == 3
    assert len(folders(cache)) == 1, "the other question's"


def test_other_weights_are_another_question(cache, optimised, monkeypatch) -> None:
    killed(wrapped(), monkeypatch)
    other = wrapped()
    with torch.no_grad():
        other.down_projection(0).parameter[0, 0] += 1e-3
    optimised.clear()
    editcl.edit_csv(other, list(FACTS), **FAST)
    assert len(optimised) == 3


def truncate(part: Path, _) -> None:
    part.write_bytes(part.read_bytes()[:-10])


def empty(part: Path, _) -> None:
    part.write_bytes(b"")


def flip(part: Path, _) -> None:
    data = bytearray(part.read_bytes())
    data[-40] ^= 1
    part.write_bytes(data)


def folder_instead(part: Path, _) -> None:
    part.unlink()
    part.mkdir()


def rewrite(change):
    """Damage with a checksum that is right: as another version might have written it."""

    def damage(part: Path, checkpoint: Checkpoint) -> None:
        tensors = checkpoint.read(0)
        assert tensors is not None
        checkpoint.write(0, change(tensors))

    return damage


DAMAGES = {
    "truncated": truncate,
    "empty": empty,
    "a bit": flip,
    "a folder": folder_instead,
    "wrong shape": rewrite(lambda t: t | {"delta": t["delta"][:, :-1]}),
    "too many facts": rewrite(lambda t: {n: torch.cat([x, x]) for n, x in t.items()}),
    "NaN": rewrite(lambda t: t | {"delta": t["delta"] * float("nan")}),
    "infinite": rewrite(lambda t: t | {"bare": t["bare"] / 0}),
    "wrong type": rewrite(lambda t: t | {"delta": t["delta"].long()}),
    "a tensor missing": rewrite(lambda t: {n: x for n, x in t.items() if n != "loss"}),
    "a tensor more": rewrite(lambda t: t | {"more": t["loss"] + 1}),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_part_is_computed_again(cache, optimised, monkeypatch, damage) -> None:
    wanted, model = uninterrupted(), wrapped()
    killed(model, monkeypatch)
    (folder,) = folders(cache)
    damage(min(folder.iterdir()), Checkpoint(folder))
    optimised.clear()
    editcl.edit_csv(model, list(FACTS), **FAST)
    assert len(optimised) == 2, "the damaged part and the one that was never finished"
    assert state(model) == wanted
    assert not folders(cache)


# -- the folder itself ----------------------------------------------------------------------------


def test_a_part_comes_back_as_it_was_written(cache) -> None:
    checkpoint = Checkpoint(cache / "values-x")
    assert checkpoint.read(0) is None
    checkpoint.write(3, PARTS)
    found = checkpoint.read(3)
    assert found is not None and found.keys() == PARTS.keys()
    for name, tensor in PARTS.items():
        assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype
    assert [path.name for path in checkpoint.folder.iterdir()] == ["000003.part"]
    checkpoint.clear()
    assert not checkpoint.folder.exists()
    checkpoint.clear()


def test_the_folder_is_named_after_weights_and_question(model) -> None:
    first = Checkpoint.of(model, ["q"])
    assert Checkpoint.of(wrapped(), ["q"]) == first != Checkpoint.of(model, ["r"])
    with torch.no_grad():
        model.down_projection(2).parameter[0, 0] += 1
    assert Checkpoint.of(model, ["q"]) != first
    assert Checkpoint.of(wrapped("llama"), ["q"]) != first


def test_a_full_disk_costs_the_way_back_but_not_the_edit(cache, optimised, monkeypatch) -> None:
    def full(path, data):
        raise OSError(28, "No space left on device")

    wanted, model = uninterrupted(), wrapped()
    monkeypatch.setattr(Path, "write_bytes", full)
    editcl.edit_csv(model, list(FACTS), **FAST)
    assert state(model) == wanted and not folders(cache)


def test_a_cache_that_is_no_folder_costs_the_way_back_only(tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    checkpoint = Checkpoint(tmp_path / "file" / "values-x")
    checkpoint.write(0, PARTS)
    assert checkpoint.read(0) is None
    checkpoint.clear()
