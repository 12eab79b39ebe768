"""From TransformerLens names to the modules of an untouched Hugging Face model.

The architecture adapters of TransformerLens serve as a map only: nothing is replaced or wrapped.
This is the one file that touches a private function of TransformerLens, and the one that knows
how projections are stored (Conv1D [in, out], Linear [out, in]).
"""

from __future__ import annotations

import copy
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from editcl.errors import UnsupportedModel

if TYPE_CHECKING:
    from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class DownProjection:
    """The writable matrix that maps a key (d_mlp) to a value (d_model) at one layer.

    Attributes:
        layer: the block it belongs to.
        name: name of the weight parameter in the Hugging Face model.
        parameter: the parameter itself.
        transposed: True where it is stored [d_model, d_mlp] (Linear), False for Conv1D.
    """

    layer: int
    name: str
    parameter: nn.Parameter
    transposed: bool

    @property
    def weight(self) -> Float[Tensor, "d_mlp d_model"]:
        """A view [d_mlp, d_model] without gradient; writing into it writes the model."""
        data = self.parameter.data
        return data.T if self.transposed else data

    def changed(self, delta: Float[Tensor, "d_mlp d_model"]) -> Tensor:
        """The matrix with a change, in the parameter's dtype and layout; nothing is written."""
        weight = self.weight
        moved = (weight.float() + delta).to(weight.dtype)
        return moved.T if self.transposed else moved


class ModuleMap:
    """Finds a model's parts by TransformerLens path.

    Raises:
        UnsupportedModel: no adapter for the class, no dense down-projection in some layer
            (mixture of experts), or its weight is quantised.
    """

    def __init__(self, hf: PreTrainedModel) -> None:
        self._adapter = _select_adapter(hf)
        self._modules = dict(hf.named_modules())
        self.n_layers = self._count_blocks()
        self.projections = tuple(self._down_projection(hf, i) for i in range(self.n_layers))
        self._look_up()

    def path(self, name: str) -> str | None:
        """The Hugging Face path of a TransformerLens one; None where the model has no such part."""
        try:
            path = str(self._adapter.translate_transformer_lens_path(name))
        except (ValueError, AttributeError, KeyError):
            return None
        return path if path in self._modules else None

    def find(self, name: str) -> nn.Module | None:
        """The module at a TransformerLens path; None where the model has no such part."""
        path = self.path(name)
        return None if path is None else self._modules[path]

    def refresh(self, hf: PreTrainedModel) -> None:
        """Looks the modules up again, after a library has put its own around some of them (peft).

        The projections stay as they are: their parameters are the same.
        """
        self._modules = dict(hf.named_modules())
        self._look_up()

    def _look_up(self) -> None:
        self.down = tuple(self._require(f"blocks.{i}.mlp.out") for i in range(self.n_layers))
        self.blocks = tuple(self._require(f"blocks.{i}") for i in range(self.n_layers))
        self.embed = self._require("embed")
        self.unembed = self._require("unembed")

    def _require(self, name: str) -> nn.Module:
        module = self.find(name)
        if module is None:
            raise UnsupportedModel(
                f"this architecture has no {name!r} that can be written. Dense decoder models "
                "(GPT-2, GPT-J, Llama, Qwen, Gemma, ...) work; mixtures of experts, encoders and "
                "state-space models don't."
            )
        return module

    def _count_blocks(self) -> int:
        first = self.path("blocks.0")
        if first is None:
            raise UnsupportedModel("the model has no stack of decoder blocks that can be found.")
        pattern = re.compile(re.escape(first.removesuffix("0")) + r"(\d+)")
        return sum(1 for name in self._modules if pattern.fullmatch(name))

    def _down_projection(self, hf: PreTrainedModel, layer: int) -> DownProjection:
        from transformers.pytorch_utils import Conv1D

        path = self.path(f"blocks.{layer}.mlp.out")
        module = None if path is None else self._modules[path]
        kind = type(hf).__name__
        if module is None:
            raise UnsupportedModel(
                f"{kind}: layer {layer} has no single MLP down-projection (a mixture of experts, "
                "or no MLP at all), so there is no one matrix to edit. Use a dense model."
            )
        if not isinstance(module, nn.Linear | Conv1D):
            raise UnsupportedModel(
                f"{kind}: the down-projection {path} is a {type(module).__name__}; editcl writes "
                "Linear and Conv1D. If the model is wrapped (peft, quantised), pass the plain one."
            )
        if not module.weight.is_floating_point():
            raise UnsupportedModel(
                f"{kind}: {path}.weight is quantised ({module.weight.dtype}). Load the model in "
                "float32, bfloat16 or float16."
            )
        weight = cast(nn.Parameter, module.weight)
        return DownProjection(layer, f"{path}.weight", weight, isinstance(module, nn.Linear))


