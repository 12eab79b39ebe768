"""osf: the leading singular directions of every weight stay as they are; the rest may change.

    W = U S V^T, the first k directions kept:    U_k^T (B A) = 0   and   (B A) V_k = 0

W is the weight as it is when the task begins, old tasks' changes included. Nayak et al. 2025,
"Sculpting subspaces: constrained full fine-tuning in LLMs for continual learning",
arXiv:2504.07097; k is a fixed share of the directions as in peft's OSF, not the paper's by layer.

The constraint is peft's, on a LoRA instead of on all of the other directions. peft's own OSF trains
nothing on Conv1D (GPT-2), silently; has one adapter at a time; and its factors are a difference
from the weights of the day they were made, which logged edits move. Here it holds on every
architecture that LoRA works on. It holds for parameters, not for gradients alone: AdamW's steps
point elsewhere than its gradients. Keeps nothing but the LoRAs; during a task, U_k and V_k.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from editcl.errors import EditclError
from editcl.learning.session import Session
from editcl.learning.strategies.summed import Pair, Summed, earlier, pairs

if TYPE_CHECKING:
    from editcl.learning.tasks import Task


@final
class OSF(Summed):
    """Changes outside of the leading directions of the weights.

    Args:
        kept: share of the singular directions of each weight that stay as they are.
    """

    name: ClassVar[str] = "osf"

    def __init__(self, kept: float = 0.5) -> None:
        if not 0 < kept < 1:
            raise EditclError(f"a kept share of {kept!r} is not in (0, 1); 0.5 is usual.")
        self.kept = kept
        self._held: list[tuple[Pair, Tensor, Tensor]] = []  # with U_k [d_out, k] and V_k [d_in, k]

    def begin(self, session: Session, task: Task) -> None:
        """Decomposes the weights."""
        self._held = []
        for path, pair in pairs(session.adapters, task.name).items():
            W = weight_now(session, path, earlier(session))
            k = int(min(W.shape) * self.kept)
            U, _, Vh = torch.linalg.svd(W, full_matrices=False)
            self._held.append((pair, U[:, :k].contiguous(), Vh[:k].T.contiguous()))
        self._project()

    def after_backward(self, session: Session) -> None:
        """Takes out of the gradients what the parameters may not follow."""
        for (A, B), U, V in self._held:
            if A.grad is not None:
                A.grad -= (A.grad.float() @ V @ V.T).to(A.grad)
            if B.grad is not None:
                B.grad -= (U @ (U.T @ B.grad.float())).to(B.grad)

    def after_step(self, session: Session, step: int, total: int) -> None:
        """The same for the parameters."""
        self._project()

    def end(self, session: Session, task: Task) -> None:
        """Lets go of the directions."""
        self._held = []

    def _project(self) -> None:
        with torch.no_grad():
            for (A, B), U, V in self._held:
                A.sub_((A.float() @ V @ V.T).to(A))
                B.sub_((U @ (U.T @ B.float())).to(B))


def weight_now(session: Session, path: str, names: tuple[str, ...]) -> Float[Tensor, "d_out d_in"]:
    """A module's weight with the changes of adapters, in float32."""
    module = session.model.hf.get_submodule(path)
    stored = module.get_parameter("weight").detach().float()
    W = stored.clone() if isinstance(module, nn.Linear) else stored.T.contiguous()  # or Conv1D
    for name in names:
        A, B = pairs(session.adapters, name)[path]
        W += session.adapters.settings(name).scale * (B.detach().float() @ A.detach().float())
    return W
