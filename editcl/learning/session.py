"""Session: what a strategy works with while tasks come one after another.

It holds the model, the bank of adapters, which of them are active, which parameters train, and runs
batches through them. Targets alone are unembedded: the hidden states of their positions are picked
in front of the unembedding, whatever the architecture does behind it. Knows nothing of strategies,
optimisers and the log.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from editcl.errors import EditclError
from editcl.learning.batches import Batch, Encoded, collate
from editcl.learning.kinds import AdapterSettings
from editcl.learning.lora import BASE, Adapters
from editcl.learning.tasks import Task
from editcl.model import EditableModel, micro_batches

TOKENS_PER_BATCH = 4096  # of forward passes without gradients


@dataclass(frozen=True)
class Route:
    """Which adapters are used.

    Attributes:
        names: their sum, for every row; () is the base model.
        rows: instead, one adapter for each row ("__base__" for none).
    """

    names: tuple[str, ...] = ()
    rows: tuple[str, ...] | None = None

    def of(self, chosen: Sequence[int]) -> Route:
        """The route of some of the rows."""
        return self if self.rows is None else Route(rows=tuple(self.rows[i] for i in chosen))


@dataclass(frozen=True)
class StepOutput:
    """What a batch gives.

    Attributes:
        batch: its rows and targets; `batch.rows[i].task` tells replayed rows from new ones.
        logits: for every target, in the order of `batch.targets`.
        hidden: the states in front of the unembedding, padded positions included.
        token_losses: cross-entropy of each target (nats).
    """

    batch: Batch
    logits: Float[Tensor, "n_kept d_vocab"]
    hidden: Float[Tensor, "n_rows n_tokens d_model"]
    token_losses: Float[Tensor, " n_kept"]

    @property
    def loss(self) -> Float[Tensor, ""]:
        """The mean over all targets of the batch."""
        return self.token_losses.mean()

    def row_losses(self) -> Float[Tensor, " n_rows"]:
        """The mean over each row's targets."""
        return self.batch.row_means(self.token_losses)

    def pooled(self, *, prompt_only: bool = False) -> Float[Tensor, "n_rows d_model"]:
        """The mean of each row's hidden states, in float32.

        Args:
            prompt_only: leaves out the tokens that are learnt: what is known at prediction.
        """
        ends = [row.start if prompt_only else len(row.ids) for row in self.batch.rows]
        count = torch.tensor(ends, device=self.hidden.device)
        inside = torch.arange(self.hidden.shape[1], device=self.hidden.device) < count[:, None]
        return (self.hidden.float() * inside[..., None]).sum(1) / count[:, None]


@dataclass
class Session:
    """The state of continual learning on one model.

    Attributes:
        model: the model; its weights are never trained.
        adapters: the bank.
        settings: of adapters that are made.
        seed: of all that is random.
        seen: names of the finished tasks, in order.
        task: the one that is being learnt.
        data: its rows to learn from, as the strategy composed them.
        active: the adapters whose sum is trained with; set by the strategy.
        training: the parameters that the optimiser gets, by unique name; set by the strategy. May
            hold parameters of no adapter (a classifier's).
        lr: the learning rate of the step that is being made.
        n_new: how many rows of `data` are in it.
        generator: what strategies draw from; a checkpoint keeps its state.
        precision: autocast of forward passes; None: the model's own numbers.
    """

    model: EditableModel
    adapters: Adapters
    settings: AdapterSettings = field(default_factory=AdapterSettings)
    seed: int = 0
    seen: list[str] = field(default_factory=list)
    task: Task | None = None
    data: Sequence[Encoded] = ()
    active: tuple[str, ...] = ()
    training: dict[str, nn.Parameter] = field(default_factory=dict)
    lr: float = 0.0
    n_new: int = 0
    generator: torch.Generator = field(default_factory=torch.Generator)
    precision: torch.dtype | None = None

    def __post_init__(self) -> None:
        self.generator.manual_seed(self.seed)

    # -- what strategies choose -------------------------------------------------------------------

    def new_adapter(self, name: str, settings: AdapterSettings | None = None) -> None:
        """Adds an adapter under the session's settings and seed; one of that name is replaced."""
        if name in self.adapters.names:
            self.adapters.remove(name)
        self.adapters.add(name, settings or self.settings, seed=self.seed + len(self.seen))

    def train_adapter(self, name: str) -> None:
        """Makes all parameters of an adapter train, under the names "<adapter>/<parameter>"."""
        for key, parameter in self.adapters.trainable(name).items():
            self.training[f"{name}/{key}"] = parameter

    def of_adapter(self, name: str) -> dict[str, nn.Parameter]:
        """Those of the training parameters that are an adapter's, by the adapter's own names."""
        prefix = f"{name}/"
        found = self.training.items()
        return {key.removeprefix(prefix): p for key, p in found if key.startswith(prefix)}

    def mark_training(self) -> None:
        """Makes exactly the parameters in `training` ask for gradients, of all in the bank."""
        for name in self.adapters.names:
            for parameter in self.adapters.trainable(name).values():
                parameter.requires_grad_(False)
        for parameter in self.training.values():
            parameter.requires_grad_(True)

    # -- forward passes ---------------------------------------------------------------------------

    def batch(self, rows: Sequence[Encoded]) -> Batch:
        """Rows as tensors on the model's device."""
        return collate(rows, self.model.pad_id, self.model.device)

    def forward(
        self,
        batch: Batch | Sequence[Encoded],
        *,
        route: Route | None = None,
        dropout: bool = False,
    ) -> StepOutput:
        """Runs a batch, with gradients as the caller's context has it.

        Args:
            batch: or rows.
            route: other adapters than those that are active now; afterwards all is as it was.
            dropout: the adapters' own, as in training; the base model's is never used.
        """
        found = batch if isinstance(batch, Batch) else self.batch(batch)
        with ExitStack() as stack:
            if route is not None:
                stack.enter_context(self.adapters.using(route.names))
            active = self.adapters.active
            if dropout and any(self.adapters.settings(name).dropout for name in active):
                stack.enter_context(self.adapters.dropping())
            if self.precision is not None:
                stack.enter_context(torch.autocast(self.model.device.type, self.precision))
            rows = None if route is None else route.rows
            logits, hidden = kept_logits(self.adapters, found, rows)
        losses = cross_entropy(logits.float(), found.targets, reduction="none")
        return StepOutput(found, logits, hidden, losses)

    def features(
        self, rows: Sequence[Encoded], *, route: Route | None = None, prompt_only: bool = True
    ) -> Float[Tensor, "n_rows d_model"]:
        """Pooled hidden states without gradients, of the base model unless a route is given."""
        found = torch.zeros(len(rows), self.model.d_model)
        with torch.no_grad():
            for chosen in micro_batches([len(row.ids) for row in rows], TOKENS_PER_BATCH):
                part = (route or Route()).of(chosen)
                output = self.forward([rows[i] for i in chosen], route=part)
                found[chosen] = output.pooled(prompt_only=prompt_only).cpu()
        return found


