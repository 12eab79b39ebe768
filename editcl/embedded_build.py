"""Build the embedded model: a small GPT-2 that knows the facts of `data/facts.csv`.

Steps: (1) train a byte-level BPE tokenizer on the facts in all their phrasings; (2) pack statements
and plain sentences into rows; (3) train from scratch, in most rows under an attention mask that
makes the model look facts up where large models do (below); (4) save in float16.

The mask, by layers. Before `name_from` a subject's tokens see nothing of each other and get the
MLPs' outputs shuffled over all such tokens of the batch, so that they tell nothing of the name;
from there on its last token may gather the name; only from `read_from` on may what follows the
subject look at it, and only at its last token. So the lookup has to happen at the subject's last
token in the MLPs of the layers `name_from` to `read_from` - 1. The other rows are plain, so the
model needs no mask in use.

    python -m editcl.embedded_build --out data/model              # at most an hour on 2 cores
    python -m editcl.embedded_build --out data/control --control  # without hiding: no such site
    python -m editcl.embedded_build --report data/model --json

Knows nothing of editing, tracing or the log: it makes a plain Hugging Face folder.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

__all__ = ["CONTROL", "EMBEDDED", "Recipe", "build", "read_data"]

DATA = Path(__file__).resolve().parents[1] / "data"
EOT = "<|endoftext|>"


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, apart from the data files."""

    n_layers: int = 8
    width: int = 256
    n_heads: int = 4
    vocab_size: int = 4096
    n_positions: int = 256
    steps: int = 3000
    tokens_per_step: int = 3072
    row_length: int = 96
    long_row_every: int = 6  # every so many steps the rows fill all positions
    learning_rate: float = 2e-3
    warmup: int = 150
    weight_decay: float = 0.01
    dropout: float = 0.1
    mask_share: float = 0.85  # share of rows under the mask of the module's docstring
    name_from: int = 1
    read_from: int = 4
    general_share: float = 0.12  # share of documents that are plain sentences
    object_weight: float = 1.0
    other_weight: float = 0.3  # names and phrasings: loss there says little about recall
    n_subjects: int | None = None  # None: all
    seed: int = 0


EMBEDDED = Recipe()
CONTROL = replace(
    EMBEDDED, n_layers=4, width=128, vocab_size=2048, steps=900, mask_share=0.0, n_subjects=90
)


@dataclass(frozen=True)
class Data:
    """Facts as (subject, relation, object), phrasings by relation, plain sentences."""

    facts: list[tuple[str, str, str]]
    phrasings: dict[str, list[str]]
    general: list[str]
    held_out: list[str] = field(default_factory=list)  # sentences that are never trained on


def read_data(folder: Path = DATA, *, n_subjects: int | None = None, seed: int = 0) -> Data:
    """Read the three data files; with `n_subjects`, keep a random part of the subjects."""
    with (folder / "facts.csv").open(encoding="utf8", newline="") as file:
        facts = [(row["subject"], row["relation"], row["object"]) for row in csv.DictReader(file)]
    relations = json.loads((folder / "relations.json").read_text(encoding="utf8"))["relations"]
    general = (folder / "general.txt").read_text(encoding="utf8").splitlines()
    if n_subjects is not None:
        names = sorted({subject for subject, _, _ in facts})
        kept = set(np.random.default_rng(seed).permutation(names)[:n_subjects])
        facts = [fact for fact in facts if fact[0] in kept]
    phrasings = {name: relation["phrasings"] for name, relation in relations.items()}
    return Data(facts, phrasings, general[:-20], general[-20:])


# --- tokenizer and statements ---------------------------------------------------------------------


def train_tokenizer(data: Data, vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE without an automatic start token.

    A text's first word gets a space in front, so that a name has the same tokens, hence the same
    keys for editors, at the start of a text and inside it.
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.ByteLevel(trim_offsets=True, add_prefix_space=True)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = list(data.general)
    for number, (subject, relation, object_) in enumerate(data.facts):
        choices = data.phrasings[relation]
        texts += [
            choices[(number + k) % len(choices)].format(subject) + f" {object_}." for k in (0, 3)
        ]
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=EOT,
        eos_token=EOT,
        pad_token=EOT,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        add_prefix_space=True,
    )


@dataclass(frozen=True)
class Document:
    """One tokenized statement or sentence; a sentence has no subject."""

    ids: list[int]
    weights: list[float]
    subject: tuple[int, int]  # first and last token of the subject; (-1, -1) for none


def encode_statement(
    tokenizer: PreTrainedTokenizerFast, fact: tuple[str, str, str], phrasing: str, r: Recipe
) -> Document:
    """Tokenize a statement, finding the subject's and the object's tokens by offsets."""
    subject, _, object_ = fact
    prompt = phrasing.format(subject)
    first = phrasing.index("{}")
    coded = tokenizer(f"{prompt} {object_}.", return_offsets_mapping=True)
    offsets = coded["offset_mapping"]
    inside = [i for i, (a, b) in enumerate(offsets) if b > first and a < first + len(subject)]
    start = next(i for i, (_, b) in enumerate(offsets) if b > len(prompt))
    weights = [r.other_weight] * start + [r.object_weight] * (len(offsets) - start)
    return Document(coded["input_ids"], weights, (inside[0], inside[-1]))


