"""`editcl`: the command line, thin over the same functions that scripts call.

Every command takes `--json` and then prints one JSON object on standard output. Errors that a user
can mend go to standard error as one message, with exit status 1. Heavy imports wait until a
command needs them, so that `--help` is instant.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from editcl.errors import EditclError, TableError

if TYPE_CHECKING:
    from editcl.benchmarks.large import LargeEdit, LargeLearn
    from editcl.evaluation import Case
    from editcl.learning.skills import Skills
    from editcl.learning.tasks import Task
    from editcl.log import Skill
    from editcl.model import EditableModel

app = typer.Typer(
    name="editcl",
    help="See, edit, verify and take back what a language model knows.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
log_app = typer.Typer(
    help="List, show, verify, take back and export logged edits.", no_args_is_help=True
)
bench_app = typer.Typer(
    help="Measure editcl; every published figure comes from here.", no_args_is_help=True
)
skills_app = typer.Typer(
    help="List, ask, judge and take back what was learnt.", no_args_is_help=True
)
app.add_typer(log_app, name="log")
app.add_typer(skills_app, name="skills")
app.add_typer(bench_app, name="bench")

Model = Annotated[
    str | None, typer.Option("--model", help="Hub name or folder; default: the embedded model.")
]
Log = Annotated[Path, typer.Option("--log", help="Folder of the durable edit log.")]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1; default: cuda if there is one.")
]
Dtype = Annotated[
    str | None, typer.Option(help="float32, bfloat16 or float16; default: the model's.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Kind = Annotated[str | None, typer.Option(help="The table's format, if it can't be told.")]
Settings = Annotated[str | None, typer.Option(help="published: the papers' objective.")]
Refine = Annotated[
    bool | None,
    typer.Option(
        "--refine/--no-refine",
        help="Train what was solved for further, or not; default: for more than 50 facts.",
    ),
]
BatchSize = Annotated[int | None, typer.Option(help="Facts solved at once; default: all.")]
Picture = Annotated[Path | None, typer.Option(help="Where to save the picture.")]
Tasks = Annotated[
    Path, typer.Argument(help="JSON Lines, JSON, CSV or TSV file of a task, or folder of tasks.")
]
TaskName = Annotated[
    str | None, typer.Option("--task", help="Name of the task; default: the file's.")
]
Template = Annotated[
    str | None, typer.Option("--prompt", help="Prompt of texts to be labelled, with {text}.")
]
Learnable = Annotated[
    Path,
    typer.Argument(
        help="File of a task or folder of tasks; but for --method train also facts (as of "
        "edit-csv) or a .txt in plain sentences."
    ),
]
Budget = Annotated[str, typer.Option(help="Of the decision: full, or cheap (under a second).")]
Order = Annotated[
    str | None, typer.Option(help="Of a folder: names, separated by commas; default: all.")
]
MaxTokens = Annotated[
    int | None, typer.Option(min=2, help="Longer prompts lose their middle; default: an error.")
]
TestShare = Annotated[
    float, typer.Option(help="Share of the rows that judges where no test file does.")
]
DEFAULT_LOG = Path("editcl-log")
INTERRUPTED = 130  # exit status that typer gives Ctrl-C


def main() -> None:
    """Runs the command line; user errors end it with a message and status 1, Ctrl-C with 130."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names in any script, on any terminal
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except EditclError as error:
        from rich.console import Console
        from rich.text import Text

        from editcl.log.entry import one_line

        text = "\n".join(one_line(line) for line in str(error).splitlines())
        Console(stderr=True).print(Text("error: ", style="bold red") + Text(text))
        sys.exit(1)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            typer.echo(
                "stopped: what was not finished is gone, a table of facts as a whole. What stands "
                "is told by `editcl log list` and `editcl history`.",
                err=True,
            )
        raise


