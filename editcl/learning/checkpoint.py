"""Checkpoints of a training: what is needed to go on as if nothing had happened, bit for bit.

Two kinds of file, each written whole or not at all:

- `before`: adapters of the bank and the strategy's memory before the task, so that a new process
  can begin the task again from where the killed one did;
- `at`: parameters that train, the optimiser's state, the strategy's, random states and what was
  measured, after some step. The newest one replaces the one before.

Safetensors with JSON in its header, and a checksum. Knows nothing of the loop.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from editcl.errors import EditclError
from editcl.learning.kinds import AdapterSettings
from editcl.learning.session import Session
from editcl.learning.strategies.base import Strategy

DIGEST = hashlib.sha256().digest_size
KEY = "editcl"


@dataclass(frozen=True)
class Checkpoint:
    """Where and how often a training is kept.

    Attributes:
        folder: of this one training; removed when it is done.
        every: steps between two checkpoints.
    """

    folder: Path
    every: int = 50

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder))
        if self.every < 1:
            raise EditclError(f"checkpoints every {self.every} steps can't be: give 1 or more.")

    def read(self, part: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The tensors and the JSON of "before" or "at"; None if there is no such file.

        Raises:
            EditclError: the file is damaged.
        """
        from safetensors.torch import load

        path = self._path(part)
        if not path.exists():
            return None
        data = path.read_bytes()
        sha, body = data[:DIGEST], data[DIGEST:]
        if hashlib.sha256(body).digest() != sha:
            raise EditclError(
                f"{path} is damaged (its checksum differs): the training can't go on from it. "
                f"Delete the folder {self.folder} to start anew."
            )
        size = int.from_bytes(body[:8], "little")
        header = json.loads(body[8 : 8 + size])
        return load(body), json.loads(header["__metadata__"][KEY])

    def write(self, part: str, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Writes "before" or "at", durably, in the place of an older one.

        Raises:
            EditclError: the folder can't be written to.
        """
        from safetensors.torch import save

        plain = {name: tensor.contiguous() for name, tensor in copied(tensors).items()}
        body = save(plain, metadata={KEY: json.dumps(values)})
        partial = self._path(part).with_suffix(f".{os.getpid()}.tmp")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(partial, "wb") as file:
                file.write(hashlib.sha256(body).digest() + body)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self._path(part))
        except OSError as error:
            raise EditclError(
                f"a checkpoint can't be written to {str(self.folder)!r} ({error.strerror}); name "
                "another folder, or make room there."
            ) from error

    def clear(self) -> None:
        """Removes what was written; the folder too, if nothing else is in it."""
        for path in [self._path("at"), self._path("before"), *self.folder.glob("*.tmp")]:
            path.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _path(self, part: str) -> Path:
        return self.folder / f"{part}.checkpoint"


@dataclass(frozen=True)
class Before:
    """The bank and the strategy as they are before a task, on the CPU.

    Attributes:
        adapters: settings and tensors by name, in the order of the bank.
        tensors, state: the strategy's.
        generator: state of the session's generator.
    """

    adapters: Mapping[str, tuple[AdapterSettings, Mapping[str, Tensor]]]
    tensors: Mapping[str, Tensor]
    state: str
    generator: Tensor

    @classmethod
    def of(cls, session: Session, strategy: Strategy) -> Before:
        """What is now."""
        bank = session.adapters
        return cls(
            {name: (bank.settings(name), bank.state(name)) for name in bank.names},
            copied(strategy.tensors()),
            json.dumps(strategy.state()),
            session.generator.get_state(),
        )

    def restore(self, session: Session, strategy: Strategy) -> None:
        """Makes bank and strategy what they were."""
        bank = session.adapters
        for name in bank.names:
            if name not in self.adapters or bank.settings(name) != self.adapters[name][0]:
                bank.remove(name)
        for name, (settings, tensors) in self.adapters.items():
            bank.load(name, settings, dict(tensors))
        strategy.load(copied(self.tensors), json.loads(self.state))
        session.generator.set_state(self.generator)

    def write(self, checkpoint: Checkpoint, question: Mapping[str, Any]) -> None:
        """Keeps it on disk with what the training is of."""
        tensors = {f"strategy/{name}": tensor for name, tensor in self.tensors.items()}
        tensors["generator"] = self.generator
        for name, (_, own) in self.adapters.items():
            tensors |= {f"adapter/{name}/{key}": tensor for key, tensor in own.items()}
        settings = {name: found.to_json() for name, (found, _) in self.adapters.items()}
        values = {"question": question, "adapters": settings, "state": self.state}
        checkpoint.write("before", tensors, values)

    @classmethod
    def read(cls, checkpoint: Checkpoint, question: Mapping[str, Any]) -> Before | None:
        """What was kept of the same training; None if nothing was.

        Raises:
            EditclError: it is that of another training.
        """
        found = checkpoint.read("before")
        if found is None:
            return None
        tensors, values = found
        asked = json.loads(json.dumps(question))
        other = [key for key in asked if values["question"].get(key) != asked[key]]
        if other:
            raise EditclError(
                f"{checkpoint.folder} holds the checkpoint of another training: "
                f"{', '.join(other)} differ{'s' * (len(other) == 1)}. Give this one its own "
                "folder, or delete that one."
            )
        adapters = {
            name: (AdapterSettings.from_json(settings), within(tensors, f"adapter/{name}/"))
            for name, settings in values["adapters"].items()
        }
        own = within(tensors, "strategy/")
        return cls(adapters, own, values["state"], tensors["generator"])


@dataclass
class Progress:
    """Where a training is: what a checkpoint keeps beside tensors.

    Attributes:
        step: the next one.
        losses, penalties, held_out, examples, seconds: see TrainResult.
        best: step and loss of the best look at the held-out rows.
        worse: looks since then.
        stopped: whether patience ended it.
    """

    step: int = 0
    losses: list[float] = field(default_factory=list)
    penalties: dict[str, list[float]] = field(default_factory=dict)
    held_out: list[tuple[int, float]] = field(default_factory=list)
    examples: int = 0
    seconds: float = 0.0
    best: tuple[int, float] | None = None
    worse: int = 0
    stopped: bool = False

    def note(self, loss: float, terms: Mapping[str, float], examples: int) -> None:
        """Takes down a step."""
        for name in terms:
            self.penalties.setdefault(name, [0.0] * len(self.losses))
        for name, values in self.penalties.items():
            values.append(terms.get(name, 0.0))
        self.losses.append(loss)
        self.examples += examples
        self.step += 1


def keep(
    checkpoint: Checkpoint,
    session: Session,
    strategy: Strategy,
    optimiser: torch.optim.Optimizer,
    at: Progress,
    best: Mapping[str, Tensor],
) -> None:
    """Writes where a training is."""
    tensors: dict[str, Tensor] = {f"parameter/{n}": p for n, p in session.training.items()}
    for name, parameter in session.training.items():
        for key, tensor in optimiser.state[parameter].items():
            tensors[f"optimiser/{key}/{name}"] = tensor
    tensors |= {f"best/{name}": tensor for name, tensor in best.items()}
    tensors |= {f"strategy/{name}": tensor for name, tensor in strategy.tensors().items()}
    tensors |= {f"random/{name}": tensor for name, tensor in _random_states(session).items()}
    checkpoint.write("at", tensors, {"progress": asdict(at), "state": strategy.state()})


def resume(
    checkpoint: Checkpoint,
    session: Session,
    strategy: Strategy,
    optimiser: torch.optim.Optimizer,
) -> tuple[Progress, dict[str, Tensor]]:
    """Puts all back to where the training was; its progress and best parameters.

    Where nothing was kept, that is the beginning.
    """
    found = checkpoint.read("at")
    if found is None:
        return Progress(), {}
    tensors, values = found
    parameters = within(tensors, "parameter/")
    assert set(parameters) == set(session.training), "the strategy began otherwise than before"
    with torch.no_grad():
        for name, parameter in session.training.items():
            parameter.copy_(parameters[name])
            state = optimiser.state[parameter]
            for key in ("step", "exp_avg", "exp_avg_sq"):
                if f"optimiser/{key}/{name}" in tensors:
                    kept = tensors[f"optimiser/{key}/{name}"]
                    state[key] = kept.to(parameter.device)
    strategy.load(within(tensors, "strategy/"), values["state"])
    _set_random_states(session, within(tensors, "random/"))
    at = Progress(**values["progress"])
    at.held_out = [(step, loss) for step, loss in at.held_out]
    at.best = None if at.best is None else (at.best[0], at.best[1])
    best = {
        name: tensor.to(session.training[name].device)
        for name, tensor in within(tensors, "best/").items()
    }
    return at, best


def within(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin so, without that beginning."""
    found = tensors.items()
    return {name.removeprefix(prefix): t for name, t in found if name.startswith(prefix)}


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Clones on the CPU."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def _random_states(session: Session) -> dict[str, Tensor]:
    """The states of everything that random numbers are drawn from in training."""
    states = {"cpu": torch.get_rng_state(), "generator": session.generator.get_state()}
    if session.model.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(session.model.device)
    return states


def _set_random_states(session: Session, states: Mapping[str, Tensor]) -> None:
    """The other way round."""
    torch.set_rng_state(states["cpu"])
    session.generator.set_state(states["generator"])
    if session.model.device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], session.model.device)
