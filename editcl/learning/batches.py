"""Examples as token rows, rows as batches, and the order in which a training sees them.

What counts for the loss begins at `Encoded.start`. A batch is padded at the right and needs no
mask: no token of a causal model sees what stands behind it. Its targets are listed flat, so that
only their positions are unembedded. Knows nothing of adapters and strategies.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from editcl.encoding import Sentence, encode
from editcl.learning.tasks import COMPLETION, TEXT, Example, TaskError
from editcl.model import EditableModel

TAIL = 16  # the prompt's last tokens that stay where its middle is cut: they hold the question
WINDOW = 16  # batches that are sorted by length together
TEXT_SEEN = 64  # tokens of a text that may be looked at to tell which task it is of


@dataclass(frozen=True)
class Encoded:
    """One row of tokens.

    Attributes:
        ids: prompt and completion.
        start: index of the first token that is learnt.
        task: the name of the task that it comes from; "" for a row of none.
    """

    ids: tuple[int, ...]
    start: int
    task: str = ""

    @property
    def n_targets(self) -> int:
        """How many tokens are learnt."""
        return len(self.ids) - self.start


@dataclass(frozen=True)
class Batch:
    """Rows as tensors.

    Attributes:
        rows: what it was made of.
        ids: padded at the right.
        row, position: for each target the row, and the position whose logits predict it (the one
            before it); in the order of rows, then positions.
        targets: the tokens that are learnt.
    """

    rows: tuple[Encoded, ...]
    ids: Int[Tensor, "n_rows n_tokens"]
    row: Int[Tensor, " n_kept"]
    position: Int[Tensor, " n_kept"]
    targets: Int[Tensor, " n_kept"]

    def mask(self) -> Int[Tensor, "n_rows n_tokens"]:
        """1 where a row has a token."""
        lengths = torch.tensor([len(row.ids) for row in self.rows], device=self.ids.device)
        columns = torch.arange(self.ids.shape[1], device=self.ids.device)
        return (columns < lengths[:, None]).long()

    def row_means(self, values: Float[Tensor, " n_kept"]) -> Float[Tensor, " n_rows"]:
        """The mean over each row's targets of one value per target."""
        n_rows = len(self.rows)
        sums = values.new_zeros(n_rows).index_add(0, self.row, values)
        return sums / torch.bincount(self.row, minlength=n_rows).to(values)


def collate(rows: Sequence[Encoded], pad_id: int, device: torch.device | str) -> Batch:
    """A batch of rows, each with at least one target."""
    width = max(len(row.ids) for row in rows)
    ids = torch.tensor([row.ids + (pad_id,) * (width - len(row.ids)) for row in rows])
    bounds = torch.tensor([(row.start, len(row.ids)) for row in rows])
    column = torch.arange(1, width)
    learnt = (column >= bounds[:, :1]) & (column < bounds[:, 1:])
    row, position = learnt.nonzero(as_tuple=True)
    targets = ids[row, position + 1]
    return Batch(
        tuple(rows), ids.to(device), row.to(device), position.to(device), targets.to(device)
    )


# -- texts to rows --------------------------------------------------------------------------------


def encode_examples(
    model: EditableModel,
    examples: Sequence[Example],
    *,
    kind: str = COMPLETION,
    task: str = "",
    max_tokens: int | None = None,
) -> list[Encoded]:
    """Rows of examples.

    A space stands between prompt and completion where one is needed. The completion of kind
    "completion" ends with the tokenizer's end token, where it has one, so that the model learns to
    stop; a label doesn't, for labels are compared by their own tokens. A "text" begins with the
    token that texts begin with (or end with), where the tokenizer has one, and is cut into pieces
    of `max_tokens`, each learnt whole; the others give one row each, in order.

    Raises:
        TaskError: some can't be encoded, or are longer than the model's positions.
    """
    longest = min(max_tokens or model.max_tokens, model.max_tokens)
    problems: list[str] = []
    if kind == TEXT:
        rows = _texts(model, [example.completion for example in examples], task, longest, problems)
    else:
        end = model.tokenizer.eos_token_id if kind == COMPLETION else None
        rows = _pairs(model, examples, () if end is None else (end,), task)
        cut = max_tokens is not None
        rows = [_cut(row, longest, cut, i, problems) for i, row in enumerate(rows)]
    beyond = max((max(row.ids) for row in rows), default=0)
    if beyond >= model.d_vocab:
        problems.append(
            f"the tokenizer gives token id {beyond}, but the model embeds {model.d_vocab} tokens: "
            "they don't belong together. Pass the model's own."
        )
    if problems:
        raise TaskError(f"task {task!r}" if task else "the examples", problems)
    return rows


