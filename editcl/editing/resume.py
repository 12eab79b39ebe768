"""Values that survive a kill: each finished micro-batch of v* is kept on disk until its edit is
logged.

The folder's name is a digest of all that the values depend on (weights as they are now, facts,
prompts, settings, layer, device, versions), so what is found there is what would be computed again,
bit for bit. Knows nothing of the objective.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from editcl.editing.cache import cache_folder, keep
from editcl.model import EditableModel, tensor_bytes

DIGEST = hashlib.sha256().digest_size


@dataclass(frozen=True)
class Checkpoint:
    """A folder of finished parts, each a SHA-256 and the safetensors that it is of."""

    folder: Path

    @classmethod
    def of(cls, model: EditableModel, question: Any) -> Checkpoint:
        """The checkpoint of one computation.

        Args:
            model: its weights as they are now are part of the name.
            question: JSON-able: everything else that the result depends on.
        """
        where = [version("editcl"), torch.__version__, str(model.device), str(model.hf.config)]
        digest = hashlib.sha256(json.dumps([where, question], sort_keys=True, default=str).encode())
        for name, parameter in sorted(model.hf.named_parameters()):
            digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
            digest.update(tensor_bytes(parameter))
        return cls(cache_folder() / f"values-{digest.hexdigest()[:32]}")

    def read(self, part: int) -> dict[str, Tensor] | None:
        """A finished part, as it was written; None if it isn't there or is damaged."""
        from safetensors.torch import load

        try:
            data = self._path(part).read_bytes()
        except OSError:
            return None
        sha, tensors = data[:DIGEST], data[DIGEST:]
        return load(tensors) if hashlib.sha256(tensors).digest() == sha else None

    def write(self, part: int, tensors: dict[str, Tensor]) -> None:
        """Keeps a part; a disk that is full costs the way back, not the edit."""
        from safetensors.torch import save

        data = save({n: t.detach().cpu().contiguous() for n, t in tensors.items()})
        keep(self._path(part), hashlib.sha256(data).digest() + data)

    def _path(self, part: int) -> Path:
        return self.folder / f"{part:06d}.part"

    def clear(self) -> None:
        """Removes the folder; what it held is in the log by now."""
        shutil.rmtree(self.folder, ignore_errors=True)
