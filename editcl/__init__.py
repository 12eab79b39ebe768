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
    from editcl.errors import AmbiguousFact, EditclError
    from editcl.evaluation import evaluate
    from editcl.facts import Fact
    from editcl.learning.skills import Skills
    from editcl.loading import load, wrap
    from editcl.log import EditLog
    from editcl.model import EditableModel
    from editcl.tracing import locate, trace, trace_many

__version__ = "0.1.0"

__all__ = [
    "AmbiguousFact",
    "EditLog",
    "EditableModel",
    "EditclError",
    "Fact",
    "Skills",
    "calibrate",
    "edit",
    "edit_csv",
    "evaluate",
    "load",
    "locate",
    "trace",
    "trace_many",
    "wrap",
]

_MODULES = {
    "AmbiguousFact": "editcl.errors",
    "EditLog": "editcl.log",
    "EditableModel": "editcl.model",
    "EditclError": "editcl.errors",
    "Fact": "editcl.facts",
    "Skills": "editcl.learning.skills",
    "calibrate": "editcl.editing.calibrate",
    "edit": "editcl.editing.edit",
    "edit_csv": "editcl.editing.many",
    "evaluate": "editcl.evaluation",
    "load": "editcl.loading",
    "locate": "editcl.tracing",
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
