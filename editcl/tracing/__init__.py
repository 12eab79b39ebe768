"""Seeing where a fact is: causal traces, their averages and estimates, and the layers to edit."""

from editcl.tracing.attribution import attribute, rank_correlation
from editcl.tracing.average import AverageTrace, trace_many
from editcl.tracing.causal import Trace, trace
from editcl.tracing.locate import LayerEvidence, Location, locate

__all__ = [
    "AverageTrace",
    "LayerEvidence",
    "Location",
    "Trace",
    "attribute",
    "locate",
    "rank_correlation",
    "trace",
    "trace_many",
]
