"""k*: what the down-projection sees at the subject's last token.

k*_l = mean over contexts x_j of the input of W_l at the subject's last token of x_j + prompt
(ROME, arXiv:2202.05262, eq. 3). Computed once per edit and passed on. Knows nothing of values.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from editcl.editing.contexts import spoken
from editcl.facts import Fact
from editcl.model import EditableModel, micro_batches


def subject_keys(
    model: EditableModel,
    facts: Sequence[Fact],
    layers: Sequence[int],
    contexts: Sequence[str],
    rephrased: Sequence[Sequence[str]] | None = None,
    *,
    tokens_per_batch: int = 4096,
) -> dict[int, Float[Tensor, "n_facts n_contexts d_mlp"]]:
    """Keys per layer, fact and context, float32; one pass serves all layers.

    `rephrased` gives each fact further prompts, which take turns with its own (`spoken`).
    """
    others = rephrased if rephrased is not None else [()] * len(facts)
    sentences = [
        sentence
        for fact, prompts in zip(facts, others, strict=True)
        for sentence in spoken(fact, contexts, prompts)
    ]
    rows = model.encode(sentences)
    names = {f"blocks.{layer}.mlp.hook_post": layer for layer in layers}
    keys = {
        layer: torch.empty(len(rows), model.down_projection(layer).weight.shape[0])
        for layer in layers
    }
    # Nothing behind the subject's last token can change its key.
    cut = [row.ids[: row.subject_last + 1] for row in rows]
    for chosen in micro_batches([len(ids) for ids in cut], tokens_per_batch):
        found = model.activations(model.pad([cut[i] for i in chosen]), list(names))
        last = torch.tensor([rows[i].subject_last for i in chosen], device=model.device)
        for name, layer in names.items():
            at_subject = found[name][torch.arange(len(chosen), device=model.device), last]
            keys[layer][chosen] = at_subject.float().cpu()
    shape = (len(facts), len(contexts), -1)
    return {layer: key.reshape(shape).to(model.device) for layer, key in keys.items()}
