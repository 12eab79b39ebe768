"""Evaluation of edits: cases, and what share of each kind of prompt holds."""

from editcl.evaluation.cases import Case, Probe, case_for, catalogue_cases, counterfact_cases
from editcl.evaluation.edits import CaseResult, Evaluation, evaluate

__all__ = [
    "Case",
    "CaseResult",
    "Evaluation",
    "Probe",
    "case_for",
    "catalogue_cases",
    "counterfact_cases",
    "evaluate",
]
