"""EditableModel: an untouched Hugging Face model, its tokenizer, hook points and edit sites.

What it adds is reached by TransformerLens names on the model's own modules, so `save_pretrained`,
generation and peft keep working. It knows nothing of facts, methods or the log's contents.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import functional_call

from editcl.architecture import DownProjection, ModuleMap, build_bridge
from editcl.encoding import Row, Sentence, encode, pad
from editcl.errors import EditclError, FactError, NonFiniteError, UnsupportedModel
from editcl.hooks import Hook, HookFunction, StopForward, hooked, passed_through, run_at

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from editcl.log import EditLog


@dataclass(frozen=True)
class Scores:
    """Teacher-forced scores of targets after prompts.

    Attributes:
        log_prob: [n_rows] mean log-probability per target token.
        exact: [n_rows] whether every target token is the argmax.
        token_accuracy: [n_rows] share of target tokens that are the argmax.
    """

    log_prob: Float[Tensor, " n_rows"]
    exact: Tensor
    token_accuracy: Float[Tensor, " n_rows"]

    @property
    def prob(self) -> Float[Tensor, " n_rows"]:
        """exp of the mean per-token log-probability: CounterFact's p."""
        return self.log_prob.exp()


class EditableModel:
    """A Hugging Face decoder model with hook points and writable down-projections.

    Made by `editcl.load` or `editcl.wrap`.

    Attributes:
        hf: the Hugging Face model, never rewritten.
        tokenizer: its fast tokenizer.
        name: what it was loaded from.
        log: the edit log; every lasting change of the weights is an entry in it.
        n_layers, d_model, d_mlp, d_vocab: sizes.
    """

    log: EditLog

    def __init__(self, hf: PreTrainedModel, tokenizer: Any, *, name: str = "model") -> None:
        if tokenizer is None:
            raise UnsupportedModel(
                "the model has no tokenizer. Pass tokenizer=..., or save one into the model's "
                "folder (tokenizer.save_pretrained)."
            )
        if any(parameter.is_meta for parameter in hf.parameters()):
            raise UnsupportedModel(
                "the model has weights on the meta device: load them first, without offloading."
            )
        self.hf = hf.eval()
        self.tokenizer = tokenizer
        self.name = name
        self.map = ModuleMap(hf)
        self.n_layers = self.map.n_layers
        self.d_mlp, self.d_model = self.map.projections[0].weight.shape
        #: Results that depend on the base weights alone, under complete keys (see covariance.py).
        self.memo: dict[str, Any] = {}
        self.d_vocab = int(hf.get_input_embeddings().weight.shape[0])
        # transformers 5.24 renamed the argument and the output.
        renamed = "cache" in inspect.signature(type(hf).forward).parameters
        self._cache_name = "cache" if renamed else "past_key_values"
        self.pad_id = tokenizer.pad_token_id
        if self.pad_id is None:
            self.pad_id = tokenizer.eos_token_id or 0
        # Asked here rather than when first needed: a caller's hooks would see this forward pass.
        self._block_outputs = self._count_block_outputs()

    def __repr__(self) -> str:
        count = sum(p.numel() for p in self.hf.parameters())
        return (
            f"EditableModel({self.name}: {type(self.hf).__name__}, {count / 1e6:.1f}M parameters, "
            f"{self.n_layers} layers, d_model {self.d_model}, d_mlp {self.d_mlp}, "
            f"{str(self.dtype).removeprefix('torch.')} on {self.device})"
        )

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.hf.device

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the weights."""
        return self.hf.dtype

    @property
    def max_tokens(self) -> int:
        """The longest row that the model's positions allow."""
        config = self.hf.config
        return int(getattr(config, "max_position_embeddings", None) or 2**30)

    def down_projection(self, layer: int) -> DownProjection:
        """The matrix W [d_mlp, d_model] with value = key @ W at a layer.

        Raises:
            EditclError: there is no such layer.
        """
        if not 0 <= layer < self.n_layers:
            raise EditclError(f"layer {layer} is out of range: the model has {self.n_layers}.")
        return self.map.projections[layer]

    def check_finite(self) -> None:
        """Raises NonFiniteError if a parameter holds NaN or infinity."""
        for name, parameter in self.hf.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise NonFiniteError(
                    f"{name} holds NaN or infinite values. The model is broken before the edit: "
                    "reload it from its source."
                )

    def bridge(self) -> Any:
        """A TransformerBridge over a twin that shares every parameter with this model.

        Edits show in it and the other way round; this model stays clean. Pass it token ids.
        """
        return build_bridge(self.hf, self.tokenizer)

    # -- text to tokens -------------------------------------------------------------------------

    def encode(self, sentences: Sequence[Sentence]) -> list[Row]:
        """Token rows with the positions of subject and target.

        Raises:
            FactError: a text can't be encoded, or is longer than the model's positions.
            UnsupportedModel: the tokenizer is not the model's (token ids beyond the embedding).
        """
        rows = encode(self.tokenizer, sentences)
        for sentence, row in zip(sentences, rows, strict=True):
            if max(row.ids) >= self.d_vocab:
                raise UnsupportedModel(
                    f"the tokenizer gives token id {max(row.ids)}, but the model embeds "
                    f"{self.d_vocab} tokens: they don't belong together. Pass the model's own."
                )
            if len(row.ids) > self.max_tokens:
                text = sentence.subject or sentence.prompt
                raise FactError(
                    f"{text[:40]!r}... gives {len(row.ids)} tokens; the model takes at most "
                    f"{self.max_tokens}. Shorten the subject, prompt or object."
                )
        return rows

    def pad(
        self, rows: Sequence[Sequence[int]], *, left: bool = False
    ) -> dict[str, Int[Tensor, "n_rows n_tokens"]]:
        """Rows as the keyword arguments of a forward pass, padded at the right (or left)."""
        batch = pad(rows, self.pad_id, self.device, left=left)
        return {"input_ids": batch.ids, "attention_mask": batch.mask}

    # -- forward passes -------------------------------------------------------------------------

    def forward(
        self,
        inputs: Mapping[str, Any],
        *,
        keep: Int[Tensor, " n_kept"] | None = None,
        at: tuple[Int[Tensor, " n_at"], Int[Tensor, " n_at"]] | None = None,
        cache: Any = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> Float[Tensor, "n_rows n_kept d_vocab"]:
        """Logits at the kept positions (all if None); only these are unembedded.

        With `at`, pairs of row and position, they are the logits there, as one row. `weights`
        stand for the parameters of these names; nothing is written, and gradients reach them.

        Only ids, mask, positions and a cache are ever passed: some models add the embeddings of
        token types, which tokenizers return unasked. The keys and values of a cache stand in front
        of the tokens; those of the tokens are added to it.
        """
        arguments: dict[str, Any] = {**inputs, "use_cache": cache is not None}
        if cache is not None:
            arguments[self._cache_name] = cache
        if keep is not None:
            arguments["logits_to_keep"] = keep
        if at is None:
            return self._call(arguments, weights)
        handle = self.map.unembed.register_forward_pre_hook(lambda _, args: (args[0][at][None],))
        try:
            return self._call(arguments, weights)
        finally:
            handle.remove()

    def _call(self, arguments: dict[str, Any], weights: Mapping[str, Tensor] | None) -> Tensor:
        if not weights:
            return self.hf(**arguments).logits
        return functional_call(self.hf, dict(weights), (), arguments).logits

    def forward_caching(
        self,
        inputs: Mapping[str, Any],
        *,
        last_only: bool = False,
        cache: Any = None,
    ) -> tuple[Float[Tensor, "n_rows n_kept d_vocab"], Any]:
        """Logits at all positions or at the last, and the key-value cache behind them."""
        arguments: dict[str, Any] = {**inputs, "use_cache": True}
        if cache is not None:
            arguments[self._cache_name] = cache
        out = self.hf(**arguments, logits_to_keep=1 if last_only else 0)
        return out.logits, out[self._cache_name]

    @contextmanager
    def hooks(self, functions: Mapping[str, HookFunction]) -> Iterator[None]:
        """Calls `fn(activation, hook)` at TransformerLens hook points inside the block.

        A returned tensor replaces the activation. Names: `hook_embed`,
        `blocks.{i}.hook_resid_pre`, `blocks.{i}.hook_resid_post`, `blocks.{i}.hook_attn_out`,
        `blocks.{i}.mlp.hook_post` (the key: input of the down-projection),
        `blocks.{i}.mlp.out.hook_out` (the value: its output). Activations are
        [n_rows, n_tokens, d]. Activations may be views of live buffers: clone what you keep.

        Raises:
            EditclError: a name is not one of these.
        """
        with ExitStack() as stack:
            for name, function in functions.items():
                stack.enter_context(hooked(self.map, name, function))
            yield

    def run_with_cache(
        self, inputs: Mapping[str, Any], names: Iterable[str]
    ) -> tuple[Float[Tensor, "n_rows n_tokens d_vocab"], dict[str, Tensor]]:
        """Logits, and clones of the activations at the named hook points."""
        cache: dict[str, Tensor] = {}

        def save(activation: Tensor, hook: Hook) -> None:
            cache[hook.name] = activation.detach().clone()

        with torch.no_grad(), self.hooks(dict.fromkeys(names, save)):
            logits = self.forward(inputs)
        return logits, cache

    def activations(
        self, inputs: Mapping[str, Any], names: Sequence[str], *, cache: Any = None
    ) -> dict[str, Float[Tensor, "n_rows n_tokens d"]]:
        """Activations at hook points; the forward pass ends above the highest block needed."""
        found: dict[str, Tensor] = {}
        top = max(Hook(name).layer() for name in names)

        def save(activation: Tensor, hook: Hook) -> None:
            found[hook.name] = activation.detach().clone()

        with torch.no_grad(), self.hooks(dict.fromkeys(names, save)), self.stop_before(top + 1):
            self.forward(inputs, cache=cache)
        return found

    @contextmanager
    def stop_before(self, layer: int) -> Iterator[None]:
        """Ends a forward pass before the block; `layer` = n_layers lets it run to the end."""
        if layer >= self.n_layers:
            yield
            return

        def stop(*_: Any) -> None:
            raise StopForward

        handle = self.map.blocks[layer].register_forward_pre_hook(stop)
        try:
            yield
        except StopForward:
            pass
        finally:
            handle.remove()

    @contextmanager
    def start_at(
        self, layer: int, residual: Float[Tensor, "n_rows n_tokens d_model"]
    ) -> Iterator[None]:
        """Skips the blocks below `layer` and feeds it the given residual stream.

        Exact: the skipped blocks keep their place and hand their input through, and block
        `layer` gets the residual in its stead. Undone when the context ends.
        """
        with ExitStack() as stack:
            for block in self.map.blocks[:layer]:
                stack.enter_context(passed_through(block, self._block_outputs))
            hook = {f"blocks.{layer}.hook_resid_pre": lambda _activation, _hook: residual}
            stack.enter_context(self.hooks(hook))
            yield

    @contextmanager
    def narrowed(self, at: tuple[Int[Tensor, " n_at"], Int[Tensor, " n_at"]]) -> Iterator[None]:
        """The last block's output projection and MLP run at pairs of row and position alone.

        Exact there; elsewhere the block's output is not what it was, so that only logits at these
        pairs count. Parts that are no module of one tensor [n_rows, n_tokens, d] run as ever.
        """
        last = f"blocks.{self.n_layers - 1}"
        parts = [self.map.find(f"{last}.{name}") for name in ("attn.o", "mlp")]
        with ExitStack() as stack:
            for part in parts:
                if part is not None:
                    stack.enter_context(run_at(part, at))
            yield

    def _count_block_outputs(self) -> int | None:
        """How many values a block returns as a tuple; None where it returns the tensor alone."""
        found: list[Any] = []
        handle = self.map.blocks[0].register_forward_hook(lambda _m, _a, out: found.append(out))
        try:
            with torch.no_grad(), self.stop_before(1):
                self.forward(self.pad([[0]]))
        finally:
            handle.remove()
        return len(found[0]) if isinstance(found[0], tuple) else None

    # -- scoring and generation -----------------------------------------------------------------

    def score(self, sentences: Sequence[Sentence], *, tokens_per_batch: int = 4096) -> Scores:
        """Teacher-forced mean log-probability of each sentence's target; batched by length.

        Raises:
            FactError: a sentence has no target, or can't be encoded.
        """
        for sentence in sentences:
            if not sentence.target:
                raise FactError(f"no object to score after {sentence.prompt!r}. Give it a target.")
        rows = self.encode(sentences)
        log_prob = torch.zeros(len(rows), dtype=torch.float64)
        accuracy = torch.zeros(len(rows), dtype=torch.float64)
        for chosen in micro_batches([len(row.ids) for row in rows], tokens_per_batch):
            batch = [rows[i] for i in chosen]
            for i, (value, hits) in zip(chosen, self._score_rows(batch), strict=True):
                log_prob[i], accuracy[i] = value, hits
        return Scores(log_prob, accuracy == 1.0, accuracy)

    def _score_rows(self, rows: Sequence[Row]) -> list[tuple[float, float]]:
        # Objects of one token after the same words are told by one run of these words.
        places: dict[tuple[int, ...], int] = {}
        place = [places.setdefault(row.ids[:-1], len(places)) for row in rows]
        first = min(row.target_start for row in rows) - 1
        inputs = self.pad(list(places))
        keep = torch.arange(first, inputs["input_ids"].shape[1], device=self.device)
        target = self.pad([row.ids for row in rows])["input_ids"][:, first + 1 :]
        with torch.inference_mode():
            logits = self.forward(inputs, keep=keep).float()[place]
            log_probs = logits.log_softmax(-1)
            taken = log_probs.gather(-1, target[..., None])[..., 0].double().cpu()
            hits = (logits.argmax(-1) == target).cpu()
        result = []
        for i, row in enumerate(rows):
            where = slice(row.target_start - 1 - first, len(row.ids) - 1 - first)
            result.append((float(taken[i, where].mean()), float(hits[i, where].double().mean())))
        return result

    def generate(
        self,
        prompts: Sequence[str],
        max_new_tokens: int,
        *,
        seed: int | None = None,
        batch_size: int = 64,
    ) -> list[str]:
        """Continuations, greedy, or sampled (top-k 40) with a seed; the global RNG is untouched."""
        rows = self.encode([Sentence(prompt) for prompt in prompts])
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
        texts = [""] * len(rows)
        for begin in range(0, len(order), batch_size):
            chosen = order[begin : begin + batch_size]
            new = self.generate_ids(
                [rows[i].ids for i in chosen],
                max_new_tokens,
                seed=None if seed is None else seed + begin,
            )
            decoded = self.tokenizer.batch_decode(new, skip_special_tokens=True)
            for i, text in zip(chosen, decoded, strict=True):
                texts[i] = text
        return texts

    def generate_ids(
        self, rows: Sequence[Sequence[int]], max_new_tokens: int, *, seed: int | None = None
    ) -> Int[Tensor, "n_rows n_new"]:
        """New token ids after each row (left-padded batch); see `generate`.

        Raises:
            EditclError: the rows get longer than the model's positions.
        """
        from transformers import GenerationConfig

        longest = max(len(row) for row in rows) + max_new_tokens
        if longest > self.max_tokens:
            raise EditclError(
                f"{longest} tokens with the new ones; the model takes at most {self.max_tokens}. "
                "Generate fewer, or shorten the prompt."
            )
        own = self.hf.generation_config
        plain = GenerationConfig(
            max_new_tokens=max_new_tokens,
            min_new_tokens=max_new_tokens,
            pad_token_id=self.pad_id,
            eos_token_id=own.eos_token_id if own is not None else None,
            **({"do_sample": False} if seed is None else {"do_sample": True, "top_k": 40}),
        )
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.inference_mode():
            torch.manual_seed(0 if seed is None else seed)
            inputs = self.pad(rows, left=True)
            try:
                # What generate() is not told, it takes from here: a checkpoint's penalties and
                # beams would make "greedy" something else.
                self.hf.generation_config = plain
                out = self.hf.generate(**inputs, generation_config=plain)
            finally:
                self.hf.generation_config = own
        return out[:, inputs["input_ids"].shape[1] :]

    @contextmanager
    def at_base(self) -> Iterator[None]:
        """The base weights are in place inside; the logged edits are back when it ends."""
        base = self.log.base_weights()
        named = {n: p for n, p in self.hf.named_parameters() if n in base}
        edited = {name: parameter.detach().clone() for name, parameter in named.items()}
        try:
            for name, parameter in named.items():
                parameter.data.copy_(base[name])
            yield
        finally:
            for name, parameter in named.items():
                parameter.data.copy_(edited[name])

    # -- identity -------------------------------------------------------------------------------

    def fingerprint(self, below: int | None = None) -> str:
        """SHA-256 of architecture and base weights (logged edits taken out), as hex.

        Args:
            below: only what the key at layer `below` depends on: embeddings and lower blocks,
                as they are now, plus that block without its down-projection.
        """
        digest = hashlib.sha256(type(self.hf).__name__.encode())
        base = {} if below is not None else self.log.base_weights()
        skip = self._above(below) if below is not None else set()
        for name, parameter in sorted(self.hf.named_parameters()):
            if name not in skip:
                digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
                digest.update(tensor_bytes(base.get(name, parameter)))
        return digest.hexdigest()

    def _above(self, layer: int) -> set[str]:
        """Names of the parameters that can't change the key at a layer."""
        prefixes = [f"{self.map.path(f'blocks.{i}')}." for i in range(layer + 1, self.n_layers)]
        names = {
            name
            for name, _ in self.hf.named_parameters()
            if any(name.startswith(prefix) for prefix in prefixes)
        }
        return names | {self.down_projection(layer).name}


def tensor_bytes(tensor: Tensor) -> memoryview:
    """A tensor's bytes in memory order, copied to the CPU if need be."""
    return tensor.detach().cpu().contiguous().view(torch.uint8).reshape(-1).numpy().data


def micro_batches(lengths: Sequence[int], tokens_per_batch: int) -> Iterator[list[int]]:
    """Indices grouped by length, each group within a budget of padded tokens."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    group: list[int] = []
    for i in order:
        if group and lengths[i] * (len(group) + 1) > tokens_per_batch:
            yield group
            group = []
        group.append(i)
    if group:
        yield group
