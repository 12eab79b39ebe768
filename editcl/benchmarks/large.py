"""`editcl bench large`: speed and memory on random-weight models of well-known large shapes.

Random weights know nothing, so that nothing here says how good an edit is; they take the time and
the memory that trained ones take. Two parts, each against the plain procedure in the same run:

- edit: v* of many facts in batches against ROME's published procedure, which takes one fact at a
  time through the full model; then MEMIT end to end, covariance and keys included.
- learn: the training loop against a bare one of peft and PyTorch, and the peak memory of both.

The tokenizer is the embedded model's; only the first rows of the embedding are used.
"""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch

from editcl.benchmarks.learn_speed import bare_loop, fresh_session
from editcl.benchmarks.mass import (
    FIXED_STEPS,
    PUBLISHED_CONTEXTS,
    compare_values,
    stopwatch,
    wait_for,
)
from editcl.editing.contexts import sample_contexts
from editcl.editing.covariance import measure
from editcl.editing.essence import PUBLISHED
from editcl.editing.methods import METHODS
from editcl.editing.plan import Plan
from editcl.editing.trial import tried
from editcl.editing.values import ValueSettings
from editcl.errors import EditclError
from editcl.evaluation import catalogue_cases
from editcl.learning.plan import Plan as Drawn
from editcl.learning.runs import encode_rows
from editcl.learning.settings import TrainSettings
from editcl.learning.strategies import Sequential
from editcl.learning.tasks import TEXT, Example, Task
from editcl.learning.train import train
from editcl.loading import choose_device, choose_dtype, load, wrap
from editcl.log.weakening import probabilities
from editcl.model import EditableModel
from editcl.progress import progress

ROW_TOKENS = 512  # of a training row
SAMPLE = 200  # facts that our v* is timed on with the published settings
MANY = 10_000  # facts that the figures are carried on to

