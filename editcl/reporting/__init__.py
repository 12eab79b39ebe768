"""Reports: the evaluation checklist as one call, as an object, a table and a page."""

from editcl.reporting.result import HarnessLine, Knowledge, Moment, Report, Spent, TaskLine
from editcl.reporting.run import report

__all__ = ["HarnessLine", "Knowledge", "Moment", "Report", "Spent", "TaskLine", "report"]
