"""The sum of adapters is exact, and is none of the things that look like it."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from adapters import SMALL, logits, trained

import editcl
from editcl.errors import EditclError
from editcl.learning.compose import summed
from editcl.learning.kinds import AdapterSettings
from editcl.learning.lora import Adapters


@pytest.mark.parametrize("name", ["gpt2", "llama", "falcon"])
def test_one_adapter_is_the_sum_of_several(name: str, tokenizer: Any) -> None:
    bank = Adapters(editcl.wrap(tiny.build(name), tokenizer))
    trained(bank, "x", SMALL)
    trained(bank, "y", AdapterSettings(rank=3, alpha=1.5), seed=3)
    trained(bank, "z", AdapterSettings(rank=1, alpha=2.0), seed=5)
    bank.compose(["x", "y", "z"], into="sum")
    together = logits(bank, "x", "y", "z")
    torch.testing.assert_close(logits(bank, "sum"), together, rtol=1e-5, atol=1e-4)
    settings = bank.settings("sum")
    assert (settings.rank, settings.scale) == (6, 1.0)
    for key, joined in bank.state("sum").items():
        if ".lora_A." in key:
            other = key.replace("lora_A", "lora_B")
            product = bank.state("sum")[other] @ joined
            parts = [
                bank.settings(n).scale * bank.state(n)[other] @ bank.state(n)[key] for n in "xyz"
            ]
            torch.testing.assert_close(product, sum(parts), rtol=1e-5, atol=1e-5)


def test_it_equals_pefts_own_concatenation_and_no_average(model: Any) -> None:
    bank = Adapters(model)
    for i, name in enumerate("xy"):
        trained(bank, name, seed=3 * i)
    bank.compose("xy", into="sum")
    twin = bank._twins["lora"]
    keys = [bank._adapters[name].key for name in "xy"]
    found = {}
    for kind in ("cat", "linear"):
        twin.peft.add_weighted_adapter(keys, [1.0, 1.0], kind, combination_type=kind)
        twin.peft.base_model.set_adapter([kind])
        with torch.no_grad():
            found[kind] = twin.view.forward(bank.model.pad([[5, 6, 7, 8, 9], [10, 11, 12]]))
    twin.peft.base_model.set_adapter([])
    own = logits(bank, "sum")[:2]
    n = found["cat"].shape[1]
    torch.testing.assert_close(own[:, :n], found["cat"], rtol=1e-5, atol=1e-4)
    assert not torch.allclose(own[:, :n], found["linear"], atol=1e-2)


def test_what_has_no_sum_is_refused(model: Any) -> None:
    bank = Adapters(model)
    trained(bank, "x")
    trained(bank, "part", AdapterSettings(rank=2, targets="mlp"))
    trained(bank, "ia3", AdapterSettings("ia3"))
    for names, into, match in (
        ([], "sum", "no sum"),
        (["x", "ia3"], "sum", "'ia3' is ia3"),
        (["x", "part"], "sum", "different targets"),
        (["x"], "part", "already"),
        (["x", "z"], "sum", "no adapter 'z'"),
    ):
        with pytest.raises(EditclError, match=match):
            bank.compose(names, into=into)
    assert bank.names == ("x", "part", "ia3")


def test_the_sum_of_one_is_that_one() -> None:
    tensors = {"m.lora_A.weight": torch.ones(2, 3), "m.lora_B.weight": torch.ones(4, 2)}
    settings, joined = summed(["x"], [(SMALL, tensors)])
    product = joined["m.lora_B.weight"] @ joined["m.lora_A.weight"]
    assert settings.rank == 2 and torch.equal(product, torch.full((4, 3), 4.0))
