"""The fingerprint of a network: equal for two networks that compute the same function in the same norm, in whichever process."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from modula_rs.describe import describe
from modula_rs.forward.program import Apply, Join, Program, Repeat, Step, Transform
from modula_rs.norm.table import Norm


def fingerprint(norm: Norm, program: Program) -> str:
    """A hash of :func:`description`."""
    content = hashlib.sha256()
    for line in description(norm, program):
        content.update(line.encode("utf-8", "surrogatepass") + b"\n")
    return content.hexdigest()[:32]


def description(norm: Norm, program: Program) -> Iterator[str]:
    """One line for each weight array, then one for each step of the forward pass with all arguments of the atom or bond."""
    for leaf in norm.leaves:
        yield f"{leaf.path}: {leaf.kind} {leaf.shape}, {leaf.copies} copies of mass {leaf.mass!r}"
    yield from _shared(norm, program)
    yield from _steps(program.paths, program.steps)


def objects(program: Program) -> list[Any]:
    """The Python objects of the atoms and bonds, in order."""
    return [step.atom if isinstance(step, Apply) else step.bond for step in _flat(program.steps) if isinstance(step, Apply | Transform)]


def _shared(norm: Norm, program: Program) -> Iterator[str]:
    """A line for each further use of a shared array, with its bound. The last digits are left out, because bounds come from powers."""
    uses = Counter(step.leaf for step in _flat(program.steps) if isinstance(step, Apply))
    if max(uses.values(), default=0) > 1:
        for leaf, _, scales in norm.measures.rows:
            if uses[leaf] > 1:
                yield f"{norm.paths[leaf]}: at most {', '.join(f'{scale:.12g}' for scale in np.unique(scales))}"


def _steps(paths: Sequence[str], steps: Sequence[Step]) -> Iterator[str]:
    for step in steps:
        match step:
            case Apply():
                yield f"{paths[step.leaf]}: {primitive(step.atom)}"
            case Transform():
                yield primitive(step.bond)
            case Join():
                yield f"end of a tuple of {step.members}"
            case Repeat():
                yield f"{step.times} times"
                yield from _steps(paths, step.steps)
                yield "end of the power"
            case _:
                yield type(step).__name__


def _flat(steps: Sequence[Step]) -> Iterator[Step]:
    for step in steps:
        yield step
        if isinstance(step, Repeat):
            yield from _flat(step.steps)


def primitive(made: Any) -> str:
    """An atom or bond as its class and its attributes, including the values that it declares.

    >>> import modula_rs as mr
    >>> primitive(mr.Softmax(0.5))
    'Softmax(_argument=0.5, scale=0.5)'
    """
    attributes, slots = state if isinstance(state := object.__getstate__(made._behaviour()), tuple) else (state, None)
    attributes = {**(attributes or {}), **(slots or {})}
    attributes |= attributes.pop("_declared", {})
    return f"{type(made).__qualname__}({', '.join(f'{name}={describe(value)}' for name, value in sorted(attributes.items()))})"
