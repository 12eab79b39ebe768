"""Imports point one way, stay lazy, and the public names are few."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import editcl

PACKAGE = Path(editcl.__file__).parent

# A module imports only what stands above it here. A package counts as one; that its own modules
# form no circles is a test of its own. What type checkers alone see does not count.
ORDER = [
    "errors",
    "progress",
    "facts",
    "update",
    "embedded",
    "catalogue",
    "embedded_build",
    "embedded_report",
    "architecture",
    "encoding",
    "hooks",
    "kernels",
    "model",
    "partial",
    "log",
    "loading",
    "plots",
    "tracing",
    "evaluation",
    "readers",
    "editing",
    "learning",
    "routing",
    "learner",
    "reporting",
    "benchmarks",
    "console",
    "demo",
    "cli",
]

PUBLIC = {
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
}


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by its name below `editcl`."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] != "data" and parts != ("__init__",):
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module below editcl) of every import, lazy ones in functions included.

    The `main` of a module that is run by itself (`python -m`) is a command line, which stands below
    everything: it does not count.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if any(ast.unparse(n).startswith("if __name__ == '__main__'") for n in tree.body):
        tree.body = [n for n in tree.body if getattr(n, "name", "") != "main"]
    yield from _imports(tree)


def _imports(node: ast.AST) -> Iterator[tuple[int, str]]:
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        for other in node.orelse:
            yield from _imports(other)
        return
    if isinstance(node, ast.Import):
        for alias in node.names:
            if alias.name.split(".")[0] == "editcl":
                yield node.lineno, alias.name.removeprefix("editcl").lstrip(".")
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno}: import by the full name, not relatively"
        if node.module is not None and node.module.split(".")[0] == "editcl":
            base = node.module.removeprefix("editcl").lstrip(".")
            known = modules()
            for alias in node.names:
                full = f"{base}.{alias.name}".lstrip(".")
                yield node.lineno, full if full in known else base
    for child in ast.iter_child_nodes(node):
        yield from _imports(child)


def top(module: str) -> str:
    return module.split(".")[0]


def test_every_module_has_its_place() -> None:
    assert sorted({top(name) for name in modules()} - set(ORDER)) == []
    assert len(set(ORDER)) == len(ORDER)


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_point_one_way(module: str) -> None:
    rank = {name: i for i, name in enumerate(ORDER)}
    for line, target in imports(modules()[module]):
        assert target, f"{module}:{line} imports the package's front; import the module itself"
        if top(target) != top(module):
            assert rank[top(target)] < rank[top(module)], (
                f"{module}:{line} imports {target}, which stands below it"
            )


def test_modules_of_one_package_form_no_circles() -> None:
    graph = {
        name: {t for _, t in imports(path) if top(t) == top(name) and t != name}
        for name, path in modules().items()
    }
    # A package's __init__ only lists names: it comes after its modules, none of which may ask it.
    done: set[str] = set()
    while len(done) < len(graph):
        ready = {name for name, needs in graph.items() if name not in done and needs <= done}
        assert ready, f"these import each other: {sorted(set(graph) - done)}"
        done |= ready


def test_importing_editcl_loads_nothing_heavy() -> None:
    code = (
        "import sys, editcl; dir(editcl)\n"
        "heavy = {'torch', 'numpy', 'transformers', 'transformer_lens', 'peft', 'matplotlib',"
        " 'rich', 'typer', 'jaxtyping', 'pandas'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "editcl.Fact('a', '{} is', 'b')\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "False"], done.stdout


def test_loading_the_command_line_loads_nothing_heavy() -> None:
    if "cli" not in modules():
        pytest.skip("no command line yet")
    code = (
        "import sys, editcl.cli\n"
        "print(sorted({'torch', 'transformers', 'transformer_lens', 'peft', 'matplotlib'}"
        " & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_public_names_are_these() -> None:
    assert set(editcl.__all__) == PUBLIC
    assert len(editcl.__all__) <= 15
    assert set(editcl._MODULES) == PUBLIC
    assert set(dir(editcl)) >= PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_a_public_name_is_that_of_its_module(name: str) -> None:
    module = editcl._MODULES[name]
    assert getattr(editcl, name) is getattr(importlib.import_module(module), name)


def test_type_checkers_and_run_time_see_the_same_names() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == editcl._MODULES


def test_other_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="module 'editcl' has no attribute 'lode'"):
        editcl.lode  # noqa: B018
