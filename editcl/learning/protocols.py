"""Protocols: continual pretraining on domains, and time-stamped data, as runnable recipes.

Continual pretraining (arXiv:2402.17400), perplexity of each domain's test:

    ZS   zero-shot: the base model                  CPT  just after training on it in the stream
    FT   fine-tuned on it alone                     LC   the last checkpoint of the stream
    forgetting = LC - CPT;  backward and forward transfer of -log perplexity as in `metrics`

for one or several models, with the domains in an order in which neighbours are alike and in a
random one. Time-stamped data (TiC-LM, arXiv:2504.02107): regret against an oracle for each step,

    regret[i, j] = oracle[j] - R[i, j],  oracle[j] the score on step j of one training on steps 1..j

its diagonal in-distribution, its lower triangle backward, its upper one forward. Knows nothing of
strategies and training beyond what `evaluate_stream` runs.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from editcl.errors import EditclError
from editcl.learning.kinds import AdapterSettings
from editcl.learning.lora import Adapters
from editcl.learning.protocol_results import PretrainingReport, PretrainingRun, TimeReport
from editcl.learning.runs import JOINT, Measures, encode_rows
from editcl.learning.session import Session
from editcl.learning.settings import TrainSettings
from editcl.learning.stream import Maker, evaluate_stream
from editcl.learning.tasks import TEXT, Example, Task, TaskError, check_stream, split_examples
from editcl.model import EditableModel

SIMILAR, RANDOM, GIVEN = "similar", "random", "given"
ORDERS = (SIMILAR, RANDOM, GIVEN)
SAMPLE = 64  # rows of a domain that its place among the others is told from


def domain(
    name: str,
    train: Sequence[str],
    test: Sequence[str] | None = None,
    *,
    test_share: float = 0.2,
    max_tokens: int | None = None,
    seed: int = 0,
) -> Task:
    """A domain of plain texts as a task.

    Args:
        name: of the domain.
        train: texts to learn from.
        test: texts to judge by; by default a share of the others is drawn.
        test_share: that share.
        max_tokens: longer texts are cut into pieces; by default what the model takes.
        seed: of the draw.

    Raises:
        TaskError: there is too little text.
    """
    rows = tuple(Example("", text) for text in train)
    if test is None:
        rows, held_out = split_examples(rows, test_share, seed=seed)
    else:
        held_out = tuple(Example("", text) for text in test)
    return Task(name, rows, held_out, TEXT, max_tokens=max_tokens)


def continual_pretraining(
    models: EditableModel | Mapping[str, EditableModel],
    domains: Sequence[Task],
    *,
    strategy: Maker = "sequential",
    orders: Sequence[str] = (SIMILAR, RANDOM),
    settings: TrainSettings | None = None,
    adapter: AdapterSettings | None = None,
    seeds: Sequence[int] = (0,),
    order_seed: int = 0,
    show_progress: bool = True,
) -> PretrainingReport:
    """Learns domains one after another and reports ZS, FT, CPT and LC perplexity of each.

    Args:
        models: one, or several (sizes, say) by name.
        domains: tasks of kind "text" with tests; see `domain`.
        strategy: as for `evaluate_stream`.
        orders: "similar" (from the first domain on always the most similar one that is left),
            "random" (another one than that), "given".
        settings: of every training.
        adapter: settings of the adapters.
        seeds: of the runs.
        order_seed: of the random order.
        show_progress: show progress bars once two seconds have passed.

    Raises:
        TaskError: a domain is no text, or unfit; before anything is trained.
        EditclError: there is no such order, strategy or model.
    """
    check_stream(domains)
    other = [task for task in domains if task.kind != TEXT]
    if other:
        raise TaskError(
            "the domains", [f"task {t.name!r} is of kind {t.kind!r}, not 'text'." for t in other]
        )
    unknown = [order for order in orders if order not in ORDERS]
    if unknown or not orders:
        raise EditclError(f"there is no order {[*unknown]}; choose of {', '.join(ORDERS)}.")
    named = models if isinstance(models, Mapping) else {models.name: models}
    if not named:
        raise EditclError("there is no model to train; give at least one.")
    runs = []
    for name, model in named.items():
        for order in orders:
            places = _places(model, domains, order, order_seed)
            result = evaluate_stream(
                model,
                [domains[i] for i in places],
                strategy,
                settings=settings,
                adapter=adapter,
                seeds=seeds,
                measures=Measures(general=True, survival=True, single=True),
                show_progress=show_progress,
            )
            size = sum(parameter.numel() for parameter in model.hf.parameters())
            runs.append(PretrainingRun(name, size, order, result))
    return PretrainingReport(tuple(runs))


def time_stamped(
    model: EditableModel,
    steps: Sequence[Task],
    *,
    strategy: Maker = "sequential",
    settings: TrainSettings | None = None,
    adapter: AdapterSettings | None = None,
    seeds: Sequence[int] = (0,),
    show_progress: bool = True,
) -> TimeReport:
    """Learns time steps one after another and reports the regret against an oracle for each.

    The oracle of a step is trained anew on the data of all steps up to it, for as many epochs.

    Args:
        model: what learns; it is as before afterwards.
        steps: tasks with tests, in the order of time, of any one kind.
        strategy: as for `evaluate_stream`.
        settings: of every training; with epochs, for an oracle has more data and needs more steps.
        adapter: settings of the adapters.
        seeds: of the runs, the oracles' too.
        show_progress: show progress bars once two seconds have passed.

    Raises:
        TaskError: the steps are unfit; before anything is trained.
        EditclError: `settings.steps` is set, or there is no such strategy.
    """
    if settings is not None and settings.steps is not None:
        raise EditclError(
            f"settings.steps is {settings.steps}, which would give an oracle on all data no more "
            "steps than a training on one time step. Set epochs instead."
        )
    found, oracle = (
        evaluate_stream(
            model,
            steps,
            which,
            settings=own,
            adapter=adapter,
            seeds=seeds,
            measures=Measures(general=False, survival=False),
            show_progress=show_progress,
        )
        # Early stopping judges by the step's own rows, which an oracle must not.
        for which, own in (
            (strategy, settings),
            (JOINT, replace(settings or TrainSettings(), patience=None)),
        )
    )
    return TimeReport(found, oracle)


# -- orders -------------------------------------------------------------------------------------


def similar_order(features: Float[Tensor, "n_domains d"]) -> list[int]:
    """From the first domain on, always the most similar one that is left.

    Similar are domains whose features, less the mean over domains, point the same way: what all
    texts of a model have in common tells nothing.
    """
    centred = features - features.mean(0)
    unit = centred / centred.norm(dim=1, keepdim=True).clamp(min=1e-12)
    similarity = unit @ unit.T
    order, left = [0], set(range(1, len(features)))
    while left:
        nearest = max(sorted(left), key=lambda i: float(similarity[order[-1], i]))
        order.append(nearest)
        left.remove(nearest)
    return order


def domain_features(
    model: EditableModel, domains: Sequence[Task]
) -> Float[Tensor, "n_domains d_model"]:
    """The mean hidden state of the base model over a sample of each domain's rows."""
    session = Session(model, Adapters(model))
    means = []
    for task in domains:
        rows = encode_rows(model, task)
        chosen = np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).round().astype(int)
        sample = [rows[i] for i in chosen.tolist()]
        means.append(session.features(sample, prompt_only=False).mean(0))
    return torch.stack(means)


def _places(
    model: EditableModel, domains: Sequence[Task], order: str, order_seed: int
) -> list[int]:
    places = list(range(len(domains)))
    if order == GIVEN or len(places) == 1:
        return places
    alike = similar_order(domain_features(model, domains))
    if order == SIMILAR:
        return alike
    generator = random.Random(order_seed)
    generator.shuffle(places)
    while places == alike:  # of few domains likely, and then there would be nothing to compare
        generator.shuffle(places)
    return places
