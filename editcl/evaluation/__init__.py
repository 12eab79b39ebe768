"""Evaluation of edits: cases, and what share of each kind of prompt holds."""

from editcl.evaluation.cases import Case, Probe, case_for, catalogue_cases
from editcl.evaluation.edits import evaluate
from editcl.evaluation.results import CaseResult, Evaluation, Interval

__all__ = [
    "Case",
    "CaseResult",
    "Evaluation",
    "Interval",
    "Probe",
    "case_for",
    "catalogue_cases",
    "evaluate",
]
