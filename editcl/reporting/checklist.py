"""The checklist: a report as rows of words, a row a measure. Computes nothing.

measure | base | now | about
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from editcl.log.entry import one_line

if TYPE_CHECKING:
    from editcl.learning.drift import Drift
    from editcl.learning.survival import Survival
    from editcl.reporting.result import HarnessLine, Knowledge, Report, TaskLine

HEAD = ("measure", "base", "now", "about")
SHOWN_LOST = 3

_Row = tuple[str, str, str, str]


def checklist(report: Report) -> list[_Row]:
    """All rows, new-task performance first."""
    return [
        *map(_task_row, report.tasks),
        *_ability_rows(report),
        *_knowledge_rows(report.knowledge),
        *_drift_rows(report.drift),
        *_survival_rows(report.survival),
        *_cost_rows(report),
        *map(_harness_row, report.harness),
    ]


def percent(share: float | None) -> str:
    """A share in per cent; a dash for none."""
    return "-" if share is None else f"{100 * share:.1f} %"


def bytes_in_words(count: int) -> str:
    """A number of bytes with a fitting unit."""
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def task_figure(line: TaskLine, value: float | None) -> str:
    """A score of a task: a share in per cent, or -log perplexity."""
    if value is None:
        return "-"
    return percent(value) if line.share else f"{value:.3f}"


def _task_row(line: TaskLine) -> _Row:
    unit = "" if line.share else ", -log perplexity"
    told = "" if line.told is None else f"; told which skill: {task_figure(line, line.told)}"
    about = f"{line.n:,} examples{unit}; {line.how}{told}"
    base, now = task_figure(line, line.base), task_figure(line, line.now)
    return f"task {one_line(line.name)}", base, now, one_line(about)


def _ability_rows(report: Report) -> list[_Row]:
    found = report.ability
    if found is None:
        return []
    base, now = f"{found.base_cross_entropy:.3f}", f"{found.cross_entropy:.3f}"
    about = f"KL(base || now) {found.kl:.4f} nats over {found.n_tokens:,} tokens"
    return [
        ("general text, nats per token", base, now, about),
        ("general text that goes to a skill", "-", percent(report.to_skills), "lower is better"),
    ]


def _knowledge_rows(found: Knowledge | None) -> list[_Row]:
    if found is None:
        return []
    about = f"still right: {found.kept} of the {found.known} that the base knows, of {found.n}"
    if found.gained:
        about += f"; {found.gained} new"
    if found.lost:
        about += f"; lost: {one_line('; '.join(found.lost[:SHOWN_LOST]))}"
    if len(found.lost) > SHOWN_LOST:
        about += f" and {len(found.lost) - SHOWN_LOST} more"
    known = percent(found.known / found.n)
    return [("knowledge kept", f"{known} known", percent(found.share), about)]


def _drift_rows(found: Drift | None) -> list[_Row]:
    if found is None:
        return []
    about = f"nats per token of the base's answers to {found.n_instructions} prompts"
    rows = [("instruction drift, KL", "0", f"{found.kl:.4f}", about)]
    if found.reference is not None:
        pair = f"{found.reference.before:.3f}", f"{found.reference.now:.3f}"
        rows.append(("reference answers, nats per token", *pair, "lower is better"))
    if found.constraints is not None:
        pair = percent(found.constraints.before), percent(found.constraints.now)
        rows.append(("constraints kept", *pair, "by greedy answers"))
    if found.bleed is not None:
        pair = percent(found.bleed.before), percent(found.bleed.now)
        rows.append(("label bleed", *pair, "generic prompts answered with a task's label"))
    return rows


def _survival_rows(found: Survival | None) -> list[_Row]:
    if found is None:
        return []
    about = (
        f"{found.kept} of the {found.before} facts that hold without skills, of {found.n_facts} "
        "in force"
    )
    if found.lost:
        about += f"; lost: {one_line('; '.join(found.lost[:SHOWN_LOST]))}"
    if len(found.lost) > SHOWN_LOST:
        about += f" and {len(found.lost) - SHOWN_LOST} more"
    return [("edit survival", "-", percent(found.share), about)]


def _cost_rows(report: Report) -> list[_Row]:
    spent = report.spent
    if not spent:
        return []
    numbers = sum(one.numbers for one in spent)
    about = (
        f"{len(spent)} entries, {numbers:,} numbers "
        f"({100 * numbers / report.n_parameters:.2f} % of the model's parameters), "
        f"{bytes_in_words(sum(one.n_bytes for one in spent))}; deciding {report.deciding:.1f} s"
    )
    return [("cost, seconds", "-", f"{report.learning_seconds:.1f}", about)]


def _harness_row(line: HarnessLine) -> _Row:
    error = "" if line.stderr is None else f", standard error {line.stderr:.4f}"
    better = {True: ", higher is better", False: ", lower is better", None: ""}
    about = f"lm-eval, {line.n:,} examples{error}{better[line.higher_is_better]}"
    name = one_line(f"{line.task}: {line.metric}")
    return name, f"{line.base:.4f}", f"{line.now:.4f}", about
