"""inflora: each task's LoRA reads only directions that the inputs of earlier tasks don't have.

    P_t = I - M_t^T M_t                 off the old tasks' space, for each module
    A_t = top singular directions of H_t P_t, frozen;     B_t alone trains
    M_{t+1} = M_t and the leading directions of H'_t P_t, up to a share of the energy of H'_t

H holds the module's inputs, one row a token, of the model before the task; H' of the model after
it. As A_t M_t^T = 0, the change B_t A_t x is 0 for x within the old space. Liang and Li 2024,
"InfLoRA: interference-free low-rank adaptation for continual learning", arXiv:2404.00228; the
space is kept as in their DualGPM: as its own basis or as that of its complement, the smaller one.

Departures: A's rows have the length of a fresh LoRA's, so that learning rates carry over; the share
of energy is one for all tasks, since nobody knows how many there will be. The covariance of a
module takes time of the third power of its inputs' width: the paper adapts the attention alone
(targets="attention"). Memory: at most width / 2 directions for each module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from editcl.errors import EditclError
from editcl.learning.kinds import AdapterSettings
from editcl.learning.memory import reservoir
from editcl.learning.session import TOKENS_PER_BATCH, Session
from editcl.learning.strategies.summed import Pair, Summed, is_a, pairs
from editcl.model import micro_batches

if TYPE_CHECKING:
    from editcl.learning.batches import Encoded
    from editcl.learning.tasks import Task

ROOM = 2**28  # numbers of covariances that are collected in one pass over the rows
NOISE = 1e-6  # of the energy: what a direction with less holds is rounding
FROZEN = "A/"  # in front of the module, in the name of a frozen A
FRESH = 3**-0.5  # the length of the rows of a LoRA's A as it is drawn


@dataclass(frozen=True)
class Space:
    """A space of a module's inputs.

    Attributes:
        rows: an orthonormal basis, of the space or of its complement.
        complement: which.
    """

    rows: Float[Tensor, "n_rows d_in"]
    complement: bool = False

    @property
    def dim(self) -> int:
        """How many dimensions the space has."""
        n_rows, d_in = self.rows.shape
        return d_in - n_rows if self.complement else n_rows

    def off(self, X: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_in"]:
        """What of the rows of X stands at right angles to the space."""
        V = self.rows.double()
        inside = X @ V.T @ V
        return inside if self.complement else X - inside

    def grown(self, new: Float[Tensor, "n_new d_in"]) -> Space:
        """The space with more directions, orthonormal ones outside of it."""
        V = self.rows.double()
        if self.complement:
            kept = torch.linalg.svd(new @ V.T, full_matrices=True).Vh[len(new) :] @ V
            return Space(_stored(kept), True)
        both = torch.linalg.qr(torch.cat([V, new]).T).Q.T
        if 2 * len(both) <= both.shape[1]:
            return Space(_stored(both))
        return Space(_stored(torch.linalg.svd(both, full_matrices=True).Vh[len(both) :]), True)


def _stored(rows: Float[Tensor, "n_rows d_in"]) -> Float[Tensor, "n_rows d_in"]:
    """As a file gives them back, in layout too: products of another layout have other last bits."""
    return rows.float().contiguous()


@final
class InfLoRA(Summed):
    """Hard orthogonality to the inputs of old tasks.

    Args:
        energy: share of the energy of a task's inputs that later tasks leave alone.
        samples: rows of a task that its inputs are taken from.
    """

    name: ClassVar[str] = "inflora"

    def __init__(self, energy: float = 0.95, *, samples: int = 512) -> None:
        if not 0 < energy < 1:
            raise EditclError(f"an energy of {energy!r} is not in (0, 1); 0.95 to 0.98 is usual.")
        if samples < 1:
            raise EditclError(f"{samples} rows have no inputs; give at least 1.")
        self.energy, self.samples = energy, samples
        self._spaces: dict[str, Space] = {}
        self._training: dict[str, Pair] = {}

    def place(self, session: Session, task: Task) -> None:
        """Adds the task's LoRA, of which B trains."""
        super().place(session, task)
        for key in [key for key in session.training if is_a(key)]:
            del session.training[key]

    def _settings(self, settings: AdapterSettings) -> AdapterSettings:
        return replace(settings, init="default")  # B is zero: A is written below

    def begin(self, session: Session, task: Task) -> None:
        """Chooses A.

        Raises:
            EditclError: the old tasks' spaces leave no room in any module.
        """
        rank = session.settings.rank
        own = self._training = pairs(session.adapters, task.name)
        full = True
        for path, R in _covariances(session, self._sample(session), own):
            _, vectors = leading(R, self._space(path, R))
            rows = vectors[:rank]
            full = full and not len(rows)
            with torch.no_grad():
                own[path].A.zero_()  # rows without a direction left read nothing
                own[path].A[: len(rows)] = (FRESH * rows).to(own[path].A)
        if full:
            raise EditclError(
                f"the tasks so far fill the inputs of all modules, so {task.name!r} has no room. "
                f"Lower the energy of {self.energy}, or use another strategy."
            )

    def end(self, session: Session, task: Task) -> None:
        """Adds the task's leading directions to the spaces."""
        own = pairs(session.adapters, task.name)
        for path, R in _covariances(session, self._sample(session), own):
            space = self._space(path, R)
            values, vectors = leading(R, space)
            held = R.trace() - _off_both(R, space).trace()
            short = held + torch.cumsum(values, 0) < self.energy * R.trace()
            lacking = bool(held < self.energy * R.trace())
            count = min(len(values), int(short.sum()) + 1) if lacking else 0
            self._spaces[path] = space.grown(vectors[:count]) if count else space
        self._training = {}

    def _sample(self, session: Session) -> list[Encoded]:
        return reservoir([], 0, session.data, self.samples, generator=session.generator)

    def _space(self, path: str, R: Float[Tensor, "d_in d_in"]) -> Space:
        return self._spaces.get(path, Space(torch.zeros(0, len(R))))

    def tensors(self) -> dict[str, Tensor]:
        """Bases by module; during a task its A too, which found anew might have other signs."""
        bases = {path: space.rows for path, space in self._spaces.items()}
        return bases | {f"{FROZEN}{path}": pair.A for path, pair in self._training.items()}

    def state(self) -> dict[str, Any]:
        """Which bases are of complements."""
        return {"complements": sorted(p for p, space in self._spaces.items() if space.complement)}

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Puts the spaces together again, and A back."""
        frozen = {p: t for p, t in tensors.items() if p.startswith(FROZEN)}
        bases = {p: t for p, t in tensors.items() if p not in frozen}
        self._spaces = {p: Space(rows, p in state["complements"]) for p, rows in bases.items()}
        self._training = self._training if frozen else {}
        with torch.no_grad():
            for path, A in frozen.items():
                self._training[path.removeprefix(FROZEN)].A.copy_(A)


def leading(
    R: Float[Tensor, "d_in d_in"], space: Space
) -> tuple[Float[Tensor, " n_found"], Float[Tensor, "n_found d_in"]]:
    """Eigenvalues and directions of a covariance off a space, largest first, without rounding's."""
    values, vectors = torch.linalg.eigh(_off_both(R, space))
    values, rows = values.flip(0), vectors.T.flip(0)
    n_found = int((values > NOISE * R.trace()).sum())
    # Orthogonal to the space again, which an eigenvector of a small value is less than others.
    rows = torch.linalg.qr(space.off(rows[:n_found]).T).Q.T
    return values[:n_found], rows


