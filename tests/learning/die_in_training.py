"""Trains until a step, and is killed there: `python die_in_training.py FOLDER STEP`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from lessons import QUICK, labelled, session

from editcl.learning.callbacks import Callback
from editcl.learning.checkpoint import Checkpoint
from editcl.learning.strategies import Sequential
from editcl.learning.train import train


class Kill(Callback):
    """Ends the process as a power cut would."""

    def on_step(self, step, values) -> None:
        """At the step that the command line names."""
        if step == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(
        session(dropout=0.2),
        labelled("one"),
        Sequential(),
        QUICK,
        callbacks=[Kill()],
        checkpoint=Checkpoint(Path(sys.argv[1]), every=1),
        show=False,
    )
