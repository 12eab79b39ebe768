"""C_l = E[k k^T]: the uncentred second moment of the keys over ordinary text, per layer.

All layers share one pass over the text. Without a corpus the base model writes its own text;
`Covariance.source` says so. Cached on disk under everything that it depends on. Always taken on
the base weights: edits in the log are lifted meanwhile. Knows nothing of facts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from editcl.editing.cache import cache_folder, keep
from editcl.encoding import Sentence, encode
from editcl.errors import EditclError, NonFiniteError
from editcl.kernels import fused_activations
from editcl.model import EditableModel, Hook

SAMPLED_ROW_TOKENS = 96
CORPUS_ROW_TOKENS = 1024
DAMPING = 1e-3  # of the mean of C's diagonal
GRAM_BLOCK = 256  # columns; narrower ones are slower than what they save


@dataclass(frozen=True)
class Covariance:
    """The second moment of one layer's keys.

    Attributes:
        layer: the layer.
        moment: [d_mlp, d_mlp] float32, mean over tokens of k k^T.
        tokens: how many keys it was taken over.
        source: where the text came from.
    """

    layer: int
    moment: Float[Tensor, "d_mlp d_mlp"]
    tokens: int
    source: str
    _factor: list[Tensor] = field(default_factory=list, repr=False, compare=False)
    _damped: list[Covariance] = field(default_factory=list, repr=False, compare=False)
    _eigen: list[tuple[Tensor, Tensor]] = field(default_factory=list, repr=False, compare=False)

    def damped(self) -> Covariance:
        """C + DAMPING mean(diag C) I, made once.

        Where keys never point, C^-1 is huge, and so would be the update; damping makes it smaller
        by an order of magnitude at the same efficacy and specificity.
        """
        if not self._damped:
            moment = self.moment.clone()
            moment.diagonal().add_(DAMPING * moment.diagonal().mean())
            self._damped.append(Covariance(self.layer, moment, self.tokens, self.source))
        return self._damped[0]

    def eigen(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues of C, ascending, and its eigenvectors [d_mlp, d_mlp], float64, found once."""
        if not self._eigen:
            self._eigen.append(tuple(torch.linalg.eigh(self.moment.double())))
        return self._eigen[0]

    def spectrum(self) -> Float[Tensor, " d_mlp"]:
        """Eigenvalues of C alone, ascending, float64; half the time of `eigen`."""
        return self._eigen[0][0] if self._eigen else torch.linalg.eigvalsh(self.moment.double())

    def solve(self, keys: Float[Tensor, "d_mlp n_keys"]) -> Float[Tensor, "d_mlp n_keys"]:
        """C^-1 keys, by a float64 Cholesky factor that is computed once."""
        if not self._factor:
            self._factor.append(_cholesky(self.moment, self.layer))
        solved = torch.cholesky_solve(keys.double().to(self._factor[0].device), self._factor[0])
        return solved.to(keys.device)


def _cholesky(moment: Tensor, layer: int) -> Tensor:
    """Factor of C + epsilon I; epsilon only guards against units that never fire (ReLU)."""
    matrix = moment.double()
    epsilon = 1e-9 * matrix.diagonal().mean()
    factor, info = torch.linalg.cholesky_ex(
        matrix + epsilon * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    )
    if int(info):
        factor, info = torch.linalg.cholesky_ex(
            matrix
            + 1e4 * epsilon * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        )
    if int(info):
        raise EditclError(
            f"the covariance of layer {layer} is singular: too little text for its size. "
            "Pass more tokens (10 per unit of d_mlp suffice)."
        )
    return factor


def covariances(
    model: EditableModel,
    layers: Sequence[int],
    *,
    texts: Sequence[str] | None = None,
    tokens: int | None = None,
    seed: int = 0,
    cache: bool = True,
) -> dict[int, Covariance]:
    """C of each layer, from memory, disk, or one pass over the text for all missing layers.

    Args:
        model: the model; its base weights count.
        layers: which layers.
        texts: a corpus; without it the base model samples its own text.
        tokens: how many tokens to use; by default 20 per unit of d_mlp (all of a given corpus).
        seed: of the sampling.
        cache: keep the result on disk (`cache_folder`).

    Raises:
        EditclError: the corpus is empty.
        NonFiniteError: the keys are not finite.
    """
    wanted = 20 * model.d_mlp if tokens is None and texts is None else tokens
    corpus = "sampled" if texts is None else hashlib.sha256("\0".join(texts).encode()).hexdigest()
    keys = {layer: _cache_key(model, layer, f"{corpus}-{wanted}-{seed}") for layer in layers}
    found: dict[int, Covariance] = {}
    for layer, key in keys.items():
        if key not in model.memo:
            stored = _read(layer, key, model) if cache else None
            if stored is not None:
                model.memo[key] = stored
        if key in model.memo:
            found[layer] = model.memo[key]
    missing = [layer for layer in layers if layer not in found]
    if missing:
        with model.at_base():
            rows = sample_rows(model, wanted, seed) if texts is None else corpus_rows(model, texts)
            measured = measure(model, missing, rows, tokens=wanted, sampled=texts is None)
        for layer, covariance in measured.items():
            found[layer] = model.memo[keys[layer]] = covariance
            if cache:
                _write(covariance, keys[layer])
    return found


