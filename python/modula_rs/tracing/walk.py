"""The reading of a program, line by line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from modula_rs.tracing import constants, registry
from modula_rs.tracing import record as uses
from modula_rs.tracing.axes import BLURRED, View
from modula_rs.tracing.record import Record
from modula_rs.tracing.registry import Equation
from modula_rs.tracing.value import Kind, Value, constant, distinct, union


class Walk:
    """Follows the parameters through a program and writes down what it does with them.

    ``names``: the paths of the parameters; ``data``: those that a user's rule says are no weights of products.
    """

    def __init__(self, names: Sequence[str], data: frozenset[int] = frozenset()) -> None:
        self.names = names
        self.data = data
        self.record = Record(len(names))

    def run(self, jaxpr: Any, closed: Sequence[Value], values: Sequence[Value]) -> list[Value]:
        """What is known of a jaxpr's results, given what is known of its arguments."""
        known: dict[Any, Value] = dict(zip(jaxpr.constvars, closed, strict=True))
        known.update(zip(jaxpr.invars, values, strict=True))
        readers = _readers(jaxpr)
        for equation in _alive(jaxpr):
            operands = [self._read(known, atom) for atom in equation.invars]
            made = self.step(_line(equation, readers), operands)
            known.update(zip(equation.outvars, made, strict=True))
        return [self._read(known, atom) for atom in jaxpr.outvars]

    @staticmethod
    def _read(known: dict[Any, Value], atom: Any) -> Value:
        if hasattr(atom, "val"):
            return constant(tuple(atom.aval.shape), constants.known(np.asarray(atom.val, atom.aval.dtype)))
        return known[atom]

    def step(self, equation: Equation, values: list[Value]) -> list[Value]:
        """What is known of the results of one line."""
        if all(value.is_constant for value in values) and not _calls(equation):
            return constants.results(equation, values)
        if (rule := registry.find(equation.name, equation.params)) is not None:
            return rule(self, equation, values)
        if (inner := _inner(equation, values)) is not None:
            return self.call(inner, values)
        return registry.primitives["elementwise"](self, equation, values)

    def call(self, closed: Any, values: Sequence[Value]) -> list[Value]:
        """What is known of the results of a function that the program calls."""
        jaxpr = getattr(closed, "jaxpr", closed)
        arrays = getattr(closed, "consts", None) or [None] * len(jaxpr.constvars)
        pairs = zip(jaxpr.constvars, arrays, strict=True)
        return self.run(jaxpr, [constant(tuple(var.aval.shape), constants.known(array)) for var, array in pairs], values)

    # What becomes of parameters where they meet data.

    def settle(self, value: Value) -> Value:
        """Rows looked up in a table, once they are used as data. Any other array is given back."""
        if not value.is_parameter or not any(view.rows for view in value.views):
            return value
        made = []
        for view in value.views:
            roles = [(f, "i") for f in view.rows] + [(f, "o") for span in view.spans for f in span.own]
            self.note(view, uses.EMBED, roles, value.seen, "its rows are looked up by an index")
            made.append(view._replace(taken=(), rows=(), live=True))
        return value._replace(kind=Kind.DATA, views=distinct(made), seen=value.seen | self.bit(value.views))

    def refuse(self, values: Sequence[Value], why: str) -> list[Value]:
        """The operands, of which parameters are written down as used in a way that says nothing."""
        made = []
        for value in map(self.settle, values):
            for view in value.views if value.is_parameter else ():
                self.record.use(view, uses.UNKNOWN, [], value.seen, why)
            made.append(self.label(value, value) if value.is_parameter else value)
        return made

    def note(self, view: View, kind: str, roles: Any, seen: int, why: str) -> None:
        """Writes a use down, or why the view does not allow it."""
        if kind == uses.UNKNOWN:
            self.record.use(view, kind, [], seen, why)
        elif any(f.axis == BLURRED for span in view.spans for f in span.factors):
            self.record.use(view, uses.UNKNOWN, [], seen, "it is rearranged in a way that cuts across its axes")
        elif view.inner and kind != uses.LINEAR:
            self.record.use(view, uses.UNKNOWN, [], seen, "it is multiplied with another parameter")
        else:
            self.record.use(view, kind, list(roles), seen, why)

    def label(self, value: Value, beside: Value, live: bool = False) -> Value:
        """A parameter that has become data: its own axes are features."""
        views = [view._replace(taken=(), rows=(), inner=(), live=live, vector=True) for view in value.views]
        return Value(Kind.DATA, value.shape, distinct(views), seen=beside.seen | self.bit(value.views))

    def mixed(self, value: Value, sources: Sequence[Value]) -> Value:
        """The value, depending on the sources."""
        kind = Kind.DATA if any(source.is_data for source in sources) else value.kind
        return value._replace(kind=kind, seen=union([value, *sources]), known=None)

    def bit(self, views: Sequence[View]) -> int:
        """The parameters of the views, as a set of bits."""
        made = 0
        for view in views:
            made |= 1 << view.leaf
        return made

    def name(self, values: Sequence[Value]) -> str:
        """The paths of the parameters that arrays are made of."""
        return ", ".join(sorted({self.names[view.leaf] for value in values for view in value.views}))

    def join(self, a: Value, b: Value, where: str) -> Value:
        """One of two values, it is not known which."""
        if a.is_constant and b.is_constant:
            return a if a == b else constant(a.shape)
        if a.is_parameter != b.is_parameter and not (a.is_constant or b.is_constant):
            a, b = self.refuse([a, b], f"it is {where}")
        kind = Kind.DATA if a.is_data or b.is_data else Kind.PARAMETER
        seen = union((a, b))
        opaque = a.opaque or b.opaque
        return Value(kind, a.shape, distinct(a.views + b.views), a.pieces & b.pieces, seen, opaque=opaque, based=a.based or b.based)


