"""Adapters in files: peft reads them, a wrong base or a changed byte is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from adapters import SMALL, inputs_of, logits, trained
from peft import PeftModel
from safetensors.torch import save
from torch import Tensor

import editcl
from editcl.errors import EditclError, LogError
from editcl.facts import Fact
from editcl.learning.files import SIDE_FILE, TENSOR_FILE
from editcl.learning.kinds import KINDS, AdapterSettings
from editcl.learning.lora import Adapters
from editcl.model import EditableModel
from editcl.update import WeightUpdate

SETTINGS = {kind: AdapterSettings(kind, rank=2, virtual_tokens=3) for kind in KINDS}
ARCHITECTURES = ("gpt2", "llama", "gpt_neox", "phi3", "opt")


def bank_of(name: str, tokenizer: Any, kind: str, seed: int = 0) -> Adapters:
    bank = Adapters(editcl.wrap(tiny.build(name), tokenizer))
    trained(bank, "x", SETTINGS[kind], seed)
    return bank


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")  # peft 0.21
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_peft_loads_a_saved_adapter_onto_a_clean_model(
    name: str, kind: str, tokenizer: Any, tmp_path: Path
) -> None:
    bank = bank_of(name, tokenizer, kind)
    bank.save("x", tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(tiny.build(name), tmp_path / "adapter").eval()
    rows = [[5, 6, 7, 8], [9, 10, 11, 12]]
    inputs = bank.model.pad(rows)
    with torch.no_grad(), bank.using(["x"]):
        own, theirs = bank.logits(inputs), loaded(**inputs).logits
    torch.testing.assert_close(own, theirs[:, -len(rows[0]) :], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(own, logits(bank)[:1, :1], atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_adapter_is_read_bit_for_bit(kind: str, tokenizer: Any, tmp_path: Path) -> None:
    bank = bank_of("gpt2", tokenizer, kind)
    bank.save("x", tmp_path / "adapter")
    other = Adapters(editcl.wrap(tiny.build("gpt2"), tokenizer))
    other.read(tmp_path / "adapter", "y")
    assert other.settings("y") == SETTINGS[kind]
    assert torch.equal(logits(other, "y"), logits(bank, "x"))
    with pytest.raises(EditclError, match="already"):
        other.read(tmp_path / "adapter", "y")


def test_edits_do_not_make_it_another_base(tokenizer: Any, tmp_path: Path) -> None:
    bank = bank_of("gpt2", tokenizer, "lora")
    edited(bank.model)
    bank.save("x", tmp_path / "adapter")
    other = Adapters(editcl.wrap(tiny.build("gpt2"), tokenizer))
    other.read(tmp_path / "adapter", "x")
    assert other.names == ("x",)


def edited(model: EditableModel) -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(n, 1, generator=generator) for n in (model.d_mlp, model.d_model))
    update = WeightUpdate(model.down_projection(1).name, left, right)
    fact = Fact("The Eiffel Tower", "{} is in", "Rome")
    model.log.append([update], [fact], method="test", layers=(1,))


def test_another_base_and_damage_are_refused(tokenizer: Any, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    bank_of("gpt2", tokenizer, "lora").save("x", folder)
    for architecture, seed in (("gpt2", 1), ("llama", 0)):
        other = Adapters(editcl.wrap(tiny.build(architecture, seed), tokenizer))
        with pytest.raises(EditclError, match="another base model"):
            other.read(folder, "x")
    bank = Adapters(editcl.wrap(tiny.build("gpt2"), tokenizer))
    data, side = (folder / TENSOR_FILE).read_bytes(), (folder / SIDE_FILE).read_text()
    (folder / TENSOR_FILE).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    refused(bank, folder, "was changed")
    (folder / TENSOR_FILE).write_bytes(data)
    for change, match in (
        ({"settings": {"kind": "lora"}}, "does not read.*missing"),
        ({"sha256": 3}, "was changed"),
        ({"settings": json.loads(side)["settings"] | {"rank": 4}}, "another rank"),
    ):
        (folder / SIDE_FILE).write_text(json.dumps(json.loads(side) | change))
        refused(bank, folder, match)
    (folder / SIDE_FILE).write_text("[]")
    refused(bank, folder, "does not read")
    (folder / SIDE_FILE).unlink()
    refused(bank, folder, "no adapter that editcl saved")


def test_a_signed_file_that_is_no_safetensors_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    import hashlib

    bank, folder = bank_of("gpt2", tokenizer, "lora"), tmp_path / "adapter"
    bank.save("x", folder)
    side = json.loads((folder / SIDE_FILE).read_text())
    for data in (b"\x80\x04.", b"", save({"other": torch.ones(1)})):
        (folder / TENSOR_FILE).write_bytes(data)
        sha = hashlib.sha256(data).hexdigest()
        (folder / SIDE_FILE).write_text(json.dumps(side | {"sha256": sha}))
        refused(bank, folder, "no safetensors file|not its own|missing")


def refused(bank: Adapters, folder: Path, match: str) -> None:
    names = bank.names
    with pytest.raises(EditclError, match=match):
        bank.read(folder, "new")
    assert bank.names == names


def test_only_an_earlier_adapter_is_overwritten(tokenizer: Any, tmp_path: Path) -> None:
    bank = bank_of("gpt2", tokenizer, "lora")
    bank.save("x", tmp_path / "adapter")
    with pytest.raises(LogError, match="not empty"):
        bank.save("x", tmp_path / "adapter")
    bank.save("x", tmp_path / "adapter", overwrite=True)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").touch()
    with pytest.raises(LogError, match="left alone"):
        bank.save("x", tmp_path / "notes", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "notes"]


# -- merged copies --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_merged_copy_computes_what_the_adapter_does(
    name: str, kind: str, tokenizer: Any, tmp_path: Path
) -> None:
    bank = bank_of(name, tokenizer, kind)
    before = weights(bank.model)
    bank.export_merged(tmp_path / "merged", ["x"])
    again = editcl.load(tmp_path / "merged", device=str(bank.model.device))
    with torch.no_grad():
        merged = again.forward(inputs_of(again))
    torch.testing.assert_close(merged, logits(bank, "x"), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(merged, logits(bank), atol=1e-2)
    assert all(torch.equal(before[n], now) for n, now in weights(bank.model).items())


def test_several_are_merged_on_top_of_the_edits(tokenizer: Any, tmp_path: Path) -> None:
    bank = bank_of("gpt2", tokenizer, "lora")
    trained(bank, "y", AdapterSettings(rank=3, targets="mlp"), seed=4)
    edited(bank.model)
    together = logits(bank, "x", "y")
    bank.export_merged(tmp_path / "merged", ["x", "y"])
    again = editcl.load(tmp_path / "merged", device=str(bank.model.device))
    with torch.no_grad():
        merged = again.forward(inputs_of(again))
    torch.testing.assert_close(merged, together, rtol=1e-3, atol=1e-3)
    assert bank.model.log.verify().ok


def test_what_can_not_be_merged_is_refused(model: EditableModel, tmp_path: Path) -> None:
    bank = Adapters(model)
    trained(bank, "x", SMALL)
    trained(bank, "p", SETTINGS["prompt"])
    for names, match in (
        ([], "nothing to merge"),
        (["p"], "can't be merged"),
        (["x", "p"], "LoRA"),
        (["z"], "no adapter"),
    ):
        with pytest.raises(EditclError, match=match):
            bank.export_merged(tmp_path / "merged", names)
    assert not (tmp_path / "merged").exists()


def weights(model: EditableModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.hf.state_dict().items()}
