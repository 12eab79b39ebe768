"""Average traces over many facts, by the part that a token plays in its sentence.

Roles: first, middle and last token of the subject, first token after it, further ones, last token
of the prompt; each token has one (a subject of one token is its last token; a token that is both
first after the subject and last of all is the last). A fact's tokens of one role are averaged
first; then facts are averaged, with 95 % confidence intervals 1.96 s / sqrt(n), as in the figures
of arXiv:2202.05262. Facts that the model doesn't answer right are skipped and counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int

from editcl.errors import EditclError
from editcl.facts import Fact
from editcl.model import EditableModel
from editcl.progress import progress as bar
from editcl.tracing.causal import Settings, corrupt, measure
from editcl.tracing.result import Peak, Trace
from editcl.tracing.runs import NOISE_MULTIPLE, Question, embedding_spread, questions, run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROLES = (
    "first subject token",
    "middle subject tokens",
    "last subject token",
    "first subsequent token",
    "further tokens",
    "last token",
)
SUBJECT_LAST, LAST = ROLES[2], ROLES[5]

_NORMAL_95 = 1.96


@dataclass(frozen=True, eq=False)
class AverageTrace:
    """Mean indirect effects by role and layer.

    Attributes:
        roles: names of the rows.
        effect: by kind, [n_roles, n_layers] mean indirect effect; NaN where no fact has the role.
        half_width: by kind, half the width of its 95 % confidence interval; NaN below two facts.
        counts: [n_roles] facts that have a token of the role.
        clean: mean p(answer) of the clean runs.
        corrupted: mean p(answer) of the corrupted runs.
        n_facts: facts averaged.
        n_skipped: facts left out because the model's own next token is another one.
        noise: standard deviation of the noise.
        samples: corrupted runs per fact.
        window: layers restored together for "mlp" and "attn".
        seed: seed of the noise.
        severed: what was held at its corrupted values, or None.
    """

    roles: tuple[str, ...]
    effect: Mapping[str, Float[np.ndarray, "n_roles n_layers"]]
    half_width: Mapping[str, Float[np.ndarray, "n_roles n_layers"]]
    counts: Int[np.ndarray, " n_roles"]
    clean: float
    corrupted: float
    n_facts: int
    n_skipped: int
    noise: float
    samples: int
    window: int
    seed: int
    severed: str | None = None

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of states that were restored."""
        return tuple(self.effect)

    @property
    def n_layers(self) -> int:
        """Columns of each heat map."""
        return next(iter(self.effect.values())).shape[1]

    @property
    def total_effect(self) -> float:
        """What corrupting subjects takes away on average."""
        return self.clean - self.corrupted

    def peak(self, kind: str, role: str = SUBJECT_LAST) -> Peak:
        """The layer with the strongest mean effect at a role; `token` is the role's row."""
        if kind not in self.effect or role not in self.roles:
            raise EditclError(
                f"no {kind!r} at {role!r} here: kinds are {self.kinds}, roles {self.roles}."
            )
        row = self.roles.index(role)
        layer = int(np.nan_to_num(self.effect[kind][row], nan=-np.inf).argmax())
        return Peak(row, layer, float(self.effect[kind][row, layer]))

    def plot(self, kind: str | None = None, *, path: str | Path | None = None) -> Figure:
        """Heat maps by role, and effects by layer with their confidence intervals."""
        from editcl.plots import plot_average_trace

        return plot_average_trace(self, kind, path=path)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON-able values; None for what is not known."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        for name in ("effect", "half_width"):
            values[name] = {
                kind: [[None if np.isnan(x) else float(x) for x in row] for row in array]
                for kind, array in values[name].items()
            }
        return values | {"roles": list(self.roles), "counts": self.counts.tolist()}

    def __repr__(self) -> str:
        lines = [
            f"Average trace of {self.n_facts} facts ({self.n_skipped} skipped)",
            f"  clean {self.clean:.1%}, corrupted {self.corrupted:.1%} (noise {self.noise:.3g})",
        ]
        for kind in self.kinds:
            for role in (SUBJECT_LAST, LAST):
                top = self.peak(kind, role)
                width = self.half_width[kind][top.token, top.layer]
                effect = f"{top.effect:+.1%} ± {width:.1%} at layer {top.layer}"
                lines.append(f"  {kind:<7}{role:<20}{effect}")
        return "\n".join(lines)


