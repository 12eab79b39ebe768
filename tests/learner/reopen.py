"""Opens a log in a process of its own; prints digests of what a Learner answers, and its history.

Run by test_learn.py as `reopen.py FOLDER`.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import torch
from pupils import bits, learner, story

torch.set_num_threads(1)

if __name__ == "__main__":
    one = learner(Path(sys.argv[1]))
    with one.log:
        digests = [hashlib.sha256(part).hexdigest() for part in bits(one)]
        print(json.dumps([digests, story(one)]))
