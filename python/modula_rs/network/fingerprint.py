"""The fingerprint of a network: equal for two that compute the same in the same norm, whoever built them and in whatever process."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from modula_rs.describe import describe
from modula_rs.norm.table import Plan


def fingerprint(plan: Plan) -> str:
    """A hash of :func:`description`."""
    content = hashlib.sha256()
    for line in description(plan):
        content.update(line.encode("utf-8", "surrogatepass") + b"\n")
    return content.hexdigest()[:32]


def description(plan: Plan) -> Iterator[str]:
    """One line for each weight array, then one for each step of the forward pass with all arguments of the atom or bond."""
    for index, leaf in enumerate(plan.leaves):
        uses = [f", also {group} to {target!r}" for group, target in plan.core.other_uses(index)]
        yield f"{leaf.path}: {leaf.kind} {leaf.shape}, {leaf.copies} copies of mass {leaf.mass!r}{''.join(uses)}"
    for step in plan.core.program():
        match step:
            case ("atom", made, leaf):
                yield f"{plan.paths[leaf]}: {primitive(made)}"
            case ("bond", None):
                yield "Identity()"
            case ("bond", made):
                yield primitive(made)
            case _:
                yield " ".join(map(repr, step))


def objects(plan: Plan) -> list[Any]:
    """The objects of the atoms and bonds, in order."""
    return [step[1] for step in plan.core.program() if step[0] in ("atom", "bond") and step[1] is not None]


def primitive(made: Any) -> str:
    """An atom or bond as its class and its attributes, what it declares among them.

    >>> import modula_rs as mr
    >>> primitive(mr.Softmax(0.5))
    'Softmax(_argument=0.5, scale=0.5)'
    """
    attributes, slots = state if isinstance(state := object.__getstate__(made._behaviour()), tuple) else (state, None)
    attributes = {**(attributes or {}), **(slots or {})}
    attributes |= attributes.pop("_declared", {})
    return f"{type(made).__qualname__}({', '.join(f'{name}={describe(value)}' for name, value in sorted(attributes.items()))})"
