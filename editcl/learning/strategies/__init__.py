"""The strategies by name, each in a small file; `combine` makes one of several."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from editcl.learning.strategies.base import Strategy, combine, title
from editcl.learning.strategies.color import CoLoR
from editcl.learning.strategies.contrastive import Contrastive
from editcl.learning.strategies.control import Control
from editcl.learning.strategies.dann import DANN
from editcl.learning.strategies.dapt import DAPT
from editcl.learning.strategies.ewc import EWC
from editcl.learning.strategies.inflora import InfLoRA
from editcl.learning.strategies.joint import Joint
from editcl.learning.strategies.l1sp import L1SP
from editcl.learning.strategies.l2sp import L2SP, ModularL2SP
from editcl.learning.strategies.lwf import LwF
from editcl.learning.strategies.mixed import Mixed
from editcl.learning.strategies.olora import OLoRA
from editcl.learning.strategies.osf import OSF
from editcl.learning.strategies.per_task import PerTask
from editcl.learning.strategies.replay import InstructionReplay, Replay, own_answers
from editcl.learning.strategies.reptile import Reptile
from editcl.learning.strategies.sequential import Sequential
from editcl.learning.strategies.unfreezing import BottomFreezing, ProgressiveUnfreezing

#: What can be made without arguments.
STRATEGIES: Mapping[str, Callable[[], Strategy]] = MappingProxyType(
    {
        "sequential": Sequential,
        "per_task": PerTask,
        "joint": Joint,
        "replay": Replay,
        "replay_quota": partial(Replay, keeps="quota"),
        "l2sp": L2SP,
        "l1sp": L1SP,
        "modular_l2sp": ModularL2SP,
        "ewc": EWC,
        "ewc_online": partial(EWC, keeps="online"),
        "lwf": LwF,
        "progressive_unfreezing": ProgressiveUnfreezing,
        "bottom_freezing": BottomFreezing,
        "reptile": Reptile,
        "dapt": DAPT,
        "mixed": Mixed,
        "olora": OLoRA,
        "inflora": InfLoRA,
        "osf": OSF,
        "color": CoLoR,
        "contrastive": Contrastive,
        "control": Control,
        "dann": DANN,
    }
)

__all__ = [
    "DANN",
    "DAPT",
    "EWC",
    "L1SP",
    "L2SP",
    "OSF",
    "STRATEGIES",
    "BottomFreezing",
    "CoLoR",
    "Contrastive",
    "Control",
    "InfLoRA",
    "InstructionReplay",
    "Joint",
    "LwF",
    "Mixed",
    "ModularL2SP",
    "OLoRA",
    "PerTask",
    "ProgressiveUnfreezing",
    "Replay",
    "Reptile",
    "Sequential",
    "Strategy",
    "combine",
    "own_answers",
    "title",
]
