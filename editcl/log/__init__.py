"""The edit log: a model's state is its base weights plus what the log says is active.

`EditLog` is the only writer of weights; `Edit` is both its entry and an edit's receipt. A `Skill`
is an adapter that it keeps, a `Note` changes nothing.
"""

from editcl.log.editlog import EditLog
from editcl.log.entry import Edit, Probability
from editcl.log.report import RollbackReport, VerifyReport
from editcl.log.skill import Note, Skill

__all__ = ["Edit", "EditLog", "Note", "Probability", "RollbackReport", "Skill", "VerifyReport"]
