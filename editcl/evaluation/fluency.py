"""Fluency: does the model still write text, or does it repeat itself?

Generation entropy (GE) of a text: H_n = -sum_k f(k) log2 f(k) over its n-grams of words, f their
relative frequencies; GE = (2/3 H_2 + 4/3 H_3) / 2, in bits: the weighted average of ROME's code
(arXiv:2202.05262, section 3.3; Zhang et al. 2018), whose tables show it times 100. A text that
repeats one word has 0, one of 100 words that never repeats a pair about 6.6. Knows nothing of
facts and edits.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from editcl.errors import EditclError
from editcl.evaluation.cases import Case
from editcl.model import EditableModel

#: (length of the n-grams, weight) as published; the weighted entropies are averaged.
WEIGHTS = ((2, 2 / 3), (3, 4 / 3))


@dataclass(frozen=True)
class Fluency:
    """Generation entropy of continuations.

    Attributes:
        entropy: mean over the texts, in bits.
        entropies: of each text.
        texts: the continuations, without their prompts.
        prompts: what was continued.
    """

    entropy: float
    entropies: tuple[float, ...]
    texts: tuple[str, ...]
    prompts: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Fluency({len(self.texts)} continuations: generation entropy {self.entropy:.2f})"


def fluency(
    model: EditableModel,
    prompts: Sequence[Case] | Sequence[str],
    *,
    n_tokens: int = 100,
    seed: int | None = None,
) -> Fluency:
    """Continues each distinct prompt and measures the continuations' entropy.

    ROME's code samples to a total of 100 tokens and measures prompt and continuation together;
    here every continuation has as many new tokens, and counts alone, so that neither depends on
    the prompt's length.

    Args:
        model: the model as it is now.
        prompts: texts to continue, or cases: then their `generation` prompts.
        n_tokens: new tokens of each.
        seed: None continues greedily; a seed samples (top-k 40). Greedy text repeats itself more:
            compare like with like.

    Raises:
        EditclError: there is no prompt, or a text gets longer than the model takes.
    """
    texts = [p for one in prompts for p in (one.generation if isinstance(one, Case) else (one,))]
    chosen = list(dict.fromkeys(texts))
    if not chosen:
        raise EditclError(
            "there is nothing to continue: the cases have no generation prompts. Pass texts, "
            'for example fluency(model, [f"{fact.subject} is" ...]).'
        )
    made = model.generate(chosen, n_tokens, seed=seed)
    entropies = tuple(generation_entropy(text) for text in made)
    return Fluency(float(np.mean(entropies)), entropies, tuple(made), tuple(chosen))


def generation_entropy(text: str) -> float:
    """GE of one text in bits; n-grams that a short text lacks count 0."""
    words = re.findall(r"\w+|[^\w\s]", text)
    return sum(w * ngram_entropy(words, n) for n, w in WEIGHTS) / len(WEIGHTS)


def ngram_entropy(words: Sequence[str], n: int) -> float:
    """H_n: entropy in bits of the n-grams of words; 0 of fewer words than n."""
    counts = Counter(zip(*(words[i:] for i in range(n)), strict=False))
    f = np.array(list(counts.values()), dtype=float)
    f /= f.sum() if len(f) else 1.0
    return max(0.0, float(-(f * np.log2(f)).sum()))
