"""What the command line shows: tables and blocks of colour from result objects; computes nothing.

Texts from models, logs and files are shown as they are, never as markup or terminal commands.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from editcl.log.entry import one_line
from editcl.log.skill import Skill

if TYPE_CHECKING:
    from editcl.benchmarks.edit import EditBenchmark
    from editcl.benchmarks.large import LargeEdit, LargeLearn
    from editcl.benchmarks.learn import LearnBenchmark
    from editcl.benchmarks.mass import MassBenchmark
    from editcl.benchmarks.route import RouteBenchmark
    from editcl.benchmarks.tune import Tuning
    from editcl.editing.calibrate import Calibration
    from editcl.editing.report import BatchReport
    from editcl.evaluation import Evaluation
    from editcl.evaluation.compare import Comparison
    from editcl.evaluation.damage import Damage
    from editcl.learner import Outcome, Step
    from editcl.learning.predict import TaskScore
    from editcl.log import Edit, EditLog
    from editcl.reporting import Report
    from editcl.routing.decision import Decision
    from editcl.tracing import Trace

KIND_COLOURS = {"hidden": (103, 58, 183), "mlp": (27, 120, 55), "attn": (178, 24, 43)}
_ARMS = ("edit", "train", "split", "abstain")
KIND_NAMES = {"hidden": "hidden state", "mlp": "MLP output", "attn": "attention output"}


def console() -> Console:
    """A console on standard output as it is now."""
    return Console(highlight=False)


def plain(value: Any) -> Text:
    """A text as it is: no markup, no control characters."""
    return Text(one_line(str(value)))


def show_trace(trace: Trace) -> None:
    """The heat map of each kind, tokens down, layers across, subject tokens starred."""
    out = console()
    head = Text("p(") + Text(one_line(trace.answer.strip()), style="bold")
    out.print(head + Text(f")  clean {trace.clean:.3f}   corrupted {trace.corrupted:.3f}"))
    for kind in trace.kinds:
        out.print(heat_map(trace, kind))


def heat_map(trace: Trace, kind: str) -> Table:
    """One kind's probabilities as blocks, darker for more recovered; the peak is in the title."""
    scores = trace.probability[kind]
    low, high = float(scores.min()), max(float(scores.max()), trace.clean)
    first, stop = trace.span
    best = trace.peak(kind, stop - 1)
    title = (
        f"restored {KIND_NAMES[kind]} (p in per cent); at the subject's last token most at "
        f"layer {best.layer}: {best.effect:+.3f}"
    )
    table = Table(title=title, title_justify="left", box=None, padding=(0, 0), title_style="bold")
    table.add_column("", justify="right")
    for number in range(scores.shape[1]):
        table.add_column(f"{number:>3}", justify="center")
    for i, name in enumerate(trace.tokens):
        star = "*" if first <= i < stop else " "
        cells = [_block(float(p), low, high, KIND_COLOURS[kind]) for p in scores[i]]
        table.add_row(Text(f"{one_line(name)}{star} "), *cells)
    return table


def _block(p: float, low: float, high: float, colour: tuple[int, int, int]) -> Text:
    share = 0.0 if high <= low else max(0.0, min(1.0, (p - low) / (high - low)))
    red, green, blue = (round(255 + share * (c - 255)) for c in colour)
    ink = "white" if share > 0.6 else "black"
    return Text(f" {round(100 * p):>3} ", style=f"{ink} on rgb({red},{green},{blue})")


def show_edit(edit: Edit, log: Path | None = None, *, full: bool = False) -> None:
    """A receipt."""
    out = console()
    for line in repr(edit).splitlines():
        out.print(plain(line))
    evaluation = edit.details.get("evaluation")
    if evaluation:
        out.print(shares_table("what holds after the edit", {"": evaluation}))
    if full:
        out.print(plain(f"  details: {dict(edit.details)}"))
    if log is not None and not full:
        out.print(
            Text("  logged in ")
            + plain(log)
            + Text("; take it back with ")
            + Text(f"editcl log rollback {edit.id} --log {log}", style="bold")
        )


def shares_table(title: str, rows: dict[str, dict[str, Any]]) -> Table:
    """Measures across, one row each; what could not be measured stays a dash."""
    names = list(next(iter(rows.values())))
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("")
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    for label, measures in rows.items():
        shown = ["-" if measures[n] is None else f"{100 * measures[n]:.1f}" for n in names]
        table.add_row(plain(label), *shown)
    return table


