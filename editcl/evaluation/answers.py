"""What the model answers: many targets after many prompts, everything shared computed once.

A prompt with several targets (new and old object, aliases), a prompt that several cases ask and a
probe that occurs twice are run once (`prefixes.py`). The greedy continuation follows the target as
long as each of its tokens is the argmax, so scoring has already made it: only where it leaves the
target's tokens and may still spell the same text is anything generated. The numbers are those of
one prompt at a time (`reference.py`). Knows nothing of cases.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from editcl.encoding import Row, Sentence
from editcl.errors import FactError
from editcl.evaluation.prefixes import Followed, follow
from editcl.model import EditableModel

# Small enough for a processor's caches; an accelerator wants more at a time.
TOKENS_ON_CPU, TOKENS_ELSEWHERE = 2048, 16384
ROWS_GENERATED = 64


@dataclass(frozen=True)
class Answer:
    """How the model takes a target after its prompt.

    Attributes:
        log_prob: mean log-probability per target token (nats), teacher-forced.
        token_accuracy: share of target tokens that are the argmax, teacher-forced.
        said: the greedy continuation of the prompt, one token longer than the target, begins with
            it as whole words; None if that was not asked.
    """

    log_prob: float
    token_accuracy: float
    said: bool | None = None

    @property
    def exact(self) -> bool:
        """Whether every target token is the argmax."""
        return self.token_accuracy == 1.0


def answers(
    model: EditableModel,
    scored: Iterable[Sentence],
    spoken: Iterable[Sentence] = (),
    *,
    tokens_per_batch: int | None = None,
) -> dict[Sentence, Answer]:
    """Scores every sentence's target, each distinct sentence once.

    Args:
        model: the model as it is now.
        scored: sentences with a target, in any order, repeated at will.
        spoken: those whose greedy continuation is judged too; they need not be in `scored`.
        tokens_per_batch: bounds the padded tokens of a forward pass, cached ones included; by
            default what suits the device.

    Raises:
        FactError: a sentence has no target, or can't be encoded.
    """
    aloud = dict.fromkeys(spoken)
    sentences = list(dict.fromkeys([*aloud, *scored]))
    for sentence in sentences:
        if not sentence.target:
            raise FactError(f"no object to score after {sentence.prompt!r}. Give it a target.")
    if tokens_per_batch is None:
        tokens_per_batch = TOKENS_ON_CPU if model.device.type == "cpu" else TOKENS_ELSEWHERE
    rows = model.encode(sentences)
    followed = follow(
        model,
        rows,
        beyond=range(len(aloud)),
        never=_never_said(model),
        tokens_per_batch=tokens_per_batch,
    )
    said = _judge(model, sentences[: len(aloud)], rows, followed)
    return {
        sentence: Answer(
            sum(one.log_probs) / len(one.log_probs), sum(one.hits) / len(one.hits), spoken_so
        )
        for sentence, one, spoken_so in zip(
            sentences, followed, [*said, *[None] * (len(sentences) - len(said))], strict=True
        )
    }


def begins_with(text: str, wanted: str) -> bool:
    """Whether a continuation begins with the object as whole words."""
    return re.match(rf"\s*{re.escape(wanted)}(?!\w)", text) is not None


def may_begin_with(text: str, wanted: str) -> bool:
    """Whether some continuation of the text may begin with the object: False is final."""
    text = text.rstrip("\ufffd").lstrip()  # the half of a character is still to come
    return wanted.startswith(text) or begins_with(text, wanted)


# -- free running -------------------------------------------------------------------------------


def _never_said(model: EditableModel) -> list[int]:
    """The tokens that `EditableModel.generate` suppresses: those that end texts."""
    own = model.hf.generation_config
    end = None if own is None else own.eos_token_id
    return [] if end is None else [end] if isinstance(end, int) else list(end)


def _judge(
    model: EditableModel,
    sentences: Sequence[Sentence],
    rows: Sequence[Row],
    followed: Sequence[Followed],
) -> list[bool]:
    """Whether the greedy continuation of each sentence's prompt begins with its target.

    Decided by what scoring has seen where that decides it; generated for the rest.
    """
    prompts = model.encode([replace(sentence, target="") for sentence in sentences])
    known = [_greedy(row, one) for row, one in zip(rows[: len(prompts)], followed, strict=False)]
    texts = _decode(model, [tokens for tokens, _ in known])
    tidies = bool(getattr(model.tokenizer, "clean_up_tokenization_spaces", False))
    said = [begins_with(text, s.target) for text, s in zip(texts, sentences, strict=True)]
    undecided = []
    for i, (prompt, (_, complete)) in enumerate(zip(prompts, known, strict=True)):
        merged = prompt.ids != rows[i].ids[: rows[i].target_start]  # with the target's first token
        # Where decoding tidies up, more tokens may change the text of those in front of them.
        may = not complete and (tidies or may_begin_with(texts[i], sentences[i].target))
        if merged or may:
            undecided.append(i)
    lengths = [rows[i].n_target + 1 for i in undecided]
    made = _generate(model, [prompts[i] for i in undecided], lengths)
    for i, text in zip(undecided, made, strict=True):
        said[i] = begins_with(text, sentences[i].target)
    return said


def _greedy(row: Row, followed: Followed) -> tuple[list[int], bool]:
    """The greedy tokens that scoring has seen, and whether they are one more than the target's."""
    target = row.ids[row.target_start :]
    for at, token in enumerate(target):
        if followed.greedy[at] != token:
            return [*target[:at], followed.greedy[at]], False
    return [*target, followed.greedy[len(target)]], True


def _generate(model: EditableModel, prompts: Sequence[Row], lengths: Sequence[int]) -> list[str]:
    """Greedy continuations, each of its own number of tokens."""
    new: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: (lengths[i], len(prompts[i].ids)))
    for begin in range(0, len(order), ROWS_GENERATED):
        chosen = order[begin : begin + ROWS_GENERATED]
        ids = [prompts[i].ids for i in chosen]
        made = model.generate_ids(ids, max(lengths[i] for i in chosen)).tolist()
        for i, tokens in zip(chosen, made, strict=True):
            new[i] = tokens[: lengths[i]]
    return _decode(model, new)


def _decode(model: EditableModel, ids: Sequence[Sequence[int]]) -> list[str]:
    return model.tokenizer.batch_decode(ids, skip_special_tokens=True) if ids else []
