"""AdaptedModel: a model seen through its active adapters, for scoring, hooks and generation.

An EditableModel over a twin of the user's model: the twin shares the memory of every weight, and
peft has put its modules around some of the twin's. Virtual tokens of prefix and prompt tuning are
put in front here:

    prefix  a cache of keys and values per layer stands in front of the tokens
    prompt  embeddings stand in front of the tokens'; only real positions are unembedded

Hooks see the virtual tokens of a prompt in front of the real ones. Knows nothing of how adapters
are made and which are active.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from editcl.errors import EditclError
from editcl.model import EditableModel, tensor_bytes

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from editcl.log import EditLog

TOP_K = 40  # of sampled tokens, as EditableModel.generate has it


class AdaptedModel(EditableModel):
    """A view of another model through adapters; made and switched by `Adapters`. Final.

    Attributes:
        origin: the model whose weights it shares; its log is this one's.
        peft: peft's wrapper around the twin; None before the first adapter.
        virtual: (kind, number) of the virtual tokens that are in front; None if there are none.
    """

    def __init__(self, origin: EditableModel, twin: PreTrainedModel) -> None:
        self.origin = origin
        self.peft: PeftModel | None = None
        self.virtual: tuple[str, int] | None = None
        super().__init__(twin, origin.tokenizer, name=origin.name)

    @property
    def log(self) -> EditLog:  # type: ignore[override]
        """The log of the model that it is a view of."""
        return self.origin.log

    @property
    def max_tokens(self) -> int:
        """The longest row that fits beside the virtual tokens."""
        return super().max_tokens - (self.virtual[1] if self.virtual else 0)

    def forward(
        self,
        inputs: Mapping[str, Any],
        *,
        keep: Int[Tensor, " n_kept"] | None = None,
        at: tuple[Int[Tensor, " n_at"], Int[Tensor, " n_at"]] | None = None,
        cache: Any = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> Float[Tensor, "n_rows n_kept d_vocab"]:
        """As `EditableModel.forward`; positions count the real tokens only.

        Raises:
            EditclError: a cache together with virtual tokens.
        """
        if self.virtual is None:
            return super().forward(inputs, keep=keep, at=at, cache=cache, weights=weights)
        self._require_no(cache)
        kind, n_virtual = self.virtual
        assert self.peft is not None, "virtual tokens come from an adapter"
        if "position_ids" in inputs:
            raise EditclError(f"{kind} adapters set positions themselves: leave position_ids out.")
        arguments = dict(inputs)
        mask, ids = arguments.get("attention_mask"), arguments["input_ids"]
        if mask is not None:
            front = mask.new_ones(len(mask), n_virtual)
            arguments["attention_mask"] = torch.cat([front, mask], dim=1)
        prompt = self.peft.get_prompt(batch_size=len(ids))
        if kind == "prefix":
            return super().forward(arguments, keep=keep, at=at, cache=prompt, weights=weights)
        del arguments["input_ids"]
        embedded = self.hf.get_input_embeddings()(ids)
        arguments["inputs_embeds"] = torch.cat([prompt.to(embedded.dtype), embedded], dim=1)
        # As a number it is counted from the end, so that `at` needs no shift.
        kept: Any = ids.shape[1] if keep is None else keep + n_virtual
        return super().forward({**arguments, "logits_to_keep": kept}, at=at, weights=weights)

    def forward_caching(
        self,
        inputs: Mapping[str, Any],
        *,
        last_only: bool = False,
        cache: Any = None,
    ) -> tuple[Float[Tensor, "n_rows n_kept d_vocab"], Any]:
        """As `EditableModel.forward_caching`.

        Raises:
            EditclError: there are virtual tokens in front.
        """
        self._require_no(object() if self.virtual else None)
        return super().forward_caching(inputs, last_only=last_only, cache=cache)

    def generate_ids(
        self, rows: Sequence[Sequence[int]], max_new_tokens: int, *, seed: int | None = None
    ) -> Int[Tensor, "n_rows n_new"]:
        """As `EditableModel.generate_ids`; behind virtual tokens one whole pass a token."""
        if self.virtual is None:
            return super().generate_ids(rows, max_new_tokens, seed=seed)
        longest = max(len(row) for row in rows) + max_new_tokens
        if longest > self.max_tokens:
            raise EditclError(
                f"{longest} tokens with the new ones; {self.max_tokens} fit beside the "
                f"{self.virtual[1]} virtual ones. Generate fewer, or shorten the prompt."
            )
        generator = torch.Generator().manual_seed(0 if seed is None else seed)
        new = torch.zeros(len(rows), max_new_tokens, dtype=torch.long)
        for length in sorted({len(row) for row in rows}):  # rows of one length need no padding
            chosen = [i for i, row in enumerate(rows) if len(row) == length]
            ids = torch.tensor([list(rows[i]) for i in chosen], device=self.device)
            for _ in range(max_new_tokens):
                token = self._next(ids, generator if seed is not None else None)
                ids = torch.cat([ids, token.to(self.device)[:, None]], dim=1)
            new[chosen] = ids[:, length:].cpu()
        return new.to(self.device)

    def _next(
        self, ids: Int[Tensor, "n_rows n_tokens"], generator: torch.Generator | None
    ) -> Int[Tensor, " n_rows"]:
        """The next token of each row; never one that ends the text."""
        last = torch.tensor([ids.shape[1] - 1], device=self.device)
        with torch.no_grad():
            logits = self.forward({"input_ids": ids}, keep=last)[:, 0].float().cpu()
        own = self.hf.generation_config
        ends = own.eos_token_id if own is not None else None
        if ends is not None:
            logits[:, ends] = float("-inf")
        if generator is None:
            return logits.argmax(-1)
        top = logits.topk(min(TOP_K, logits.shape[-1]), dim=-1)
        drawn = torch.multinomial(top.values.softmax(-1), 1, generator=generator)
        return top.indices.gather(-1, drawn)[:, 0]

    @contextmanager
    def at_base(self) -> Iterator[None]:
        """The base weights without logged edits inside; the adapters stay as they are."""
        with self.origin.at_base():
            yield

    def fingerprint(self, below: int | None = None) -> str:
        """That of the model behind; with adapters active, theirs are mixed in."""
        found = self.origin.fingerprint(below)
        active = [(n, p) for n, p in self.hf.named_parameters() if self._adapts(n)]
        if self.virtual is not None and self.peft is not None:
            key = self.peft.active_adapter
            active += list(self.peft.prompt_encoder[key].named_parameters())
        if not active:
            return found
        digest = hashlib.sha256(found.encode())
        for name, parameter in active:
            digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
            digest.update(tensor_bytes(parameter))
        return digest.hexdigest()

    def _adapts(self, name: str) -> bool:
        """Whether a parameter belongs to an adapter that is active in the twin's modules."""
        if self.peft is None or self.virtual is not None:
            return False
        return bool(set(self.peft.base_model.active_adapters) & set(name.split(".")))

    def _require_no(self, cache: Any) -> None:
        if cache is not None and self.virtual is not None:
            raise EditclError(
                f"a {self.virtual[0]} adapter puts tokens in front, so no cache can stand there. "
                "Pass whole rows."
            )