def encode_prompts(
    model: EditableModel, prompts: Sequence[str], *, max_tokens: int | None = None
) -> list[Encoded]:
    """Rows of which nothing is learnt: for prediction.

    Raises:
        TaskError: some are blank, no text, or too long (with `max_tokens` these lose their middle).
    """
    longest = min(max_tokens or model.max_tokens, model.max_tokens)
    problems = [
        f"prompt {i} is blank."
        if isinstance(text, str)
        else f"prompt {i} is of type {type(text).__name__}; convert it to text."
        for i, text in enumerate(prompts)
        if not isinstance(text, str) or not text.strip()
    ]
    if problems:
        raise TaskError("the prompts", problems)
    found = encode(model.tokenizer, [Sentence(prompt) for prompt in prompts])
    rows = [Encoded(row.ids, len(row.ids)) for row in found]
    cut = max_tokens is not None
    rows = [_cut(row, longest, cut, i, problems) for i, row in enumerate(rows)]
    if problems:
        raise TaskError("the prompts", problems)
    return rows


def _pairs(
    model: EditableModel, examples: Sequence[Example], end: tuple[int, ...], task: str
) -> list[Encoded]:
    sentences = [Sentence(example.prompt, target=example.completion) for example in examples]
    return [
        Encoded(row.ids + end, row.target_start, task) for row in encode(model.tokenizer, sentences)
    ]


def _cut(row: Encoded, longest: int, may_cut: bool, i: int, problems: list[str]) -> Encoded:
    """The row, without the middle of its prompt where it is too long for the model."""
    excess = len(row.ids) - longest
    if excess <= 0:
        return row
    if row.n_targets >= longest:
        problems.append(
            f"example {i}: its completion has {row.n_targets} tokens, and a row holds at most "
            f"{longest} with its prompt; shorten it."
        )
    elif not may_cut:
        problems.append(
            f"example {i} has {len(row.ids)} tokens; the model takes at most {longest}. Shorten "
            "it, or give the task max_tokens, which cuts the middle of long prompts."
        )
    else:
        tail = min(TAIL, row.start - excess)
        head = row.start - excess - tail
        ids = row.ids[:head] + row.ids[row.start - tail :]
        return Encoded(ids, head + tail, row.task)
    return row


def _texts(
    model: EditableModel, texts: Sequence[str], task: str, longest: int, problems: list[str]
) -> list[Encoded]:
    tokenizer = model.tokenizer
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    begin = () if first is None else (first,)
    found = []
    plain = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    step = longest - len(begin)
    for i, ids in enumerate(plain if texts else []):
        pieces = [begin + tuple(ids[at : at + step]) for at in range(0, len(ids), step)]
        # A last piece of one token has nothing before it to be predicted from.
        found += [Encoded(piece, 1, task) for piece in pieces if len(piece) > 1]
        if not pieces or len(pieces[0]) < 2:
            problems.append(f"text {i}: its {len(ids)} tokens are too few to learn; lengthen it.")
    return found


def visible(rows: Sequence[Encoded], kind: str) -> list[Encoded]:
    """Rows with what may be looked at to tell their task in front of `start`.

    That is the prompt; of texts, of which all is learnt, the way they begin.
    """
    if kind != TEXT:
        return list(rows)
    return [replace(row, start=min(TEXT_SEEN, len(row.ids))) for row in rows]


# -- the order of rows ----------------------------------------------------------------------------


def epoch_order(
    lengths: Sequence[int], batch_size: int, *, seed: int, epoch: int
) -> list[list[int]]:
    """Every index once, as batches in which lengths are alike; the last one may be smaller.

    Shuffled, then sorted by length within windows of some batches, whose order is shuffled again:
    short rows don't come first. The same arguments give the same order.
    """
    generator = random.Random(f"{seed} {epoch}")
    order = list(range(len(lengths)))
    generator.shuffle(order)
    batches = []
    for at in range(0, len(order), batch_size * WINDOW):
        window = sorted(order[at : at + batch_size * WINDOW], key=lambda i: lengths[i])
        parts = [window[i : i + batch_size] for i in range(0, len(window), batch_size)]
        generator.shuffle(parts)
        batches += parts
    return batches
