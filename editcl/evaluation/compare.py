"""Methods side by side: the same cases, edited and measured by each in one run.

An arm is a function from the model to a context in which it is edited. Each arm starts from the
same weights and is measured inside its context; after it every byte has to be as before, else
the run ends. So arms differ in what they do and in nothing else. Knows nothing of methods.
"""

from __future__ import annotations

import hashlib
import html
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from editcl.errors import EditclError
from editcl.evaluation.cases import Case
from editcl.evaluation.damage import Damage, Predictions, damage, predictions
from editcl.evaluation.edits import ContextFor, evaluate
from editcl.evaluation.results import COMPARISONS, Evaluation
from editcl.model import EditableModel, tensor_bytes
from editcl.progress import progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

#: Enters with the model edited, ends with it as it was. It may yield a function from a case to the
#: text in front of its prompts, for methods that edit by context.
Arm: TypeAlias = Callable[[EditableModel], AbstractContextManager[ContextFor | None]]

UNEDITED = "unedited"  # the name of the first row: the model before any edit
#: What tables and figures show of each arm.
SHOWN = (*COMPARISONS, "same_subject", "portability", "score")
ZSRE = ("token_accuracy", "paraphrase_token_accuracy", "locality_accuracy")


@dataclass(frozen=True)
class MethodResult:
    """One method on all cases.

    Attributes:
        name: of the method.
        evaluation: of every case with all edits in place.
        damage: to unrelated text, against the model before the edits.
        seconds_per_fact: wall-clock time to enter the arm, over the number of cases.
    """

    name: str
    evaluation: Evaluation
    damage: Damage
    seconds_per_fact: float

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-able data."""
        return {
            "name": self.name,
            "seconds_per_fact": self.seconds_per_fact,
            "damage": self.damage.to_dict(),
            "evaluation": self.evaluation.to_dict(),
        }


@dataclass(frozen=True)
class Comparison:
    """Several methods on the same cases in one run.

    Attributes:
        model: what was edited.
        n_cases: how many facts each method edited.
        methods: in the order in which they ran; "unedited" first.
    """

    model: str
    n_cases: int
    methods: tuple[MethodResult, ...]

    def __getitem__(self, name: str) -> MethodResult:
        for method in self.methods:
            if method.name == name:
                return method
        names = ", ".join(method.name for method in self.methods)
        raise EditclError(f"{name!r} was not compared, only {names}.")

    def to_frame(self) -> DataFrame:
        """One row a method: mean of each measure, `<measure>_low` and `_high`, damage, time.

        Shares are from 0 to 1, divergence and cross-entropy in nats per token.
        """
        import pandas

        rows = []
        for method in self.methods:
            row: dict[str, Any] = {}
            for name, found in method.evaluation.intervals().items():
                row |= {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}
            row |= {
                "kl": method.damage.kl,
                "cross_entropy_increase": method.damage.increase,
                "seconds_per_fact": method.seconds_per_fact,
            }
            rows.append(row)
        index = pandas.Index([method.name for method in self.methods], name="method")
        return pandas.DataFrame(rows, index=index)

    def shown(self) -> list[str]:
        """What tables and figures show: CounterFact's measures, or zsRE's without old objects."""
        present = {name for method in self.methods for name in method.evaluation.summary()}
        names = SHOWN if "efficacy" in present else (*ZSRE, *SHOWN)
        return [name for name in names if name in present]

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Header and cells of a table for readers: shares in per cent with their intervals."""
        shown = self.shown()
        cells = []
        for method in self.methods:
            measures = method.evaluation.intervals()
            line = [method.name]
            for name in shown:
                one = measures.get(name)
                line.append(
                    "–"
                    if one is None
                    else f"{100 * one.mean:.1f} ({100 * one.low:.1f} to {100 * one.high:.1f})"
                )
            line += [f"{method.damage.kl:.4f}", f"{method.seconds_per_fact:.3f}"]
            cells.append(line)
        head = ["method", *(name.replace("_", " ") for name in shown), "KL", "s / fact"]
        return head, cells

    def to_markdown(self) -> str:
        """The table of `rows` in Markdown."""
        head, cells = self.rows()
        lines = [head, ["---", *["---:"] * (len(head) - 1)], *cells]
        escaped = ([cell.replace("|", "\\|") for cell in line] for line in lines)
        return "\n".join(f"| {' | '.join(line)} |" for line in escaped)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-able data."""
        return {
            "model": self.model,
            "n_cases": self.n_cases,
            "methods": [method.to_dict() for method in self.methods],
        }

    def to_json(self, *, indent: int | None = 1) -> str:
        """`to_dict` as a text."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Comparison:
        """The comparison that `to_dict` told of."""
        methods = []
        for one in data["methods"]:
            harm = {name: value for name, value in one["damage"].items() if name != "increase"}
            evaluation = Evaluation.from_dict(one["evaluation"])
            seconds = one["seconds_per_fact"]
            methods.append(MethodResult(one["name"], evaluation, Damage(**harm), seconds))
        return cls(data["model"], data["n_cases"], tuple(methods))

    def plot(self, *, path: str | Path | None = None) -> Figure:
        """Measures of every method with 95 % intervals; see `plot_comparison`."""
        from editcl.plots import plot_comparison

        return plot_comparison(self, path=path)

    def __repr__(self) -> str:
        head, cells = self.rows()
        lines = [head, *cells]
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        text = [
            "  ".join(
                cell.rjust(width) if i else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        ]
        return "\n".join([f"Comparison on {self.model}, {self.n_cases} cases (per cent)", *text])

    def _repr_html_(self) -> str:
        head, cells = self.rows()
        top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>"
            for line in cells
        )
        title = f"{html.escape(self.model)}, {self.n_cases} cases (per cent, 95 % intervals)"
        return f"<div><b>{title}</b><table><tr>{top}</tr>{body}</table></div>"


