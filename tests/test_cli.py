"""The command line, as a user calls it: what it prints, and how it fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from editcl.loading import load

PROMPT = "{} is located in the city of"


def edit_arguments(folder: Path, log: Path) -> list[object]:
    options = {"--prompt": PROMPT, "--old-object": "Paris", "--model": folder, "--log": log}
    pairs = [part for option in {**options, "--layer": 1}.items() for part in option]
    return ["edit", "The Eiffel Tower", "Rome", *pairs]


def test_an_edit_is_logged_listed_verified_exported_and_taken_back(run, folder, tmp_path) -> None:
    log = tmp_path / "log"
    status, out, err = run(*edit_arguments(folder, log), "--json")
    assert status == 0, err
    body = json.loads(out)
    assert body["id"] == "e0001"
    assert body["facts"][0][2] == "Rome"
    where = ["--log", log, "--model", folder]

    status, out, _ = run("log", "list", *where)
    assert status == 0
    assert "Paris -> Rome" in out
    assert json.loads(run("log", "list", *where, "--json")[1])["entries"][0]["active"] == [True]
    assert json.loads(run("log", "show", "e0001", *where, "--json")[1])["method"] == "rome"
    assert json.loads(run("log", "verify", *where, "--json")[1])["ok"] is True

    assert run("log", "export", tmp_path / "edited", *where)[0] == 0
    assert (tmp_path / "edited" / "model.safetensors").is_file()
    assert run("log", "export", tmp_path / "lora", "--lora", *where)[0] == 0
    assert (tmp_path / "lora" / "adapter_model.safetensors").is_file()

    status, out, _ = run("log", "rollback", "e0001", *where)
    assert status == 0
    assert "rolled back 1 fact" in out
    assert "rolled back" in run("log", "list", *where)[1]
    assert run("log", "reapply", "e0001", *where)[0] == 0
    assert run("log", "rollback", "all", *where)[0] == 0
    assert run("log", "rollback", "e0001", *where)[0] == 1, "nothing of it is active any more"


def test_skills_are_listed_shown_and_rolled_back_like_edits(run, folder, tmp_path) -> None:
    log = tmp_path / "log"
    model = load(folder, device="cpu", log=log)
    tensors = {"a": torch.ones(2)}
    model.log.append_skill(tensors, task="french", slot="french", settings={}, strategy="replay")
    model.log.close()
    where = ["--log", log, "--model", folder]
    assert "french" in run("log", "list", *where)[1]
    (skill,) = json.loads(run("log", "list", *where, "--json")[1])["skills"]
    assert skill["id"] == "s0001" and skill["active"] is True
    assert "replay" in run("log", "show", "s0001", *where)[1]
    assert json.loads(run("log", "show", "s0001", *where, "--json")[1])["task"] == "french"
    assert "rolled back 1 skill" in run("log", "rollback", "french", *where)[1]
    report = json.loads(run("log", "reapply", "s0001", *where, "--json")[1])
    assert report["skills"][0]["task"] == "french"
    assert json.loads(run("log", "verify", *where, "--json")[1])["skills"] == 1


def test_a_trace_prints_every_token_and_saves_a_picture(run, folder, tmp_path) -> None:
    picture = tmp_path / "trace.png"
    arguments = ["trace", "The Eiffel Tower", PROMPT, "--model", folder, "--samples", 2]
    status, out, _ = run(*arguments, "--picture", picture)
    assert status == 0
    assert "clean" in out and "corrupted" in out
    assert "MLP output" in out
    assert picture.read_bytes().startswith(b"\x89PNG")
    body = json.loads(run(*arguments, "--json")[1])
    assert set(body["probability"]) == {"hidden", "mlp", "attn"}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["trace", "Louvre", "The tower is in"], "not in the prompt"),
        (["trace", "Louvre", "{} is in", "--samples", "0"], "samples"),
        (["edit", "Louvre", "Rome", "--prompt", "no subject", "--log", "LOG"], "not in the prompt"),
        (["edit", "Louvre", "Rome", "--prompt", PROMPT, "--layer", "9", "--log", "LOG"], "range"),
        (["log", "list", "--log", "LOG"], "there is no log"),
        (["log", "rollback", "all", "--fact", "0", "--log", "LOG"], "--fact"),
        (["log", "export", "OUT", "--rank", "2", "--log", "LOG"], "--lora"),
    ],
)
def test_user_errors_are_one_message_and_status_one(
    run, folder, tmp_path, arguments, message
) -> None:
    places = {"LOG": tmp_path / "no-log", "OUT": tmp_path / "out"}
    status, out, err = run(*[places.get(a, a) for a in arguments], "--model", folder)
    assert status == 1
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert "Traceback" not in err


def test_a_model_that_is_not_there_is_named(run, tmp_path) -> None:
    status, _, err = run("calibrate", "--model", tmp_path / "nowhere")
    assert status == 1
    assert "nowhere" in err.replace("\n", "")


def test_help_is_there_for_every_command_without_loading_torch() -> None:
    code = "import sys; sys.argv[1:] = ['--help']\nimport editcl.cli as c\ntry: c.main()\n"
    code += "except SystemExit: pass\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for command in ("demo", "trace", "edit", "log", "calibrate", "bench"):
        assert command in done.stdout


def test_markup_in_names_is_shown_as_it_is(run, folder, tmp_path) -> None:
    arguments = edit_arguments(folder, tmp_path / "log")
    arguments[1] = "[bold]Tower[/bold] \x1b[31m"
    status, out, _ = run(*arguments)
    assert status == 0
    assert "[bold]Tower[/bold]" in out
    assert "\x1b[31m" not in out
