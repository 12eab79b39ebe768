"""What an adapter is made of: its settings, the modules it goes to, and peft's own configuration.

    lora    W x + (alpha / rank) B A x                     arXiv:2106.09685
    dora    m * (W + (alpha / rank) B A) x / |W + ...|     arXiv:2402.09353 (|.| by output)
    ia3     l * (W x) for keys and values, W (l * x) for the down-projection, arXiv:2205.05638
    prefix  keys and values in front of each layer's own   arXiv:2101.00190
    prompt  embeddings in front of the tokens'             arXiv:2104.08691

Modules are found by way of the architecture map, as sites of edits are: what is linear inside the
attention of a block, and what else is linear in the block. A fused projection of queries, keys and
values is one module, which (IA)^3 then scales whole: queries too, other than in the paper.
Knows nothing of weights, training and files.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from editcl.architecture import ModuleMap
from editcl.errors import EditclError, UnsupportedModel
from editcl.model import EditableModel

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

KINDS = ("lora", "dora", "ia3", "prefix", "prompt")
LOW_RANK = ("lora", "dora")  # live side by side in the same modules
VIRTUAL = ("prefix", "prompt")  # put virtual tokens in front instead of changing modules
INITS = ("default", "gaussian", "orthogonal")
_INITS_THAT_WRITE = ("pissa", "olora", "corda", "loftq", "lora_ga", "kasa")


@dataclass(frozen=True)
class AdapterSettings:
    """How an adapter is made; what its kind has no use for is left at the default.

    Attributes:
        kind: "lora", "dora", "ia3", "prefix" or "prompt".
        rank: of the change of each module (lora, dora).
        alpha: its scale is alpha / rank (lora, dora).
        dropout: on the input of the adapter in training (lora, dora).
        targets: "all" linear modules of the blocks, those of the "attention" or the "mlp", or
            names of modules as their paths end ("q_proj", "mlp.c_proj"). For ia3 the first three
            mean keys, values and down-projections.
        virtual_tokens: how many are put in front (prefix, prompt).
        init: of A ("default" or "gaussian"), or of A and B ("orthogonal"; lora only). None of
            them touches the base; a new LoRA changes nothing unless it is orthogonal.

    Raises:
        EditclError: a value is out of range, or not of the kind.
    """

    kind: str = "lora"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: str | tuple[str, ...] = "all"
    virtual_tokens: int = 8
    init: str = "default"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise EditclError(
                f"unknown kind of adapter {self.kind!r}: use one of {_listed(KINDS)}."
            )
        for name in ("rank", "virtual_tokens"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise EditclError(f"{name} must be a whole number of at least 1, got {value!r}.")
        if not (_is_number(self.alpha) and self.alpha > 0):
            raise EditclError(f"alpha must be a positive number, got {self.alpha!r}.")
        if not (_is_number(self.dropout) and 0 <= self.dropout < 1):
            raise EditclError(f"dropout must be at least 0 and below 1, got {self.dropout!r}.")
        self._check_targets()
        self._check_init()
        self._check_kind()

    def _check_targets(self) -> None:
        if isinstance(self.targets, str):
            if self.targets not in ("all", "attention", "mlp"):
                raise EditclError(
                    f"unknown targets {self.targets!r}: use 'all', 'attention', 'mlp', or a tuple "
                    f"of module names such as ({self.targets!r},)."
                )
        elif not self.targets or not all(isinstance(t, str) and t for t in self.targets):
            raise EditclError(f"targets must be names of modules, got {self.targets!r}.")

    def _check_init(self) -> None:
        if self.init.startswith(_INITS_THAT_WRITE):
            raise EditclError(
                f"the initialisation {self.init!r} changes the base weights, which only the log "
                f"may do: without the adapter, the model would be another. Use {_listed(INITS)}."
            )
        if self.init not in INITS:
            raise EditclError(f"unknown init {self.init!r}: use one of {_listed(INITS)}.")
        if self.init == "orthogonal" and (self.kind != "lora" or self.rank % 2):
            raise EditclError(
                "the orthogonal initialisation is for lora of an even rank; this is "
                f"{self.kind} of rank {self.rank}. Use init='default'."
            )

    def _check_kind(self) -> None:
        """A setting that the kind can't heed is refused where it asks for something."""
        if self.kind not in LOW_RANK and (self.dropout or self.init != "default"):
            raise EditclError(
                f"{self.kind} has neither dropout nor a choice of init: leave them out."
            )
        if self.kind in VIRTUAL and self.targets != "all":
            raise EditclError(f"{self.kind} puts tokens in front and has no target modules.")

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / self.rank

    def to_json(self) -> dict[str, Any]:
        """All settings as plain JSON."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if not isinstance(self.targets, str):
            values["targets"] = list(self.targets)
        return values

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> AdapterSettings:
        """The settings again.

        Raises:
            EditclError: a field is missing, unknown, of another type or out of range.
        """
        types: dict[str, tuple[type, ...]] = {
            "kind": (str,), "rank": (int,), "alpha": (int, float), "dropout": (int, float),
            "targets": (str, list, tuple), "virtual_tokens": (int,), "init": (str,),
        }  # fmt: skip
        if body.keys() != types.keys():
            odd = ", ".join(sorted(body.keys() ^ types.keys()))
            raise EditclError(f"these are no adapter settings: {odd} missing or unknown.")
        for name, allowed in types.items():
            if not isinstance(body[name], allowed) or isinstance(body[name], bool):
                raise EditclError(f"the adapter setting {name} can't be {body[name]!r}.")
        values = dict(body)
        if not isinstance(values["targets"], str):
            values["targets"] = tuple(values["targets"])
        return cls(**values | {n: float(values[n]) for n in ("alpha", "dropout")})


def target_paths(
    model: PreTrainedModel, modules: ModuleMap, settings: AdapterSettings
) -> list[str]:
    """Paths of the modules that an adapter goes to, in the order of the model.

    Raises:
        UnsupportedModel: the architecture has none that are meant, or no attention that can be
            told from the rest.
        EditclError: a name of a module fits none.
    """
    linear = [p for i in range(modules.n_layers) for p in _linear(model, modules, i)]
    if isinstance(settings.targets, tuple):
        found = [p for p in linear if _ends(p, settings.targets)]
        for name in settings.targets:
            if not any(_ends(p, (name,)) for p in linear):
                ends = dict.fromkeys(path.rpartition(".")[2] for path in linear)
                raise EditclError(
                    f"no linear module of {type(model).__name__} ends in {name!r}; its blocks have "
                    f"{_listed(ends)}."
                )
    elif settings.kind == "ia3":
        found = _ia3_paths(modules, settings.targets)
    elif settings.targets == "all":
        found = linear
    else:
        inside = [_attention(model, modules, i) + "." for i in range(modules.n_layers)]
        attention = settings.targets == "attention"
        found = [p for p in linear if p.startswith(tuple(inside)) == attention]
    if not found:
        raise UnsupportedModel(
            f"{settings.kind} on {settings.targets!r} would train nothing on a "
            f"{type(model).__name__}: its blocks have no such linear modules. Choose other targets "
            "or another kind."
        )
    return found


def wrapped(hf: Any, config: Any, name: str = "default") -> Any:
    """A Hugging Face model in peft's wrapper, with one new adapter; the model gets its modules."""
    from peft import get_peft_model

    with warnings.catch_warnings():
        # peft's and transformers' own affair, which no caller can do anything about.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        return get_peft_model(hf, config, adapter_name=name)