def sample_rows(model: EditableModel, tokens: int | None, seed: int) -> list[list[int]]:
    """Rows of token ids that the model writes by itself, from its start token on."""
    assert tokens is not None, "sampling needs a number of tokens"
    start = model.tokenizer.bos_token_id
    row = [model.pad_id if start is None else start]
    length = min(SAMPLED_ROW_TOKENS, model.max_tokens - 1)
    count = -(-tokens // length)
    rows: list[list[int]] = []
    for begin in range(0, count, 128):
        new = model.generate_ids([row] * min(128, count - begin), length, seed=seed + begin)
        rows += new.tolist()
    return rows


def corpus_rows(model: EditableModel, texts: Sequence[str]) -> list[list[int]]:
    """Rows of token ids; texts longer than the model's positions become several rows."""
    encoded = encode(model.tokenizer, [Sentence(text) for text in texts if text.strip()])
    if not encoded:
        raise EditclError("the corpus for the covariance is empty: give texts with words in them.")
    length = min(CORPUS_ROW_TOKENS, model.max_tokens)
    return [
        list(row.ids[begin : begin + length])
        for row in encoded
        for begin in range(0, len(row.ids), length)
    ]


def measure(
    model: EditableModel,
    layers: Sequence[int],
    rows: Sequence[Sequence[int]],
    *,
    tokens: int | None = None,
    sampled: bool = False,
    tokens_per_batch: int = 4096,
) -> dict[int, Covariance]:
    """One pass: K^T K of all layers, accumulated in float32 on the model's device.

    Every token of the rows counts, up to `tokens`; padding does not. Nothing is unembedded, and of
    the symmetric sums only the upper blocks are added up.
    """
    sums = {
        layer: torch.zeros(model.d_mlp, model.d_mlp, device=model.device) for layer in layers
    }  # fmt: skip
    kept: list[Tensor] = [torch.empty(0)]

    def accumulate(key: Tensor, hook: Hook) -> None:
        flat = key.reshape(-1, key.shape[-1])
        # Rows that are whole need no copy.
        flat = (flat if len(kept[0]) == len(flat) else flat[kept[0]]).float()
        add_upper_gram(sums[hook.layer()], flat)

    hooks = {f"blocks.{layer}.mlp.hook_post": accumulate for layer in layers}
    count, width = 0, max(len(row) for row in rows)
    per_batch = max(1, tokens_per_batch // width)
    first = torch.zeros(1, dtype=torch.long, device=model.device)
    with torch.no_grad(), fused_activations(model.hf), model.hooks(hooks):
        for begin in range(0, len(rows), per_batch):
            inputs = model.pad(rows[begin : begin + per_batch])
            kept[0] = inputs["attention_mask"].reshape(-1).nonzero()[:, 0]
            kept[0] = kept[0][: None if tokens is None else tokens - count]
            with model.stop_before(max(layers) + 1):
                model.forward(inputs, keep=first)
            count += len(kept[0])
            if tokens is not None and count >= tokens:
                break
    source = "text sampled from the model" if sampled else f"{len(rows)} given texts"
    for layer, total in sums.items():
        total.copy_(total.triu() + total.triu(1).T)
        if not bool(torch.isfinite(total).all()):
            raise NonFiniteError(f"keys at layer {layer} are not finite; check the weights.")
    return {layer: Covariance(layer, sums[layer] / count, count, source) for layer in layers}


def add_upper_gram(total: Float[Tensor, "d d"], rows: Float[Tensor, "n_rows d"]) -> None:
    """total += rows^T rows in place, on and above the diagonal; below it stays unfinished.

    By blocks of columns: an eighth of them at a time leaves 9/16 of the multiplications.
    """
    d = total.shape[0]
    width = max(GRAM_BLOCK, -(-d // 8))
    for i in range(0, d, width):
        total[i : i + width, i:].addmm_(rows[:, i : i + width].T, rows[:, i:])


def base_fingerprint(model: EditableModel) -> str:
    """The model's fingerprint, taken once: logged edits don't change it."""
    if "fingerprint" not in model.memo:
        model.memo["fingerprint"] = model.fingerprint()
    return str(model.memo["fingerprint"])


def _cache_key(model: EditableModel, layer: int, corpus: str) -> str:
    memo = f"fingerprint-below-{layer}"
    if memo not in model.memo:
        with model.at_base():  # as C is measured
            model.memo[memo] = model.fingerprint(below=layer)
    fingerprint = model.memo[memo]
    if corpus.startswith("sampled"):  # the text itself then depends on every base weight
        corpus += base_fingerprint(model)
    digest = hashlib.sha256(f"{fingerprint} {layer} {corpus} {model.dtype}".encode()).hexdigest()
    return f"covariance-{digest[:32]}"


def _read(layer: int, key: str, model: EditableModel) -> Covariance | None:
    from safetensors import SafetensorError, safe_open

    path = cache_folder() / f"{key}.safetensors"
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            moment, notes = file.get_tensor("moment"), file.metadata()
    except (SafetensorError, OSError, KeyError):
        return None  # a broken cache file is measured again and replaced
    if moment.shape != (model.d_mlp, model.d_mlp) or not bool(torch.isfinite(moment).all()):
        return None
    return Covariance(layer, moment.to(model.device), int(notes["tokens"]), notes["source"])


def _write(covariance: Covariance, key: str) -> None:
    from safetensors.torch import save

    notes = {"tokens": str(covariance.tokens), "source": covariance.source}
    data = save({"moment": covariance.moment.cpu().contiguous()}, notes)
    keep(cache_folder() / f"{key}.safetensors", data)