def show_calibration(calibration: Calibration) -> None:
    """The evidence, layer by layer."""
    evidence = calibration.location.evidence
    names = [name for name in evidence[0].details if name != "delta_over_residual"]
    title = f"trial edits of {len(calibration.facts)} facts a layer (per cent)"
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in ("layer", "score", *names, "|delta|/|h|"):
        table.add_column(name.replace("_", " "), justify="right")
    for e in evidence:
        chosen = e.layer == calibration.layer
        table.add_row(
            f"-> {e.layer}" if chosen else str(e.layer),
            f"{100 * e.score:.1f}",
            *(f"{100 * e.details[name]:.1f}" for name in names),
            f"{e.details['delta_over_residual']:.2f}",
            style="bold green" if chosen else "",
        )
    console().print(table)


def show_log(log: EditLog) -> None:
    """All entries, one row a fact or skill, up to a screenful for each batch."""
    table = Table(title=str(log), title_justify="left", title_style="bold")
    for name in ("id", "fact", "method", "layers", "p(new)", "state", "created"):
        table.add_column(name)
    for entry in log.timeline:
        if isinstance(entry, Skill):
            on = log.active(entry)
            cells = (entry.id, plain(entry.task), plain(entry.strategy), "-", "-")
            state = "active" if on else "rolled back"
            table.add_row(*cells, state, plain(entry.created), style="" if on else "dim")
            continue
        active = log.active_facts(entry)
        for j, sentence in list(enumerate(entry.sentences))[:20]:
            after = f"{entry.after[j].new:.3f}" if entry.after else "-"
            table.add_row(
                entry.id if len(entry.facts) == 1 else f"{entry.id}[{j}]",
                plain(sentence),
                plain(entry.method),
                ", ".join(map(str, entry.layers)),
                after,
                "active" if active[j] else "rolled back",
                plain(entry.created),
                style="" if active[j] else "dim",
            )
        if len(entry.facts) > 20:
            table.add_row(entry.id, f"... and {len(entry.facts) - 20} more facts")
    console().print(table)


def show_skill(skill: Skill, *, active: bool) -> None:
    """A trained skill: what, how, on top of what."""
    out = console()
    out.print(plain(repr(skill)) + Text(", active" if active else ", rolled back"))
    for name, value in skill.to_json().items():
        if name not in ("task", "slot", "strategy", "seconds") and value:
            out.print(plain(f"  {name}: {value}"))


def show_learnt(skills: Sequence[Skill], now: Mapping[str, float], log: Path) -> None:
    """What was just learnt, and how the tasks of it are done after the last one."""
    table = Table(title=f"learnt by {skills[0].strategy}", title_justify="left", title_style="bold")
    names = ("id", "task", "before", "after", "in the end", "loss", "examples/s", "s")
    for name in names:
        table.add_column(name, justify="left" if name in ("id", "task") else "right")
    for skill in skills:
        score, loss = skill.details["score"], skill.details["loss"]
        table.add_row(
            skill.id,
            plain(skill.task),
            *map(_score, (score["before"], score["after"], now.get(skill.task))),
            f"{loss['first']:.3f} -> {loss['last']:.3f}",
            f"{skill.details['examples_per_second']:.0f}",
            f"{skill.seconds:.1f}",
        )
    out = console()
    out.print(table)
    take_back = f"editcl skills rollback {one_line(skills[-1].task)} --log {one_line(str(log))}"
    out.print(plain(f"logged in {log}; take the last one back with {take_back}"))


def show_outcomes(outcomes: Sequence[Outcome], log: Path) -> None:
    """What became of each task, with the reasons; a question where nothing was learnt."""
    out = console()
    for outcome in outcomes:
        for line in outcome.lines():
            out.print(plain(line))
    out.print(plain(f"logged in {log}; editcl history --log {log} lists all steps"))


def show_decisions(decisions: Sequence[Decision]) -> None:
    """Kind, confidence, reasons, costs and signals of each."""
    out = console()
    for decision in decisions:
        out.print(Text(one_line(decision.summary), style="bold"))
        for reason in decision.reasons:
            out.print(plain(f"  - {reason}"))
        out.print(plain(f"  {decision.cost} (budget {decision.budget!r})"))
        signals = ", ".join(f"{name} {value:.3g}" for name, value in decision.signals.items())
        out.print(plain(f"  signals: {signals or 'none'}"))


def show_steps(steps: Sequence[Step], log: Path) -> None:
    """The steps of a Learner, one row each."""
    head = ("id", "task", "asked", "decision", "confidence", "entries", "state", "why")
    rows = [
        (
            step.id,
            step.task,
            step.method,
            step.kind,
            f"{step.decision.confidence:.2f}",
            " ".join(step.entries),
            step.state,
            next(iter(step.decision.reasons), ""),
        )
        for step in steps
    ]
    table = Table(title=plain(f"steps in {log}"), title_justify="left", title_style="bold")
    for name in head:
        table.add_column(name)
    for row in rows:
        table.add_row(*map(plain, row))
    console().print(table)