def peft_config(model: EditableModel, settings: AdapterSettings) -> PeftConfig:
    """peft's configuration of an adapter; targets are whole paths, so that none is hit by chance.

    Raises:
        UnsupportedModel, EditclError: as `target_paths`.
    """
    import peft

    hf, modules = model.hf, model.map
    base = {"task_type": "CAUSAL_LM", "base_model_name_or_path": hf.name_or_path or None}
    if settings.kind in VIRTUAL:
        if settings.kind == "prefix":
            n_heads, d_head = _key_shape(model)
            return peft.PrefixTuningConfig(
                num_virtual_tokens=settings.virtual_tokens,
                num_layers=model.n_layers,
                num_attention_heads=n_heads,
                token_dim=n_heads * d_head,
                **base,
            )
        # Rows of the vocabulary: random vectors of the size of no token learn slowly.
        init = peft.PromptTuningInit.SAMPLE_VOCAB
        return peft.PromptTuningConfig(
            num_virtual_tokens=settings.virtual_tokens, prompt_tuning_init=init, **base
        )
    paths = target_paths(hf, modules, settings)
    base["fan_in_fan_out"] = _stored_in_out(hf, paths)
    if settings.kind == "ia3":
        down = {modules.path(f"blocks.{i}.mlp.out") for i in range(modules.n_layers)}
        inputs = [path for path in paths if path in down]
        return peft.IA3Config(target_modules=paths, feedforward_modules=inputs, **base)
    return peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        use_dora=settings.kind == "dora",
        init_lora_weights=True if settings.init == "default" else settings.init,
        target_modules=paths,
        bias="none",
        **base,
    )