def _off_both(R: Float[Tensor, "d_in d_in"], space: Space) -> Float[Tensor, "d_in d_in"]:
    return space.off(space.off(R).T)


def _covariances(
    session: Session, rows: Sequence[Encoded], paths: Mapping[str, Any]
) -> Iterator[tuple[str, Float[Tensor, "d_in d_in"]]]:
    """Of the inputs of modules, over all tokens, with the adapters that are active now."""
    widths = {path: found.A.shape[1] for path, found in paths.items()}
    waiting = list(widths)
    while waiting:
        group = [waiting.pop(0)]
        while waiting and sum(widths[p] ** 2 for p in (*group, waiting[0])) <= ROOM:
            group.append(waiting.pop(0))
        found = _collected(session, rows, group)
        for path in group:
            yield path, found.pop(path).cpu().double()


def _collected(
    session: Session, rows: Sequence[Encoded], paths: Sequence[str]
) -> dict[str, Float[Tensor, "d_in d_in"]]:
    """One pass over the rows."""
    sums: dict[str, Tensor] = {}
    inside: list[Tensor] = []  # of the batch that runs: which tokens are no padding

    def watch(path: str) -> Any:
        def add(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].detach().reshape(-1, args[0].shape[-1])[inside[-1]].float()
            sums[path] = sums[path] + x.T @ x if path in sums else x.T @ x

        return add

    hf = session.adapters.view.hf
    handles = [hf.get_submodule(path).register_forward_pre_hook(watch(path)) for path in paths]
    try:
        with torch.no_grad():
            for chosen in micro_batches([len(row.ids) for row in rows], TOKENS_PER_BATCH):
                batch = session.batch([rows[i] for i in chosen])
                inside.append(batch.mask().bool().reshape(-1))
                session.forward(batch)
    finally:
        for handle in handles:
            handle.remove()
    return sums
