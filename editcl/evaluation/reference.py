"""The plain evaluation: one forward pass per prompt and target, one generation per prompt.

The same measures as `evaluate` in the order in which they would be written down first, with
nothing shared and nothing batched: what `evaluate` is checked and timed against. (The published
code of ROME runs one record's prompts as one padded batch, and every prompt twice: between the
two.) Knows nothing of caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from editcl.encoding import Sentence
from editcl.evaluation.answers import Answer, begins_with
from editcl.evaluation.cases import Case
from editcl.evaluation.edits import ContextFor, judge, questions
from editcl.evaluation.results import Evaluation
from editcl.model import EditableModel


def evaluate_one_by_one(
    model: EditableModel, cases: Sequence[Case], *, context_for: ContextFor | None = None
) -> Evaluation:
    """Measures like `evaluate`, one prompt and target at a time.

    Raises:
        FactError: a text can't be encoded, or is longer than the model takes.
    """
    results = []
    for case in cases:
        context = "" if context_for is None else context_for(case)
        scored, spoken = questions(case, context)
        found = {}
        for sentence in scored:
            scores = model.score([sentence])
            found[sentence] = Answer(float(scores.log_prob[0]), float(scores.token_accuracy[0]))
        for sentence in spoken:
            found[sentence] = replace(found[sentence], said=says(model, sentence))
        results.append(judge(case, context, found))
    return Evaluation(tuple(results))


def says(model: EditableModel, sentence: Sentence) -> bool:
    """Whether the greedy continuation of the prompt, by generation, begins with the target."""
    (row,) = model.encode([sentence])
    (prompt,) = model.encode([replace(sentence, target="")])
    new = model.generate_ids([prompt.ids], row.n_target + 1)
    (text,) = model.tokenizer.batch_decode(new, skip_special_tokens=True)
    return begins_with(text, sentence.target)