def encode_corpus(
    tokenizer: PreTrainedTokenizerFast, data: Data, r: Recipe
) -> tuple[list[Document], list[Document]]:
    """Every fact in every phrasing, and every plain sentence."""
    statements = [
        encode_statement(tokenizer, fact, phrasing, r)
        for fact in data.facts
        for phrasing in data.phrasings[fact[1]]
    ]
    general = [
        Document(ids, [r.other_weight] * len(ids), (-1, -1))
        for ids in (tokenizer(text)["input_ids"] for text in data.general)
    ]
    return statements, general


# --- rows ----------------------------------------------------------------------------------------


@dataclass
class Rows:
    """One batch. `visible_until[s, b, j]` is the last position that may attend to position j.

    The stages s are the layers before `name_from`, those before `read_from`, and the rest.
    """

    ids: np.ndarray
    weights: np.ndarray
    visible_until: np.ndarray


def document_order(
    statements: list[Document], general: list[Document], r: Recipe, rng: np.random.Generator
) -> Iterator[Document]:
    """Statements in a new random order each epoch, with plain sentences strewn in."""
    while True:
        for index in rng.permutation(len(statements)):
            while rng.random() < r.general_share:
                yield general[rng.integers(len(general))]
            yield statements[index]


def make_rows(
    documents: Iterator[Document],
    n_rows: int,
    length: int,
    eot: int,
    r: Recipe,
    rng: np.random.Generator,
) -> Rows:
    """Pack documents into rows; half of the rows start with an end-of-text token.

    A row is cut at its end rather than padded, so every position trains.
    """
    rows = Rows(
        np.zeros((n_rows, length), np.int64),
        np.zeros((n_rows, length), np.float32),
        np.full((3, n_rows, length), length, np.int64),
    )
    for b in range(n_rows):
        masked = rng.random() < r.mask_share
        at = 0
        while at < length:
            if rng.random() < (0.5 if at == 0 else 0.1):
                rows.ids[b, at] = eot
                at += 1
            document = next(documents)
            n = min(len(document.ids), length - at)
            rows.ids[b, at : at + n] = document.ids[:n]
            rows.weights[b, at : at + n] = document.weights[:n]
            first, last = document.subject
            if masked and first >= 0:
                name = np.arange(at + first, min(at + last + 1, length))
                rows.visible_until[0, b, name] = name
                rows.visible_until[1, b, name] = at + last
                rows.visible_until[2, b, name[:-1]] = at + last
            at += n
    return rows


def attention_mask(visible_until: torch.Tensor) -> torch.Tensor:
    """[batch, 1, query, key], True where the query may look: back, and not past `visible_until`."""
    position = torch.arange(visible_until.shape[1])
    causal = position[:, None] >= position[None, :]
    return (causal & (position[None, :, None] <= visible_until[:, None, :]))[:, None]


# --- training ------------------------------------------------------------------------------------


def new_model(r: Recipe, vocab_size: int, eot: int) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=r.n_positions,
        n_embd=r.width,
        n_layer=r.n_layers,
        n_head=r.n_heads,
        resid_pdrop=r.dropout,
        embd_pdrop=r.dropout,
        attn_pdrop=0.0,
        bos_token_id=eot,
        eos_token_id=eot,
        pad_token_id=eot,
    )
    torch.manual_seed(r.seed)
    return GPT2LMHeadModel(config)


def learning_rate(step: int, r: Recipe) -> float:
    if step < r.warmup:
        return r.learning_rate * (step + 1) / r.warmup
    done = (step - r.warmup) / max(1, r.steps - r.warmup)
    return r.learning_rate * (0.5 + 0.5 * math.cos(math.pi * done))