def trace_many(
    model: EditableModel,
    facts: Sequence[Fact | tuple[str, str, str]],
    *,
    kinds: Sequence[str] | None = None,
    noise: float | None = None,
    noise_multiple: float = NOISE_MULTIPLE,
    samples: int = 10,
    window: int | None = None,
    seed: int = 0,
    sever: str | None = None,
    progress: bool = True,
) -> AverageTrace:
    """Traces many facts and averages them.

    Args:
        model: the model; it is not changed.
        facts: (subject, prompt, object) with the true object, or Facts, of which `old_object` is
            taken as the true one; without it the model's own answer is traced.
        kinds: as in `trace`.
        noise: standard deviation of the noise.
        noise_multiple: the same in standard deviations of the embeddings of all these subjects.
        samples: as in `trace`, as are `window`, `seed` and `sever`.
        progress: show a progress bar once two seconds have passed.

    Raises:
        EditclError: there are no facts, or the model answers none of them right.
    """
    settings = Settings.of(model, kinds, noise, noise_multiple, samples, window, seed, sever)
    if not facts:
        raise EditclError("there are no facts to trace. Pass (subject, prompt, object) triples.")
    traces: list[Trace] = []
    with torch.inference_mode():
        asked = questions(model, [_triple(fact) for fact in facts])
        sigma = noise
        if sigma is None:
            sigma = noise_multiple * embedding_spread(model, asked)
        fixed = Settings(settings.kinds, sigma, *_rest(settings))
        for question in bar(asked, "tracing", show=progress):
            found = _trace_known(model, question, fixed)
            if found is not None:
                traces.append(found)
    if not traces:
        raise EditclError(
            f"the model's own next token is the object in none of {len(facts)} facts, so there is "
            "nothing to trace. Check the prompts: the object must follow directly."
        )
    return average(traces, n_skipped=len(facts) - len(traces))


def average(traces: Sequence[Trace], *, n_skipped: int = 0) -> AverageTrace:
    """Averages traces that were made with the same settings."""
    first = traces[0]
    effect, half_width = {}, {}
    for kind in first.kinds:
        by_fact = np.stack([_by_role(trace, kind) for trace in traces])
        counts = np.isfinite(by_fact[:, :, 0]).sum(0)
        effect[kind], half_width[kind] = _mean_and_half_width(by_fact)
    return AverageTrace(
        ROLES,
        effect,
        half_width,
        counts,
        float(np.mean([trace.clean for trace in traces])),
        float(np.mean([trace.corrupted for trace in traces])),
        len(traces),
        n_skipped,
        float(np.mean([trace.noise for trace in traces if trace.noise is not None] or [np.nan])),
        first.samples,
        first.window,
        first.seed,
        first.severed,
    )


def roles(n_tokens: int, span: tuple[int, int]) -> dict[str, list[int]]:
    """The positions of each role; special tokens and words before the subject have none."""
    first, end = span
    after = list(range(end, n_tokens - 1))
    middle = list(range(first + 1, end - 1))
    last = [n_tokens - 1] if n_tokens > end else []
    starts = [first] if end - first > 1 else []
    return dict(zip(ROLES, (starts, middle, [end - 1], after[:1], after[1:], last), strict=True))


def _triple(fact: Fact | tuple[str, str, str]) -> tuple[str, str, str | None]:
    if not isinstance(fact, Fact):
        subject, prompt, answer = fact
        fact = Fact.from_sentence(subject, prompt, answer)
        return fact.subject, fact.prompt, fact.new_object
    return fact.subject, fact.prompt, fact.old_object


def _rest(settings: Settings) -> tuple[float, int, int, int, str | None]:
    s = settings
    return s.noise_multiple, s.samples, s.window, s.seed, s.sever


def _trace_known(model: EditableModel, question: Question, settings: Settings) -> Trace | None:
    """The trace, or None where the model's own next token is not the answer."""
    corruption, sigma = corrupt(model, question, settings)
    runs = run(model, question, corruption)
    if runs.predicted != runs.answer:
        return None
    return measure(runs, corruption, settings, sigma)


def _by_role(trace: Trace, kind: str) -> Float[np.ndarray, "n_roles n_layers"]:
    effect = trace.indirect_effect(kind)
    rows = [
        effect[where].mean(0) if where else np.full(effect.shape[1], np.nan)
        for where in roles(len(trace.tokens), trace.span).values()
    ]
    return np.stack(rows)


def _mean_and_half_width(
    values: Float[np.ndarray, "n_facts n_roles n_layers"],
) -> tuple[Float[np.ndarray, "n_roles n_layers"], Float[np.ndarray, "n_roles n_layers"]]:
    known = np.isfinite(values)
    n = known.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(known, values, 0).sum(0) / n
        variance = np.where(known, (values - mean) ** 2, 0).sum(0) / (n - 1)
        half_width = _NORMAL_95 * np.sqrt(variance / n)
    return np.where(n > 0, mean, np.nan), np.where(n > 1, half_width, np.nan)
