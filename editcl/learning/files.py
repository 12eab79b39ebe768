"""Adapters in files: peft's own format for one, a Hugging Face folder for a model with them merged.

    adapter_config.json, adapter_model.safetensors    what peft and vLLM read
    editcl_adapter.json                               settings, fingerprint of the base, checksum

Knows nothing of twins and of what is active.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from editcl.errors import EditclError
from editcl.learning.kinds import VIRTUAL, AdapterSettings, peft_config, wrapped
from editcl.log.folders import staged_folder
from editcl.model import EditableModel

if TYPE_CHECKING:
    from peft import PeftConfig

SIDE_FILE = "editcl_adapter.json"
CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"


def save_adapter(
    folder: str | Path,
    config: PeftConfig,
    settings: AdapterSettings,
    tensors: Mapping[str, Tensor],
    *,
    base: str,
    overwrite: bool,
) -> Path:
    """Writes the three files, beside their place first; only an earlier adapter is overwritten."""
    own = copy.deepcopy(config)
    own.inference_mode = True  # whoever loads it with peft alone wants to use it
    data = safetensors.torch.save(dict(tensors), metadata={"format": "pt"})
    side = {
        "base": base,
        "settings": settings.to_json(),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    with staged_folder(folder, replaces=(CONFIG_FILE,) if overwrite else ()) as stage:
        own.save_pretrained(str(stage))
        (stage / TENSOR_FILE).write_bytes(data)
        (stage / SIDE_FILE).write_text(json.dumps(side, indent=2), encoding="utf-8")
    return Path(folder)


def read_adapter(folder: str | Path, *, base: str) -> tuple[AdapterSettings, dict[str, Tensor]]:
    """Settings and tensors of a saved adapter.

    Raises:
        EditclError: a file is missing, changed or unreadable, or the base is another.
    """
    folder = Path(folder)
    for name in (SIDE_FILE, TENSOR_FILE):
        if not (folder / name).is_file():
            raise EditclError(
                f"{folder} has no {name}, so it is no adapter that editcl saved. If peft made it, "
                "read its tensors and pass them to Adapters.load with the settings they have."
            )
    try:
        side: dict[str, Any] = json.loads((folder / SIDE_FILE).read_text(encoding="utf-8"))
        made_for, sha, body = side["base"], side["sha256"], side["settings"]
        settings = AdapterSettings.from_json(body)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise EditclError(f"{folder / SIDE_FILE} does not read ({error}). Save it anew.") from error
    if made_for != base:
        raise EditclError(
            f"the adapter in {folder} was trained on another base model (fingerprint "
            f"{str(made_for)[:12]}, this one's is {base[:12]}). Load the model it was made for."
        )
    data = (folder / TENSOR_FILE).read_bytes()
    if hashlib.sha256(data).hexdigest() != sha:
        raise EditclError(
            f"{folder / TENSOR_FILE} was changed (its SHA-256 differs). Save it anew."
        )
    try:
        return settings, safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise EditclError(f"{folder / TENSOR_FILE} is no safetensors file: {error}.") from error


def export_merged(
    model: EditableModel,
    parts: Sequence[tuple[AdapterSettings, dict[str, Tensor]]],
    folder: str | Path,
    *,
    overwrite: bool,
) -> Path:
    """Saves a copy of the model with adapters merged into it; needs memory for the copy.

    Raises:
        EditclError: there is nothing to merge, or it puts virtual tokens in front.
    """
    from peft import set_peft_model_state_dict

    if not parts:
        raise EditclError("no adapter is named, so there is nothing to merge.")
    for settings, _ in parts:
        if settings.kind in VIRTUAL:
            raise EditclError(
                f"a {settings.kind} adapter puts tokens in front and changes no weight: it can't "
                "be merged. Save it as an adapter."
            )
    merged: Any = copy.deepcopy(model.hf)
    for settings, tensors in parts:  # one after the other: each rests on what is there
        with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            held = wrapped(merged, peft_config(model, settings))
        set_peft_model_state_dict(held, tensors)
        merged = held.merge_and_unload(safe_merge=True)
    with staged_folder(folder, replaces=("config.json",) if overwrite else ()) as stage:
        merged.save_pretrained(stage)
        model.tokenizer.save_pretrained(stage)
    return Path(folder)
