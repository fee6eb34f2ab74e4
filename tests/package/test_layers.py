"""The layers of the package: every import runs downwards, as read from the sources."""

from __future__ import annotations

import ast
from pathlib import Path

import modula_rs

ROOT = Path(modula_rs.__file__).parent
#: The layers from the bottom up. A file may import from its own layer and from lower layers; a file in no layer is above them all.
LAYERS = [
    ("arrays", "checks", "constants", "describe", "random", "terminal", "_core"),
    ("kernels",),
    ("backend",),
    ("norm",),
    ("forward",),
    ("network",),
]
#: Programs. Their place in the package follows from their command, but they count as above every layer.
PROGRAMS = {"kernels.check"}


def layer(module: str) -> int:
    """The layer of a module, from its dotted name below the package."""
    if module in PROGRAMS:
        return len(LAYERS)
    first = module.split(".")[0]
    return next((level for level, names in enumerate(LAYERS) if first in names), len(LAYERS))


def imports(path: Path) -> set[str]:
    """The dotted names, below the package, of the modules that a file imports, anywhere in the file."""
    package = path.relative_to(ROOT).parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ["modula_rs", *package[: len(package) - node.level + 1]] if node.level else []
            stem = ".".join([*base, *filter(None, [node.module])])
            # `from modula_rs.forward import run` imports a module, `from modula_rs.checks import size` an object in a module.
            found |= {f"{stem}.{alias.name}" for alias in node.names}
    return {name.removeprefix("modula_rs.") for name in found if name.startswith("modula_rs.")}


def test_every_import_runs_downwards():
    upward, seen = [], 0
    for path in sorted(ROOT.rglob("*.py")):
        own = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for name in imports(path):
            seen += 1
            if layer(name) > layer(own):
                upward.append(f"{own} imports {name}")
    assert not upward
    assert seen > 150  # the sources were found and parsed


def test_backends_know_batches_alone():
    """A backend imports the contract, arrays, constants, its own folder and the kernels, but neither the norm nor modules."""
    for path in sorted((ROOT / "backend").rglob("*.py")):
        for name in imports(path):
            assert name.split(".")[0] in ("backend", "arrays", "constants", "kernels", "_core"), f"{path.name} imports {name}"


def test_imports_of_the_package_inside_functions_have_a_reason():
    """Optional libraries are imported where they are needed. Why one of our own files is, a comment on that line or above it says.

    The commands of the command line import what they need when they run: `cli/__init__.py` says so once for all.
    """
    bare = []
    for path in sorted(ROOT.rglob("*.py")):
        lines = path.read_text().splitlines()
        functions = [node for node in ast.walk(ast.parse("\n".join(lines))) if isinstance(node, ast.FunctionDef)]
        for node in [node for function in functions for node in ast.walk(function) if isinstance(node, ast.Import | ast.ImportFrom)]:
            own = isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("modula_rs"))
            said = any("#" in lines[at - 1] for at in range(node.lineno - 1, node.end_lineno + 1))
            if own and not said and path.parent.name != "cli" and path.name != "demo.py":
                bare.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not bare


def circles(names: dict[str, set[str]]) -> list[set[str]]:
    """Sets of modules that import each other, found by repeatedly removing modules that import no other remaining module."""
    left = dict(names)
    while True:
        free = {name for name, used in left.items() if not used & left.keys() - {name}}
        # A module that no remaining module imports is in no circle either.
        free |= {name for name in left if not any(name in used for other, used in left.items() if other != name)}
        if not free:
            return [set(left)] if left else []
        left = {name: used for name, used in left.items() if name not in free}


def test_one_circle_is_left_and_it_is_honest():
    """`+` of two modules makes an Add, and an Add is a module, so the operators of modules and the bonds import each other."""
    modules = {}
    for path in ROOT.rglob("*.py"):
        own = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        modules[own] = imports(path)
    known = {
        own: {other for name in names for other in (name, name.rpartition(".")[0]) if other in modules} for own, names in modules.items()
    }
    assert circles({own: used - {"__init__", ""} for own, used in known.items()}) == [
        {"network.module", "network.operators", "network.bond", "network.primitive"}
    ]
