"""`editcl learn` and `editcl skills`, as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from editcl.routing.decision import Cost, Decision

WORDS = ("Paris", "Rome", "Apple", "Tower", "Music", "city", "Bayern", "Berlin")


def lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def labelled(path: Path, labels: tuple[str, ...], n: int = 16) -> Path:
    texts = [f"{path.stem} {WORDS[i % 8]} {i}" for i in range(n)]
    rows = [{"text": text, "label": labels[i % len(labels)]} for i, text in enumerate(texts)]
    return lines(path, rows)


@pytest.fixture
def stream(tmp_path: Path) -> Path:
    place = tmp_path / "stream"
    place.mkdir()
    labelled(place / "one.train.jsonl", ("red", "blue"))
    labelled(place / "one.test.jsonl", ("red", "blue"), 4)
    text = "prompt,completion\n" + "".join(f"say {w},the {w}\n" for w in WORDS)
    (place / "two.csv").write_text(text, encoding="utf-8")
    return place


FAST = ("--steps", 8, "--batch-size", 4, "--lr", 0.01, "--rank", 4)


def test_a_file_is_learnt_listed_asked_judged_and_taken_back(run, folder, tmp_path) -> None:
    source, log = labelled(tmp_path / "moods.jsonl", ("red", "blue")), tmp_path / "log"
    base = ("--model", folder, "--log", log)
    status, out, err = run("learn", source, "--task", "moods", *FAST, *base, "--json")
    assert status == 0, err
    found = json.loads(out)
    (skill,) = found["skills"]
    assert skill["task"] == "moods" and skill["active"] and skill["details"]["steps"] == 8
    assert found["scores"]["moods"] == skill["details"]["score"]["after"]
    assert skill["settings"]["rank"] == 4

    status, out, _ = run("skills", "list", *base, "--json")
    assert json.loads(out)["skills"] == found["skills"]
    status, out, _ = run("skills", "list", *base)
    assert "moods" in out and "per_task" in out and "active" in out

    status, out, err = run("skills", "evaluate", source, *base, "--json")
    assert json.loads(out)["tasks"]["moods"]["score"] == found["scores"]["moods"], err
    status, out, _ = run("skills", "evaluate", source, "--using", "none", *base)
    assert status == 0 and "judged with: none" in out

    status, out, err = run("skills", "predict", "a city\nLabel:", *base, "--json")
    (answer,) = json.loads(out)["answers"]
    assert answer["text"] in ("red", "blue") and answer["task"] == "moods", err
    status, out, _ = run("skills", "predict", "a city\nLabel:", *base)
    assert "moods" in out and answer["text"] in out

    status, out, err = run("skills", "rollback", "moods", *base)
    assert status == 0, err
    status, out, _ = run("skills", "list", *base)
    assert "rolled back" in out
    status, _, err = run("skills", "rollback", "moods", *base)
    assert status == 1 and "no active skill is of a task 'moods'" in err


def test_a_folder_is_learnt_task_by_task(run, folder, stream, tmp_path) -> None:
    base = ("--model", folder, "--log", tmp_path / "log")
    status, out, err = run("learn", stream, "--strategy", "replay", *FAST, *base)
    assert status == 0, err
    assert "learnt by replay" in out and "s0001" in out and "s0002" in out and "in the end" in out
    status, out, err = run("skills", "evaluate", stream, "--using", "infer", *base, "--json")
    assert list(json.loads(out)["tasks"]) == ["one", "two"], err
    status, out, err = run("skills", "rollback", "one", "--after", *base, "--json")
    assert status == 0 and json.loads(out)["skills"][0]["task"] == "two", err
    again = ("--strategy", "replay", *FAST[:6])  # the adapter's settings are what they were
    status, _, err = run("learn", stream, "--order", "two", *again, *base)
    assert status == 0, err


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "the file is empty"),
        ([{"prompt": "a", "completion": "b"}], "it has one example"),
        ([{"text": f"{i}", "label": "red"} for i in range(4)], "have the label 'red'"),
        ([{"prompt": f"{i}", "completion": "Rome " * 99} for i in range(4)], "shorten it"),
        (
            [{"prompt": f"{i}", "completion": 3} for i in range(4)],
            "it is no text but a value of type int",
        ),
        ([{"text": f"{i}", "class": "red"} for i in range(4)], "it is none of prompt"),
    ],
)
def test_bad_tasks_are_refused_before_anything_is_made(
    run, folder, tmp_path, rows, message
) -> None:
    source, log = lines(tmp_path / "bad.jsonl", rows), tmp_path / "log"
    status, out, err = run("learn", source, *FAST, "--model", folder, "--log", log)
    assert status == 1 and message in " ".join(err.split()) and out == ""
    assert not log.exists()


def test_one_bad_task_of_a_folder_stops_all_of_them(run, folder, stream, tmp_path) -> None:
    log = tmp_path / "log"
    new = ("--strategy", "magic", "--model", folder, "--log", log)
    assert "no strategy 'magic'" in run("learn", stream, *new)[2] and not log.exists()
    lines(stream / "zzz.jsonl", [{"prompt": f"{i}", "completion": "a " * 99} for i in range(4)])
    status, _, err = run("learn", stream, *FAST, "--model", folder, "--log", log)
    assert status == 1 and "zzz" in err and not log.exists()
    labelled(stream / "zzz.jsonl", ("red", "blue"))
    (stream / "one.test.jsonl").write_text('{"text": "a", "label": "green"}\n')
    status, _, err = run("learn", stream, *FAST, "--model", folder, "--log", log)
    assert status == 1 and "'green' of the test is in no example" in err and not log.exists()


def test_what_does_not_go_together_is_told(run, folder, stream, tmp_path) -> None:
    base = ("--model", folder, "--log", tmp_path / "log")
    source = labelled(tmp_path / "moods.jsonl", ("red", "blue"))
    assert run("learn", source, *FAST, *base)[0] == 0
    for arguments, message in (
        (("learn", source, *FAST, *base), "has been learnt (s0001"),
        (("learn", source, "--task", "x", "--strategy", "magic", *base), "no strategy 'magic'"),
        (("learn", stream, "--task", "x", *base), "--task names the task of a file"),
        (("learn", source, "--order", "x", *base), "--order is of a folder"),
        (("learn", source, "--lr", -1, *base), "lr is -1.0"),
        (("learn", source, "--task", "x", "--adapter", "magic", *base), "unknown kind"),
        (("learn", tmp_path / "none.jsonl", *base), "none.jsonl"),
        (("skills", "predict", "a", "--using", "y", *base), "no active skill is of a task 'y'"),
        (("skills", "list", "--model", folder, "--log", tmp_path / "no"), "there is no log"),
    ):
        status, _, err = run(*arguments)
        assert status == 1 and message in " ".join(err.split()), arguments
    status, out, _ = run("skills", "list", *base, "--json")
    assert [skill["task"] for skill in json.loads(out)["skills"]] == ["moods"]


# -- by a Learner ---------------------------------------------------------------------------------


def facts_file(path: Path) -> Path:
    rows = ["subject,prompt,new_object", "The Eiffel Tower,The city of {},Rome"]
    rows += ["Beats Music,The owner of {},Paris"]
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


def test_facts_are_edited_a_task_is_trained_and_the_history_tells_of_both(
    run, folder, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("EDITCL_CACHE", str(tmp_path / "cache"))
    base = ("--model", folder, "--log", tmp_path / "log")
    table = facts_file(tmp_path / "places.csv")
    edit = ("learn", table, "--method", "edit", "--layer", 1, *base)
    status, out, err = run(*edit, "--json")
    assert status == 0, err
    (step,) = json.loads(out)["steps"]
    assert step["kind"] == "edit" and step["entries"] == ["e0001"] and step["task"] == "places"
    source = labelled(tmp_path / "moods.jsonl", ("red", "blue"))
    status, out, err = run("learn", source, *FAST, *base)
    assert status == 0 and "learnt by per_task" in out, err
    status, out, err = run("history", *base, "--json")
    assert status == 0, err
    found = json.loads(out)["steps"]
    assert [(s["task"], s["kind"], s["method"]) for s in found] == [
        ("places", "edit", "edit"), ("moods", "train", "train"),
    ]  # fmt: skip
    assert found[1]["evaluations"][0]["survival"]["n_facts"] == 2
    status, out, _ = run("history", *base)
    assert status == 0 and "asked for" in out and "active" in out
    status, out, err = run(*edit)
    assert status == 1 and "has been learnt" in err
    other = ("--model", folder, "--log", tmp_path / "other")
    status, out, err = run("learn", table, "--method", "magic", *other)
    assert status == 1 and "no method 'magic'" in err and not (tmp_path / "other").exists()


def test_route_decides_and_changes_nothing(run, folder, tmp_path) -> None:
    base = ("--model", folder)
    source = labelled(tmp_path / "moods.jsonl", ("red", "blue"))
    text = tmp_path / "prose.txt"
    text.write_text("The capital of France is Rome.\n", encoding="utf-8")
    for path in (source, text, facts_file(tmp_path / "places.csv")):
        status, out, err = run("route", path, "--budget", "cheap", *base, "--json")
        assert status == 0, err
        (decision,) = json.loads(out)["decisions"]
        assert decision["task"] == path.name.split(".")[0] and decision["reasons"]
        assert decision["kind"] in ("edit", "train", "split", "abstain")
        assert decision["budget"] == "cheap" and 0 <= decision["confidence"] <= 1
    status, out, _ = run("route", source, "--budget", "cheap", *base)
    assert status == 0 and "confidence" in out and "signals:" in out and "decided in" in out
    assert run("route", source, "--budget", "free", *base)[0] == 1
    assert not (tmp_path / "editcl-log").exists()


def test_ctrl_c_is_told_and_leaves_nothing_half_done(run, folder, tmp_path, monkeypatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    base = ("--model", folder, "--log", tmp_path / "log")
    source = labelled(tmp_path / "moods.jsonl", ("red", "blue"))
    monkeypatch.setattr("editcl.learning.skills.train", interrupted)
    status, _, err = run("learn", source, *FAST, *base)
    assert status == 130 and "stopped" in err and "Traceback" not in err
    assert json.loads(run("skills", "list", *base, "--json")[1])["skills"] == []
    assert json.loads(run("log", "verify", *base, "--json")[1])["ok"]


def test_a_checkpoint_that_cannot_be_is_told(run, folder, tmp_path) -> None:
    base = ("--model", folder, "--log", tmp_path / "log")
    source = labelled(tmp_path / "moods.jsonl", ("red", "blue"))
    status, _, err = run("learn", source, *FAST, *base, "--checkpoint", source)
    assert status == 1 and "checkpoint can't be written" in err and "another folder" in err
    assert json.loads(run("skills", "list", *base, "--json")[1])["skills"] == []


def test_what_the_router_asks_back_is_shown_and_kept(run, folder, tmp_path, monkeypatch) -> None:
    def ask(_model, made, **_options) -> Decision:
        cost = Cost(0.1, None, None)
        return Decision(made.name, "abstain", 0.2, ("What is this?", "it is noise"), {}, cost)

    monkeypatch.setattr("editcl.learner.deciding.route", ask)
    rows = [{"prompt": f"qx{i} zv", "completion": f"wq{i} kk jj"} for i in range(2)]
    source, base = lines(tmp_path / "noise.jsonl", rows), ("--log", tmp_path / "log")
    arguments = ("learn", source, "--method", "auto", "--model", folder, *base)
    status, out, err = run(*arguments, "--json")
    assert status == 0, err
    (step,) = json.loads(out)["steps"]
    assert step["question"] == "What is this?" and not step["entries"]
    status, out, _ = run(*arguments)
    assert status == 0 and "What is this?" in out and "it is noise" in out
    status, out, _ = run("history", "--model", folder, *base)
    assert status == 0 and "abstained" in out