def compare(
    model: EditableModel,
    cases: Sequence[Case],
    arms: Mapping[str, Arm],
    *,
    texts: Sequence[str] | None = None,
    show_progress: bool = True,
) -> Comparison:
    """Measures every arm on the same cases, each from the weights that the model has now.

    Args:
        model: the model; after every arm it must be as before, byte for byte.
        cases: what every arm edits and is measured on.
        arms: by name, what edits: entered once, measured inside, left again.
        texts: unrelated texts; by default those of `damage`.
        show_progress: show a progress bar once two seconds have passed.

    Raises:
        EditclError: there are no cases, an arm is called "unedited", or one has left the model
            changed: the weights are named.
    """
    if not cases:
        raise EditclError("there are no cases to compare methods on.")
    if UNEDITED in arms:
        raise EditclError(f'the name "{UNEDITED}" is taken by the model before any edit.')
    before = predictions(model, texts)
    found = [measure_method(model, cases, UNEDITED, lambda _: nullcontext(), before=before)]
    for name in progress(list(arms), "comparing methods", show=show_progress):
        found.append(measure_method(model, cases, name, arms[name], before=before))
    return Comparison(model.name, len(cases), tuple(found))


def measure_method(
    model: EditableModel,
    cases: Sequence[Case],
    name: str,
    arm: Arm,
    *,
    before: Predictions | None = None,
) -> MethodResult:
    """Enters the arm, measures the edited model, leaves the arm, and checks that all is as before.

    Args:
        model: the model to edit.
        cases: what the arm edits.
        name: of the method.
        arm: see `Arm`.
        before: the unedited model's predictions on unrelated texts; made if not given.

    Raises:
        EditclError: the arm has left the model changed: the weights are named.
    """
    kept = predictions(model) if before is None else before
    checksums = weight_checksums(model)
    started = time.perf_counter()
    with arm(model) as context_for:
        seconds = time.perf_counter() - started
        evaluation = evaluate(model, cases, context_for=context_for)
        harm = damage(model, before=kept)
    now = weight_checksums(model)
    changed = sorted(n for n in checksums.keys() | now.keys() if checksums.get(n) != now.get(n))
    if changed:
        shown = ", ".join(changed[:4]) + (", ..." if len(changed) > 4 else "")
        raise EditclError(
            f"after {name!r} the model is not as before: {len(changed)} weights differ ({shown}). "
            "The arm must take its edit back when its context ends; load the model again."
        )
    return MethodResult(name, evaluation, harm, seconds / len(cases))


def weight_checksums(model: EditableModel) -> dict[str, str]:
    """SHA-256 of every parameter's and buffer's bytes, as hex, by name."""
    tensors = [*model.hf.named_parameters(), *model.hf.named_buffers()]
    return {name: hashlib.sha256(tensor_bytes(tensor)).hexdigest() for name, tensor in tensors}
