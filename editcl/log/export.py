"""Edits leave editcl: as a Hugging Face folder, or as a PEFT LoRA adapter over the base.

Edits of one matrix add up to a low-rank change, left @ right.T; that is a LoRA adapter with
A = left.T, B = right and scale 1. At a lower rank it is cut by the SVD

    left = Q_l R_l,  right = Q_r R_r,  R_l R_r.T = U S V.T,

which gives the best approximation and its error from the singular values left out. Any program
that reads these formats (transformers, peft, vLLM) then needs no editcl. This module knows
nothing of how edits are solved for.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor

from editcl.errors import LogError
from editcl.log.folders import staged_folder
from editcl.log.state import Factors
from editcl.model import EditableModel
from editcl.update import product_norm


@dataclass(frozen=True)
class LoraExport:
    """What was exported.

    Attributes:
        folder: holds adapter_config.json and adapter_model.safetensors.
        rank: the highest rank of any matrix.
        relative_error: norm of what was cut off / norm of the change, over all matrices.
        ranks: rank by parameter.
    """

    folder: Path
    rank: int
    relative_error: float
    ranks: dict[str, int]

    def __repr__(self) -> str:
        return (
            f"LoRA adapter in {self.folder}: rank {self.rank} on {len(self.ranks)} matrices, "
            f"relative error {self.relative_error:.2g}"
        )


def export_model(model: EditableModel, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Saves the model as it is now, with its tokenizer, as a Hugging Face folder.

    The folder is written beside its place and moved there whole. Only an earlier export (a
    folder with a config.json) can be overwritten.

    Raises:
        LogError: the folder is not empty, or can't be written.
    """
    with staged_folder(folder, replaces=("config.json",) if overwrite else ()) as stage:
        model.hf.save_pretrained(stage)
        model.tokenizer.save_pretrained(stage)
    return Path(folder)


def export_lora(
    model: EditableModel, folder: str | Path, *, rank: int | None = None, overwrite: bool = False
) -> LoraExport:
    """Saves the active edits as a PEFT LoRA adapter over the base model.

    Args:
        model: the edited model.
        folder: where to write; missing or empty, or an earlier adapter if `overwrite`.
        rank: at most this rank for each matrix; None keeps every active column (exact).
        overwrite: replace an earlier adapter.

    Raises:
        LogError: no edit is active, the rank is below 1, or the folder can't be written.
    """
    if rank is not None and rank < 1:
        raise LogError(f"a LoRA adapter needs a rank of at least 1, got {rank}.")
    active = model.log.active_factors()
    if not active:
        raise LogError("no edit is active, so there is nothing to export.")
    cuts = {name: _cut(factors, rank) for name, factors in active.items()}
    total = sum(cut.norm**2 for cut in cuts.values()) ** 0.5
    lost = sum(cut.lost**2 for cut in cuts.values()) ** 0.5
    ranks = {name: cut.left.shape[1] for name, cut in cuts.items()}
    with staged_folder(folder, replaces=("adapter_config.json",) if overwrite else ()) as stage:
        safetensors.torch.save_file(_peft_tensors(cuts), stage / "adapter_model.safetensors")
        config = _peft_config(model, ranks)
        (stage / "adapter_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return LoraExport(Path(folder), max(ranks.values()), lost / total if total else 0.0, ranks)


@dataclass(frozen=True)
class _Cut:
    """Factors of at most some rank, the norm of the change and of what they leave out."""

    left: Float[Tensor, "d_mlp rank"]
    right: Float[Tensor, "d_model rank"]
    norm: float
    lost: float


def _cut(factors: Factors, rank: int | None) -> _Cut:
    left, right = factors.left.double(), factors.right.double()
    n_columns = left.shape[1]
    most = min(n_columns, *(len(factor) for factor in (left, right)))
    kept = most if rank is None else min(rank, most)
    if kept == n_columns:
        return _Cut(*_balanced(left, right), product_norm(left, right), 0.0)
    q_left, r_left = torch.linalg.qr(left)
    q_right, r_right = torch.linalg.qr(right)
    u, s, vh = torch.linalg.svd(r_left @ r_right.T, full_matrices=False)
    root = s[:kept].sqrt()
    return _Cut(
        (q_left @ u[:, :kept] * root).float(),
        (q_right @ vh[:kept].T * root).float(),
        float(s.norm()),
        float(s[kept:].norm()),
    )


def _balanced(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Columns of like norm on both sides, by powers of two: the product stays the same.

    Keys and values differ in size by orders of magnitude; loaded in 16 bits, one would vanish.
    """
    ratio = right.norm(dim=0).clamp(min=1e-30) / left.norm(dim=0).clamp(min=1e-30)
    scale = torch.exp2((ratio.log2() / 2).round())
    return (left * scale).float(), (right / scale).float()


def _peft_tensors(cuts: dict[str, _Cut]) -> dict[str, Tensor]:
    tensors = {}
    for name, cut in cuts.items():
        prefix = f"base_model.model.{name.removesuffix('.weight')}"
        tensors[f"{prefix}.lora_A.weight"] = cut.left.T.contiguous()
        tensors[f"{prefix}.lora_B.weight"] = cut.right.contiguous()
    return tensors


def _peft_config(model: EditableModel, ranks: dict[str, int]) -> dict[str, object]:
    """PEFT's adapter_config.json; alpha = rank everywhere, so that the scale is 1."""
    projections = {p.name: p for p in model.map.projections}
    top = max(ranks.values())
    pattern = {name.removesuffix(".weight"): r for name, r in ranks.items() if r != top}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model.name,
        "inference_mode": True,
        "r": top,
        "lora_alpha": top,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "target_modules": sorted(name.removesuffix(".weight") for name in ranks),
        "fan_in_fan_out": not projections[next(iter(ranks))].transposed,
        "lora_dropout": 0.0,
        "bias": "none",
    }