def kept_logits(
    adapters: Adapters, batch: Batch, rows: Sequence[str] | None = None
) -> tuple[Float[Tensor, "n_kept d_vocab"], Float[Tensor, "n_rows n_tokens d_model"]]:
    """The logits of a batch's targets, and the hidden states that all logits would be made from.

    Virtual tokens, which some kinds of adapter put in front, are not among the states.

    Args:
        adapters: the bank.
        batch: what is run.
        rows: one adapter for each row, "__base__" for none; None: those that are active.
    """
    if rows is None:
        return _picked(adapters, batch, None)
    if len(rows) != len(batch.rows):
        raise EditclError(f"{len(rows)} adapters for {len(batch.rows)} rows: name one for each.")
    kinds = dict.fromkeys(rows)
    if len(kinds) > 1 and adapters.one_pass(rows):
        with adapters.using(()):
            return _picked(adapters, batch, rows)
    return _by_adapter(adapters, batch, rows)


def _by_adapter(
    adapters: Adapters, batch: Batch, rows: Sequence[str]
) -> tuple[Float[Tensor, "n_kept d_vocab"], Float[Tensor, "n_rows n_tokens d_model"]]:
    """One pass for each adapter, over its rows."""
    places, states, kept, order = [], [], [], []
    for name in dict.fromkeys(rows):
        own = torch.tensor([row == name for row in rows], device=batch.ids.device)
        targets = own[batch.row]
        part = replace(
            batch,
            rows=tuple(row for row, chosen in zip(batch.rows, rows, strict=True) if chosen == name),
            ids=batch.ids[own],
            row=(own.cumsum(0) - 1)[batch.row[targets]],
            position=batch.position[targets],
            targets=batch.targets[targets],
        )
        with adapters.using(() if name == BASE else (name,)):
            logits, hidden = _picked(adapters, part, None)
        kept.append(logits)
        states.append(hidden)
        order.append(targets.nonzero()[:, 0])
        places.append(own.nonzero()[:, 0])
    back = torch.cat(order).argsort()
    return torch.cat(kept)[back], torch.cat(states)[torch.cat(places).argsort()]


def _picked(
    adapters: Adapters, batch: Batch, rows: Sequence[str] | None
) -> tuple[Float[Tensor, "n_kept d_vocab"], Float[Tensor, "n_rows n_tokens d_model"]]:
    """One pass; targets' positions are picked in front of the unembedding."""
    found: list[Tensor] = []

    def pick(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = args[0][:, args[0].shape[1] - batch.ids.shape[1] :]
        found.append(hidden)
        return (hidden[batch.row, batch.position][None], *args[1:])

    handle = adapters.view.map.unembed.register_forward_pre_hook(pick)
    try:
        logits = adapters.logits({"input_ids": batch.ids}, rows=rows)
    finally:
        handle.remove()
    assert len(found) == 1, f"the unembedding ran {len(found)} times in one forward pass"
    return logits[0], found[0]