@app.command()
def demo(
    picture: Annotated[
        Path | None, typer.Option(help="Where to save the trace as a picture (.png, .pdf).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Trace, edit, verify and roll back one fact on the embedded model, offline."""
    from editcl.demo import run_demo

    report = run_demo(picture=picture, quiet=as_json)
    if as_json:
        _print_json(report)
    if not report["ok"]:
        sys.exit(1)


@app.command()
def trace(
    subject: Annotated[str, typer.Argument(help="The subject, as it stands in the prompt.")],
    prompt: Annotated[str, typer.Argument(help="Sentence start that names it, or with {} for it.")],
    model: Model = None,
    answer: Annotated[
        str | None, typer.Option(help="The object; default: what the model says.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Noise samples.")] = 10,
    noise: Annotated[
        float | None, typer.Option(help="Noise level; default: 3 x the embeddings' deviation.")
    ] = None,
    window: Annotated[
        int | None, typer.Option(help="Layers restored together (mlp, attn).")
    ] = None,
    picture: Picture = None,
    device: Device = None,
    dtype: Dtype = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Find the tokens and layers that carry a fact (causal tracing)."""
    from editcl.console import show_trace
    from editcl.tracing import trace as run_trace

    editable = _load(model, device, dtype)
    found = run_trace(
        editable,
        subject,
        prompt,
        answer=answer,
        samples=samples,
        noise=noise,
        window=window,
        seed=seed,
    )
    if picture is not None:
        _save_picture(found, picture)
    _emit(as_json, found.to_dict(), lambda: show_trace(found))


@app.command()
def edit(
    subject: Annotated[str, typer.Argument(help="What the fact is about.")],
    new_object: Annotated[str, typer.Argument(help="What the model shall say.")],
    prompt: Annotated[
        str | None, typer.Option(help="Sentence start with {} for the subject; default: inferred.")
    ] = None,
    model: Model = None,
    log: Log = DEFAULT_LOG,
    old_object: Annotated[
        str | None, typer.Option(help="What it says now; default: asked.")
    ] = None,
    layer: Annotated[int | None, typer.Option(help="Layer; default: calibrated.")] = None,
    method: Annotated[str, typer.Option(help="A name in METHODS.")] = "rome",
    settings: Settings = None,
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Measure paraphrases and specificity too.")
    ] = False,
    device: Device = None,
    dtype: Dtype = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Edit one fact and keep the change in a durable log."""
    from editcl.console import show_edit
    from editcl.editing.edit import edit as run_edit

    editable = _load(model, device, dtype, log)
    with editable.log:
        receipt = run_edit(
            editable,
            subject,
            new_object,
            prompt=prompt,
            old_object=old_object,
            method=method,
            layer=layer,
            settings=settings,
            evaluate=evaluate,
            seed=seed,
        )
        _emit(as_json, {"id": receipt.id, **receipt.to_json()}, lambda: show_edit(receipt, log))


@app.command("edit-csv")
def edit_csv(
    source: Annotated[Path, typer.Argument(help="CSV, TSV, JSON or JSON Lines table of facts.")],
    model: Model = None,
    log: Log = DEFAULT_LOG,
    method: Annotated[str, typer.Option(help="memit, alphaedit, emmet, pmet, ...")] = "memit",
    kind: Kind = None,
    layer: Annotated[
        list[int] | None, typer.Option(help="A layer to edit; repeat for several.")
    ] = None,
    preservation: Annotated[
        float, typer.Option(help="Higher: more specific; lower: more paraphrases.")
    ] = 0.1,
    settings: Settings = None,
    refine: Refine = None,
    batch_size: BatchSize = None,
    no_guard: Annotated[
        bool, typer.Option("--no-guard", help="Go on whatever the model's health.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Where to write the results as CSV.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, change nothing.")
    ] = False,
    device: Device = None,
    dtype: Dtype = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Edit a table of facts and keep the change in a durable log."""
    from editcl.console import show_batch
    from editcl.editing.choices import check_amounts, choose_method
    from editcl.editing.guards import Guard
    from editcl.editing.many import edit_csv as run_table
    from editcl.editing.report import check_results_path
    from editcl.readers import read_table

    # What is wrong with the call is told before a model is loaded and a log is made.
    choose_method(method)
    check_amounts(batch_size, preservation)
    if out is not None:
        check_results_path(out, source, log)
    table = read_table(source, kind=kind)
    editable = _load(model, device, dtype, None if dry_run and not log.exists() else log)
    with editable.log:
        report = run_table(
            editable,
            table,
            method=method,
            layers=layer or None,
            settings=settings,
            preservation=preservation,
            refine=refine,
            batch_size=batch_size,
            guard=None if no_guard else Guard(),
            dry_run=dry_run,
            seed=seed,
        )
        failed = None
        if out is not None:
            try:
                report.to_csv(out)
            except OSError as error:
                failed = error
        kept = None if failed else out
        _emit(as_json, report.to_dict(), lambda: show_batch(report, log, kept))
        if failed is not None:
            raise EditclError(
                f"the results could not be written to {out} ({failed}); they are printed above"
                f"{'' if dry_run else ', the edits are in the log'}."
            ) from failed
    if report.stopped:
        sys.exit(1)


@app.command("eval")
def evaluate(
    source: Annotated[Path, typer.Argument(help="Table of facts with what to measure them by.")],
    model: Model = None,
    log: Annotated[
        Path | None, typer.Option("--log", help="Measure with the edits of this log.")
    ] = None,
    kind: Kind = None,
    limit: Annotated[int | None, typer.Option("--n", min=1, help="Rows at most.")] = None,
    device: Device = None,
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """Efficacy, paraphrases, specificity, portability of a model as it is, and its damage."""
    from editcl.console import show_evaluation
    from editcl.evaluation import evaluate as run_evaluation
    from editcl.evaluation.damage import damage

    editable = _load(model, device, dtype) if log is None else _open(model, log)
    with editable.log:
        found = run_evaluation(editable, _cases(source, kind, limit))
        harm = damage(editable)
    body = {**found.to_dict(), "damage": harm.to_dict()}
    _emit(as_json, body, lambda: show_evaluation(found, harm))


@app.command()
def compare(
    source: Annotated[
        Path | None, typer.Argument(help="Table of facts; default: catalogue facts.")
    ] = None,
    methods: Annotated[
        str, typer.Option(help="Names, separated by commas; 'ike' edits in context.")
    ] = "rome,memit,alphaedit,ft-m,ike",
    model: Model = None,
    kind: Kind = None,
    limit: Annotated[int, typer.Option("--n", min=1, help="Facts at most.")] = 50,
    settings: Settings = None,
    refine: Refine = None,
    batch_size: BatchSize = None,
    picture: Picture = None,
    device: Device = None,
    dtype: Dtype = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Several methods on the same facts in one run, each from the same weights."""
    from editcl.console import show_comparison
    from editcl.editing.arms import compare_methods
    from editcl.evaluation import catalogue_cases

    names = _names(methods)
    if not names:
        raise EditclError("--methods names no method.")
    editable = _load(model, device, dtype)
    cases = catalogue_cases(limit, seed=seed) if source is None else _cases(source, kind, limit)
    found = compare_methods(
        editable,
        cases,
        names,
        batch_size=batch_size,
        settings=settings,
        refine=refine,
        seed=seed,
    )
    if picture is not None:
        _save_picture(found, picture)
    _emit(as_json, found.to_dict(), lambda: show_comparison(found))


@app.command()
def calibrate(
    model: Model = None,
    n_facts: Annotated[int, typer.Option(help="Trial edits a layer.")] = 16,
    refresh: Annotated[bool, typer.Option("--refresh", help="Measure again.")] = False,
    device: Device = None,
    dtype: Dtype = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Find the layer to edit on a model, by trial edits of facts that it knows."""
    from editcl.console import show_calibration
    from editcl.editing.calibrate import calibrate as run_calibrate

    editable = _load(model, device, dtype)
    found = run_calibrate(editable, n_facts=n_facts, seed=seed, refresh=refresh)
    _emit(as_json, found.to_dict(), lambda: show_calibration(found))


@log_app.command("list")
def log_list(log: Log = DEFAULT_LOG, model: Model = None, as_json: Json = False) -> None:
    """All edits and skills, and whether they are active."""
    from editcl.console import show_log

    editable = _open(model, log)
    with editable.log:
        entries = [
            {"id": e.id, **e.to_json(), "active": list(editable.log.active_facts(e))}
            for e in editable.log
        ]
        skills = [
            {"id": s.id, **s.to_json(), "active": editable.log.active(s)}
            for s in editable.log.skills
        ]
        body = {"entries": entries, "skills": skills}
        _emit(as_json, body, lambda: show_log(editable.log))


@log_app.command("show")
def log_show(
    entry: Annotated[str, typer.Argument(help="Id of an entry, such as e0001.")],
    log: Log = DEFAULT_LOG,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """One edit or skill in full."""
    from editcl.console import show_edit, show_skill
    from editcl.log import Skill

    editable = _open(model, log)
    with editable.log:
        found = editable.log.get(entry)
        body = {"id": found.id, **found.to_json()}
        if isinstance(found, Skill):
            body["active"] = editable.log.active(found)
            _emit(as_json, body, lambda: show_skill(found, active=body["active"]))
        else:
            body["active"] = list(editable.log.active_facts(found))
            _emit(as_json, body, lambda: show_edit(found, log, full=True))


@log_app.command("rollback")
def log_rollback(
    entry: Annotated[str, typer.Argument(help="Id of an entry, or 'all'.")],
    log: Log = DEFAULT_LOG,
    model: Model = None,
    fact: Annotated[int | None, typer.Option(help="Only this fact of the entry (from 0).")] = None,
    after: Annotated[
        bool, typer.Option("--after", help="Take back everything after the entry instead.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Take an edit back, exactly."""
    from editcl.console import show_report

    if fact is not None and (after or entry == "all"):
        raise EditclError(
            "--fact names one fact of one entry; it goes with neither 'all' nor --after."
        )
    editable = _open(model, log)
    with editable.log:
        if after:
            report = editable.log.rollback_to(entry)
        else:
            report = editable.log.rollback(entry if fact is None else (entry, fact))
        _emit(as_json, _report(report), lambda: show_report(report))


@log_app.command("reapply")
def log_reapply(
    entry: Annotated[str, typer.Argument(help="Id of an entry, or 'all'.")],
    log: Log = DEFAULT_LOG,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Put an edit back that was taken out."""
    from editcl.console import show_report

    with _open(model, log).log as edits:
        report = edits.reapply(entry)
    _emit(as_json, _report(report), lambda: show_report(report))


@log_app.command("verify")
def log_verify(log: Log = DEFAULT_LOG, model: Model = None, as_json: Json = False) -> None:
    """Check that the weights are, byte for byte, what the log says."""

    from editcl.console import show_report

    with _open(model, log).log as edits:
        report = edits.verify()
    _emit(as_json, {"ok": report.ok, **asdict(report)}, lambda: show_report(report))
    if not report.ok:
        sys.exit(1)


@log_app.command("export")
def log_export(
    folder: Annotated[Path, typer.Argument(help="Where to write it.")],
    log: Log = DEFAULT_LOG,
    model: Model = None,
    lora: Annotated[bool, typer.Option("--lora", help="As a PEFT LoRA adapter.")] = False,
    rank: Annotated[int | None, typer.Option(help="Largest rank of the adapter.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite")] = False,
    as_json: Json = False,
) -> None:
    """Write the edited model as a Hugging Face folder, or its edits as a LoRA adapter."""

    from editcl.console import show_report
    from editcl.log.export import export_lora, export_model

    if rank is not None and not lora:
        raise EditclError("--rank is of a LoRA adapter: add --lora.")
    editable = _open(model, log)
    with editable.log:
        if lora:
            adapter = export_lora(editable, folder, rank=rank)
            body = {
                name: str(v) if isinstance(v, Path) else v for name, v in asdict(adapter).items()
            }
            _emit(as_json, body, lambda: show_report(adapter))
        else:
            written = export_model(editable, folder, overwrite=overwrite)
            _emit(
                as_json,
                {"folder": str(written)},
                lambda: show_report(f"model written to {written}"),
            )


@app.command()
def learn(
    source: Learnable,
    task: TaskName = None,
    method: Annotated[
        str, typer.Option(help="train, edit, split (both), or auto: as the router decides.")
    ] = "train",
    strategy: Annotated[
        str, typer.Option(help="A name in STRATEGIES: per_task, replay, color, ...")
    ] = "per_task",
    model: Model = None,
    log: Log = DEFAULT_LOG,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, help="Steps of the optimiser; default: by --epochs, and 80 or more without."
        ),
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="How often each row is seen.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Rows of a step.")] = None,
    lr: Annotated[float | None, typer.Option(help="The highest learning rate.")] = None,
    patience: Annotated[
        int | None, typer.Option(min=1, help="Looks at held-out rows without gain; then stop.")
    ] = None,
    adapter: Annotated[str, typer.Option(help="lora, dora, ia3, prefix or prompt.")] = "lora",
    rank: Annotated[int | None, typer.Option(min=1, help="Rank of the adapter.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Its scale is alpha / rank.")] = None,
    targets: Annotated[
        str | None, typer.Option(help="all, attention, mlp, or module names by commas.")
    ] = None,
    prompt: Template = None,
    order: Order = None,
    test_share: TestShare = 0.2,
    max_tokens: MaxTokens = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Folder from which a killed training goes on.")
    ] = None,
    editor: Annotated[str, typer.Option(help="How facts are edited: memit, ...")] = "memit",
    layer: Annotated[
        list[int] | None, typer.Option(help="A layer that edits change; repeat for several.")
    ] = None,
    budget: Budget = "full",
    repair: Annotated[
        bool, typer.Option("--repair", help="Edit facts anew that a step has weakened.")
    ] = False,
    device: Device = None,
    dtype: Dtype = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Learn a task, or a folder of them one after another, and keep it in a durable log.

    By --method train a share of the rows judges where no test file does; by the others all rows are
    learnt, for facts that are held back would never be known.
    """
    from editcl.console import show_learnt, show_outcomes
    from editcl.learner import EditSettings, Learner
    from editcl.learner.deciding import check_method
    from editcl.learning.kinds import AdapterSettings
    from editcl.learning.settings import TrainSettings
    from editcl.learning.skills import Skills
    from editcl.learning.tasks import Task
    from editcl.log import EditLog, Skill
    from editcl.routing.material import material

    check_method(method)
    given = _given({"steps": steps, "epochs": epochs, "batch_size": batch_size, "lr": lr})
    trains = method == "train"
    own = given or patience is not None  # else a Learner's defaults, which fit the number of rows
    settings = TrainSettings(**given, patience=patience, seed=seed) if own else None
    chosen = _given({"rank": rank, "alpha": alpha, "targets": _targets(targets)})
    plain = adapter == "lora" and not chosen  # then a strategy goes on with what it had
    kind = None if plain else AdapterSettings(adapter, **chosen)
    stream: Sequence[Task | Path]
    if trains:
        stream = _tasks(source, task, prompt, order, test_share, max_tokens, seed)
    else:
        stream = _learnable(source, task, prompt, order, max_tokens, seed)
    editable = _load(model, device, dtype)
    skills = Skills(editable)
    for one in stream:  # before a log is made or anything is trained
        if isinstance(one, Task):
            skills.check(one, strategy)
        if not trains:
            material(one, name=task, model=editable)
    with EditLog(editable, log):
        edits = EditSettings(editor, layers=tuple(layer) if layer else None)
        learner = Learner(editable, edits=edits)
        for one in stream:
            if trains and isinstance(one, Task):
                learner.skills.check(one, strategy)
        outcomes = [
            learner.learn(
                one,
                method,
                name=task,
                strategy=strategy,
                settings=settings,
                adapter=kind,
                budget=budget,
                repair=repair,
                checkpoint=None if checkpoint is None else checkpoint / _stem(one),
                seed=seed,
                show=not as_json,
            )
            for one in stream
        ]
        named = [one for one in stream if isinstance(one, Task) and one.test]
        now = {one.name: learner.skills.evaluate(one).score for one in named} if trains else {}
        entries = [editable.log.get(name) for outcome in outcomes for name in outcome.entries]
        learnt = [entry for entry in entries if isinstance(entry, Skill)]
        body = {
            "log": str(log),
            "skills": [_skill(learner.skills, skill) for skill in learnt],
            "scores": now,
            "steps": [outcome.to_json() for outcome in outcomes],
        }
        if trains:
            _emit(as_json, body, lambda: show_learnt(learnt, now, log))
        else:
            _emit(as_json, body, lambda: show_outcomes(outcomes, log))


@app.command()
def route(
    source: Learnable,
    task: TaskName = None,
    budget: Budget = "full",
    model: Model = None,
    log: Annotated[
        Path | None, typer.Option("--log", help="Decide for the model as this log has it.")
    ] = None,
    prompt: Template = None,
    order: Order = None,
    max_tokens: MaxTokens = None,
    device: Device = None,
    dtype: Dtype = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Say whether a task should be edited, trained, split or asked about, and why."""
    from editcl.console import show_decisions
    from editcl.routing.material import material
    from editcl.routing.route import route as decide

    stream = _learnable(source, task, prompt, order, max_tokens, seed)
    editable = _load(model, device, dtype) if log is None else _open(model, log)
    with editable.log:
        decisions = [
            decide(
                editable,
                material(one, name=task, model=editable),
                budget=budget,
                seed=seed,
                show=not as_json,
            )
            for one in stream
        ]
    body = {"decisions": [decision.to_json() for decision in decisions]}
    _emit(as_json, body, lambda: show_decisions(decisions))


@app.command()
def history(log: Log = DEFAULT_LOG, model: Model = None, as_json: Json = False) -> None:
    """What a Learner has learnt into a log, step by step, with its decisions."""
    from editcl.console import show_steps
    from editcl.learner.steps import steps_of

    editable = _open(model, log)
    with editable.log:
        steps = steps_of(editable.log)
    body = {"log": str(log), "steps": [step.to_json() for step in steps]}
    _emit(as_json, body, lambda: show_steps(steps, log))


@app.command()
def report(
    sources: Annotated[
        list[Path] | None,
        typer.Argument(help="Files or folders of tasks to judge; tests in the log are judged too."),
    ] = None,
    model: Model = None,
    log: Log = DEFAULT_LOG,
    out: Annotated[
        Path | None, typer.Option("--out", help="Where to write the page (.html).")
    ] = None,
    facts: Annotated[
        Path | None, typer.Option(help="Table of facts that shall last; default: catalogue facts.")
    ] = None,
    lm_eval: Annotated[
        str, typer.Option("--lm-eval", help="Tasks of lm-eval (names or .yaml), by commas.")
    ] = "",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Examples of each task of lm-eval.")
    ] = None,
    prompt: Template = None,
    test_share: TestShare = 0.2,
    max_tokens: MaxTokens = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Everything that was learnt, and what it did to the rest, beside the base model."""
    from editcl.console import show_checklist
    from editcl.reporting import report as run_report
    from editcl.reporting.page import require_place

    if out is not None:
        require_place(out)
    shares = (prompt, None, test_share, max_tokens, seed)
    tasks = [task for one in sources or () for task in _tasks(one, None, *shares)]
    known = None if facts is None else [case.fact for case in _cases(facts, None, None)]
    names = [Path(n) if n.endswith((".yaml", ".yml")) else n for n in _names(lm_eval)]
    editable = _open(model, log)
    with editable.log:
        found = run_report(
            editable,
            tasks,
            facts=known,
            lm_eval=names,
            limit=limit,
            seed=seed,
            show=not as_json,
        )
    if out is not None:
        found.save(out)
    _emit(as_json, found.to_json(), lambda: show_checklist(found, out))


@skills_app.command("list")
def skills_list(log: Log = DEFAULT_LOG, model: Model = None, as_json: Json = False) -> None:
    """What was learnt, by which strategy, and whether it is in use."""
    from editcl.console import show_skills
    from editcl.learning.skills import Skills

    editable = _open(model, log)
    with editable.log:
        skills = Skills(editable)
        body = {"skills": [_skill(skills, skill) for skill in editable.log.skills]}
        _emit(as_json, body, lambda: show_skills(editable.log))


@skills_app.command("rollback")
def skills_rollback(
    what: Annotated[str, typer.Argument(help="Name of a task, or id of a skill.")],
    log: Log = DEFAULT_LOG,
    model: Model = None,
    after: Annotated[
        bool, typer.Option("--after", help="Take back everything after it instead.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Take a skill back: predictions are exactly those without it."""
    from editcl.console import show_report
    from editcl.learning.skills import Skills

    editable = _open(model, log)
    with editable.log:
        skills = Skills(editable)
        report = skills.rollback_to(what) if after else skills.rollback(what)
        _emit(as_json, _report(report), lambda: show_report(report))


@skills_app.command("evaluate")
def skills_evaluate(
    source: Tasks,
    task: TaskName = None,
    using: Annotated[
        str, typer.Option(help="told, infer, mixture, none, or the name of a task.")
    ] = "told",
    log: Log = DEFAULT_LOG,
    model: Model = None,
    prompt: Template = None,
    order: Order = None,
    test_share: TestShare = 0.2,
    max_tokens: MaxTokens = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Judge tasks by their tests: the rows that learning with this seed and share left out."""
    from editcl.console import show_scores
    from editcl.learning.skills import Skills

    stream = _tasks(source, task, prompt, order, test_share, max_tokens, seed)
    editable = _open(model, log)
    with editable.log:
        skills = Skills(editable)
        way = None if using == "none" else using
        found = {one.name: skills.evaluate(one, way) for one in stream}
    body = {
        name: {"score": s.score, "log_prob": s.log_prob, "examples": len(s.log_probs)}
        for name, s in found.items()
    }
    _emit(as_json, {"using": using, "tasks": body}, lambda: show_scores(found, using))


@skills_app.command("predict")
def skills_predict(
    texts: Annotated[list[str], typer.Argument(help="Prompts.")],
    using: Annotated[
        str, typer.Option(help="infer, mixture, none, or the name of a task.")
    ] = "infer",
    log: Log = DEFAULT_LOG,
    model: Model = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of answers that are no labels.")] = 16,
    as_json: Json = False,
) -> None:
    """Answer prompts with what was learnt."""

    from editcl.console import show_answers
    from editcl.learning.skills import Skills

    editable = _open(model, log)
    with editable.log:
        way = None if using == "none" else using
        answers = Skills(editable).predict(texts, way, max_new_tokens=max_new_tokens)
    rows = [(a.prompt, a.text, f"{a.log_prob:.3f}", a.task or "-") for a in answers]
    columns = ("prompt", "answer", "log-prob", "skill")
    body = {"answers": [asdict(answer) for answer in answers]}
    _emit(as_json, body, lambda: show_answers(f"answers ({using})", columns, rows))


@bench_app.command("edit")
def bench_edit(
    model: Model = None,
    cases: Annotated[
        Path | None, typer.Option(help="Table of facts to edit; default: catalogue facts.")
    ] = None,
    n_edits: Annotated[int, typer.Option("--n", min=1, help="Single edits.")] = 200,
    repeats: Annotated[
        int, typer.Option(help="Facts that both sides of a comparison run on.")
    ] = 12,
    device: Device = None,
    dtype: Dtype = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Quality and speed of single edits and traces, against the published procedures."""
    from editcl.benchmarks.edit import bench_edit as run_bench
    from editcl.console import show_benchmark

    editable = _load(model, device, dtype)
    chosen = None if cases is None else _cases(cases, None, n_edits)
    found = run_bench(editable, cases=chosen, n_edits=n_edits, repeats=repeats, seed=seed)
    _emit(as_json, found.to_dict(), lambda: show_benchmark(found))


@bench_app.command("mass")
def bench_mass(
    model: Model = None,
    cases: Annotated[
        Path | None, typer.Option(help="Table of facts to edit; default: catalogue facts.")
    ] = None,
    n_facts: Annotated[int, typer.Option("--n", min=1, help="Facts in one batch.")] = 1000,
    batches: Annotated[int, typer.Option(min=1, help="Batches of the sequence.")] = 10,
    others: Annotated[
        str, typer.Option(help="Methods beside MEMIT in one batch; '' for none.")
    ] = "memit-published,ft-m",
    methods: Annotated[
        str, typer.Option(help="Of the sequence, separated by commas; '' for none.")
    ] = "alphaedit,memit,rome",
    sizes: Annotated[
        str, typer.Option(help="Facts by which growth is measured; '' for none.")
    ] = "10,100,200,1000,2000",
    repeats: Annotated[
        int, typer.Option(min=1, help="Facts that the published procedure runs on.")
    ] = 8,
    picture: Annotated[
        Path | None, typer.Option(help="Where to save the picture of the growth.")
    ] = None,
    sequence_picture: Annotated[
        Path | None, typer.Option(help="Where to save the picture of the sequence.")
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Thousands of facts at once and in sequence: quality, speed, memory, growth."""
    from editcl.benchmarks.mass import bench_mass as run_bench
    from editcl.console import show_mass

    numbers = _names(sizes)
    if not all(number.isdigit() and int(number) for number in numbers) or 0 < len(numbers) < 3:
        raise EditclError(f"--sizes takes three or more numbers of facts, got {sizes!r}.")
    editable = _load(model, device, dtype)
    found = run_bench(
        editable,
        cases=None if cases is None else _cases(cases, None, n_facts),
        n_facts=n_facts,
        batches=batches,
        others=_names(others),
        methods=_names(methods),
        sizes=[int(number) for number in numbers],
        repeats=repeats,
        seed=seed,
    )
    if picture is not None and found.growth is not None:
        _save_picture(found.growth, picture)
    if sequence_picture is not None and found.comparison is not None:
        _save_picture(found.comparison, sequence_picture)
    _emit(as_json, found.to_dict(), lambda: show_mass(found))


@bench_app.command("large")
def bench_large(
    part: Annotated[str, typer.Option(help="What is measured: edit or learn.")] = "edit",
    shape: Annotated[
        str | None,
        typer.Option(help="gpt-j-6b, gpt2-xl, llama-1b or tiny; default: by part."),
    ] = None,
    n_facts: Annotated[
        int, typer.Option("--n", min=1, help="Facts edited together (edit).")
    ] = 1000,
    n_published: Annotated[
        int, typer.Option(min=1, help="Facts that the published procedure runs on (edit).")
    ] = 20,
    steps: Annotated[int, typer.Option(min=1, help="Of each training that is timed (learn).")] = 10,
    rows: Annotated[
        int, typer.Option(min=1, help="Of a training step, 512 tokens each (learn).")
    ] = 8,
    device: Device = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "bfloat16",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Speed and memory on large models with random weights; meant for a GPU."""
    from editcl.benchmarks.large import bench_large_edit, bench_large_learn
    from editcl.console import show_large

    if part not in ("edit", "learn"):
        raise EditclError(f"--part is edit or learn, got {part!r}.")
    found: LargeEdit | LargeLearn
    if part == "edit":
        found = bench_large_edit(
            shape or "gpt-j-6b",
            n_facts=n_facts,
            n_published=n_published,
            device=device,
            dtype=dtype,
            seed=seed,
        )
    else:
        found = bench_large_learn(
            shape or "llama-1b", steps=steps, rows=rows, device=device, dtype=dtype, seed=seed
        )
    _emit(as_json, found.to_dict(), lambda: show_large(found))


@bench_app.command("learn")
def bench_learn(
    model: Model = None,
    stream: Annotated[
        Path | None, typer.Option(help="Folder of tasks; default: the shipped stream.")
    ] = None,
    order: Annotated[
        str | None, typer.Option(help="Of its tasks, names separated by commas.")
    ] = None,
    rows: Annotated[
        int | None, typer.Option(min=2, help="At most so many examples of each task to learn from.")
    ] = None,
    test_rows: Annotated[
        int | None, typer.Option(min=1, help="At most so many examples of each task's test.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=2, help="Longer rows lose the middle of their prompt.")
    ] = None,
    strategies: Annotated[
        str | None, typer.Option(help="Names in STRATEGIES, separated by commas; or all.")
    ] = None,
    kinds: Annotated[
        str, typer.Option(help="Kinds of adapter to compare too, separated by commas; or all.")
    ] = "",
    seeds: Annotated[
        str, typer.Option(help="Of the comparison, separated by commas; --seed is of the rest.")
    ] = "0,1,2",
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps for each task; default: the benchmark's.")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="The highest learning rate.")] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="Choose rates and weights on validation rows instead.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Where to save what --tune chose.")] = None,
    tuned: Annotated[
        Path | None,
        typer.Option(
            help="What --tune saved; default: what ships, without --stream, --steps and --lr."
        ),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Trainings that are timed of a kind.")] = 5,
    picture: Annotated[
        Path | None, typer.Option(help="Where to save the picture of the strategies.")
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Strategies on a stream of tasks: what they keep, what training costs, exactness."""
    from dataclasses import replace

    from editcl.benchmarks.learn import ALL, DEFAULT, cut
    from editcl.benchmarks.learn import bench_learn as run_bench
    from editcl.benchmarks.tune import SETTINGS, read_tuning
    from editcl.benchmarks.tune import tune as run_tune
    from editcl.console import show_learn, show_tuning
    from editcl.learning.kinds import KINDS
    from editcl.learning.runs import JOINT

    numbers = _names(seeds)
    if not numbers or not all(number.isdecimal() for number in numbers):
        raise EditclError(f"--seeds takes whole numbers separated by commas, got {seeds!r}.")
    if out is not None and not tune:
        raise EditclError("--out is for what --tune chooses; for the figures use --json > FILE.")
    tasks = None if stream is None else _tasks(stream, None, None, order, 0.2, max_tokens, seed)
    if tasks is not None:
        tasks = tuple(cut(task, rows, test_rows, seed=seed) for task in tasks)
    elif order is not None or rows or test_rows or max_tokens:
        raise EditclError("--order, --rows, --test-rows and --max-tokens are of a --stream.")
    given = _given({"steps": steps, "lr": lr})
    names = list(DEFAULT) if strategies is None else _names(strategies)
    of_kinds = list(KINDS) if kinds == "all" else _names(kinds)
    editable = _load(model, device, dtype)
    if tune:
        chosen = run_tune(
            editable,
            stream=tasks,
            strategies=[JOINT, *ALL] if strategies == "all" else [JOINT, *names],
            kinds=of_kinds,
            settings=replace(SETTINGS, **given),
            seed=seed,
        )
        if out is not None:
            chosen.save(out)
        _emit(as_json, chosen.to_dict(), lambda: show_tuning(chosen))
        return
    found = run_bench(
        editable,
        stream=tasks,
        strategies=ALL if strategies == "all" else names,
        kinds=of_kinds,
        seeds=[int(number) for number in numbers],
        settings=replace(SETTINGS, **given) if given else None,
        tuning=None if tuned is None else read_tuning(tuned),
        repeats=repeats,
        seed=seed,
    )
    if picture is not None:
        _save_picture(found, picture)
    _emit(as_json, found.to_dict(), lambda: show_learn(found))


@bench_app.command("route")
def bench_route(
    model: Model = None,
    families: Annotated[
        str | None, typer.Option(help="Families of tasks, separated by commas; default: all.")
    ] = None,
    per_family: Annotated[int, typer.Option(min=1, help="Tasks of each family.")] = 3,
    stream: Annotated[
        int, typer.Option(min=0, help="Tasks of the mixed stream; 0 leaves it out.")
    ] = 20,
    keep: Annotated[
        Path | None, typer.Option(help="File of measured tasks; a later call goes on from it.")
    ] = None,
    fit: Annotated[Path | None, typer.Option(help="Fit thresholds anew, into this folder.")] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Where to save regret by family and the calibration.")
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Decisions of the router against both arms measured, by families of tasks."""
    from editcl.benchmarks.route import bench_route as run_bench
    from editcl.console import show_route_benchmark

    found = run_bench(
        _load(model, device, dtype),
        families=None if families is None else _names(families),
        per_family=per_family,
        stream=stream,
        keep=keep,
        fit_to=fit,
        seed=seed,
    )
    if picture is not None:
        _save_picture(found, picture)
    _emit(as_json, found.to_dict(), lambda: show_route_benchmark(found))


# -- helpers --------------------------------------------------------------------------------------


def _load(
    model: str | None, device: str | None, dtype: str | None, log: Path | None = None
) -> EditableModel:
    from editcl.loading import load

    return load(model, device=device, dtype=dtype, log=log)


def _names(text: str) -> list[str]:
    """The parts of a list that is separated by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _cases(source: Path, kind: str | None, limit: int | None) -> list[Case]:
    from editcl.readers import read_table

    return [row.case() for row in read_table(source, kind=kind).rows[:limit]]


def _open(model: str | None, log: Path) -> EditableModel:
    """The model with an existing log."""
    if not log.is_dir():
        raise EditclError(
            f"there is no log in {str(log)!r}. Name its folder with --log, or make one with "
            "`editcl edit`."
        )
    return _load(model, None, None, log)


def _tasks(
    source: Path,
    name: str | None,
    prompt: str | None,
    order: str | None,
    test_share: float,
    max_tokens: int | None,
    seed: int,
) -> tuple[Task, ...]:
    """The tasks of a file or folder."""
    from editcl.learning.task_files import PROMPT, read_stream, read_task

    template = PROMPT if prompt is None else prompt
    if not source.is_dir():
        if order is not None:
            raise EditclError("--order is of a folder of tasks, and this is no folder.")
        one = read_task(
            source,
            name=name,
            prompt=template,
            test_share=test_share,
            max_tokens=max_tokens,
            seed=seed,
        )
        return (one,)
    if name is not None:
        raise EditclError("--task names the task of a file; those of a folder have their files'.")
    return read_stream(
        source,
        order=None if order is None else _names(order),
        prompt=template,
        test_share=test_share,
        max_tokens=max_tokens,
        seed=seed,
    )


def _learnable(
    source: Path,
    name: str | None,
    prompt: str | None,
    order: str | None,
    max_tokens: int | None,
    seed: int,
) -> tuple[Task | Path, ...]:
    """The tasks of a file or folder with all of their rows; a file that is no task as it is."""
    if not source.is_dir() and source.suffix.lower() == ".txt":
        return (source,)
    try:
        return _tasks(source, name, prompt, order, 0.0, max_tokens, seed)
    except TableError:
        if source.is_dir():
            raise
        return (source,)


def _stem(one: Task | Path) -> str:
    """The name of a task, or of a file."""
    return one.stem if isinstance(one, Path) else one.name


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Those that are not left at None, for the defaults of what takes them."""
    return {name: value for name, value in options.items() if value is not None}


def _targets(text: str | None) -> str | tuple[str, ...] | None:
    if text is None or text in ("all", "attention", "mlp"):
        return text
    return tuple(_names(text))


def _skill(skills: Skills, skill: Skill) -> dict[str, Any]:
    """An entry as JSON."""
    return {"id": skill.id, **skill.to_json(), "active": skill in skills.active}


def _report(report: Any) -> dict[str, Any]:

    return asdict(report)


def _save_picture(found: Any, path: Path) -> None:
    try:
        found.plot().savefig(path, dpi=160, bbox_inches="tight")
    except (OSError, ValueError) as error:
        raise EditclError(f"the picture can't be written to {path}: {error}.") from error


def _emit(as_json: bool, body: dict[str, Any], show: Callable[[], None]) -> None:
    if as_json:
        _print_json(body)
    else:
        show()


def _print_json(body: dict[str, Any]) -> None:
    print(json.dumps(body, ensure_ascii=False, indent=1, default=str))


if __name__ == "__main__":
    main()