def show_skills(log: EditLog) -> None:
    """All skills of a log, one row each."""
    table = Table(title=plain(log), title_justify="left", title_style="bold")
    for name in ("id", "task", "adapter", "strategy", "before", "after", "state", "created"):
        table.add_column(name, justify="right" if name in ("before", "after") else "left")
    for skill in log.skills:
        score, on = skill.details.get("score", {}), log.active(skill)
        table.add_row(
            skill.id,
            plain(skill.task),
            plain(skill.slot),
            plain(skill.strategy),
            *(_score(score.get(name)) for name in ("before", "after")),
            "active" if on else "rolled back",
            plain(skill.created),
            style="" if on else "dim",
        )
    console().print(table)


def show_scores(found: Mapping[str, TaskScore], using: str) -> None:
    """One row a task."""
    table = Table(title=f"judged with: {one_line(using)}", title_justify="left", title_style="bold")
    for name in ("task", "score", "log-prob", "examples"):
        table.add_column(name, justify="left" if name == "task" else "right")
    for name, score in found.items():
        numbers = (f"{score.score:.3f}", f"{score.log_prob:.3f}", str(len(score.log_probs)))
        table.add_row(plain(name), *numbers)
    console().print(table)


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def show_report(report: Any) -> None:
    """Anything with a readable repr (or a text)."""
    out = console()
    for line in (report if isinstance(report, str) else repr(report)).splitlines():
        out.print(plain(line))


def show_checklist(found: Report, page: Path | None) -> None:
    """The checklist of a report, its decisions, and where the page is."""
    from editcl.reporting.checklist import HEAD

    table = Table(title=plain(f"{found.model}: {found.log}"), title_justify="left")
    table.title_style = "bold"
    for i, name in enumerate(HEAD):
        table.add_column(name, justify="right" if i in (1, 2) else "left")
    for row in found.rows():
        table.add_row(*map(plain, row))
    out = console()
    out.print(table)
    for step in found.steps:
        out.print(plain(f"{step.id} {step.decision.summary}, {step.state}"))
        for reason in step.decision.reasons:
            out.print(plain(f"  - {reason}"))
    for note in found.notes:
        out.print(plain(f"note: {note}"))
    if page is not None:
        out.print(plain(f"the page is {page}"))


def show_benchmark(found: EditBenchmark) -> None:
    """Quality, speed and exactness."""
    out = console()
    names = (
        "efficacy",
        "paraphrase",
        "specificity",
        "same_subject",
        "free_running",
        "free_paraphrase",
        "score",
    )
    edited = {name: getattr(found, name) for name in names}
    title = f"{found.n_edits} single edits of {found.model} at layer {found.layer} (per cent)"
    out.print(shares_table(title, {"unedited": found.base, "edited": edited}))
    shown = {*names, "base", "model", "n_edits", "layer"}
    out.print(_figures_table({n: v for n, v in found.to_dict().items() if n not in shown}))


def show_mass(found: MassBenchmark) -> None:
    """Quality of one batch and of sequences, speed, exactness, growth."""
    out = console()
    title = (
        f"{found.n_facts} facts on {found.model}, MEMIT at layers {list(found.layers)} (per cent)"
    )
    rows = {"unedited": found.base, "memit, one batch": found.memit}
    rows |= {f"{name}, one batch": shares for name, shares in found.one_batch.items()}
    rows |= {f"{name}, in sequence": shares for name, shares in found.sequential.items()}
    out.print(shares_table(title, rows))
    shown = {
        "model",
        "n_facts",
        "layers",
        "base",
        "memit",
        "one_batch",
        "sequential",
        "comparison",
        "growth",
    }
    out.print(_figures_table({n: v for n, v in found.to_dict().items() if n not in shown}))
    if found.growth is not None:
        table = Table(title="growth, a process a row", title_justify="left", title_style="bold")
        for name in ("facts", "s", "of it v*", "peak MiB", "added MiB"):
            table.add_column(name, justify="right")
        for cost in found.growth.costs:
            memory = ("?" if x is None else f"{x:.0f}" for x in (cost.peak, cost.added))
            seconds = (f"{cost.seconds:.1f}", f"{cost.values_seconds:.1f}")
            table.add_row(str(cost.n_facts), *seconds, *memory)
        out.print(table)
        out.print(plain(f"seconds: {found.growth.seconds}; added MiB: {found.growth.added}"))


def show_large(found: LargeEdit | LargeLearn) -> None:
    """Every figure on a line."""
    console().print(_figures_table(found.to_dict()))


def show_learn(found: LearnBenchmark) -> None:
    """Strategies beside the joint training, then forgetting, speed and exactness."""
    comparison = found.comparison
    seeds = len(comparison.strategies[0].runs)
    title = f"{', '.join(comparison.tasks)} on {found.model}, seeds: {seeds}"
    out = console()
    out.print(_plain_table(title, *comparison.rows()))
    for name, reason in found.left_out.items():
        out.print(plain(f"left out: {name}. {reason}"))
    if found.kinds:
        out.print(
            _plain_table("kinds of adapter, trained on from task to task", *found.kinds_rows())
        )
    out.print(_figures_table(found.figures()))