def _key_shape(model: EditableModel) -> tuple[int, int]:
    """Heads and width of what a layer keeps as keys; configurations name them in too many ways.

    Raises:
        UnsupportedModel: the layers differ, or don't keep keys.
    """
    with torch.no_grad():
        _, cache = model.forward_caching(model.pad([[0]]), last_only=True)
    keys = [getattr(layer, "keys", None) for layer in getattr(cache, "layers", ())]
    shapes = {None if key is None else (key.shape[1], key.shape[3]) for key in keys}
    shape = next(iter(shapes), None)
    if len(shapes) != 1 or shape is None or len(keys) != model.n_layers:
        raise UnsupportedModel(
            f"prefix tuning needs layers that keep keys of one shape; those of "
            f"{type(model.hf).__name__} don't. Use another kind."
        )
    return shape


def _linear(model: PreTrainedModel, modules: ModuleMap, layer: int) -> list[str]:
    """Paths of the linear modules of a block."""
    from transformers.pytorch_utils import Conv1D

    block = modules.path(f"blocks.{layer}")
    found = model.get_submodule(str(block)).named_modules()
    return [f"{block}.{name}" for name, part in found if isinstance(part, nn.Linear | Conv1D)]


def _attention(model: PreTrainedModel, modules: ModuleMap, layer: int) -> str:
    path = modules.path(f"blocks.{layer}.attn")
    if path is None:
        raise UnsupportedModel(
            f"{type(model).__name__}: the attention of layer {layer} can't be told from the rest "
            "of the block. Use targets='all', or name the modules."
        )
    return path


def _ia3_paths(modules: ModuleMap, targets: str) -> list[str]:
    parts = {"attention": ("attn.k", "attn.v", "attn.qkv"), "mlp": ("mlp.out",)}
    chosen = parts.get(targets, (*parts["attention"], *parts["mlp"]))
    names = [f"blocks.{i}.{part}" for i in range(modules.n_layers) for part in chosen]
    return [path for path in map(modules.path, names) if path is not None]


def _stored_in_out(model: PreTrainedModel, paths: list[str]) -> bool:
    """Whether the modules store [in, out] (Conv1D); peft asks for one answer for all of them."""
    kinds = {isinstance(model.get_submodule(path), nn.Linear) for path in paths}
    if len(kinds) > 1:
        raise UnsupportedModel(
            f"{type(model).__name__} mixes Linear and Conv1D modules, and peft takes adapters of "
            "one of them only. Name targets of one kind."
        )
    return kinds == {False}


def _ends(path: str, names: tuple[str, ...]) -> bool:
    return any(path == name or path.endswith(f".{name}") for name in names)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _listed(names: Any) -> str:
    return ", ".join(repr(name) for name in names)
