"""What every test may use: tiny random models of many architectures, tokenizers, shared data.

Axes of tensors and types of arguments are checked at run time in every function of editcl that
the tests call (jaxtyping, beartype). Nothing here reaches for a network.
"""

from __future__ import annotations

import os
import sys

# Before the first import of huggingface_hub and tokenizers, which read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import typecheck

typecheck.install()

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import tiny
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import editcl
from editcl import cli
from editcl.model import EditableModel

# No test judges time: a slow machine must not fail one.
hypothesis.settings.register_profile("editcl", deadline=None)
hypothesis.settings.load_profile("editcl")

# Tiny tensors gain nothing from threads, and on a busy machine threads wait for each other.
torch.set_num_threads(1)

SHARED = Path(os.environ.get("EDITCL_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests neither use nor fill the user's cache of covariances and calibrations.

    The processes of one run share theirs: what one has measured of the embedded model the others
    find. Tests that interrupt edits have one of their own, for half-finished values are kept there.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    os.environ["EDITCL_CACHE"] = str(folder / "cache")


@pytest.fixture(autouse=True)
def _unchanged_global_state() -> Any:
    """Tests neither depend on the global random state nor turn gradients off for each other."""
    torch.manual_seed(0)
    yield
    assert torch.is_grad_enabled()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer like GPT-2's: no start token, knows every text."""
    return tiny.byte_tokenizer()


@pytest.fixture(scope="session")
def bos_tokenizer() -> PreTrainedTokenizerFast:
    """The same with a start token in front, like Llama 3's."""
    return tiny.byte_tokenizer(bos=True)


@pytest.fixture(scope="session")
def word_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words only; all others are unknown to it."""
    return tiny.word_tokenizer()


@pytest.fixture
def hf_model() -> PreTrainedModel:
    """A tiny random GPT-2."""
    return tiny.build("gpt2")


@pytest.fixture
def model(hf_model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> EditableModel:
    """A tiny random GPT-2, editable, with a log in memory."""
    return editcl.wrap(hf_model, tokenizer)


@pytest.fixture(params=tiny.ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    """The name of each dense architecture in turn."""
    return request.param


@pytest.fixture
def any_model(architecture: str, tokenizer: PreTrainedTokenizerFast) -> EditableModel:
    """A tiny random editable model of each dense architecture in turn."""
    return editcl.wrap(tiny.build(architecture), tokenizer)


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """Finds data that lies beside a checkout but is not part of it; skips where it is absent."""

    def find(name: str) -> Path:
        path = SHARED / name
        if not path.exists():
            pytest.skip(f"needs {name} in a folder `shared` beside the checkout (or EDITCL_SHARED)")
        return path

    return find


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny model, for commands that load one."""
    path = tmp_path_factory.mktemp("models") / "model"
    tiny.build("gpt2").save_pretrained(path)
    tiny.byte_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Calls `editcl` in this process: (exit status, standard output, standard error)."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["editcl", *map(str, arguments)])
        capsys.readouterr()  # what fixtures wrote
        try:
            cli.main()
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call
