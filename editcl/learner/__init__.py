"""Learner: one call that edits, trains or does both, as the router or the caller says."""

from editcl.learner.learn import Learner
from editcl.learner.outcome import Evaluated, Outcome, Weakened
from editcl.learner.settings import EditSettings
from editcl.learner.steps import Step

__all__ = ["EditSettings", "Evaluated", "Learner", "Outcome", "Step", "Weakened"]