#: Class, configuration and its values; the layers that MEMIT edits, the paper's where it has some.
SHAPES: Mapping[str, tuple[str, str, dict[str, Any], tuple[int, ...]]] = MappingProxyType(
    {
        "gpt-j-6b": (
            "GPTJForCausalLM",
            "GPTJConfig",
            {"vocab_size": 50400, "n_positions": 2048, "n_embd": 4096, "n_layer": 28}
            | {"n_head": 16, "rotary_dim": 64, "bos_token_id": 0, "eos_token_id": 0},
            (3, 4, 5, 6, 7, 8),
        ),
        "gpt2-xl": (
            "GPT2LMHeadModel",
            "GPT2Config",
            {"n_embd": 1600, "n_layer": 48, "n_head": 25, "bos_token_id": 0, "eos_token_id": 0},
            (13, 14, 15, 16, 17),
        ),
        "llama-1b": (
            "LlamaForCausalLM",
            "LlamaConfig",
            {"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192}
            | {"num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8}
            | {"tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 0},
            (3, 4, 5),
        ),
        "tiny": (
            "GPTJForCausalLM",
            "GPTJConfig",
            {"vocab_size": 4096, "n_positions": 1024, "n_embd": 32, "n_layer": 4, "n_head": 4}
            | {"rotary_dim": 4, "bos_token_id": 0, "eos_token_id": 0},
            (0, 1),
        ),
    }
)


@dataclass(frozen=True)
class LargeEdit:
    """What editing takes on a large model.

    Attributes:
        shape: of the model.
        parameters: how many it has.
        device, dtype: where and as what it ran.
        n_facts: edited together.
        n_published: that the published procedure ran on.
        steps: of v*, on both sides.
        values_per_second: facts, ours and the published procedure's, both with its settings.
        values_speedup: the ratio.
        values_loss_error: median and largest difference of one fact's loss.
        covariance_tokens: that C of every edited layer was taken over.
        covariance_seconds: for that, once for a model.
        values_seconds, solve_seconds, write_seconds: of the end-to-end edit, with the scale-free
            settings and as many steps for every fact.
        seconds: of v*, keys, solving and writing together, without covariance and log.
        facts_per_second: of that.
        seconds_for_10000: covariance, and ten thousand facts at that rate; that later batches hold
            the keys of earlier ones is not counted.
        efficacy_before, efficacy: share of facts with p(new object) above p(old object).
        peak_gib: most memory that tensors took; None on the CPU.
    """

    shape: str
    parameters: int
    device: str
    dtype: str
    n_facts: int
    n_published: int
    steps: int
    values_per_second: tuple[float, float]
    values_speedup: float
    values_loss_error: tuple[float, float]
    covariance_tokens: int
    covariance_seconds: float
    values_seconds: float
    solve_seconds: float
    write_seconds: float
    seconds: float
    facts_per_second: float
    seconds_for_10000: float
    efficacy_before: float
    efficacy: float
    peak_gib: float | None

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON-able data."""
        return asdict(self)


@dataclass(frozen=True)
class LargeLearn:
    """What training takes on a large model.

    Attributes:
        shape, parameters, device, dtype: as of an edit.
        rows, row_tokens: of a training step.
        tokens_per_second: ours and the bare loop's.
        throughput_ratio: the ratio of medians.
        loss_error: largest difference of a step's loss between the two.
        peak_gib: ours and the bare loop's, each in its last training; None on the CPU.
    """

    shape: str
    parameters: int
    device: str
    dtype: str
    rows: int
    row_tokens: int
    tokens_per_second: tuple[float, float]
    throughput_ratio: float
    loss_error: float
    peak_gib: tuple[float, float] | None

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON-able data."""
        return asdict(self)


def random_model(
    shape: str, *, device: str | None = None, dtype: str = "bfloat16", seed: int = 0
) -> EditableModel:
    """A model of a shape with the random weights it would begin training with.

    Raises:
        EditclError: there is no such shape, device or dtype.
    """
    import transformers

    if shape not in SHAPES:
        raise EditclError(f"there is no shape {shape!r}; choose one of {', '.join(SHAPES)}.")
    kind, config, values, _ = SHAPES[shape]
    place, number = choose_device(device), choose_dtype(dtype) or torch.get_default_dtype()
    was = torch.get_default_dtype()
    devices = [place] if place.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        torch.set_default_dtype(number)
        try:
            with place:  # made where it stays: six billion weights take minutes on a CPU
                hf = getattr(transformers, kind)(getattr(transformers, config)(**values))
        finally:
            torch.set_default_dtype(was)
    return wrap(hf.eval().to(place), load(device="cpu").tokenizer, name=f"{shape}, random weights")


def bench_large_edit(
    shape: str,
    *,
    n_facts: int = 1000,
    n_published: int = 20,
    tokens_per_unit: int = 10,
    device: str | None = None,
    dtype: str = "bfloat16",
    seed: int = 0,
) -> LargeEdit:
    """Measures v* and MEMIT on a random-weight model.

    Args:
        shape: a name in SHAPES.
        n_facts: catalogue facts, edited together.
        n_published: facts that the published procedure runs on.
        tokens_per_unit: of d_mlp, for the covariance; random ones.
        device, dtype: as of `editcl.load`.
        seed: of weights and draws.

    Raises:
        EditclError: there is no such shape, or the catalogue has fewer facts.
    """
    layers = SHAPES[shape][3] if shape in SHAPES else ()
    facts = [case.fact for case in catalogue_cases(n_facts, seed=seed)]
    if len(facts) < n_facts:
        raise EditclError(f"the catalogue has only {len(facts)} facts to edit together.")
    model = random_model(shape, device=device, dtype=dtype, seed=seed)
    sample = facts[:: max(1, len(facts) // SAMPLE)][:SAMPLE]
    speed = compare_values(model, sample, layers[-1], n_published, seed)
    tokens = tokens_per_unit * model.d_mlp
    rows = _random_rows(model, tokens, seed)
    measured, covariance_seconds = stopwatch(
        model, partial(measure, model, layers, rows, tokens=tokens)
    )
    contexts = sample_contexts(model, lengths=PUBLISHED_CONTEXTS, seed=seed)
    plan = Plan(
        layers=layers,
        settings=ValueSettings(steps=FIXED_STEPS, stop=0.0),
        covariances={layer: c.damped() for layer, c in measured.items()},
        essence=[PUBLISHED] * len(facts),
        contexts=contexts,
    )
    del measured  # of large models C takes a gibibyte a layer
    before = probabilities(model, facts)
    solution, seconds = stopwatch(model, partial(METHODS["memit"], model, facts, plan))
    values_seconds = float(solution.details["values_seconds"])
    started = time.perf_counter()
    with tried(model, solution.updates):
        wait_for(model)
        write_seconds = time.perf_counter() - started
        after = probabilities(model, facts)
    total = seconds + write_seconds
    return LargeEdit(
        shape=shape,
        parameters=sum(p.numel() for p in model.hf.parameters()),
        device=_device_name(model),
        dtype=str(model.dtype).removeprefix("torch."),
        n_facts=n_facts,
        n_published=len(speed.errors),
        steps=FIXED_STEPS,
        values_per_second=speed.per_second,
        values_speedup=speed.speedup,
        values_loss_error=(statistics.median(speed.errors), max(speed.errors)),
        covariance_tokens=tokens,
        covariance_seconds=covariance_seconds,
        values_seconds=values_seconds,
        solve_seconds=seconds - values_seconds,
        write_seconds=write_seconds,
        seconds=total,
        facts_per_second=n_facts / total,
        seconds_for_10000=covariance_seconds + MANY * total / n_facts,
        efficacy_before=_share(before),
        efficacy=_share(after),
        peak_gib=_peak(model),
    )


def bench_large_learn(
    shape: str,
    *,
    steps: int = 10,
    rows: int = 8,
    repeats: int = 3,
    device: str | None = None,
    dtype: str = "bfloat16",
    seed: int = 0,
) -> LargeLearn:
    """Measures the training of a LoRA adapter on a random-weight model.

    Args:
        shape: a name in SHAPES.
        steps: of each training that is timed.
        rows: of a step, each of ROW_TOKENS tokens.
        repeats: trainings of each side, which take turns; one more goes ahead untimed.
        device, dtype: as of `editcl.load`.
        seed: of weights and draws.
    """
    model = random_model(shape, device=device, dtype=dtype, seed=seed)
    task = _statements(rows * steps)
    settings = TrainSettings(steps=steps, batch_size=rows, autocast="off", seed=seed)
    lengths = [len(row.ids) for row in encode_rows(model, task)]
    drawn = Drawn(lengths, settings)
    tokens = sum(lengths[i] for step in range(steps) for i in drawn.batch(step))
    ours: list[float] = []
    bare: list[float] = []
    error = 0.0
    peaks: list[float | None] = [None, None]
    for _ in progress(range(repeats + 1), "training"):
        _forget_peak(model)
        losses, seconds = bare_loop(model, task, settings, seed=seed)
        peaks[1] = _peak(model)
        bare.append(seconds)
        _forget_peak(model)
        done = train(fresh_session(model, seed), task, Sequential(), settings, show=False)
        peaks[0] = _peak(model)
        ours.append(done.seconds)
        error = max(error, *(abs(a - b) for a, b in zip(losses, done.losses, strict=True)))
    medians = statistics.median(ours[1:]), statistics.median(bare[1:])
    own, plain = peaks
    return LargeLearn(
        shape=shape,
        parameters=sum(p.numel() for p in model.hf.parameters()),
        device=_device_name(model),
        dtype=str(model.dtype).removeprefix("torch."),
        rows=rows,
        row_tokens=ROW_TOKENS,
        tokens_per_second=(tokens / medians[0], tokens / medians[1]),
        throughput_ratio=medians[1] / medians[0],
        loss_error=error,
        peak_gib=None if own is None or plain is None else (own, plain),
    )


# -- small things ---------------------------------------------------------------------------------


def _statements(n_rows: int) -> Task:
    """True sentences, in texts long enough to be cut into so many whole rows."""
    said = [case.fact.sentence for case in catalogue_cases(MANY)]
    random.Random(0).shuffle(said)
    words = 2 * n_rows * ROW_TOKENS  # a word is a token at least
    text = " ".join(itertools.islice(itertools.cycle(said), words // 4))
    half = len(text) // 2
    texts = Example("", text[:half]), Example("", text[half:])
    return Task("statements", texts, kind=TEXT, max_tokens=ROW_TOKENS)


def _random_rows(model: EditableModel, tokens: int, seed: int) -> list[list[int]]:
    """Rows of ROW_TOKENS ids that the tokenizer knows; of a short-sighted model as long as fits."""
    length = min(ROW_TOKENS, model.max_tokens)
    known = min(model.d_vocab, len(model.tokenizer))
    drawn = torch.Generator().manual_seed(seed)
    count = -(-tokens // length)
    return torch.randint(1, known, (count, length), generator=drawn).tolist()


def _forget_peak(model: EditableModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)


def _peak(model: EditableModel) -> float | None:
    if model.device.type != "cuda":
        return None
    return torch.cuda.max_memory_allocated(model.device) / 2**30


def _device_name(model: EditableModel) -> str:
    if model.device.type == "cuda":
        return torch.cuda.get_device_name(model.device)
    return f"{model.device.type}, {torch.get_num_threads()} threads"


def _share(found: Sequence[Any]) -> float:
    known = [one for one in found if one.old is not None]
    return sum(one.new > one.old for one in known) / max(1, len(known))


__all__ = ["SHAPES", "LargeEdit", "LargeLearn", "bench_large_edit", "bench_large_learn"]
