"""editcl: see, edit, verify and take back what a language model knows.

The public names, and nothing else. They are imported when they are first used, so that `import
editcl` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from editcl.editing.calibrate import calibrate
    from editcl.editing.edit import edit
    from editcl.editing.many import edit_csv
    from editcl.errors import EditclError
    from editcl.evaluation import evaluate
    from editcl.facts import Fact
    from editcl.learner import Learner
    from editcl.loading import load, wrap
    from editcl.log import EditLog
    from editcl.model import EditableModel
    from editcl.reporting import report
    from editcl.routing.route import route
    from editcl.tracing import trace, trace_many

__version__ = "0.1.0"

__all__ = [
    "EditLog",
    "EditableModel",
    "EditclError",
    "Fact",
    "Learner",
    "calibrate",
    "edit",
    "edit_csv",
    "evaluate",
    "load",
    "report",
    "route",
    "trace",
    "trace_many",
    "wrap",
]

_MODULES = {
    "EditLog": "editcl.log",
    "EditableModel": "editcl.model",
    "EditclError": "editcl.errors",
    "Fact": "editcl.facts",
    "Learner": "editcl.learner",
    "calibrate": "editcl.editing.calibrate",
    "edit": "editcl.editing.edit",
    "edit_csv": "editcl.editing.many",
    "evaluate": "editcl.evaluation",
    "load": "editcl.loading",
    "report": "editcl.reporting",
    "route": "editcl.routing.route",
    "trace": "editcl.tracing",
    "trace_many": "editcl.tracing",
    "wrap": "editcl.loading",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'editcl' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
