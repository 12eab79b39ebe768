"""The state law: a weight is its base plus the active columns of the log, to the last bit.

    weight = cast(base + sum over entries of left[:, active] @ right[:, active].T)

Entries are added in log order to a float32 total that starts as the base; entries without active
columns are skipped; the total is cast once. An entry's own product is summed in float64 and
rounded to float32 before it is added: that is exact for one column, and for many it leaves
almost nothing for devices, thread counts and math libraries to disagree about (a float32 product
would depend on them, and on TF32 settings). So the state is a function of base and active
columns alone: adding an entry costs one product, and taking any out gives the bytes of a log
that never had it.

Memory: a base copy of each edited matrix on the CPU; matrices in 16 bits also keep their float32
total on the device, a float32 matrix is its own total. This module knows nothing of facts, files
and the order of events.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from editcl.architecture import DownProjection
from editcl.errors import LogError, NonFiniteError
from editcl.model import EditableModel, tensor_bytes
from editcl.update import WeightUpdate

COLUMNS_PER_PRODUCT = 128  # part of the law: it fixes the order of summation
ELEMENTS_PER_BLOCK = 1 << 22  # bounds the float64 scratch memory; rows are independent

Totals: TypeAlias = dict[str, Tensor]


@dataclass(frozen=True)
class Factors:
    """An update's factors as the log keeps them: contiguous on the CPU, at most 32 bits.

    Attributes:
        left: [d_mlp, rank].
        right: [d_model, rank].
    """

    left: Float[Tensor, "d_mlp rank"]
    right: Float[Tensor, "d_model rank"]

    @classmethod
    def of(cls, update: WeightUpdate) -> Factors:
        """Copies the factors of an update; float64 is rounded to float32."""
        left, right = (_kept(factor) for factor in (update.left, update.right))
        WeightUpdate(update.parameter, left, right)  # still finite after rounding
        return cls(left, right)

    @classmethod
    def joined(cls, parts: Sequence[Factors]) -> Factors:
        """The columns of several factors side by side, in float32."""
        left = torch.cat([part.left.float() for part in parts], dim=1)
        return cls(left, torch.cat([part.right.float() for part in parts], dim=1))

    def columns(self, active: Sequence[bool]) -> Factors:
        """The active columns alone."""
        index = torch.tensor([j for j, on in enumerate(active) if on], dtype=torch.long)
        return Factors(self.left.index_select(1, index), self.right.index_select(1, index))


Term: TypeAlias = tuple[Factors, Sequence[bool]]  # an entry's factors, and which are active


def add_product(
    total: Float[Tensor, "n_rows n_columns"],
    first: Float[Tensor, "n_rows rank"],
    second: Float[Tensor, "n_columns rank"],
) -> None:
    """total += first @ second.T in place: the product in float64, rounded once to float32."""
    if first.shape[1] == 1:  # one rounding of one exact product: float32 gives the same bits
        total += torch.outer(first[:, 0].float(), second[:, 0].float())
        return
    first, second = first.double(), second.double()
    n_rows = max(1, ELEMENTS_PER_BLOCK // max(1, total.shape[1]))
    for block, rows in zip(total.split(n_rows), first.split(n_rows), strict=True):
        product = torch.zeros_like(block, dtype=torch.float64)
        for a, b in zip(
            rows.split(COLUMNS_PER_PRODUCT, 1), second.split(COLUMNS_PER_PRODUCT, 1), strict=True
        ):
            product += a @ b.T
        block += product.float()


class LiveWeights:
    """The model's down-projections: computes their totals, writes them, guards them.

    Attributes:
        base: pristine copies (on the CPU, in the model's dtype) of matrices that edits touched.
    """

    def __init__(self, model: EditableModel, base: Mapping[str, Tensor]) -> None:
        self._projections = {p.name: p for p in model.map.projections}
        self._parameters = dict(model.hf.named_parameters())
        self.base = dict(base)
        self._totals: Totals = {}
        self._seen = {name: checksum(p) for name, p in self._parameters.items()}

    def projection(self, name: str) -> DownProjection | None:
        """The down-projection of that name, if the model has it."""
        return self._projections.get(name)

    def changed(self, names: Iterable[str] | None = None) -> list[str]:
        """Parameters (all if None) that are no longer what the log last read or wrote."""
        chosen = self._parameters if names is None else names
        return [name for name in chosen if checksum(self._parameters[name]) != self._seen[name]]

    def require_unchanged(self, names: Iterable[str]) -> None:
        """Raises LogError if something else than the log has written the matrices."""
        for name in self.changed(names):
            remedy = (
                "log.restore() puts back the state that the log says"
                if name in self.base
                else "Reload the model, or wrap it anew to take these weights as its base"
            )
            raise LogError(
                f"{name} was changed outside the log (training, a manual write, another dtype) "
                f"since the log was opened, so the log can't tell what the edit is added to. "
                f"{remedy}."
            )

    def grown(self, name: str, factors: Factors) -> Tensor:
        """The total [as stored] with one more entry, all of its columns active."""
        parameter = self._projections[name].parameter.data
        if name in self._totals:
            total = self._totals[name].to(parameter.device, copy=True)
        else:  # a float32 weight is its own total; one without a total has no entry yet
            total = _total(parameter, parameter.device)
        return self._add(name, total, [(factors, (True,) * factors.left.shape[1])])

    def rebuilt(self, name: str, terms: Sequence[Term]) -> Tensor:
        """The total [as stored] from the base and the active columns, in log order."""
        parameter = self._projections[name].parameter.data
        total = _total(self.base.get(name, parameter), parameter.device)
        return self._add(name, total, terms)

    @property
    def n_parameters(self) -> int:
        """How many parameters the model has, edited or not."""
        return len(self._parameters)

    def norm(self, name: str) -> float:
        """Frobenius norm of a live matrix."""
        return float(torch.linalg.vector_norm(self._parameters[name].data.float()))

    def cast(self, name: str, total: Tensor) -> Tensor:
        """The total in the parameter's dtype."""
        return total.to(self._projections[name].parameter.dtype)

    def _add(self, name: str, total: Tensor, terms: Sequence[Term]) -> Tensor:
        device = total.device
        where = torch.device("cpu") if device.type == "mps" else device  # MPS has no float64
        total = total.to(where)
        transposed = self._projections[name].transposed
        for factors, active in terms:
            if any(active):
                some = factors.columns(active)
                pair = (some.right, some.left) if transposed else (some.left, some.right)
                add_product(total, pair[0].to(where), pair[1].to(where))
        if not bool(torch.isfinite(self.cast(name, total)).all()):
            raise NonFiniteError(
                f"{name} would not be finite with this change in {self.base_dtype(name)}. Check "
                "the model's weights, edit more gently, or load the model in float32."
            )
        return total.to(device)

    def base_dtype(self, name: str) -> str:
        """The parameter's dtype, for messages."""
        return str(self._projections[name].parameter.dtype).removeprefix("torch.")

    def snapshot(self, names: Iterable[str]) -> Snapshot:
        """What `undo` needs to bring the named matrices back."""
        weights = {name: self._projections[name].parameter.data.clone() for name in names}
        return Snapshot(weights, self.base, self._totals, self._seen)

    def undo(self, snapshot: Snapshot) -> None:
        """Brings back the weights of a snapshot."""
        for name, weight in snapshot.weights.items():
            self._projections[name].parameter.data.copy_(weight)
        self.base, self._totals, self._seen = snapshot.base, snapshot.totals, snapshot.seen

    def write(self, totals: Totals) -> None:
        """Casts totals into the parameters, in place, so that every view of them follows.

        The first write of a matrix keeps a copy of what it was.
        """
        base = dict(self.base)
        kept, seen = dict(self._totals), dict(self._seen)
        for name, total in totals.items():
            parameter = self._projections[name].parameter
            if name not in base:
                base[name] = parameter.data.cpu().clone(memory_format=torch.contiguous_format)
            parameter.data.copy_(total)
            if parameter.dtype != total.dtype:
                kept[name] = total
            seen[name] = checksum(parameter)
        self.base, self._totals, self._seen = base, kept, seen

    def digests(self, names: Iterable[str]) -> dict[str, str]:
        """SHA-256 of the live matrices, as hex."""
        return {
            name: hashlib.sha256(tensor_bytes(self._projections[name].parameter)).hexdigest()
            for name in names
        }

    def equals(self, name: str, total: Tensor) -> bool:
        """Whether the live matrix has the bytes that a total gives."""
        live = self._projections[name].parameter.detach().contiguous()
        return torch.equal(live.view(torch.uint8), self.cast(name, total).view(torch.uint8))


@dataclass(frozen=True)
class Snapshot:
    """Live weights, and the bookkeeping that belongs to them."""

    weights: dict[str, Tensor]
    base: dict[str, Tensor]
    totals: Totals
    seen: dict[str, tuple[torch.dtype, int]]


def platform_name(device: torch.device) -> str:
    """What the last bits of a product may depend on: the processor, and torch's version."""
    if device.type == "cuda":
        kind = torch.cuda.get_device_name(device)
    else:
        kind = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return f"{device.type} {kind}, torch {torch.__version__}"


def checksum(tensor: Tensor) -> tuple[torch.dtype, int]:
    """Dtype and 64-bit sum of the bits: one cheap pass, the same on every device.

    It sees any single change; it is a guard against accidents, not a proof.
    """
    flat = tensor.detach().contiguous().reshape(-1)
    if flat.storage_offset() * flat.element_size() % 8:
        flat = flat.clone()
    raw = flat.view(torch.uint8)
    whole = raw.numel() // 8 * 8
    words = raw[:whole].view(torch.int64).sum()
    return tensor.dtype, int(words) + int(raw[whole:].sum(dtype=torch.int64))


def _total(weight: Tensor, device: torch.device) -> Tensor:
    """A fresh total that starts as the weight: in float32, for a float64 weight in float64."""
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    return weight.to(device, dtype, copy=True, memory_format=torch.contiguous_format)


def _kept(factor: Tensor) -> Tensor:
    dtype = torch.float32 if factor.dtype == torch.float64 else factor.dtype
    copy = factor.detach().to("cpu", dtype, copy=True)
    return copy.contiguous()
