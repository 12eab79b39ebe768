"""Causal tracing of one fact: corrupt the subject, restore one state, see the answer come back.

    total effect            TE = p - p*
    indirect effect of a state h(t, l)   IE = p*[h(t, l) := clean] - p*

with p the answer's probability in the clean run and p* that under a corrupted subject, averaged
over samples of the noise. `hidden` restores the output of one block, `mlp` and `attn` restore the
outputs of a window of layers (Meng et al., arXiv:2202.05262, section 2). This module knows how to
ask for a trace and what one is; how cells are computed is the affair of `editcl.tracing.restore`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from editcl.errors import EditclError
from editcl.model import EditableModel
from editcl.tracing.cells import KINDS, cell, default_window
from editcl.tracing.reference import published_cells
from editcl.tracing.restore import null_cells_hold, restored_cells
from editcl.tracing.result import Trace
from editcl.tracing.runs import (
    NOISE_MULTIPLE,
    Corruption,
    Question,
    Runs,
    ask,
    embedding_spread,
    gaussian,
    other_subjects,
    run,
)
from editcl.tracing.text import decode, readable_tokens


@dataclass(frozen=True)
class Settings:
    """What to restore; checked on construction.

    Raises:
        EditclError: an unknown kind, a window or number of samples below one, a bad noise level.
    """

    kinds: tuple[str, ...]
    noise: float | None
    noise_multiple: float
    samples: int
    window: int
    seed: int
    sever: str | None

    @classmethod
    def of(
        cls,
        model: EditableModel,
        kinds: Sequence[str] | None,
        noise: float | None,
        noise_multiple: float,
        samples: int,
        window: int | None,
        seed: int,
        sever: str | None = None,
    ) -> Settings:
        """Fills in the defaults that depend on the model or on each other."""
        if kinds is None:
            kinds = KINDS if sever is None else ("hidden",)
        kinds = (kinds,) if isinstance(kinds, str) else tuple(dict.fromkeys(kinds))
        window = default_window(model.n_layers) if window is None else window
        return cls(kinds, noise, noise_multiple, samples, window, seed, sever)

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds:
            raise EditclError(f"kinds must be some of {KINDS}, got {unknown or self.kinds}.")
        for name in ("samples", "window"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise EditclError(f"{name} must be a whole number of at least 1, got {value!r}.")
        for name in ("noise", "noise_multiple"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise EditclError(f"{name} must be a finite number of at least 0, got {value!r}.")
        if self.sever is not None and (self.sever not in KINDS[1:] or self.kinds != ("hidden",)):
            raise EditclError(
                f"sever={self.sever!r} with kinds {self.kinds}: sever holds 'mlp' or 'attn' while "
                "hidden states are restored; leave kinds out or pass kinds=('hidden',)."
            )


def trace(
    model: EditableModel,
    subject: str,
    prompt: str,
    *,
    answer: str | None = None,
    kinds: Sequence[str] | None = None,
    noise: float | None = None,
    noise_multiple: float = NOISE_MULTIPLE,
    samples: int = 10,
    window: int | None = None,
    seed: int = 0,
    sever: str | None = None,
    corruption: str | Sequence[str] = "noise",
    noise_samples: Float[np.ndarray, "n_samples n_subject d_model"] | None = None,
) -> Trace:
    """Traces one fact through a model.

    Args:
        model: the model; it is not changed.
        subject: what the sentence is about.
        prompt: the sentence's start, with `{}` for the subject or with the subject in it.
        answer: what should follow; its first token is measured. The model's own if None.
        kinds: of "hidden", "mlp", "attn"; all by default.
        noise: standard deviation of the noise on the subject's embeddings.
        noise_multiple: the same in units of the standard deviation of all entries of the
            subject's embeddings; used where `noise` is None.
        samples: number of corrupted runs; every cell sees the same ones.
        window: layers restored together for "mlp" and "attn", [l - w // 2, l + (w + 1) // 2)
            around layer l; by default the paper's share, 10 in 48, rounded down, at least 1.
        seed: seed of the noise.
        sever: "mlp" or "attn": while a hidden state is restored, hold these outputs at the same
            token in higher layers at their corrupted values (arXiv:2202.05262, section 2.2).
        corruption: "noise", or another subject, or several, whose embeddings take the place of
            this one's: one sample each.
        noise_samples: what to add to the subject's embeddings, instead of drawing it.

    Raises:
        FactError: the subject is not in the prompt, or a text can't be encoded.
        NonFiniteError: the model gives NaN or infinity.
        EditclError: an argument is out of range.
    """
    settings = Settings.of(model, kinds, noise, noise_multiple, samples, window, seed, sever)
    with torch.inference_mode():
        question = ask(model, subject, prompt, answer)
        corrupted, sigma = corrupt(model, question, settings, corruption, noise_samples)
        others = () if corruption == "noise" else _as_tuple(corruption)
        return measure(run(model, question, corrupted), corrupted, settings, sigma, others)


def corrupt(
    model: EditableModel,
    question: Question,
    settings: Settings,
    corruption: str | Sequence[str] = "noise",
    noise_samples: Float[np.ndarray, "n_samples n_subject d_model"] | None = None,
) -> tuple[Corruption, float | None]:
    """The corruption that was asked for, and its noise level if it is noise."""
    if corruption != "noise":
        if noise_samples is not None:
            raise EditclError("pass either another subject as corruption or noise_samples.")
        return other_subjects(model, question, _as_tuple(corruption)), None
    if noise_samples is not None:
        values = torch.as_tensor(noise_samples, dtype=torch.float32, device=model.device)
        expected = (question.n_subject, model.d_model)
        if values.ndim != 3 or tuple(values.shape[1:]) != expected or not len(values):
            raise EditclError(
                f"noise_samples must be [n_samples, {expected[0]}, {expected[1]}] for the "
                f"subject {question.subject!r}, got {list(values.shape)}."
            )
        return Corruption(values), float(np.std(noise_samples))
    sigma = settings.noise
    if sigma is None:
        sigma = settings.noise_multiple * embedding_spread(model, [question])
    return gaussian(model, question, sigma, settings.samples, settings.seed), sigma


def measure(
    runs: Runs,
    corruption: Corruption,
    settings: Settings,
    sigma: float | None,
    others: tuple[str, ...] = (),
) -> Trace:
    """Restores every cell of the kinds asked for."""
    model, question, window = runs.model, runs.question, settings.window
    n_tokens, n_layers = runs.n_tokens, model.n_layers
    cells = [
        cell(kind, token, layer, window, n_layers)
        for kind in settings.kinds
        for token in range(n_tokens)
        for layer in range(n_layers)
    ]
    if null_cells_hold(runs):
        values = restored_cells(runs, cells, sever=settings.sever)
    else:
        warnings.warn(
            f"{type(model.hf).__name__} can't be run from the middle: tracing it with one forward "
            "pass a cell, which gives the same values slowly.",
            stacklevel=3,
        )
        values = published_cells(
            model, question, corruption, runs.answer, cells, sever=settings.sever
        )
    by_kind = values.double().unflatten(0, (len(settings.kinds), n_tokens, n_layers)).cpu()
    return Trace(
        question.prompt.replace("{}", question.subject, 1),
        question.subject,
        readable_tokens(model.tokenizer, question.ids),
        question.span,
        decode(model.tokenizer, [runs.answer]),
        runs.answer,
        runs.clean,
        float(runs.corrupted.double().mean()),
        {kind: by_kind[i].mean(-1).numpy() for i, kind in enumerate(settings.kinds)},
        {kind: by_kind[i].std(-1, correction=0).numpy() for i, kind in enumerate(settings.kinds)},
        sigma,
        corruption.n_samples,
        window,
        settings.seed,
        others,
        settings.sever,
    )


def _as_tuple(corruption: str | Sequence[str]) -> tuple[str, ...]:
    others = (corruption,) if isinstance(corruption, str) else tuple(corruption)
    if not others or not all(isinstance(o, str) and o.strip() for o in others):
        raise EditclError(f"corruption must be 'noise' or other subjects, got {corruption!r}.")
    return tuple(other.strip() for other in others)
