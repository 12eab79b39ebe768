"""Where the shipped data lies: facts, phrasings, plain text and the embedded model.

An installed package carries it as `editcl/data`, a checkout beside the package as `data`. How the
embedded model is built is told in `embedded_build.py`; this module knows only folders.
"""

from __future__ import annotations

from pathlib import Path

from editcl.errors import EditclError

_PACKAGE = Path(__file__).resolve().parent
_MARK = "facts.csv"  # tells the data folder from another one of that name


def data_folder() -> Path:
    """The folder of the shipped data.

    Raises:
        EditclError: the installation lacks it.
    """
    candidates = (_PACKAGE / "data", _PACKAGE.parent / "data")
    for folder in candidates:
        if (folder / _MARK).is_file():
            return folder
    raise EditclError(
        f"the shipped data is missing: neither {candidates[0]} nor {candidates[1]} holds {_MARK}. "
        "Install editcl again."
    )


def model_folder() -> Path:
    """The Hugging Face folder of the embedded model.

    Raises:
        EditclError: the installation or checkout lacks it.
    """
    folder = data_folder() / "model"
    if not (folder / "config.json").is_file():
        raise EditclError(
            f"the embedded model is missing ({folder}). Install editcl again, build it with "
            "`python -m editcl.embedded_build --out data/model` in a checkout, or pass the name "
            "or folder of another model."
        )
    return folder
