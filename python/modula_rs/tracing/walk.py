"""Reads a program line by line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from modula_rs.tracing.axes import BLURRED, View
from modula_rs.tracing.constants import constant_results, known_constant
from modula_rs.tracing.record import EMBED, LINEAR, UNKNOWN, Record
from modula_rs.tracing.registry import Equation, find_rule, primitives
from modula_rs.tracing.value import Kind, Value, constant, distinct, union


class Walk:
    """Follows the parameters through a program and records their uses.

    ``names``: the paths of the parameters; ``data``: the parameters that a user's rule declares to be no weights of products;
    ``gains``: those that a rule declares to be gains.
    """

    def __init__(self, names: Sequence[str], data: frozenset[int] = frozenset(), gains: frozenset[int] = frozenset()) -> None:
        self.names = names
        self.data = data
        self.gains = gains
        self.record = Record(len(names))
        self._postponed: list[tuple[View, int, str]] = []
        self.trail: list[Any] = []  # the line that is read, after the lines that call it

    def run(self, jaxpr: Any, closed: Sequence[Value], values: Sequence[Value]) -> list[Value]:
        """The values of a jaxpr's results, from the values of its arguments."""
        known: dict[Any, Value] = dict(zip(jaxpr.constvars, closed, strict=True))
        known.update(zip(jaxpr.invars, values, strict=True))
        readers = _readers(jaxpr)
        for equation in _alive(jaxpr):
            operands = [self._read(known, atom) for atom in equation.invars]
            self.trail.append(equation)
            made = self.step(_line(equation, readers), operands)
            self.trail.pop()
            known.update(zip(equation.outvars, made, strict=True))
        return [self._read(known, atom) for atom in jaxpr.outvars]

    @staticmethod
    def _read(known: dict[Any, Value], atom: Any) -> Value:
        if hasattr(atom, "val"):
            return constant(tuple(atom.aval.shape), known_constant(np.asarray(atom.val, atom.aval.dtype)))
        return known[atom]

    def step(self, equation: Equation, values: list[Value]) -> list[Value]:
        """The values of the results of one line."""
        if all(value.is_constant for value in values) and not _calls(equation):
            return constant_results(equation, values)
        if (rule := find_rule(equation.name, equation.params)) is not None:
            return self._kept(equation, values, rule(self, equation, values))
        if (inner := _inner(equation, values)) is not None:
            return self.call(inner, values)
        return self._kept(equation, values, primitives["elementwise"](self, equation, values))

    def call(self, closed: Any, values: Sequence[Value]) -> list[Value]:
        """The values of the results of a function that the program calls."""
        jaxpr = getattr(closed, "jaxpr", closed)
        arrays = getattr(closed, "consts", None) or [None] * len(jaxpr.constvars)
        pairs = zip(jaxpr.constvars, arrays, strict=True)
        return self.run(jaxpr, [constant(tuple(var.aval.shape), known_constant(array)) for var, array in pairs], values)

    # Penalties: functions of parameters that are only added to the loss.

    def postpone(self, value: Value, why: str) -> Value:
        """A function of parameters alone, as in ``refuse``, but its refusal holds only if the function meets data.

        A number that is only added to the loss, or given back, says nothing about what the parameters are.
        """
        first = len(self._postponed)
        self._postponed += [(view, value.seen, why) for view in value.views]
        return self.label(value, value)._replace(pending=value.pending | frozenset(range(first, len(self._postponed))))

    def _kept(self, equation: Equation, values: Sequence[Value], made: list[Value]) -> list[Value]:
        pending = frozenset[int]().union(*(value.pending for value in values))
        if not pending:
            return made
        if all(value.is_constant or value.pending for value in values) and not _calls(equation):
            return [value._replace(pending=value.pending | pending) for value in made]
        if equation.name in ("add", "sub", "add_any") and equation.shapes == [()]:
            return [value._replace(pending=frozenset()) for value in made]
        self._meet(pending)
        return [value._replace(pending=frozenset()) for value in made]

    def _meet(self, pending: frozenset[int]) -> None:
        for number in sorted(pending):
            view, seen, why = self._postponed[number]
            self.note(view, UNKNOWN, [], seen, why)

    # Parameters that meet data.

    def settle(self, value: Value) -> Value:
        """Looked-up rows of a table, as data; their lookup is recorded. Any other array is returned unchanged."""
        if not value.is_parameter or not any(view.rows for view in value.views):
            return value
        made = []
        for view in value.views:
            roles = [(f, "i") for f in view.rows] + [(f, "o") for span in view.spans for f in span.own]
            self.note(view, EMBED, roles, value.seen, "its rows are looked up by an index")
            made.append(view._replace(taken=(), rows=()))
        return value._replace(kind=Kind.DATA, views=distinct(made), seen=value.seen | self.bit(value.views))

    def spread(self, values: Sequence[Value]) -> list[Value]:
        """The operands. A vector that multiplied data along an axis on which data is not known to vary is recorded as unknown."""
        made = []
        for value in values:
            for view in value.views if value.is_data else ():
                if view.outer:
                    why = "it multiplies data along an axis along which data is not known to vary"
                    self.record.use(view, UNKNOWN, [], value.seen, why)
            made.append(value._replace(views=tuple(view._replace(outer=False) for view in value.views)))
        return made

    def refuse(self, values: Sequence[Value], why: str) -> list[Value]:
        """The operands as data. The parameters among them are recorded as used in a way that does not decide their kind.

        Functions of gains are no data: they count as constants, so that a weight which they multiply remains a weight.
        """
        made = []
        for value in self.fix(list(map(self.settle, values)), why):
            for view in value.views if value.is_parameter else ():
                self.note(view, UNKNOWN, [], value.seen, why)
            made.append(self.label(value, value) if value.is_parameter else value)
        return made

    def fix(self, values: Sequence[Value], why: str) -> list[Value]:
        """The operands, with constants in place of the parameters that a rule declares to be gains."""
        made = []
        for value in values:
            if value.is_parameter and all(view.leaf in self.gains for view in value.views):
                for view in value.views:
                    self.note(view, UNKNOWN, [], value.seen, why)
                value = constant(value.shape)
            made.append(value)
        return made

    def note(self, view: View, kind: str, roles: Any, seen: int, why: str, based: bool = False) -> None:
        """Records a use, or the reason why the view does not allow it."""
        if kind == UNKNOWN:  # the digits that are left show which ones a loop has chosen
            self.record.use(view, kind, [(f, "o") for span in view.spans for f in span.own], seen, why)
        elif any(f.axis == BLURRED for span in view.spans for f in span.factors):
            self.record.use(view, UNKNOWN, [], seen, "it is rearranged in a way that cuts across its axes")
        elif view.inner and kind != LINEAR:
            self.record.use(view, UNKNOWN, [], seen, "it is multiplied with another parameter")
        else:
            self.record.use(view, kind, list(roles), seen, why, based)

    def label(self, value: Value, beside: Value) -> Value:
        """A parameter that has become data, with its own axes as features."""
        views = [view._replace(taken=(), rows=(), inner=(), vector=True) for view in value.views]
        return Value(Kind.DATA, value.shape, distinct(views), seen=beside.seen | self.bit(value.views))

    def gate(self, value: Value, gates: Value, along: Iterable[int], flat: Iterable[int]) -> None:
        """Records features that are multiplied by data which varies ``along`` some of their axes, but not along the ``flat`` ones.

        If one product then sums over both, it sums over experts that gates weigh, and each index of the first is a matrix of its own.
        Statistics of the features themselves, as in a norm of groups, are no gates.
        """
        for view in value.views:
            if not view.labels or view.vector or not any(view.spans[axis].own for axis in flat):
                continue
            for axis in along:
                if view.spans[axis].own and not any(other.leaf == view.leaf and other.spans[axis].own for other in gates.views):
                    self.record.gate(view.leaf, view.spans[axis].own)

    def mixed(self, value: Value, sources: Sequence[Value]) -> Value:
        """The value, made to depend on the sources."""
        kind = Kind.DATA if any(source.is_data for source in sources) else value.kind
        return value._replace(kind=kind, seen=union([value, *sources]), known=None)

    def bit(self, views: Sequence[View]) -> int:
        """The parameters of the views as a bit set."""
        made = 0
        for view in views:
            made |= 1 << view.leaf
        return made

    def name(self, values: Sequence[Value]) -> str:
        """The paths of the parameters from which arrays are made."""
        return ", ".join(sorted({self.names[view.leaf] for value in values for view in value.views}))

    def join(self, a: Value, b: Value, where: str) -> Value:
        """A value that is one of two, when it is not known which."""
        self._meet(a.pending | b.pending)
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
    """The axes over which the product of two arrays is summed, if nothing else reads the product."""
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
    """The lines that have effects or on which the results depend."""
    needed = {atom for atom in jaxpr.outvars if not hasattr(atom, "val")}
    alive = []
    for equation in reversed(jaxpr.eqns):
        if equation.effects or any(var in needed for var in equation.outvars):
            needed.update(atom for atom in equation.invars if not hasattr(atom, "val"))
            alive.append(equation)
    return alive[::-1]


def _calls(equation: Equation) -> bool:
    return equation.name in ("scan", "while", "cond") or any(key in equation.params for key in BODIES)


BODIES = ("jaxpr", "call_jaxpr", "fun_jaxpr")


def _inner(equation: Equation, values: list[Value]) -> Any | None:
    """The function that a line calls, if it takes the line's operands unchanged."""
    for key in BODIES:
        body = equation.params.get(key)
        if body is not None:
            jaxpr = getattr(body, "jaxpr", body)
            invars = getattr(jaxpr, "invars", None)
            if invars is None or [tuple(var.aval.shape) for var in invars] != [value.shape for value in values]:
                return None
            outs = [tuple(getattr(atom.aval, "shape", ())) for atom in jaxpr.outvars]
            return body if outs == equation.shapes else None
    return None