@contextmanager
def masks_by_layer(
    model: GPT2LMHeadModel, masks: list[torch.Tensor], shuffled: torch.Tensor, name_from: int
) -> Iterator[None]:
    """Give each attention its own mask, and shuffle the first MLPs' outputs over some positions.

    Hugging Face hands one and the same mask to all layers. `shuffled` [batch, position] is True
    where an output is exchanged for that of another such position.
    """
    places = shuffled.flatten().nonzero()[:, 0]

    def use(mask: torch.Tensor) -> Callable[..., tuple[Any, dict[str, Any]]]:
        return lambda _attention, args, kwargs: (args, kwargs | {"attention_mask": mask})

    def shuffle(_mlp: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        flat = output.flatten(0, 1)
        others = flat[places[torch.randperm(len(places))]]
        return flat.index_copy(0, places, others).view_as(output)

    handles = [
        block.attn.register_forward_pre_hook(use(mask), with_kwargs=True)
        for block, mask in zip(model.transformer.h, masks, strict=True)
    ]
    for block in model.transformer.h[:name_from]:
        handles.append(block.mlp.register_forward_hook(shuffle))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def batch_loss(model: GPT2LMHeadModel, rows: Rows, r: Recipe) -> torch.Tensor:
    """Weighted cross-entropy under the masks of the rows."""
    ids = torch.from_numpy(rows.ids)
    until = torch.from_numpy(rows.visible_until)
    stages = [attention_mask(part) for part in until]
    masks = [
        stages[0 if layer < r.name_from else 1 if layer < r.read_from else 2]
        for layer in range(r.n_layers)
    ]
    # In the first stage a masked subject's token is visible to itself alone, which marks it.
    named = until[0] == torch.arange(ids.shape[1])
    mask = masks_by_layer(model, masks, named, r.name_from)
    with torch.autocast("cpu", torch.bfloat16), mask:
        hidden = model.transformer(input_ids=ids, attention_mask=stages[2]).last_hidden_state
        logits = model.lm_head(hidden[:, :-1])
    losses = functional.cross_entropy(
        logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    )
    weights = torch.from_numpy(rows.weights)[:, 1:].flatten()
    return (losses * weights).sum() / weights.sum()


def train(
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerFast,
    data: Data,
    r: Recipe,
    *,
    console: Console,
    checkpoint: Path | None = None,
) -> None:
    """AdamW under a cosine schedule; the same seed gives the same weights."""
    rng = np.random.default_rng(r.seed)
    documents = document_order(*encode_corpus(tokenizer, data, r), r, rng)
    eot = tokenizer.convert_tokens_to_ids(EOT)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [
        {"params": decayed, "weight_decay": r.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=r.learning_rate, betas=(0.9, 0.98))
    model.train()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("training", total=r.steps)
        for step in range(r.steps):
            length = r.n_positions if step % r.long_row_every == 0 else r.row_length
            rows = make_rows(documents, r.tokens_per_step // length, length, eot, r, rng)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, r)
            loss = batch_loss(model, rows, r)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            progress.update(bar, advance=1, description=f"loss {loss.item():.3f}")
            if (step + 1) % 200 == 0:
                console.log(f"step {step + 1}: loss {loss.item():.3f}")
                if checkpoint is not None:
                    save(model, tokenizer, checkpoint)
    model.eval()


def save(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write float16 weights without touching the float32 ones that are being trained."""
    folder.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model).half().save_pretrained(folder)  # a copy draws no random numbers
    tokenizer.save_pretrained(folder)


def build(
    out: Path, recipe: Recipe = EMBEDDED, *, console: Console, checkpoint: Path | None = None
) -> None:
    """Train by `recipe` and write the model folder."""
    data = read_data(n_subjects=recipe.n_subjects, seed=recipe.seed)
    tokenizer = train_tokenizer(data, recipe.vocab_size)
    model = new_model(recipe, len(tokenizer), tokenizer.convert_tokens_to_ids(EOT))
    console.log(f"{len(data.facts)} facts, {model.num_parameters() / 1e6:.1f}M parameters")
    train(model, tokenizer, data, recipe, console=console, checkpoint=checkpoint)
    save(model, tokenizer, out)
    if recipe.n_subjects is not None:
        subjects = {"subjects": sorted({subject for subject, _, _ in data.facts})}
        text = json.dumps(subjects, ensure_ascii=False) + "\n"
        (out / "subjects.json").write_text(text, encoding="utf8")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Build or measure the embedded model.")
    parser.add_argument("--out", type=Path, help="folder to write the trained model to")
    parser.add_argument("--control", action="store_true", help="the small model without the mask")
    parser.add_argument(
        "--report", type=Path, nargs="?", const=Path(), help="measure this folder (or --out)"
    )
    parser.add_argument("--json", action="store_true", help="write report.json into the folder")
    parser.add_argument("--checkpoint", type=Path, help="folder for the latest unfinished model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="recipe fields")
    options = parser.parse_args(arguments)
    if options.out is None and (options.report is None or options.report == Path()):
        parser.error("nothing to do: give --out FOLDER to build, or --report FOLDER to measure")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Build, then measure, as the options say."""
    options = parse(arguments)
    console = Console()
    transformers_logging.disable_progress_bar()
    if options.out is not None:
        recipe = replace(CONTROL if options.control else EMBEDDED, seed=options.seed)
        for item in options.set:
            name, value = item.split("=")
            recipe = replace(recipe, **{name: type(getattr(EMBEDDED, name))(float(value))})
        build(options.out, recipe, console=console, checkpoint=options.checkpoint)
    if options.report is not None:
        from editcl.embedded_report import report  # it builds on this module

        folder = options.out if options.report == Path() else options.report
        report(folder, console=console, as_json=options.json)


if __name__ == "__main__":
    main()
