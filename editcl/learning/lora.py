"""Adapters: a bank of peft adapters over a model that stays untouched.

peft rewrites the model that it is given. So it gets a twin: modules of its own, the weights those
of the user's model, in the same memory. Edits of the base show through every adapter at once,
`model.hf` keeps its modules, its names and its flags, and with no adapter active the twin computes
what the model computes, bit for bit. LoRA and DoRA share one twin; each other kind has its own.

    logits with {a, b} active = f(x; W + s_a B_a A_a + s_b B_b A_b)

Knows nothing of tasks, training and the log. Long because the whole surface of a bank is here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from editcl.errors import EditclError, NonFiniteError, UnsupportedModel
from editcl.learning.compose import summed
from editcl.learning.files import export_merged, read_adapter, save_adapter
from editcl.learning.kinds import LOW_RANK, AdapterSettings, peft_config
from editcl.learning.twins import NOBODY, Twin
from editcl.learning.view import AdaptedModel
from editcl.model import EditableModel

BASE = NOBODY  # the name of no adapter, in per-row routing
HOME = "lora"  # the family whose twin also computes the base


@dataclass(frozen=True)
class _Adapter:
    """One adapter: its settings, the name that peft knows it by, and where it lives."""

    settings: AdapterSettings
    key: str
    family: str


class Adapters:
    """The adapters of one model. Not thread-safe.

    Args:
        model: the model that they adapt; it is not changed.
    """

    def __init__(self, model: EditableModel) -> None:
        self.model = model
        self._twins: dict[str, Twin] = {}
        self._adapters: dict[str, _Adapter] = {}
        self._active: tuple[str, ...] = ()
        self._made = 0
        self._base: str | None = None

    def __repr__(self) -> str:
        listed = ", ".join(f"{n} ({a.settings.kind})" for n, a in self._adapters.items())
        return f"Adapters({self.model.name}: {listed or 'none'})"

    # -- looking ----------------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        """All adapters, in the order in which they came."""
        return tuple(self._adapters)

    @property
    def active(self) -> tuple[str, ...]:
        """The adapters that forward passes go through now; () is the base."""
        return self._active

    @property
    def view(self) -> AdaptedModel:
        """The model through the adapters that are active now: for scoring, hooks, generation.

        Which object it is depends on the kind that is active; ask for it inside `using`.
        """
        found = self._twin(self._adapters[self._active[0]].family if self._active else HOME)
        found.require_shared()
        return found.view

    @property
    def base(self) -> str:
        """The fingerprint of the base model, computed once."""
        if self._base is None:
            self._base = self.model.fingerprint()
        return self._base

    def settings(self, name: str) -> AdapterSettings:
        """How an adapter was made."""
        return self._find(name).settings

    def trainable(self, name: str) -> dict[str, nn.Parameter]:
        """An adapter's parameters by peft's own names, those of `state`.

        A new adapter's ask for gradients; the flags are the caller's, and `using` leaves them be.
        """
        adapter = self._find(name)
        return self._twin(adapter.family).parameters(adapter.key)

    def state(self, name: str) -> dict[str, Tensor]:
        """An adapter's tensors, cloned to the CPU, by the names that peft saves them under."""
        return {
            key: parameter.detach().to("cpu", copy=True).contiguous()
            for key, parameter in self.trainable(name).items()
        }

    # -- adding and removing ----------------------------------------------------------------------

    def add(self, name: str, settings: AdapterSettings, *, seed: int) -> None:
        """Makes a new adapter; the global random state is left as it is.

        Raises:
            EditclError: the name is taken or unfit, or the settings fit no module.
            UnsupportedModel: it would train nothing on this architecture.
        """
        self._require_free(name)
        family = HOME if settings.kind in LOW_RANK else settings.kind
        config = peft_config(self.model, settings)
        adapter = _Adapter(settings, f"a{self._made}", family)
        self._twin(family).add(adapter.key, config, seed)
        self._made += 1
        self._adapters[name] = adapter
        if not self.trainable(name):
            self.remove(name)
            raise UnsupportedModel(
                f"{settings.kind} trains nothing on a {type(self.model.hf).__name__}. Choose "
                "another kind or other targets."
            )

    def remove(self, name: str) -> None:
        """Forgets an adapter.

        Raises:
            EditclError: there is none of that name, or it is active.
        """
        adapter = self._find(name)
        if name in self._active:
            raise EditclError(f"{name!r} is active. Leave `using` before you remove it.")
        self._twin(adapter.family).remove(adapter.key)
        del self._adapters[name]

    def load(self, name: str, settings: AdapterSettings, tensors: Mapping[str, Tensor]) -> None:
        """Gives an adapter these tensors, bit for bit; makes it if there is none of that name.

        Raises:
            EditclError: the tensors are another model's, or of other settings; or the name is an
                adapter's of other settings. Nothing is changed.
            NonFiniteError: a tensor holds NaN or infinity.
        """
        new = name not in self._adapters
        if new:
            self.add(name, settings, seed=0)
        elif self.settings(name) != settings:
            raise EditclError(
                f"the adapter {name!r} has other settings ({self.settings(name)}). Remove it, or "
                "load under another name."
            )
        try:
            self._check_tensors(name, tensors)
        except EditclError:
            if new:
                self.remove(name)
            raise
        with torch.no_grad():
            for key, parameter in self.trainable(name).items():
                parameter.copy_(tensors[key])

    def compose(self, names: Sequence[str], into: str) -> None:
        """Makes one LoRA adapter that is the exact sum of others; they stay as they are.

        Raises:
            EditclError: they are not LoRA, have different targets, or the name is taken.
        """
        parts = [(self.settings(name), self.state(name)) for name in names]
        settings, tensors = summed(names, parts)
        self._require_free(into)
        self.load(into, settings, tensors)

    # -- forward passes ---------------------------------------------------------------------------

    @contextmanager
    def using(self, names: Iterable[str]) -> Iterator[None]:
        """Forward passes go through these adapters inside; () is the base. May be nested.

        Several LoRA adapters add up. Other kinds don't, so of them one is active at a time. Flags
        of gradients stay as they are.

        Raises:
            EditclError: there is no such adapter, one is named twice, or they don't add up.
        """
        names = tuple(names)
        self._check_together(names)
        before = self._active
        self._activate(names)
        try:
            yield
        finally:
            self._activate(before)

    @contextmanager
    def dropping(self) -> Iterator[None]:
        """The dropout of the active adapters works inside; the base's never does."""
        keys = [self._adapters[name].key for name in self._active]
        parts = self._twin(HOME).dropouts(keys)
        for part in parts:
            part.train()
        try:
            yield
        finally:
            for part in parts:
                part.eval()

    def logits(
        self,
        inputs: Mapping[str, Any],
        *,
        rows: Sequence[str] | None = None,
        keep: Int[Tensor, " n_kept"] | None = None,
    ) -> Float[Tensor, "n_rows n_kept d_vocab"]:
        """Logits through the active adapters, or through one adapter for each row.

        Args:
            inputs: as those of `EditableModel.forward`.
            rows: for each row of the inputs the adapter that it goes through, "__base__" for none;
                those that are active don't count then. LoRA rows make one forward pass on the
                view of `using(())`; rows of other kinds one for each adapter (`one_pass`).
            keep: the positions whose logits are wanted; all if None.
        """
        if rows is None:
            return self.view.forward(inputs, keep=keep)
        if len(rows) != len(inputs["input_ids"]):
            raise EditclError(
                f"{len(rows)} adapters for {len(inputs['input_ids'])} rows: name one for each row."
            )
        if len({*rows}) == 1:
            with self.using(() if rows[0] == BASE else rows[:1]):
                return self.view.forward(inputs, keep=keep)
        if not self.one_pass(rows):
            return self._grouped(inputs, rows, keep)
        keys = [BASE if name == BASE else self._find(name).key for name in rows]
        with self.using(()):
            self._twin(HOME).require_shared()
            return self._twin(HOME).mixed(inputs, keys, keep)

    def one_pass(self, rows: Sequence[str]) -> bool:
        """Whether `logits` takes these rows in one forward pass, on the view of `using(())`."""
        kinds = {self._find(name).settings.kind for name in rows if name != BASE}
        return kinds <= {"lora"}

    # -- out of the bank --------------------------------------------------------------------------

    def save(self, name: str, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Writes an adapter in peft's own format, with the fingerprint of the base beside it.

        Raises:
            LogError: the folder is not empty, or can't be written.
        """
        adapter = self._find(name)
        config = self._twin(adapter.family).peft.peft_config[adapter.key]
        return save_adapter(
            folder, config, adapter.settings, self.state(name), base=self.base, overwrite=overwrite
        )

    def read(self, folder: str | Path, name: str) -> None:
        """Adds an adapter that `save` has written.

        Raises:
            EditclError: the folder is no saved adapter, of another base, or damaged.
        """
        settings, tensors = read_adapter(folder, base=self.base)
        self._require_free(name)
        self.load(name, settings, tensors)

    def export_merged(
        self, folder: str | Path, names: Sequence[str], *, overwrite: bool = False
    ) -> Path:
        """Saves a copy of the model, as edited now, with adapters merged into its weights.

        Raises:
            EditclError: nothing to merge, or a kind that can't be.
            LogError: the folder is not empty, or can't be written.
        """
        self._check_together(tuple(names))
        parts = [(self.settings(name), self.state(name)) for name in names]
        return export_merged(self.model, parts, folder, overwrite=overwrite)

    # -- helpers ----------------------------------------------------------------------------------

    def _find(self, name: str) -> _Adapter:
        if name not in self._adapters:
            known = ", ".join(map(repr, self._adapters)) or "none yet"
            raise EditclError(f"there is no adapter {name!r}; the bank has {known}.")
        return self._adapters[name]

    def _require_free(self, name: str) -> None:
        if not name or name == BASE:
            raise EditclError(f"an adapter can't be named {name!r}. Choose another name.")
        if name in self._adapters:
            raise EditclError(f"there is an adapter {name!r} already. Remove it, or choose a name.")

    def _twin(self, family: str) -> Twin:
        if family not in self._twins:
            self._twins[family] = Twin(self.model)
        return self._twins[family]

    def _activate(self, names: tuple[str, ...]) -> None:
        """Makes exactly these adapters active."""
        chosen = [self._adapters[name] for name in names]
        for family, one in self._twins.items():
            one.switch([adapter.key for adapter in chosen if adapter.family == family])
        self._active = names

    def _check_together(self, names: tuple[str, ...]) -> None:
        kinds = [self._find(name).settings.kind for name in names]
        if len({*names}) < len(names):
            raise EditclError(f"an adapter is named twice in {list(names)}.")
        if len(names) > 1 and {*kinds} != {"lora"}:
            listed = ", ".join(f"{n} ({k})" for n, k in zip(names, kinds, strict=True))
            raise EditclError(
                f"{listed} can't be active together: only the changes of LoRA adapters add up. "
                "Use one at a time."
            )

    def _check_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        own, kind = self.trainable(name), type(self.model.hf).__name__
        odd = sorted(own.keys() ^ tensors.keys())
        if odd:
            raise EditclError(
                f"these are not the tensors of such an adapter of this {kind}: {odd[0]} is "
                f"{'missing' if odd[0] in own else 'not its own'}, and {len(odd) - 1} more differ. "
                "They belong to another base model or to other settings."
            )
        for key, parameter in own.items():
            shapes = tuple(tensors[key].shape), tuple(parameter.shape)
            if shapes[0] != shapes[1]:
                raise EditclError(
                    f"{key} is {shapes[0]}, and should be {shapes[1]}: the adapter is of another "
                    "rank, another size or another base model."
                )
            if not bool(torch.isfinite(tensors[key]).all()):
                raise NonFiniteError(
                    f"{key} of the adapter {name!r} holds NaN or infinity: the training that made "
                    "it has diverged. Train again with a lower learning rate."
                )

    def _grouped(
        self, inputs: Mapping[str, Any], rows: Sequence[str], keep: Int[Tensor, " n_kept"] | None
    ) -> Float[Tensor, "n_rows n_kept d_vocab"]:
        """One forward pass for each adapter among the rows."""
        found: dict[int, Tensor] = {}
        for name in dict.fromkeys(rows):
            chosen = [i for i, row in enumerate(rows) if row == name]
            part = {key: value[chosen] for key, value in inputs.items()}
            with self.using(() if name == BASE else (name,)):
                found |= zip(chosen, self.view.forward(part, keep=keep), strict=True)
        return torch.stack([found[i] for i in range(len(rows))])
