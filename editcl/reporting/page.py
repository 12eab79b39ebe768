"""The page: a report as one HTML file that needs nothing else.

No script, no link, nothing fetched: pictures are PNG inside the page, and its policy forbids the
rest. Every text of models, logs and tasks is escaped, so that it is shown and does nothing.
Computes nothing.
"""

from __future__ import annotations

import base64
import html
import os
import tempfile
from collections.abc import Callable, Collection, Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from editcl.errors import EditclError
from editcl.log.entry import one_line
from editcl.reporting.checklist import HEAD, bytes_in_words
from editcl.reporting.pictures import (
    plot_costs,
    plot_harness,
    plot_history,
    plot_knowledge,
    plot_shares,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from editcl.learner.steps import Step
    from editcl.reporting.result import Report

DPI = 110
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; width: 100%; margin: .6rem 0; }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid #e3e3e3;
  vertical-align: top; overflow-wrap: anywhere; }
th { border-bottom: 2px solid #999; } .n { text-align: right; white-space: nowrap; }
.s { white-space: nowrap; } .out { color: #888; } .about { color: #555; }
img { max-width: 100%; height: auto; }
details { margin: .4rem 0; } summary { cursor: pointer; }
"""


def page(report: Report) -> str:
    """The whole page."""
    title = _text(f"Report: {report.model}")
    about = (
        f"{report.log}. Measured {report.created} in {report.seconds:.1f} s, seed {report.seed}."
    )
    parts = [
        f"<h1>{title}</h1><p class='about'>{_text(about)} Every figure stands beside that of the "
        "base model: all edits out, no adapters.</p>",
        _section("Checklist", table(HEAD, report.rows(), numbers=(1, 2)) + _notes(report.notes)),
        _section("Tasks and what was there before", _picture(plot_shares, report)),
        _section("Known facts by relation", _picture(plot_knowledge, report) + _lost(report)),
        _section("Step by step", _picture(plot_history, report)),
        _section("Tasks of lm-eval", _picture(plot_harness, report)),
        _section("Decisions", "".join(map(_decision, report.steps))),
        _section("Cost", _picture(plot_costs, report) + _spent(report)),
        _section("Log", _log(report)),
    ]
    head = (
        "<meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{title}</title><style>{_STYLE}</style>"
    )
    return (
        f"<!DOCTYPE html>\n<html lang='en'><head>{head}</head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body></html>\n"
    )


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numbers: Collection[int] = (),
    short: Collection[int] = (),
    dim: Collection[int] = (),
) -> str:
    """A table of texts, escaped.

    Args:
        head: names of the columns.
        rows: cells.
        numbers: columns that stand at the right.
        short: columns that are not broken into lines.
        dim: rows that are grey.
    """

    kinds = dict.fromkeys(short, " class=s") | dict.fromkeys(numbers, " class=n")

    def cells(line: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{kinds.get(i, '')}>{_text(cell)}</{tag}>" for i, cell in enumerate(line)
        )

    body = "".join(
        f"<tr{' class=out' if number in dim else ''}>{cells(line, 'td')}</tr>"
        for number, line in enumerate(rows)
    )
    return f"<table><tr>{cells(head, 'th')}</tr>{body}</table>"


def require_place(path: str | Path) -> Path:
    """The path, if a file can be made there.

    Raises:
        EditclError: it is a directory, no .html, or the folder that it would be in isn't there.
    """
    target = Path(path)
    if target.is_dir():
        raise EditclError(
            f"{str(target)!r} is a directory; name a file in it, such as report.html."
        )
    if target.suffix.lower() not in (".html", ".htm"):
        raise EditclError(f"the page is HTML: let {str(target)!r} end in .html.")
    if not target.parent.is_dir():
        raise EditclError(f"there is no folder {str(target.parent)!r} for the page; make it first.")
    return target


def write_page(text: str, path: str | Path) -> Path:
    """Writes a text beside its place and moves it there whole.

    Raises:
        EditclError: the path is a directory, or can't be written; what was there stays.
    """
    target = require_place(path)
    partial: Path | None = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        partial = Path(name)
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.chmod(target.stat().st_mode & 0o777 if target.exists() else 0o644)
        partial.replace(target)
    except OSError as error:
        raise EditclError(
            f"the report can't be written to {str(target)!r}: {error}. Choose another place."
        ) from error
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)
    return target


# -- parts ----------------------------------------------------------------------------------------


def _text(value: object) -> str:
    return html.escape(one_line(str(value)))


def _section(title: str, body: str) -> str:
    """A part of the page; nothing where there is nothing to show."""
    return f"<section><h2>{_text(title)}</h2>\n{body}</section>" if body else ""


def _picture(plot: Callable[[Report], Figure | None], report: Report) -> str:
    figure = plot(report)
    if figure is None:
        return ""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    code = base64.b64encode(buffer.getvalue()).decode("ascii")
    what = _text((plot.__doc__ or "").partition(";")[0].strip())
    return f"<p><img alt='{what}' src='data:image/png;base64,{code}'></p>"


def _notes(notes: Sequence[str]) -> str:
    return "".join(f"<p class='about'>Note: {_text(note)}</p>" for note in notes)


def _lost(report: Report) -> str:
    """What was known, and which edited facts held, and no longer do."""
    parts = []
    lost = () if report.knowledge is None else report.knowledge.lost
    undone = () if report.survival is None else report.survival.lost
    for title, facts in (("known facts lost", lost), ("edited facts lost", undone)):
        if facts:
            items = "".join(f"<li>{_text(fact)}</li>" for fact in facts)
            parts.append(
                f"<details><summary>{len(facts):,} {title}</summary><ul>{items}</ul></details>"
            )
    return "".join(parts)


def _decision(step: Step) -> str:
    decision = step.decision
    head = f"{step.id} {decision.summary}, {step.state}, {step.seconds:.1f} s"
    reasons = "".join(f"<li>{_text(reason)}</li>" for reason in decision.reasons)
    signals = ""
    if decision.signals:
        rows = [(name, f"{value:.4g}") for name, value in decision.signals.items()]
        signals = (
            "<details><summary>signals</summary>"
            f"{table(('signal', 'value'), rows, numbers=(1,))}</details>"
        )
    asked = f"method {step.method}"
    if decision.cost.cheaper is not None:  # estimates, which only the router makes
        asked += f", budget {decision.budget}; {decision.cost}"
    return (
        f"<div><b>{_text(head)}</b><ul>{reasons}</ul>"
        f"<p class='about'>{_text(asked)}</p>{signals}</div>"
    )


def _spent(report: Report) -> str:
    if not report.spent:
        return ""
    rows = [
        (
            one.id,
            one.what,
            one.how,
            f"{one.n:,}",
            f"{one.seconds:.2f}",
            f"{one.numbers:,}",
            bytes_in_words(one.n_bytes),
        )
        for one in report.spent
    ]
    head = ("entry", "what", "how", "items", "seconds", "numbers", "size")
    out = {i for i, one in enumerate(report.spent) if not one.active}
    return table(head, rows, numbers=(3, 4, 5, 6), short=(0, 2), dim=out)


def _log(report: Report) -> str:
    if not report.moments:
        return ""
    rows = [(one.id, one.created, one.kind, one.text, one.state) for one in report.moments]
    out = {i for i, one in enumerate(report.moments) if one.state == "rolled back"}
    return table(("id", "when", "what", "says", "state"), rows, short=(0, 1, 2, 4), dim=out)
