"""`editcl bench learn` measures what it names; small here, whole on the command line."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny

import editcl
from editcl import cli
from editcl.benchmarks.learn import ALL, LearnBenchmark, bench_learn, cut, first_task, refusals
from editcl.benchmarks.learn_exactness import resume_exact, rollback_exact
from editcl.benchmarks.learn_speed import bare_loop
from editcl.benchmarks.tune import Trial, Tuned, Tuning, read_tuning
from editcl.errors import EditclError
from editcl.evaluation.compare import weight_checksums
from editcl.learning import checkpoint
from editcl.learning.settings import TrainSettings
from editcl.learning.skills import Skills
from editcl.learning.strategies import STRATEGIES
from editcl.learning.task_files import read_stream
from editcl.learning.tasks import Example, Task

KEYS = {
    "strategies", "joint", "sequential_task1_before", "sequential_task1_after", "throughput_ratio",
    "replay_cost_ratio", "rollback_exact", "resume_exact",
}  # fmt: skip
LINE = {"OP", "LA", "BWT", "FWT", "forgetting", "seconds", "trained", "memory", "behind_joint"}
SETTINGS = TrainSettings(steps=20, batch_size=6, lr=3e-2, autocast="off")
WORDS = ("Paris", "Rome", "Berlin", "Tokyo", "Madrid", "Oslo")


def labelling(name: str, labels: tuple[str, str]) -> Task:
    """The same prompts in every task, other labels: what one learns, the next one overwrites."""
    rows = tuple(Example(f"The city of {word} is", labels[i % 2]) for i, word in enumerate(WORDS))
    return Task(name, rows, rows, "classification", labels)


def tried(argument: str | None, *trials: tuple[float, object, float]) -> Tuned:
    return Tuned("x", argument, tuple(Trial(lr, value, score, 1.0) for lr, value, score in trials))


TUNING = Tuning(
    "tiny", ("first",), 6, 0, SETTINGS,
    {
        "per_task": tried(None, (1e-5, None, 0.1), (2e-2, None, 0.9)),
        "dann": tried("weight", (3e-2, 0.1, 0.5), (3e-2, 0.7, 0.6)),
        "ewc": tried("strength", (1.0, 100.0, 1.0)),
    },
    {"ia3": tried(None, (0.4, None, 0.2))},
)  # fmt: skip
STREAM = (labelling("first", ("red", "blue")), labelling("second", ("blue", "red")))


@pytest.fixture(scope="module")
def found(tokenizer) -> LearnBenchmark:
    return bench_learn(
        editcl.wrap(tiny.build("gpt2"), tokenizer),
        stream=STREAM,
        strategies=("sequential", "per_task", "dann"),
        kinds=("lora", "ia3"),
        seeds=(0,),
        settings=SETTINGS,
        tuning=TUNING,
        repeats=1,
    )


def test_it_measures_what_it_names(found: LearnBenchmark) -> None:
    figures = json.loads(json.dumps(found.to_dict()))
    assert set(figures) >= KEYS
    assert set(figures["strategies"]) == {"sequential", "per_task", "dann"}
    for line in figures["strategies"].values():
        assert set(line) >= LINE
        assert set(line["OP"]) == {"mean", "deviation", "n"}
    assert figures["sequential_task1_before"] == 1.0
    assert figures["sequential_task1_after"] == 0.0
    assert figures["strategies"]["per_task"]["BWT"]["mean"] == 0.0
    assert figures["rollback_exact"] is figures["resume_exact"] is True
    assert set(figures["rollback"]) == set(figures["resume"]) == set(figures["strategies"])
    assert figures["throughput_ratio"] > 0 and figures["replay_cost_ratio"] > 0


def test_each_strategy_and_kind_has_the_settings_that_were_chosen_for_it(found) -> None:
    figures = found.to_dict()
    chosen = {"per_task": {"lr": 2e-2}, "dann": {"lr": 3e-2, "weight": 0.7}}
    assert figures["chosen"] == chosen, "of what was compared"
    assert {name: line["lr"] for name, line in figures["kinds"].items()} == {
        "lora": SETTINGS.lr, "ia3": 0.4,
    }  # fmt: skip
    assert figures["kinds"]["lora"]["new_task"]["mean"] == 1.0
    assert figures["kinds"]["lora"]["forgetting"]["mean"] == 1.0


def test_the_probe_of_dann_is_told_before_and_after_each_later_task(found) -> None:
    (run,) = found.comparison["dann"].runs
    assert found.domain_probes() == {"second": tuple(run.measured["probes"]["second"])}
    assert "domain probe of dann before, after second" in found.figures()
    whole = found.comparison
    without = replace(whole, strategies=(whole["per_task"],))
    assert replace(found, comparison=without).domain_probes() == {}


def test_strategies_that_refuse_the_model_are_left_out_with_the_reason(tokenizer) -> None:
    model = editcl.wrap(tiny.build("gpt2", n_layer=2), tokenizer)
    refused = refusals(model, STREAM, ALL)
    assert set(refused) == {"progressive_unfreezing"}
    assert "which 3 groups can't be made of" in refused["progressive_unfreezing"]
    assert "joint" not in ALL and set(ALL) | {"joint"} == set(STRATEGIES)


def test_a_cut_task_has_labels_in_turn_and_the_same_rows_by_seed() -> None:
    rows = tuple(Example(f"row {i}", "rare" if i % 5 == 0 else "common") for i in range(50))
    task = Task("long", rows, rows[:10], "classification")
    small = cut(task, 12, 4, seed=3)
    assert [e.completion for e in small.train].count("rare") == 6
    assert len(small.train) == 12 and len(small.test) == 4
    assert [e for e in rows if e in small.train] == list(small.train), "the order stays"
    assert cut(task, 12, 4, seed=3) == small != cut(task, 12, 4, seed=4)
    assert cut(task, None, None) == cut(task, 500, 500) == task
    plain = Task("plain", rows, rows)
    assert len(set(cut(plain, 7, None).train)) == 7


def test_a_published_stream_gives_the_same_table(shared, model) -> None:
    whole = read_stream(shared("datasets/clbench"), max_tokens=48)
    found = bench_learn(
        model,
        stream=[cut(task, 28, 14) for task in whole],
        strategies=("sequential",),
        seeds=(0,),
        settings=replace(SETTINGS, steps=2, batch_size=2),
        repeats=1,
    )
    figures = found.to_dict()
    assert figures["tasks"] == ["agnews", "dbpedia", "yelp"] and figures["chosen"] == {}
    assert set(figures) >= KEYS and set(figures["strategies"]["sequential"]) >= LINE
    assert figures["rollback_exact"] is figures["resume_exact"] is True


def test_points_behind_the_joint_training_are_those_of_op(found: LearnBenchmark) -> None:
    figures = found.to_dict()
    (run,) = figures["joint"]["runs"]
    bound = sum(run["scores"]) / len(run["scores"])
    line = figures["strategies"]["sequential"]
    assert line["behind_joint"] == pytest.approx(100 * (bound - line["OP"]["mean"]))


def test_the_bare_loop_trains_what_the_training_loop_trains(found: LearnBenchmark) -> None:
    assert found.loop_loss_error < 1e-4
    ours, bare = found.examples_per_second
    assert found.throughput_ratio == pytest.approx(ours / bare)


def test_the_bare_loop_learns_and_leaves_the_model_alone(model) -> None:
    before = weight_checksums(model)
    losses, seconds = bare_loop(model, STREAM[0], SETTINGS, seed=0)
    assert len(losses) == SETTINGS.steps and seconds > 0
    assert losses[-1] < 0.5 * losses[0]
    assert weight_checksums(model) == before


def test_the_model_and_its_log_are_as_before(model) -> None:
    before, flags = weight_checksums(model), [p.requires_grad for p in model.hf.parameters()]
    assert rollback_exact(model, STREAM, "sequential", SETTINGS, seed=0)
    assert resume_exact(model, STREAM, "replay", SETTINGS, seed=0)
    assert weight_checksums(model) == before
    assert [p.requires_grad for p in model.hf.parameters()] == flags
    assert len(model.log) == 0 and not model.log.skills


@pytest.mark.parametrize("strategy", ["sequential", "per_task"])
def test_a_rollback_that_does_nothing_is_found_out(model, monkeypatch, strategy) -> None:
    monkeypatch.setattr(Skills, "rollback", lambda self, what: None)
    assert not rollback_exact(model, STREAM, strategy, SETTINGS, seed=0)


def test_a_resume_that_forgets_the_random_state_is_found_out(model, monkeypatch) -> None:
    monkeypatch.setattr(checkpoint, "_set_random_states", lambda session, states: None)
    assert not resume_exact(model, STREAM, "sequential", SETTINGS, seed=0)


def test_bad_input_is_told_before_anything_is_trained(model) -> None:
    with pytest.raises(EditclError, match="two or more"):
        bench_learn(model, stream=STREAM[:1])
    with pytest.raises(EditclError, match="1 or more"):
        bench_learn(model, stream=STREAM, repeats=0)
    with pytest.raises(EditclError, match="no strategy 'magic'"):
        bench_learn(model, stream=STREAM, strategies=("magic",))


def test_without_sequential_training_there_is_no_figure_of_it(found: LearnBenchmark) -> None:
    whole = found.comparison
    assert first_task(whole) == (1.0, 0.0)
    assert first_task(replace(whole, strategies=(whole["per_task"],))) == (None, None)


# -- the command line -----------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A saved tiny model, and the stream as a folder."""
    place = tmp_path / "model"
    tiny.build("gpt2").save_pretrained(place)
    tiny.byte_tokenizer().save_pretrained(place)
    folder = tmp_path / "stream"
    folder.mkdir()
    for task in STREAM:
        rows = [{"text": row.prompt, "label": row.completion} for row in task.train]
        text = "\n".join(map(json.dumps, rows))
        for part in ("train", "test"):
            (folder / f"{task.name}.{part}.jsonl").write_text(text, encoding="utf-8")
    return place, folder


