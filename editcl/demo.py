"""`editcl demo`: the main job on the embedded model. See, edit, verify, take back.

It checks what it shows: the fact is read at the subject's last token, the edit holds in phrasings
that it was not made with, the log verifies, and the rollback restores every byte.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.text import Text

from editcl.catalogue import relations
from editcl.console import console, show_answers, show_edit, show_report, show_trace
from editcl.editing.choices import ask_objects
from editcl.editing.edit import edit
from editcl.evaluation import Case, case_for
from editcl.facts import Fact
from editcl.loading import load
from editcl.tracing import trace

SUBJECT, OLD, NEW = "Eiffel Tower", "Paris", "Rome"
RELATION = "located_in_city"


def run_demo(*, picture: Path | None = None, quiet: bool = False) -> dict[str, Any]:
    """Runs the four steps.

    Args:
        picture: where to save the causal trace as a picture.
        quiet: show nothing.

    Returns:
        What each step found; `ok` is True if every check held.
    """
    started = time.perf_counter()
    show = _Shown(quiet)
    model = load()
    base = model.fingerprint()
    prompt = relations()[RELATION].prompt
    show.line(repr(model))

    show.title("1. See: which token and layers carry the fact? (darker: more of it restored)")
    found = trace(model, SUBJECT, prompt)
    show(lambda: show_trace(found))
    if picture is not None:
        found.plot().savefig(picture, dpi=160, bbox_inches="tight")
        show.line(f"picture: {picture}")

    show.title(f"2. Edit: editcl.edit(model, {SUBJECT!r}, {NEW!r})")
    case = case_for(model, Fact(SUBJECT, prompt, NEW, OLD))
    prompts = _prompts(case)
    before = ask_objects(model, [p for _, p, _ in prompts])
    receipt = edit(model, SUBJECT, NEW)
    show(lambda: show_edit(receipt))

    show.title("3. Verify: what changed, and what did not")
    after = ask_objects(model, [p for _, p, _ in prompts])
    verified = model.log.verify()
    show(lambda: show_report(verified))

    report = model.log.rollback(receipt)
    back = ask_objects(model, [p for _, p, _ in prompts])
    restored = model.fingerprint() == base and _bytes_are_base(model)
    rows = [
        (kind, p, b, _mark(a, wanted), c)
        for (kind, p, wanted), b, a, c in zip(prompts, before, after, back, strict=True)
    ]
    columns = ("", "prompt", "before", "after the edit", "after the rollback")
    show(lambda: show_answers("the model's own words", columns, rows))

    show.title("4. Take back")
    show(lambda: show_report(report))
    right = sum(_same(a, w) for (_, _, w), a in zip(prompts, after, strict=True))
    seconds = time.perf_counter() - started
    outcome = {
        "ok": bool(restored and verified.ok and _same(after[0], NEW) and back == before),
        "as_wanted": right,
        "prompts": len(prompts),
        "rollback_exact": restored,
        "verified": verified.ok,
        "trace_peak": list(found.peak("mlp")),
        "seconds": round(seconds, 1),
    }
    show.line(
        f"every byte of the base model is back: {'yes' if restored else 'NO'};  "
        f"after the edit {right} of {len(prompts)} answers were as wanted;  {seconds:.0f} s in all"
    )
    return outcome


class _Shown:
    """Prints unless quiet."""

    def __init__(self, quiet: bool) -> None:
        self.quiet, self.out = quiet, console()

    def __call__(self, draw: Callable[[], None]) -> None:
        if not self.quiet:
            draw()

    def line(self, text: str) -> None:
        self(lambda: self.out.print(Text(text)))

    def title(self, text: str) -> None:
        self(lambda: self.out.print(Text(f"\n{text}", style="bold cyan")))


def _prompts(case: Case) -> list[tuple[str, str, str]]:
    """(kind, prompt, what the model should say after the edit)."""
    return [
        ("edited", case.fact.sentence, case.fact.new_object),
        *(("paraphrase", p, case.fact.new_object) for p in case.paraphrases[:3]),
        *(("neighbour", p.prompt, p.object) for p in case.neighbours[:3]),
        *(("same subject", p.prompt, p.object) for p in case.same_subject[:3]),
    ]


def _bytes_are_base(model: Any) -> bool:
    """Whether the live weights, and not only the log's idea of them, are the base's."""
    from editcl.model import tensor_bytes

    named = dict(model.hf.named_parameters())
    return all(
        tensor_bytes(named[name]) == tensor_bytes(weight)
        for name, weight in model.log.base_weights().items()
    )


def _same(said: str | None, wanted: str) -> bool:
    return said is not None and said.casefold().startswith(wanted.casefold())


def _mark(said: str | None, wanted: str) -> Text:
    return Text(str(said), style="green" if _same(said, wanted) else "bold red")
