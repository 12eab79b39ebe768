"""Harness: tasks of EleutherAI's lm-eval, on the base and on the model as it is now.

lm-eval (the optional extra) makes the prompts and judges the answers; the model is handed to it as
it stands in memory, by `HFLM(pretrained=...)`. Where skills are in force, each request goes through
the adapter that inference chooses for its context. Tasks that load data from the hub need a
network; local ones don't. Knows nothing of what tasks ask.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from editcl.errors import EditclError
from editcl.learning.answers import around
from editcl.learning.batches import encode_prompts
from editcl.learning.drift import through_views
from editcl.model import EditableModel
from editcl.reporting.result import HarnessLine
from editcl.reporting.sides import Sides

#: The name of a task, group or tag of lm-eval; a YAML file of one; or its configuration.
HarnessTask: TypeAlias = str | Path | Mapping[str, Any]

BATCH_SIZE = 16
RESAMPLES = 1000  # for the standard errors that lm-eval has no formula for


def require_harness(tasks: Sequence[HarnessTask]) -> Any:
    """Refuses what can't be run, before anything is measured.

    Returns:
        lm-eval's TaskManager; reading all of its tasks takes seconds, so only where one is named.

    Raises:
        EditclError: lm-eval isn't installed, or a task is not known.
    """
    if isinstance(tasks, str):
        raise EditclError(f"lm_eval takes a list of tasks; put {tasks!r} in brackets.")
    if find_spec("lm_eval") is None:
        raise EditclError(
            "lm_eval asks for tasks of lm-eval, which isn't installed: "
            "pip install 'editcl[lm-eval]'."
        )
    from lm_eval.tasks import TaskManager

    names = [task for task in tasks if isinstance(task, str)]
    files = [Path(task) for task in tasks if isinstance(task, Path)]
    for file in files:
        if not file.is_file():
            raise EditclError(f"there is no file {str(file)!r} of a task of lm-eval.")
    for task in tasks:
        if isinstance(task, Mapping) and not task.get("task"):
            raise EditclError("a configuration of lm-eval needs its name under 'task'.")
    manager = TaskManager(include_defaults=bool(names))
    known = manager.all_tasks
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, 3)
            hint = f"; did you mean {', '.join(near)}?" if near else ". `lm-eval ls tasks` lists."
            raise EditclError(f"lm-eval has no task {name!r}{hint}")
    return manager


def harness(
    sides: Sides,
    tasks: Sequence[HarnessTask],
    manager: Any,
    *,
    limit: int | None = None,
    seed: int = 0,
) -> list[HarnessLine]:
    """Runs tasks on both sides.

    Args:
        sides: of the model.
        tasks: at least one; see `HarnessTask`.
        manager: what `require_harness` gave for them.
        limit: of the examples of each task.
        seed: of few-shot examples and of whatever a task draws.

    Raises:
        EditclError: a task can't be loaded, or a skill's adapter puts tokens in front of prompts.
    """
    before, now = (
        _evaluated(sides, tasks, manager, limit, seed, base=base) for base in (True, False)
    )
    lines = []
    for name, figures in now["results"].items():
        for metric, value in figures.items():
            plain, _, _ = metric.partition(",")
            if isinstance(value, str | bool) or plain.endswith("_stderr") or "," not in metric:
                continue
            stderr = figures.get(metric.replace(plain, f"{plain}_stderr", 1))
            better = now.get("higher_is_better", {}).get(name, {}).get(plain)
            lines.append(
                HarnessLine(
                    task=name,
                    metric=metric.removesuffix(",none"),
                    base=float(before["results"][name][metric]),
                    now=float(value),
                    stderr=float(stderr) if isinstance(stderr, int | float) else None,
                    n=int(now["n-samples"].get(name, {}).get("effective", 0)),
                    higher_is_better=better,
                )
            )
    return lines


def _evaluated(
    sides: Sides,
    tasks: Sequence[HarnessTask],
    manager: Any,
    limit: int | None,
    seed: int,
    *,
    base: bool,
) -> dict[str, Any]:
    import lm_eval

    asked = [dict(one) if isinstance(one, Mapping) else str(one) for one in tasks]
    with sides.at(base), _seeded(seed):
        try:
            found = lm_eval.simple_evaluate(
                model=_model(sides, base),
                tasks=asked,
                task_manager=manager,
                limit=limit,
                bootstrap_iters=RESAMPLES,
                log_samples=False,
                random_seed=seed,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                fewshot_random_seed=seed,
            )
        except EditclError:
            raise
        except (OSError, ValueError, KeyError, AssertionError) as error:
            named = ", ".join(
                str(one.get("task")) if isinstance(one, dict) else one for one in asked
            )
            raise EditclError(
                f"lm-eval can't run {named}: {error or type(error).__name__}. Tasks of the hub "
                "need a network, or their data in the cache of `datasets`."
            ) from error
    assert found is not None, "lm-eval gives results to the one process that there is"
    return dict(found)


def _model(sides: Sides, base: bool) -> Any:
    """The model of a side for lm-eval, without progress bars of its own."""
    from lm_eval.models.huggingface import HFLM

    class Sided(HFLM):
        """Each request goes the way of its context."""

        _model: Any

        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
            run = super().loglikelihood
            return self._each(requests, lambda own: run(own, disable_tqdm=True))

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
            run = super().loglikelihood_rolling
            return self._each(requests, lambda own: run(own, disable_tqdm=True))

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
            run = super().generate_until
            return self._each(requests, lambda own: run(own, disable_tqdm=True))

        def _each(self, requests: Any, run: Callable[[list[Any]], list[Any]]) -> list[Any]:
            if base or not sides.judge.skills.tasks:
                return run(requests)

            def ask(view: EditableModel, own: list[Any]) -> list[Any]:
                plain = self._model
                self._model = view.hf
                try:
                    return run(own)
                finally:
                    self._model = plain

            return _by_way(sides, requests, ask)

    tokenizer = copy.deepcopy(sides.model.tokenizer)  # lm-eval may give it a token to pad with
    return Sided(
        pretrained=sides.model.hf,
        tokenizer=tokenizer,
        batch_size=BATCH_SIZE,
        max_length=sides.model.max_tokens,
    )


def _by_way(
    sides: Sides, requests: Sequence[Any], ask: Callable[[EditableModel, list[Any]], list[Any]]
) -> list[Any]:
    """Answers to requests, each through the adapters of its way; blank contexts have none."""
    model = sides.model
    spoken = [i for i, one in enumerate(requests) if str(one.args[0]).strip()]
    blank = [i for i in range(len(requests)) if i not in set(spoken)]
    texts = [requests[i].args[0] for i in spoken]
    rows = encode_prompts(model, texts, max_tokens=model.max_tokens)
    found: dict[int, Any] = {}
    if blank:
        found |= zip(blank, ask(model, [requests[i] for i in blank]), strict=True)
    for chosen, way in sides.ways(rows, base=False) if rows else ():
        places = [spoken[i] for i in chosen]

        def work(view: Any, some: list[int], places: list[int] = places) -> list[Any]:
            if getattr(view, "virtual", None) is not None:
                raise EditclError(
                    f"lm-eval can't run through a {view.virtual[0]} adapter, which puts tokens in "
                    "front of each prompt. Roll that skill back, or leave lm_eval out."
                )
            return ask(view, [requests[places[i]] for i in some])

        with around(way):
            said = through_views(way.session.adapters, way.route, len(places), work)
        found |= zip(places, said, strict=True)
    return [found[i] for i in range(len(requests))]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """lm-eval seeds every generator there is; afterwards they go on as if it had not."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count()))
    try:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