def _line(equation: Any, readers: dict[Any, list[Any]]) -> Equation:
    shapes = [tuple(var.aval.shape) for var in equation.outvars]
    return Equation(equation.primitive.name, equation.params, shapes, _summed(equation, readers))


def _readers(jaxpr: Any) -> dict[Any, list[Any]]:
    readers: dict[Any, list[Any]] = {}
    for equation in jaxpr.eqns:
        for atom in equation.invars:
            if not hasattr(atom, "val"):
                readers.setdefault(atom, []).append(equation)
    for atom in jaxpr.outvars:
        if not hasattr(atom, "val"):
            readers.setdefault(atom, []).append(None)
    return readers


def _summed(equation: Any, readers: dict[Any, list[Any]]) -> tuple[int, ...] | None:
    """The axes over which the product of two arrays is summed, if nothing else reads it."""
    if equation.primitive.name != "mul":
        return None
    readers_of = readers.get(equation.outvars[0], [])
    while len(readers_of) == 1 and readers_of[0] is not None:
        (reader,) = readers_of
        if reader.primitive.name == "reduce_sum":
            return tuple(int(axis) for axis in reader.params["axes"])
        if reader.primitive.name != "convert_element_type":
            return None
        readers_of = readers.get(reader.outvars[0], [])
    return None


def _alive(jaxpr: Any) -> list[Any]:
    """The lines on which the results depend, or that have effects."""
    needed = {atom for atom in jaxpr.outvars if not hasattr(atom, "val")}
    alive = []
    for equation in reversed(jaxpr.eqns):
        if equation.effects or any(var in needed for var in equation.outvars):
            needed.update(atom for atom in equation.invars if not hasattr(atom, "val"))
            alive.append(equation)
    return alive[::-1]


def _calls(equation: Equation) -> bool:
    return equation.name in ("scan", "while", "cond") or any(key in equation.params for key in _BODIES)


_BODIES = ("jaxpr", "call_jaxpr", "fun_jaxpr")


def _inner(equation: Equation, values: list[Value]) -> Any | None:
    """The function that a line calls, if it takes the operands as they are."""
    for key in _BODIES:
        body = equation.params.get(key)
        if body is not None:
            jaxpr = getattr(body, "jaxpr", body)
            invars = getattr(jaxpr, "invars", None)
            if invars is None or [tuple(var.aval.shape) for var in invars] != [value.shape for value in values]:
                return None
            outs = [tuple(getattr(atom.aval, "shape", ())) for atom in jaxpr.outvars]
            return body if outs == equation.shapes else None
    return None
