"""The literal numbers of a program on which transfer depends: factors of residual branches, and scales of attention's logits.

A sum ``a x + b f(x)`` is a residual branch if ``f`` multiplies ``x`` by a weight. A product of data with data is a product of logits if it
reaches an exponential through sums and scalings alone. Both are found by dataflow, in the program of the forward pass; a pattern that is
not recognised is left out, so that nothing here can fail on a program that JAX can trace.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

from modula_rs.tracing.constants import evaluate_number, number_of
from modula_rs.tracing.multiples import Logits, Node, Numbers, Stream, scaled, single, union


class Branch(NamedTuple):
    """A residual branch ``skip * x + factor * f(x)``.

    ``arrays``: the parameters in it, as bits; ``last``: those of its last product. ``learned``: a parameter multiplies the whole branch,
    too. ``number``: how many branches follow one another on the same ``x``, copies in loops included.
    """

    factor: float
    skip: float
    learned: bool
    arrays: int
    last: int
    number: float


class Literals(NamedTuple):
    """What was found in a program.

    ``scales``: the literal by which the program multiplies a parameter before it uses it; ``rows``: by which it multiplies rows that it
    looks up in a parameter. Parameters that are used in several ways are left out.
    """

    branches: list[Branch]
    logits: list[Logits]
    scales: dict[int, float]
    rows: dict[int, float]

    def gains(self, parameters: int) -> list[float]:
        """For each parameter the literal by which residual branches multiply what it makes; the largest one if it is used several times."""
        made = []
        for leaf in range(parameters):
            nested: dict[int, float] = {}  # branches inside one another hold different sets of arrays
            for branch in self.branches:
                if branch.arrays >> leaf & 1 and branch.factor:
                    nested[branch.arrays] = max(nested.get(branch.arrays, 0.0), branch.factor)
            innermost = [held for held in nested if not any(held != other and held | other == held for other in nested)]
            made.append(max((prod(f for held, f in nested.items() if held | least == held) for least in innermost), default=1.0))
        return made


def find_literals(closed: Any, parameters: int) -> Literals:
    """The literals of a closed jaxpr, whose first arguments are the parameters."""
    walk = _Walk()
    values = [Node(walk, param=1 << leaf) for leaf in range(parameters)]
    values += [Node(walk, data=True) for _ in closed.jaxpr.invars[parameters:]]
    walk.call(closed, values, 1)
    branches = [Branch(*own, stream.number) for own, stream in walk.branches]
    scales, rows = (
        {bits.bit_length() - 1: own.pop() for bits, own in found.items() if len(own) == 1} for found in (walk.scales, walk.rows)
    )
    return Literals(branches, list(dict.fromkeys(walk.logits)), scales, rows)


#: Primitives whose result is their first operand in another shape, order or precision, or a part of it.
_SAME = (
    "convert_element_type", "copy", "copy_p", "stop_gradient", "reduce_precision", "sharding_constraint", "optimization_barrier",
    "name", "pvary", "device_put", "rev", "real", "mesh_cast", "reshard", "layout_constraint", "reshape", "transpose", "squeeze",
    "broadcast_in_dim", "slice", "tile", "dynamic_slice", "neg", "pad", "split",
)  # fmt: skip
_SUMS = ("add", "sub", "add_any")
#: Functions after which logits are still logits: soft caps, and bounds.
_CAPS = ("tanh", "max", "min", "clamp")
_PRODUCTS = ("dot_general", "conv_general_dilated", "ragged_dot", "ragged_dot_general", "gather")
_BODIES = ("jaxpr", "call_jaxpr", "fun_jaxpr")


class _Walk(Numbers):
    """Follows arrays through a program, and collects branches and logits."""

    def __init__(self) -> None:
        super().__init__()
        self.branches: list[tuple[tuple[float, float, bool, int, int], Stream]] = []
        self.logits: list[Logits] = []
        self.scales: dict[int, set[float]] = {}
        self.rows: dict[int, set[float]] = {}

    def call(self, closed: Any, values: Sequence[Node], weight: float) -> list[Node]:
        """The results of a function; each of its lines runs ``weight`` times, one after the other."""
        jaxpr = getattr(closed, "jaxpr", closed)
        consts = getattr(closed, "consts", None) or [None] * len(jaxpr.constvars)
        known: dict[Any, Node] = dict(zip(jaxpr.invars, values, strict=True))
        known.update((var, Node(self, value=number_of(array))) for var, array in zip(jaxpr.constvars, consts, strict=True))
        readers = Counter(atom for equation in jaxpr.eqns for atom in equation.invars if not hasattr(atom, "val"))
        results = {atom for atom in jaxpr.outvars if not hasattr(atom, "val")}

        def read(atom: Any) -> Node:
            return Node(self, value=number_of(atom.val)) if hasattr(atom, "val") else known[atom]

        for var, node in zip(jaxpr.invars, values, strict=True):
            if node.data and not node.bit and readers[var] > 1:
                self.number(node)
        for equation in jaxpr.eqns:
            self.marked = any(readers[var] > 1 or var in results for var in equation.outvars)
            made = self.line(equation, [read(atom) for atom in equation.invars], weight)
            known.update(zip(equation.outvars, made, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def number(self, node: Node) -> None:
        """Numbers an array that has turned out to be read more than once."""
        node.bit = self.bit()
        node.above |= node.bit
        node.terms = {**node.terms, node.bit: 1.0}

    def line(self, equation: Any, values: list[Node], weight: float) -> list[Node]:
        """The results of one line of the program."""
        name, params, number = equation.primitive.name, equation.params, len(equation.outvars)
        if name == "scan" and "num_consts" in params and "num_carry" in params:
            return self._scan(params, values, weight)
        if name == "while" and "body_nconsts" in params:
            first, second = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
            return self.call(params["body_jaxpr"], [*values[first:second], *map(self._fresh, values[second:])], weight)
        if name == "cond":
            made = [self.call(branch, values[1:], weight) for branch in params["branches"]]
            return [own[0] if len({id(node) for node in own}) == 1 else Node(self, own) for own in zip(*made, strict=True)]
        for key in _BODIES:
            inner = getattr(params.get(key), "jaxpr", params.get(key))
            if values and len(getattr(inner, "invars", ())) == len(values) and len(getattr(inner, "outvars", ())) == number:
                return self.call(params[key], values, weight)
        if not any(node.data for node in values):
            return [self._still(name, params, values) for _ in range(number)]
        for node in values:
            if single(node.param):
                self.scales.setdefault(node.param, set()).add(node.factor)
        return [self._one(name, equation, values, weight) for _ in range(number)]

    def _still(self, name: str, params: Any, values: list[Node]) -> Node:
        """The result of a line that works on parameters and constants alone."""
        weights = [node for node in values if node.param]
        if not weights:
            return Node(self, values, value=evaluate_number(name, params, [node.value for node in values]))
        made = Node(self, values)
        if name in _SAME and values[0].param:
            made.factor = values[0].factor
        elif name in ("mul", "div") and len(weights) == 1 and (name == "mul" or values[0] is weights[0]):
            value = abs(next((node.value or 1.0 for node in values if node is not weights[0]), 1.0))
            made.factor = weights[0].factor * (value if name == "mul" else 1 / value)
        return made

    def _one(self, name: str, equation: Any, values: list[Node], weight: float) -> Node:
        """A result of a line that works on data."""
        made, given = Node(self, values), [node for node in values if node.data]
        if name in _SAME and values[0].data:
            return made.like(values[0])
        if name in ("mul", "div") and len(values) == 2:
            made = scaled(made, name, values)
            if made.looked and not made.learned:
                self.rows[made.looked] = {made.factor}
            return made
        if name in _SUMS and len(values) == 2:
            return self._sum(made, values, weight)
        if name == "select_n" and sum(node.data for node in values[1:]) == 1:
            kept = next(node for node in values[1:] if node.data)
            dropped = not values[0].last and any(node.value == 0 for node in values[1:] if not node.data)
            return made.like(kept.grown or kept if dropped else kept)
        if name == "concatenate":
            made.factor = given[0].factor if len({node.factor for node in given}) == 1 else 1.0
            made.scores = tuple(own for node in given for own in node.scores)
        elif name in ("exp", "exp2"):
            self.logits += values[0].scores
        elif name in _CAPS:
            made.scores = tuple(own for node in given for own in node.scores)
            made.stream = given[0].stream if len(given) == 1 and name == "max" else None  # through a ReLU
        elif name == "dot_general" and len(given) == 2:
            size = prod(equation.invars[0].aval.shape[axis] for axis in equation.params["dimension_numbers"][0][0])
            if size > 1 and all(node.last for node in given):
                made.scores = (Logits(given[0].factor * given[1].factor, size, given[0].last | given[1].last),)
        elif name in _PRODUCTS or (len(values) > 1 and name != "select_n"):
            made = _mixed(made, values)
            if name == "gather" and single(made.last):
                made.looked = made.last
        return made

    def _sum(self, made: Node, values: list[Node], weight: float) -> Node:
        left, right = values
        if not (left.data and right.data):
            data = left if left.data else right
            made.scores, made.last = data.scores, data.last
            made.include(data)
            return made
        made.scores = left.scores + right.scores
        for skip, branch in ((left, right), (right, left)):
            # Of the sums that x consists of, the branch reads the last one, and must multiply it by a weight.
            read = max((bit for bit in skip.terms if bit & branch.above), default=0)
            if read & branch.mixed:
                break
        else:
            made.factor = left.factor if left.factor == right.factor else 1.0
            return made
        for looked in (skip.looked, branch.looked):  # a factor of the sum, not of the rows
            self.rows.pop(looked, None)
        made.include(skip)
        made.stream = made.stream or Stream()
        made.stream.number += weight
        if arrays := _between(branch, read):
            found = branch.factor, skip.terms[read], branch.learned or skip.learned, arrays, branch.last
            self.branches.append((found, made.stream))
        return made

    def _scan(self, params: Any, values: list[Node], weight: float) -> list[Node]:
        first, second = params["num_consts"], params["num_consts"] + params["num_carry"]
        # A loop over data runs over time, and does not repeat blocks.
        times = 1 if any(node.data for node in values[second:]) else max(params["length"], 1)
        carry = [self._fresh(node) for node in values[first:second]]
        made = self.call(params["jaxpr"], [*values[:first], *carry, *values[second:]], weight * times)
        self.marked = True
        results = []
        for node in made:
            result = Node(self, [*values, node]) if node.data else node
            if node.data:
                result.last, result.stream = node.last, node.stream
                result.mixed |= union(value.above for value in values) if node.mixed else 0
            results.append(result)
        return results

    def _fresh(self, node: Node) -> Node:
        """An array that begins as another one and changes in a loop."""
        self.marked = True
        made = Node(self, [node], data=True)
        made.stream = node.stream
        return made


def _mixed(made: Node, values: Sequence[Node]) -> Node:
    """The result of a product with a weight, if there is one among the operands."""
    if weights := union(node.param for node in values if not node.data):
        made.mixed, made.last = made.above & ~made.bit, weights
    return made


def _between(branch: Node, start: int) -> int:
    """The parameters on the ways from the array with this bit to a branch, as bits."""
    arrays, seen, rest = 0, set(), [branch]
    while rest:
        node = rest.pop()
        if id(node) in seen or node.bit == start:
            continue
        seen.add(id(node))
        if not node.data:
            arrays |= node.param
        elif node.above & start:
            rest += node.inputs
    return arrays
