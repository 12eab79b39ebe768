"""Edits leave editcl as a Hugging Face folder or a LoRA adapter that gives the same logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from logbook import add, digest, facts_of, fresh

import editcl
from editcl.errors import LogError
from editcl.log import EditLog
from editcl.log.export import export_lora, export_model
from editcl.model import EditableModel
from editcl.update import WeightUpdate

IDS = torch.arange(40)[None] * 7 % 500


def logits(hf: Any) -> torch.Tensor:
    with torch.no_grad():
        return hf(IDS).logits


def with_adapter(folder: Path, architecture: str) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(fresh(architecture).hf, folder).eval()


@pytest.fixture(params=["gpt2", "llama"])
def edited(request: pytest.FixtureRequest) -> tuple[str, EditableModel]:
    """A model with edits of different ranks on its layers, some rolled back."""
    model = fresh(request.param)
    log = EditLog(model)
    add(log, model, 1, 3, (0, 1))
    add(log, model, 2, 2, (1,))
    add(log, model, 3, 4, (0,))
    log.rollback([("e0001", 1), "e0003"])
    return request.param, model


def test_a_folder_of_the_edited_model_loads_with_the_same_bytes(
    edited: tuple[str, EditableModel], tmp_path: Path
) -> None:
    _, model = edited
    folder = export_model(model, tmp_path / "out" / "model")
    again = editcl.load(folder, device="cpu")
    assert digest(again) == digest(model)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model"]


def test_an_adapter_gives_the_edited_logits_over_the_base(
    edited: tuple[str, EditableModel], tmp_path: Path
) -> None:
    architecture, model = edited
    before = digest(model)
    export = export_lora(model, tmp_path / "adapter")
    assert digest(model) == before
    assert export.rank == 4 and export.relative_error == 0 and "rank 4" in repr(export)
    assert sorted(export.ranks.values()) == [2, 4]  # rolled back facts are not in it
    adapted = with_adapter(tmp_path / "adapter", architecture)
    assert (logits(fresh(architecture).hf) - logits(model.hf)).abs().max() > 1e-2
    torch.testing.assert_close(logits(adapted), logits(model.hf), rtol=0, atol=1e-4)
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(logits(merged), logits(model.hf), rtol=0, atol=1e-4)


def test_the_adapter_config_names_the_base_and_exactly_the_edited_modules(
    edited: tuple[str, EditableModel], tmp_path: Path
) -> None:
    architecture, model = edited
    export_lora(model, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == model.name
    assert config["fan_in_fan_out"] == (architecture == "gpt2")
    names = {model.down_projection(layer).name.removesuffix(".weight") for layer in (0, 1)}
    assert set(config["target_modules"]) == names
    adapted = with_adapter(tmp_path / "adapter", architecture)
    touched = {name for name, _ in adapted.named_modules() if name.endswith("lora_A")}
    assert len(touched) == 2


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_a_cut_adapter_reports_the_error_it_has(
    edited: tuple[str, EditableModel], tmp_path: Path, rank: int
) -> None:
    architecture, model = edited
    export = export_lora(model, tmp_path / "adapter", rank=rank)
    merged = with_adapter(tmp_path / "adapter", architecture).merge_and_unload()
    lost = change = 0.0
    base = fresh(architecture).hf
    for parameter in (*base.parameters(), *merged.parameters(), *model.hf.parameters()):
        parameter.requires_grad_(False)
    for name in export.ranks:
        full = model.hf.get_parameter(name) - base.get_parameter(name)
        got = merged.get_parameter(name) - base.get_parameter(name)
        lost += float((full - got).norm() ** 2)
        change += float(full.norm() ** 2)
        best = torch.linalg.svdvals(full)[export.ranks[name] :].norm()
        assert float((full - got).norm()) == pytest.approx(float(best), rel=1e-3, abs=1e-4)
    assert export.rank == rank
    assert export.relative_error == pytest.approx((lost / change) ** 0.5, rel=1e-3, abs=1e-5)


def test_more_facts_than_the_matrix_has_rows_need_no_higher_rank(tmp_path: Path) -> None:
    model = fresh("llama")
    log = EditLog(model)
    add(log, model, 1, 30, (1,))
    export = export_lora(model, tmp_path / "adapter")
    assert export.rank == model.d_model and export.relative_error < 1e-12
    adapted = with_adapter(tmp_path / "adapter", "llama")
    torch.testing.assert_close(logits(adapted), logits(model.hf), rtol=1e-4, atol=1e-4)


def test_factors_of_very_different_size_are_balanced_for_half_precision(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = fresh()
    log = EditLog(model)
    name = model.down_projection(0).name
    tiny, huge = torch.randn(model.d_mlp, 1) * 1e-8, torch.randn(model.d_model, 1) * 1e7
    log.append([WeightUpdate(name, tiny, huge)], facts_of(0, 1), method="test", layers=(0,))
    export_lora(model, tmp_path / "adapter")
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    norms = [float(tensor.norm()) for tensor in tensors.values()]
    assert max(norms) / min(norms) < 4 and all(
        bool(t.half().isfinite().all()) for t in tensors.values()
    )


def test_nothing_is_written_where_there_is_nothing_to_export_or_no_place(
    edited: tuple[str, EditableModel], tmp_path: Path
) -> None:
    _, model = edited
    with pytest.raises(LogError, match="rank of at least 1"):
        export_lora(model, tmp_path / "a", rank=0)
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("x")
    for export in (export_model, export_lora):
        with pytest.raises(LogError, match="is a file"):
            export(model, tmp_path / "file")
        with pytest.raises(LogError, match="not empty"):
            export(model, tmp_path / "full")
        with pytest.raises(LogError, match="left alone"):
            export(model, tmp_path / "full", overwrite=True)
    model.log.rollback("all")
    with pytest.raises(LogError, match="no edit is active"):
        export_lora(model, tmp_path / "a")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full", "notes.txt"]


def test_an_earlier_export_can_be_overwritten(
    edited: tuple[str, EditableModel], tmp_path: Path
) -> None:
    _, model = edited
    export_model(model, tmp_path / "model")
    model.log.rollback("e0002")
    export_model(model, tmp_path / "model", overwrite=True)
    assert digest(editcl.load(tmp_path / "model", device="cpu")) == digest(model)
    export_lora(model, tmp_path / "adapter")
    assert export_lora(model, tmp_path / "adapter", rank=1, overwrite=True).rank == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "model"]


def test_a_failed_export_leaves_the_earlier_one(
    edited: tuple[str, EditableModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, model = edited
    export_model(model, tmp_path / "model")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model.tokenizer, "save_pretrained", fail, raising=False)
    with pytest.raises(LogError, match="No space left"):
        export_model(model, tmp_path / "model", overwrite=True)
    monkeypatch.undo()
    assert digest(editcl.load(tmp_path / "model", device="cpu")) == digest(model)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_real_model_is_edited_exported_and_rolled_back(shared: Any, tmp_path: Path) -> None:
    model = editcl.load(shared("parity/model"), device="cpu", dtype=torch.float32)
    base = digest(model)
    add(model.log, model, 1, 2, (1, 2))
    assert export_lora(model, tmp_path / "adapter").rank == 2
    from peft import PeftModel

    again = editcl.load(shared("parity/model"), device="cpu", dtype=torch.float32)
    adapted = PeftModel.from_pretrained(again.hf, tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(adapted), logits(model.hf), rtol=0, atol=1e-4)
    report = model.log.rollback("e0001")
    assert digest(model) == base and report.remeasured == 0
