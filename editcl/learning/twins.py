"""One twin of a model, with the adapters that peft has put into it.

Adapters are known here by peft's own short keys, so that a user's names may hold dots, slashes and
anything else. peft moves the flags of gradients whenever it switches adapters; here they stay.
Knows nothing of names and settings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from editcl.architecture import twin
from editcl.errors import EditclError
from editcl.learning.kinds import wrapped
from editcl.learning.view import AdaptedModel
from editcl.model import EditableModel

NOBODY = "__base__"  # peft's name for no adapter, in per-row routing


class Twin:
    """A twin and its adapters.

    Attributes:
        view: the model through the adapters that are switched on.
    """

    def __init__(self, model: EditableModel) -> None:
        self.view = AdaptedModel(model, twin(model.hf))
        self._model = model
        self._layers: list[Any] = []  # peft's modules
        self._flagged: list[nn.Parameter] = []  # of adapters in them

    @property
    def peft(self) -> Any:
        """peft's wrapper around the twin."""
        assert self.view.peft is not None, "there was never an adapter in this twin"
        return self.view.peft

    def add(self, key: str, config: Any, seed: int) -> None:
        """Makes an adapter, switched off; it asks for gradients."""
        view, on = self.view, self._on()
        device = self._model.device
        with _flags_kept(view.hf), torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            if view.peft is None:
                view.peft = wrapped(view.hf, config, key)
            else:
                view.peft.add_adapter(key, config)
        view.peft.eval()
        view.map.refresh(view.hf)
        self._look_up()
        self._switch(on)
        for parameter in self.parameters(key).values():
            parameter.requires_grad_(True)

    def remove(self, key: str) -> None:
        """Forgets an adapter that is switched off."""
        peft, on = self.peft, self._on()
        if _is_virtual(peft):
            del peft.peft_config[key], peft.prompt_encoder[key], peft.prompt_tokens[key]
            if peft.peft_config:  # the wrapper always asks one of them for its kind
                peft.active_adapter = next(iter(peft.peft_config))
            else:
                self.view.peft = None
            return
        with _flags_kept(self.view.hf):
            peft.base_model.delete_adapter(key)
        self._look_up()
        self._switch(on)

    def switch(self, keys: Sequence[str]) -> None:
        """Makes exactly these adapters work in forward passes."""
        view = self.view
        view.memo.clear()  # what it held is another set of adapters'
        if view.peft is None:
            return
        if not _is_virtual(view.peft):
            self._switch(keys)
        elif keys:
            config = view.peft.peft_config[keys[0]]
            kind = "prefix" if config.peft_type == "PREFIX_TUNING" else "prompt"
            view.peft.active_adapter, view.virtual = keys[0], (kind, config.num_virtual_tokens)
        else:
            view.virtual = None

    def parameters(self, key: str) -> dict[str, nn.Parameter]:
        """An adapter's parameters, sorted, under the names that peft saves them by."""
        found = {}
        for path, parameter in self.peft.named_parameters():
            parts = path.split(".")
            if key in parts:
                found[_saved_name(parts, key)] = parameter
        return dict(sorted(found.items()))

    def mixed(
        self, inputs: Mapping[str, Any], keys: Sequence[str], keep: Int[Tensor, " n_kept"] | None
    ) -> Float[Tensor, "n_rows n_kept d_vocab"]:
        """Logits of a batch whose rows go through one LoRA each, or through NOBODY's."""
        peft = self.peft
        peft.active_adapter = next(key for key in keys if key != NOBODY)  # peft asks for its kind
        arguments = dict(inputs) | ({} if keep is None else {"logits_to_keep": keep})
        return peft(**arguments, use_cache=False, adapter_names=list(keys)).logits

    def dropouts(self, keys: Sequence[str]) -> list[nn.Dropout]:
        """The dropout modules of adapters."""
        return [
            module
            for path, module in self.view.hf.named_modules()
            if isinstance(module, nn.Dropout)
            and "lora_dropout" in (parts := path.split("."))
            and parts[-1] in keys
        ]

    def require_shared(self) -> None:
        """Raises EditclError if the model's weights have gone to other memory than the twin's."""
        ours, theirs = self.view.map.projections, self._model.map.projections
        for own, other in zip(ours, theirs, strict=True):
            if own.parameter.data_ptr() != other.parameter.data_ptr():
                raise EditclError(
                    f"the model has moved since the bank was made ({own.name}: another device or "
                    "dtype). Make a new bank, and load the adapters into it."
                )

    def _on(self) -> list[str]:
        """The adapters in modules that are switched on."""
        peft: Any = self.view.peft
        return list(peft.base_model.active_adapters) if peft and not _is_virtual(peft) else []

    def _switch(self, keys: Sequence[str]) -> None:
        """As peft's set_adapter, which goes through all of a model's modules each time."""
        if _is_virtual(self.peft) or self._on() == list(keys):
            return
        flags = [parameter.requires_grad for parameter in self._flagged]
        for layer in self._layers:
            layer.set_adapter(list(keys))
        self.peft.base_model.active_adapter = list(keys)
        for parameter, flag in zip(self._flagged, flags, strict=True):
            parameter.requires_grad_(flag)

    def _look_up(self) -> None:
        from peft.tuners.tuners_utils import BaseTunerLayer

        self._layers = [m for m in self.view.hf.modules() if isinstance(m, BaseTunerLayer)]
        named = [item for layer in self._layers for item in layer.named_parameters()]
        self._flagged = [p for name, p in named if not name.startswith("base_layer.")]


def _is_virtual(peft: Any) -> bool:
    """Whether a wrapper puts virtual tokens in front, and leaves modules as they are."""
    return hasattr(peft, "prompt_encoder")


@contextmanager
def _flags_kept(module: nn.Module) -> Iterator[None]:
    """What asks for gradients, or not, does so again at the end."""
    flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _saved_name(parts: Sequence[str], key: str) -> str:
    """A parameter's path in peft's wrapper as the name by which peft saves it."""
    if parts[0] == "prompt_encoder":
        return "prompt_embeddings"
    name = ".".join(part for part in parts if part != key)
    # DoRA's magnitudes became modules; in files they kept the name that they had as parameters.
    return name.removesuffix(".weight") if "lora_magnitude_vector" in parts else name
