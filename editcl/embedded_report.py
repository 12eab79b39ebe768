"""Measure the embedded model: recall of its facts, and where it reads them.

Recall: is the object's first token the argmax, and is every token of it, for each relation and
phrasing, alone and after an unrelated sentence that was never trained on, with and without a
leading end-of-text token. Restoration (causal tracing in small): corrupt the subject's embeddings,
put the clean run's state back at one place, and see how much of the answer's probability returns.

Written against plain Hugging Face modules on purpose, so that it also checks the tracer; it knows
nothing of editing or of the log.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from editcl.embedded_build import EOT, Data, read_data

__all__ = ["Query", "recall", "report", "restoration"]

SETTINGS = ("alone", "alone, end-of-text", "in context", "in context, end-of-text")


@dataclass(frozen=True)
class Query:
    """A prompt with its answer, tokenized; `subject_last` and `subject_first` are positions."""

    ids: list[int]
    n_answer: int
    subject_first: int
    subject_last: int
    relation: str
    phrasing: str


def make_query(
    tokenizer: PreTrainedTokenizerFast,
    fact: tuple[str, str, str],
    phrasing: str,
    *,
    context: str = "",
    end_of_text: bool = False,
) -> Query:
    """Tokenize one statement; offsets tell which tokens are the subject and the answer."""
    subject, relation, object_ = fact
    lead = (EOT if end_of_text else "") + (f"{context} " if context else "")
    prompt = lead + phrasing.format(subject)
    first = len(lead) + phrasing.index("{}")
    coded = tokenizer(f"{prompt} {object_}", return_offsets_mapping=True)
    offsets = coded["offset_mapping"]
    inside = [i for i, (a, b) in enumerate(offsets) if b > first and a < first + len(subject)]
    n_answer = sum(b > len(prompt) for _, b in offsets)
    return Query(coded["input_ids"], n_answer, inside[0], inside[-1], relation, phrasing)


def batches(queries: list[Query], tokens: int = 12000) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Index lists and ids, longest first, padded on the right, where no answer looks."""
    order = sorted(range(len(queries)), key=lambda i: -len(queries[i].ids))
    while order:
        width = len(queries[order[0]].ids)
        now, order = order[: max(1, tokens // width)], order[max(1, tokens // width) :]
        ids = torch.zeros(len(now), width, dtype=torch.long)
        for row, i in enumerate(now):
            ids[row, : len(queries[i].ids)] = torch.tensor(queries[i].ids)
        yield now, ids


@torch.no_grad()
def answered(model: GPT2LMHeadModel, queries: list[Query]) -> np.ndarray:
    """[n, 2]: whether the first token, and every token, of the answer is the argmax.

    With every earlier token right, this is what greedy decoding would write.
    """
    result = np.zeros((len(queries), 2), bool)
    for now, ids in batches(queries):
        hidden = model.transformer(ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        rows, positions = [], []
        for row, i in enumerate(now):
            n = len(queries[i].ids)
            for position in range(n - queries[i].n_answer - 1, n - 1):
                rows.append(row)
                positions.append(position)
        right = (
            model.lm_head(hidden[rows, positions]).argmax(-1)
            == ids[rows, [p + 1 for p in positions]]
        )
        at = 0
        for i in now:
            part = right[at : at + queries[i].n_answer]
            result[i] = bool(part[0]), bool(part.all())
            at += queries[i].n_answer
    return result


def recall(
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerFast,
    data: Data,
    *,
    n_facts: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Shares of right answers by setting, by relation, and by phrasing (all settings together)."""
    rng = np.random.default_rng(seed)
    picked = rng.permutation(len(data.facts))[:n_facts]
    queries: list[Query] = []
    for index in sorted(picked):
        fact = data.facts[index]
        for phrasing in data.phrasings[fact[1]]:
            context = data.held_out[rng.integers(len(data.held_out))]
            for setting in SETTINGS:
                queries.append(
                    make_query(
                        tokenizer,
                        fact,
                        phrasing,
                        context=context if "context" in setting else "",
                        end_of_text="end-of-text" in setting,
                    )
                )
    right = answered(model, queries)
    by_setting = {name: right[k :: len(SETTINGS)].mean(0) for k, name in enumerate(SETTINGS)}
    relations: dict[str, list[np.ndarray]] = defaultdict(list)
    phrasings: dict[str, list[np.ndarray]] = defaultdict(list)
    for query, outcome in zip(queries, right, strict=True):
        relations[query.relation].append(outcome)
        phrasings[f"{query.relation}: {query.phrasing}"].append(outcome)

    def shares(groups: dict[str, Any]) -> dict[str, dict[str, float]]:
        means = {name: np.mean(np.atleast_2d(values), axis=0) for name, values in groups.items()}
        return {
            name: {"first": round(float(m[0]), 4), "whole": round(float(m[1]), 4)}
            for name, m in means.items()
        }

    overall = right.mean(0)
    return {
        "n_facts": len(picked),
        "n_prompts": len(queries),
        "first": round(float(overall[0]), 4),
        "whole": round(float(overall[1]), 4),
        "by_setting": shares(by_setting),
        "by_relation": shares(relations),
        "by_phrasing": shares(phrasings),
    }


# --- restoration ----------------------------------------------------------------------------------

Hook = Callable[[Any, Any, Any], Any]


@contextmanager
def module_hooks(hooks: list[tuple[torch.nn.Module, Hook]]) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def sites(model: GPT2LMHeadModel) -> dict[str, torch.nn.Module]:
    """Names of the states that can be restored: residual, MLP and attention output by layer."""
    found: dict[str, torch.nn.Module] = {}
    for layer, block in enumerate(model.transformer.h):
        found |= {f"hidden.{layer}": block, f"mlp.{layer}": block.mlp, f"attn.{layer}": block.attn}
    return found


def keep(cache: dict[str, torch.Tensor], name: str) -> Hook:
    def hook(_module: Any, _inputs: Any, output: Any) -> None:
        cache[name] = (output[0] if isinstance(output, tuple) else output).clone()

    return hook


def put_back(clean: torch.Tensor, rows: torch.Tensor, positions: torch.Tensor) -> Hook:
    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        state = (output[0] if isinstance(output, tuple) else output).clone()
        state[rows, positions] = clean[rows, positions]
        return (state, *output[1:]) if isinstance(output, tuple) else state

    return hook


def add_noise(noise: torch.Tensor) -> Hook:
    return lambda _module, _inputs, output: output + noise


@dataclass(frozen=True)
class Batch:
    """Rows of prompts, padded on the right, with the positions that restoration needs."""

    ids: torch.Tensor
    last: torch.Tensor
    subject_last: torch.Tensor
    answer: torch.Tensor
    noise: torch.Tensor


def make_batch(model: GPT2LMHeadModel, queries: list[Query], seed: int) -> Batch:
    """Noise of three standard deviations of the subjects' embeddings, as in the ROME paper."""
    prompts = [query.ids[: len(query.ids) - query.n_answer] for query in queries]
    ids = torch.zeros(len(queries), max(map(len, prompts)), dtype=torch.long)
    inside = torch.zeros(ids.shape, dtype=torch.bool)
    for row, (query, prompt) in enumerate(zip(queries, prompts, strict=True)):
        ids[row, : len(prompt)] = torch.tensor(prompt)
        inside[row, query.subject_first : query.subject_last + 1] = True
    embedded = model.transformer.wte(ids)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(embedded.shape, generator=generator) * 3 * embedded[inside].std()
    return Batch(
        ids=ids,
        last=torch.tensor([len(prompt) - 1 for prompt in prompts]),
        subject_last=torch.tensor([query.subject_last for query in queries]),
        answer=torch.tensor([query.ids[len(query.ids) - query.n_answer] for query in queries]),
        noise=noise * inside[..., None],
    )


def probability(
    model: GPT2LMHeadModel, batch: Batch, hooks: list[tuple[Any, Hook]]
) -> torch.Tensor:
    rows = torch.arange(len(batch.ids))
    with module_hooks(hooks):
        ones = torch.ones_like(batch.ids)
        hidden = model.transformer(batch.ids, attention_mask=ones).last_hidden_state
    return model.lm_head(hidden[rows, batch.last]).softmax(-1)[rows, batch.answer]


@torch.no_grad()
def restoration(
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerFast,
    data: Data,
    *,
    n_facts: int = 150,
    seed: int = 0,
) -> dict[str, Any]:
    """Mean p(answer): clean, corrupted, and with one state restored, by layer.

    Only subjects of two or more tokens count: for a single token, "the subject's last token" is
    the whole subject and restoring its embedding would restore everything.
    """
    rng = np.random.default_rng(seed)
    queries: list[Query] = []
    for index in rng.permutation(len(data.facts)):
        fact = data.facts[index]
        query = make_query(tokenizer, fact, data.phrasings[fact[1]][0], context=data.held_out[0])
        if query.subject_last > query.subject_first and len(queries) < n_facts:
            queries.append(query)
    batch = make_batch(model, queries, seed)
    modules = sites(model)
    clean: dict[str, torch.Tensor] = {}
    p_clean = probability(
        model, batch, [(module, keep(clean, name)) for name, module in modules.items()]
    )
    corrupt = (model.transformer.wte, add_noise(batch.noise))
    rows = torch.arange(len(batch.ids))

    def restored(names: list[str], positions: torch.Tensor) -> float:
        back = [(modules[name], put_back(clean[name], rows, positions)) for name in names]
        return round(float(probability(model, batch, [corrupt, *back]).mean()), 4)

    n = len(model.transformer.h)
    windows = [[layer for layer in range(at - 1, at + 2) if 0 <= layer < n] for at in range(n)]
    subject, last = batch.subject_last, batch.last
    return {
        "n_facts": len(queries),
        "clean": round(float(p_clean.mean()), 4),
        "corrupted": restored([], subject),
        "hidden, subject's last token": [restored([f"hidden.{k}"], subject) for k in range(n)],
        "hidden, last token": [restored([f"hidden.{k}"], last) for k in range(n)],
        "one MLP, subject's last token": [restored([f"mlp.{k}"], subject) for k in range(n)],
        "three MLPs, subject's last token": [
            restored([f"mlp.{k}" for k in window], subject) for window in windows
        ],
        "MLPs from 0, subject's last token": [
            restored([f"mlp.{j}" for j in range(k + 1)], subject) for k in range(n)
        ],
        "three attentions, subject's last token": [
            restored([f"attn.{k}" for k in window], subject) for window in windows
        ],
        "three attentions, last token": [
            restored([f"attn.{k}" for k in window], last) for window in windows
        ],
    }


# --- showing --------------------------------------------------------------------------------------


def report(
    folder: Path, *, console: Console, n_facts: int | None = None, as_json: bool = False
) -> dict[str, Any]:
    """Measure the model in `folder`, show the tables, and write `report.json` when asked."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()
    data = read_data()
    if (folder / "subjects.json").exists():
        known = set(json.loads((folder / "subjects.json").read_text(encoding="utf8"))["subjects"])
        facts = [fact for fact in data.facts if fact[0] in known]
        data = Data(facts, data.phrasings, data.general, data.held_out)
    result = {
        "recall": recall(model, tokenizer, data, n_facts=n_facts),
        "restoration": restoration(model, tokenizer, data),
    }
    show(result, console)
    if as_json:
        text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
        (folder / "report.json").write_text(text, encoding="utf8")
    return result


def show(result: dict[str, Any], console: Console) -> None:
    found = result["recall"]
    table = Table(title=f"recall, {found['n_facts']} facts, {found['n_prompts']} prompts (%)")
    for column in ("group", "first token", "whole object"):
        table.add_column(column, justify="left" if column == "group" else "right")
    worst = dict(sorted(found["by_phrasing"].items(), key=lambda item: item[1]["whole"])[:8])
    for title, group in (
        ("all", {"all": found}),
        ("by setting", found["by_setting"]),
        ("by relation", found["by_relation"]),
        ("the worst phrasings", worst),
    ):
        table.add_section()
        table.add_row(f"[bold]{title}")
        for name, share in group.items():
            table.add_row(name, f"{100 * share['first']:.1f}", f"{100 * share['whole']:.1f}")
    console.print(table)
    traced = result["restoration"]
    console.print(
        f"p(answer): clean {traced['clean']:.2f}, corrupted {traced['corrupted']:.2f}; "
        "with a state restored, by layer:"
    )
    for name, values in traced.items():
        if isinstance(values, list):
            console.print(f"  {name:40}" + " ".join(f"{value:.2f}" for value in values))