def _select_adapter(hf: PreTrainedModel) -> ArchitectureAdapter:
    """The TransformerLens adapter for a model's class; isolates the private entry point."""
    from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_config_from_hf

    kind = type(hf).__name__
    try:
        config = build_bridge_config_from_hf(hf.config, kind, "local", hf.dtype)
        return ArchitectureAdapterFactory.select_architecture_adapter(config)
    except (ValueError, KeyError, AttributeError, NotImplementedError) as error:
        raise UnsupportedModel(
            f"{kind} is not an architecture that TransformerLens maps ({error}). "
            "Pass a decoder language model such as GPT2LMHeadModel or LlamaForCausalLM."
        ) from error


def build_bridge(hf: PreTrainedModel, tokenizer: Any) -> Any:
    """A TransformerBridge over a twin that shares every parameter with the model.

    The Bridge rewrites the model and sets up the tokenizer that it is given, so it gets a twin of
    the one and a copy of the other.
    """
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    twin = _twin(hf, hf.state_dict(keep_vars=True), dict(hf.named_buffers()))
    with tempfile.TemporaryDirectory() as folder:
        # The Bridge loads the tokenizer anew from where it came: for one made in memory, nowhere.
        tokenizer.save_pretrained(folder)
        own = type(tokenizer).from_pretrained(folder)
        bridge = build_bridge_from_module(
            twin,
            type(hf).__name__,
            hf_config=twin.config,
            tokenizer=own,
            dtype=hf.dtype,
            device=str(hf.device),
        )
    bridge.tokenizer.name_or_path = tokenizer.name_or_path
    return bridge


def is_bridge(model: Any) -> bool:
    """Whether this is a TransformerBridge, told without importing TransformerLens in vain."""
    return any(
        kind.__name__ == "TransformerBridge" and kind.__module__.startswith("transformer_lens.")
        for kind in type(model).__mro__
    )


def model_behind(bridge: Any) -> PreTrainedModel:
    """A clean Hugging Face model that shares every parameter with a TransformerBridge.

    The Bridge keeps the model that it was made from, with components of its own put around the
    original modules; their parameters are found by leaving these out of the names.

    Raises:
        UnsupportedModel: its weights were processed (compatibility mode), so that they are
            another model's, or some of the original's can't be found.
    """
    if getattr(bridge, "compatibility_mode", False):
        raise UnsupportedModel(
            "the TransformerBridge is in compatibility mode: its weights were processed and are "
            "no longer the model's. Pass one without enable_compatibility_mode()."
        )
    rewritten = bridge.original_model
    return _twin(
        rewritten,
        _original_names(rewritten.state_dict(keep_vars=True)),
        _original_names(dict(rewritten.named_buffers())),
    )


def _original_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a bridged model under the names of the model before; the first one counts."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        parts = [part for part in name.split(".") if part != "_original_component"]
        found.setdefault(".".join(parts), tensor)
    return found


def twin(hf: PreTrainedModel) -> PreTrainedModel:
    """A model of the same class on the same memory, with modules and gradient flags of its own.

    What is written into the weights of one in place shows in the other. None of the twin's
    parameters asks for gradients; it may be hooked and injected without the model's notice.
    """
    own: dict[int, Tensor] = {}  # by identity, so that tied parameters stay tied
    state = {}
    for name, tensor in hf.state_dict(keep_vars=True).items():
        if isinstance(tensor, nn.Parameter):
            tensor = own.setdefault(id(tensor), nn.Parameter(tensor.detach(), requires_grad=False))
        state[name] = tensor
    made = _twin(hf, state, dict(hf.named_buffers()))
    for parameter in made.parameters():  # loading gave them the flags of a fresh model
        parameter.requires_grad_(False)
    return made


def _twin(
    hf: PreTrainedModel, state: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
) -> PreTrainedModel:
    """A model of the same class that shares the parameters in `state`; buffers are cloned."""
    kind = type(hf).__name__
    with torch.device("meta"):
        twin = type(hf)(copy.deepcopy(hf.config))
    missing = [name for name in twin.state_dict() if name not in state]
    missing += [name for name, _ in twin.named_buffers() if name not in buffers]
    if missing:
        raise UnsupportedModel(
            f"{kind}: no twin can be made that shares its parameters; {missing[0]!r} is not where "
            "it is in a model of this class. Pass a model as from_pretrained returns it."
        )
    twin.load_state_dict({name: state[name] for name in twin.state_dict()}, assign=True)
    twin.tie_weights()
    for path, module in twin.named_modules():
        for name, _ in list(module.named_buffers(recurse=False)):
            persistent = name not in module._non_persistent_buffers_set
            buffer = buffers[f"{path}.{name}" if path else name].clone()
            module.register_buffer(name, buffer, persistent=persistent)
    twin.generation_config = copy.deepcopy(hf.generation_config)
    twin.name_or_path = hf.name_or_path
    return twin.eval()