def call(monkeypatch, capsys, *arguments: object) -> tuple[int, str, str]:
    """(exit status, standard output, standard error)."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["editcl", "bench", "learn", *map(str, arguments)])
    status = 0
    try:
        cli.main()
    except SystemExit as stop:
        status = int(stop.code or 0)
    return status, *capsys.readouterr()


def test_the_command_prints_json_and_saves_the_picture(files, monkeypatch, capsys) -> None:
    model, stream = files
    picture = stream.parent / "learn.png"
    options = ["--strategies", "sequential", "--seeds", "0", "--steps", 2, "--lr", "0.01"]
    options += ["--repeats", 1, "--picture", picture, "--json"]
    status, out, err = call(monkeypatch, capsys, "--model", model, "--stream", stream, *options)
    assert status == 0, err
    figures = json.loads(out)
    assert set(figures) >= KEYS
    assert figures["settings"]["steps"] == 2 and figures["settings"]["lr"] == 0.01
    assert figures["tasks"] == ["first", "second"]
    assert picture.stat().st_size > 10_000


def test_the_command_chooses_settings_and_uses_them(monkeypatch, capsys, files) -> None:
    model, stream = files
    options = ["--model", model, "--stream", stream, "--strategies", "olora", "--steps", 2]
    chosen = stream.parent / "chosen.json"
    status, out, err = call(monkeypatch, capsys, *options, "--tune", "--out", chosen)
    assert status == 0, err
    assert "settings chosen on" in out and "olora" in out and "joint" in out
    assert set(read_tuning(chosen).strategies) == {"olora", "joint"}
    options += ["--tuned", chosen, "--seeds", "0", "--repeats", 1, "--kinds", "prompt", "--json"]
    status, out, err = call(monkeypatch, capsys, *options, "--rows", 4, "--test-rows", 2)
    assert status == 0, err
    figures = json.loads(out)
    assert set(figures["chosen"]) == {"olora", "joint"} and set(figures["kinds"]) == {"prompt"}
    assert figures["chosen"]["olora"]["lr"] == read_tuning(chosen).strategies["olora"].best.lr


@pytest.mark.parametrize("options, said", [
    (["--seeds", "a"], "--seeds takes whole numbers"),
    (["--out", "x.json"], "--out is for what --tune chooses"),
    (["--rows", 5], "are of a --stream"),
    (["--strategies", "magic"], "no strategy 'magic'"),
    (["--kinds", "magic"], "unknown kind of adapter 'magic'"),
])  # fmt: skip
def test_the_command_refuses_options_that_make_no_sense(
    monkeypatch, capsys, files, options, said
) -> None:
    status, _, err = call(monkeypatch, capsys, "--model", files[0], *options)
    assert status == 1 and said in err


def test_the_table_shows_strategies_joint_and_figures(found, monkeypatch, capsys) -> None:
    from editcl.console import show_learn

    monkeypatch.setenv("COLUMNS", "200")
    show_learn(found)
    out = capsys.readouterr().out
    for word in ("sequential", "per_task", "joint", "ia3", "throughput_ratio", "domain probe"):
        assert word in out
