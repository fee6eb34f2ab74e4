"""Runs the program of a traced network and shows what happens where each of its arrays meets data.

The lines of the program at which the walk recorded a use are run one by one. So the effect of an array's update on its own output can be
told from the effects of all arrays before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from modula_rs.tracing.axes import INPUT, whole_array
from modula_rs.tracing.loops import parts_of_scan
from modula_rs.tracing.record import Record
from modula_rs.tracing.value import Kind, Value
from modula_rs.tracing.walk import BODIES, Walk

#: A line of the program: the numbers of the lines that call it, and its own.
Place = tuple[int, ...]


class Meeting(NamedTuple):
    """One run of a line at which an array meets data. ``weights``: which of the operands are parameters; ``output``: the first result."""

    equation: Any
    operands: list[Any]
    weights: tuple[bool, ...]
    output: Any

    @property
    def input_size(self) -> float:
        """The RMS of the data that the array meets; 1 for indices, and where the data are constants."""
        data = [operand for operand, weight in zip(self.operands, self.weights, strict=True) if not weight]
        data = [operand for operand in data if jnp.issubdtype(operand.dtype, jnp.inexact)]
        return rms(data[0]) if data else 1.0

    def own_change(self, after: Meeting) -> float:
        """The RMS of the change of the output if the parameters are those of ``after``, and the data stay as they are."""
        pairs = zip(self.operands, after.operands, self.weights, strict=True)
        mixed = [new if weight else old for old, new, weight in pairs]
        return rms(np.asarray(_bound(self.equation, mixed)[0], np.float64) - np.asarray(self.output, np.float64))


def rms(x: Any) -> float:
    """The root mean square, in double precision."""
    return float(np.sqrt(np.mean(np.square(np.asarray(x), dtype=np.float64))))


class Observer:
    """The program of a network, with the lines at which its arrays meet data.

    ``closed``: the jaxpr of (parameters, inputs); ``inputs``: their arrays; ``paths``: of the parameters; ``frozen``: which parameters
    count as data.
    """

    def __init__(self, closed: Any, inputs: Sequence[Any], paths: Sequence[str], frozen: Sequence[bool]) -> None:
        self.closed, self.inputs, self.paths = closed, [jnp.asarray(array) for array in inputs], paths
        walk = _Locating(paths)
        values = []
        for leaf, var in enumerate(closed.jaxpr.invars):
            shape = tuple(getattr(var.aval, "shape", ()))
            kind = Kind.PARAMETER if leaf < len(paths) and not frozen[leaf] else Kind.DATA
            values.append(Value(kind, shape, (whole_array(leaf if leaf < len(paths) else INPUT, shape),)))
        walk.call(closed, values)
        self.places = walk.record.places  # type: ignore[attr-defined]  # the record of _Locating
        self.operands = walk.operands
        self._compiled = jax.jit(self._arrays)
        self._opened = {place[:n] for place in self.places for n in range(1, len(place))}

    def run(self, parameters: Sequence[Any]) -> tuple[list[Any], dict[str, list[Meeting]]]:
        """The results of the program, and for each path the meetings of its array with data, in order."""
        try:
            results, arrays = self._compiled([*map(jnp.asarray, parameters), *self.inputs])
        except jax.errors.ConcretizationTypeError:  # a branch or a loop that depends on the values
            return self._meet([*map(jnp.asarray, parameters), *self.inputs])
        return results, {
            path: [Meeting(e, o, w, out) for (e, w), (o, out) in zip(self._lines[path], arrays[path], strict=True)] for path in arrays
        }

    def _meet(self, arguments: list[Any]) -> tuple[list[Any], dict[str, list[Meeting]]]:
        found: dict[str, list[Meeting]] = {path: [] for path in self.paths}
        return self._run(self.closed.jaxpr, self.closed.consts, arguments, (), found), found

    def _arrays(self, arguments: list[Any]) -> tuple[list[Any], dict[str, list[tuple[list[Any], Any]]]]:
        results, found = self._meet(arguments)
        self._lines = {path: [(meeting.equation, meeting.weights) for meeting in met] for path, met in found.items()}
        return results, {path: [(meeting.operands, meeting.output) for meeting in met] for path, met in found.items()}

    def _run(
        self, jaxpr: Any, constants: Sequence[Any], arguments: Sequence[Any], trail: Place, found: dict[str, list[Meeting]]
    ) -> list[Any]:
        known: dict[Any, Any] = dict(zip(jaxpr.constvars, constants, strict=True))
        known.update(zip(jaxpr.invars, arguments, strict=True))

        def read(atom: Any) -> Any:
            return atom.val if hasattr(atom, "val") else known[atom]

        for equation in jaxpr.eqns:
            place = (*trail, id(equation))
            operands = [read(atom) for atom in equation.invars]
            made = self._inside(equation, operands, place, found) if place in self._opened else _bound(equation, operands)
            for leaf in self.places.get(place, ()):
                arrays = [jnp.asarray(operand) for operand in operands]
                found[self.paths[leaf]].append(Meeting(equation, arrays, self.operands[place], made[0]))
            known.update(zip(equation.outvars, made, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _inside(self, equation: Any, operands: list[Any], place: Place, found: dict[str, list[Meeting]]) -> list[Any]:
        """The results of a line that calls other lines, of which each is run by itself."""
        params = equation.params

        def call(closed: Any, arguments: Sequence[Any]) -> list[Any]:
            jaxpr = getattr(closed, "jaxpr", closed)
            return self._run(jaxpr, getattr(closed, "consts", None) or [], arguments, place, found)

        match equation.primitive.name:
            case "scan":
                shapes = [jnp.shape(operand) for operand in operands], [var.aval.shape for var in equation.outvars]
                constants, count = parts_of_scan(params["jaxpr"], *shapes)
                carried = constants + count
                carry, made = operands[constants:carried], []
                steps = range(params["length"])
                for step in reversed(steps) if params["reverse"] else steps:
                    results = call(params["jaxpr"], [*operands[:constants], *carry, *(xs[step] for xs in operands[carried:])])
                    carry = results[:count]
                    made.append(results[count:])
                stacked = [jnp.stack(each[::-1] if params["reverse"] else each) for each in zip(*made, strict=True)]
                return [*carry, *stacked]
            case "while":
                first, second = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
                carry = operands[second:]
                while call(params["cond_jaxpr"], [*operands[:first], *carry])[0]:
                    carry = call(params["body_jaxpr"], [*operands[first:second], *carry])
                return carry
            case "cond":
                branches = params["branches"]
                return call(branches[min(max(int(operands[0]), 0), len(branches) - 1)], operands[1:])
        return call(next(params[key] for key in BODIES if params.get(key) is not None), operands)


class _Placed(Record):
    """A record that also keeps the lines at which parameters are used."""

    def __init__(self, walk: _Locating) -> None:
        super().__init__(len(walk.names))
        self.walk, self.places = walk, {}  # type: ignore[var-annotated]

    def use(self, view: Any, *given: Any, **options: Any) -> None:
        """Records a use and its line."""
        super().use(view, *given, **options)
        if self.walk.trail:
            self.places.setdefault(tuple(map(id, self.walk.trail)), {})[view.leaf] = None


class _Locating(Walk):
    """A walk that keeps, for each line, which of its operands are parameters."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(names)
        self.record = _Placed(self)
        self.operands: dict[Place, tuple[bool, ...]] = {}

    def step(self, equation: Any, values: list[Value]) -> list[Value]:
        """The values of the results of one line."""
        self.operands[tuple(map(id, self.trail))] = tuple(value.is_parameter for value in values)
        return super().step(equation, values)


def _bound(equation: Any, operands: Sequence[Any]) -> list[Any]:
    """The results of one line."""
    params = equation.primitive.get_bind_params(equation.params)
    functions, params = params if isinstance(params, tuple) else ((), params)  # before JAX 0.10 a pair with functions
    with equation.ctx.manager:
        made = equation.primitive.bind(*functions, *operands, **params)
    return list(made) if equation.primitive.multiple_results else [made]
