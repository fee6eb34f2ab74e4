"""The layers of the package: every import runs downwards, read from the sources themselves."""

from __future__ import annotations

import ast
from pathlib import Path

import modula_rs

ROOT = Path(modula_rs.__file__).parent
#: From the bottom up. A file may import from its own layer and from those before it; a file in no layer stands above them all.
LAYERS = [
    ("arrays", "checks", "constants", "describe", "random", "terminal", "_core"),
    ("kernels",),
    ("backend",),
    ("norm",),
    ("forward",),
    ("network",),
]
#: Programs that stand where their command says, above every layer.
PROGRAMS = {"kernels.check"}


def layer(module: str) -> int:
    """The layer of a module's dotted name below the package."""
    if module in PROGRAMS:
        return len(LAYERS)
    first = module.split(".")[0]
    return next((level for level, names in enumerate(LAYERS) if first in names), len(LAYERS))


def imports(path: Path) -> set[str]:
    """Dotted names, below the package, of the modules that a file imports, wherever in the file it does."""
    package = path.relative_to(ROOT).parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ["modula_rs", *package[: len(package) - node.level + 1]] if node.level else []
            stem = ".".join([*base, *filter(None, [node.module])])
            # `from modula_rs.forward import run` names a module, `from modula_rs.checks import size` a thing in one.
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
    assert seen > 150  # the reader of imports reads


def test_backends_know_batches_alone():
    """A backend imports the contract, arrays, constants, its own folder and the kernels: no norm, no module."""
    for path in sorted((ROOT / "backend").rglob("*.py")):
        for name in imports(path):
            assert name.split(".")[0] in ("backend", "arrays", "constants", "kernels", "_core"), f"{path.name} imports {name}"


def circles(names: dict[str, set[str]]) -> list[set[str]]:
    """Sets of modules that import each other, by repeatedly removing what imports nothing that is left."""
    left = dict(names)
    while True:
        free = {name for name, used in left.items() if not used & left.keys() - {name}}
        # And what nothing imports: it is in no circle either.
        free |= {name for name in left if not any(name in used for other, used in left.items() if other != name)}
        if not free:
            return [set(left)] if left else []
        left = {name: used for name, used in left.items() if name not in free}


def test_one_circle_is_left_and_it_is_honest():
    """`+` of two modules makes an Add, and an Add is a module: the operators of modules and bonds know each other."""
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