def show_route_benchmark(found: RouteBenchmark) -> None:
    """Each task with what its arms are worth and what was decided, families, figures, stream."""
    out = console()
    rows: list[Sequence[str]] = []
    for one in found.decided:
        worth, said = one.measured.utilities(), one.said["full"]
        arms = (f"{worth[n]:.2f}" if n in worth else "-" for n in _ARMS)
        mark = "" if one.right() else f" ({one.measured.label})"
        shown = (f"{said.kind}{mark}", f"{said.confidence:.2f}", f"{one.regret():.2f}")
        rows.append((one.measured.task, one.half, *arms, *shown))
    names = ("task", "half", *_ARMS, "decision (best)", "confidence", "regret")
    out.print(_plain_table(f"what arms are worth on {found.model}", names, rows))
    families = found.by_family()
    head = ["family", *next(iter(families.values()))]
    rows = [(name, *(f"{x:.2f}" for x in own.values())) for name, own in families.items()]
    out.print(_plain_table("mean regret by family", head, rows))
    figures = found.figures()
    across = figures.pop("cross_validated")
    figures = {n: v for n, v in figures.items() if n not in ("thresholds", "count_rule")}
    out.print(_figures_table(figures, "tested families"))
    out.print(_figures_table(across, "all families, each decided by a fit to the others"))
    for name, line in found.stream.items():
        survival = "-" if line.edit_survival is None else f"{line.edit_survival:.3f}"
        kinds = ", ".join(f"{kind} {n}" for kind, n in line.kinds.items())
        told = f"OP {line.OP:.3f}, edit survival {survival}, {line.cost:.0f} s ({kinds})"
        out.print(plain(f"stream, {name}: {told}"))


def show_tuning(found: Tuning) -> None:
    """Each point of the grids, the chosen ones marked."""
    title = (
        f"settings chosen on {found.n_valid} validation rows of {', '.join(found.tasks)}, "
        f"{found.model}, seed {found.seed}"
    )
    console().print(_plain_table(title, *found.rows()))


def _plain_table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Texts; what is not in the first column stands at the right."""
    table = Table(title=plain(title), title_justify="left", title_style="bold")
    for i, name in enumerate(head):
        table.add_column(name, justify="right" if i else "left")
    for row in rows:
        table.add_row(*map(plain, row))
    return table


def _figures_table(figures: Mapping[str, Any], title: str = "speed and exactness") -> Table:
    """A row a figure."""
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("measure")
    table.add_column("value", justify="right")
    for name, value in figures.items():
        values = value if isinstance(value, tuple) else (value,)
        table.add_row(
            name, ", ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in values)
        )
    return table


def show_answers(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """What the model says to each prompt, by state."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in columns:
        table.add_column(name)
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else plain(cell) for cell in row))
    console().print(table)


SHOWN_ROWS = 12


def show_batch(report: BatchReport, log: Path, out: Path | None) -> None:
    """What became of a table: a summary, the first rows, and what to do next."""
    screen = console()
    for line in report.summary().splitlines():
        screen.print(plain(line))
    table = Table(title="first rows" if len(report.rows) > SHOWN_ROWS else None)
    for name in ("row", "fact", "status", "p(new) before", "after"):
        table.add_column(name, justify="right" if name in ("p(new) before", "after") else "left")
    for row in report.rows[:SHOWN_ROWS]:
        before = "" if row.before is None else f"{row.before.new:.3f}"
        after = "" if row.after is None else f"{row.after.new:.3f}"
        table.add_row(plain(row.number), plain(row.fact), plain(row.status), before, after)
    screen.print(table)
    if out is not None:
        screen.print(plain(f"all rows in {out}"))
    if report.entries:
        entry = report.entries[-1].id
        screen.print(plain(f"one fact back: editcl log rollback {entry} --fact 0 --log {log}"))


def show_evaluation(found: Evaluation, harm: Damage) -> None:
    """Each measure with its 95 % interval, and the damage."""
    table = Table()
    for name in ("measure", "mean", "low", "high", "cases"):
        table.add_column(name, justify="left" if name == "measure" else "right")
    for name, value in found.intervals().items():
        numbers = [f"{x:.3f}" for x in (value.mean, value.low, value.high)]
        table.add_row(plain(name), *numbers, str(value.n_cases))
    screen = console()
    screen.print(table)
    screen.print(plain(harm))


def show_comparison(found: Comparison) -> None:
    """One line a method."""
    head, rows = found.rows()
    table = Table()
    for i, name in enumerate(head):
        table.add_column(plain(name), justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*map(plain, row))
    console().print(table)
