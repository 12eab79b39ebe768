"""What a causal trace is: its heat maps, their peaks, how they print. Computes no trace."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from editcl.errors import EditclError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HeatMap = Float[np.ndarray, "n_tokens n_layers"]

NAMES = {"hidden": "hidden state", "mlp": "MLP", "attn": "attention"}


class Peak(NamedTuple):
    """The strongest cell of a heat map.

    Attributes:
        token: its position.
        layer: its layer (the middle of the window for MLP and attention).
        effect: its indirect effect.
    """

    token: int
    layer: int
    effect: float


@dataclass(frozen=True, eq=False)
class Trace:
    """What each state of a sentence carries of the answer.

    Attributes:
        sentence: the prompt with the subject in place.
        subject: the subject.
        tokens: the sentence's tokens, readable.
        span: positions of the subject's tokens, [first, last + 1).
        answer: the measured token as text; the first one of the answer, as in the paper.
        answer_token: its id.
        clean: p(answer) of the clean run.
        corrupted: mean p(answer) over the corrupted runs.
        probability: by kind, [n_tokens, n_layers] mean p(answer) with that state restored.
        deviation: by kind, the standard deviation of the same over samples.
        noise: standard deviation of the noise; None where subjects were exchanged.
        samples: number of corrupted runs.
        window: layers restored together for "mlp" and "attn".
        seed: seed of the noise.
        others: the subjects that stood in for this one; empty for noise.
        severed: "mlp" or "attn" where these were held at their corrupted values, else None.
        approximate: whether the effects are a gradient's estimate.
    """

    sentence: str
    subject: str
    tokens: tuple[str, ...]
    span: tuple[int, int]
    answer: str
    answer_token: int
    clean: float
    corrupted: float
    probability: Mapping[str, HeatMap]
    deviation: Mapping[str, HeatMap]
    noise: float | None
    samples: int
    window: int
    seed: int
    others: tuple[str, ...] = ()
    severed: str | None = None
    approximate: bool = False

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of states that were restored."""
        return tuple(self.probability)

    @property
    def n_layers(self) -> int:
        """Columns of each heat map."""
        return next(iter(self.probability.values())).shape[1]

    @property
    def total_effect(self) -> float:
        """What corrupting the subject takes away, and restoring can bring back."""
        return self.clean - self.corrupted

    def indirect_effect(self, kind: str) -> HeatMap:
        """[n_tokens, n_layers] what restoring each state brings back."""
        if kind not in self.probability:
            raise EditclError(f"this trace has no kind {kind!r}, only {', '.join(self.kinds)}.")
        return self.probability[kind] - self.corrupted

    def peak(self, kind: str, token: int | None = None) -> Peak:
        """The cell of a kind that brings back most, of all or at one token.

        Of all hidden states that is always the last one, which is the answer; look at the
        subject's last token (`span[1] - 1`) for where facts are read.
        """
        effect = self.indirect_effect(kind)
        if token is not None:
            layer = int(effect[token].argmax())
            return Peak(token % len(effect), layer, float(effect[token, layer]))
        token, layer = divmod(int(effect.argmax()), effect.shape[1])
        return Peak(token, layer, float(effect[token, layer]))

    def plot(self, kind: str | None = None, *, path: str | Path | None = None) -> Figure:
        """The heat maps as a matplotlib figure; of one kind, or of all side by side."""
        from editcl.plots import plot_trace

        return plot_trace(self, kind, path=path)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON-able values."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        for name in ("probability", "deviation"):
            values[name] = {kind: array.tolist() for kind, array in values[name].items()}
        return values | {name: list(values[name]) for name in ("tokens", "span", "others")}

    def _summary(self) -> list[tuple[str, str]]:
        how = ", ".join(self.others)
        if self.noise is not None:
            how = f"noise {self.noise:.3g}, samples: {self.samples}"
        lines = [("clean", f"{self.clean:.1%}"), ("corrupted", f"{self.corrupted:.1%} ({how})")]
        for kind in self.kinds:
            tops = [self.peak(kind, token) for token in (self.span[1] - 1, len(self.tokens) - 1)]
            lines.append(
                (
                    NAMES[kind],
                    ", ".join(
                        f"{top.effect:+.1%} at {self.tokens[top.token].strip()!r} layer {top.layer}"
                        for top in dict.fromkeys(tops)
                    ),
                )
            )
        if "mlp" in self.kinds or "attn" in self.kinds:
            lines.append(("window", f"{self.window} of {self.n_layers} layers"))
        if self.severed:
            lines.append(("severed", NAMES[self.severed]))
        return lines

    def _title(self) -> str:
        return f"{'Estimated trace' if self.approximate else 'Trace'} of {self.sentence!r}"

    def __repr__(self) -> str:
        rows = "".join(f"\n  {name:<14}{text}" for name, text in self._summary())
        return f"{self._title()} -> {self.answer.strip()!r}{rows}"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{html.escape(text)}</td></tr>"
            for name, text in self._summary()
        )
        title = html.escape(f"{self._title()} → {self.answer.strip()}")
        return f"<table><caption>{title}</caption>{rows}</table>"
