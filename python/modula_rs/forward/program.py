"""The forward pass as a list of steps, and the one walk over them. Subclasses of :class:`Walk` define what happens at each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from modula_rs import _core
from modula_rs.checks import naming
from modula_rs.norm.table import Norm


class Apply(NamedTuple):
    """``x = atom(x, weights[leaf])``."""

    atom: Any
    leaf: int


class Transform(NamedTuple):
    """``x = bond(x)``."""

    bond: Any


class Fork(NamedTuple):
    """A tuple begins: every member starts from ``x``. ``linears`` are the leaves of the plain Linears that members begin with."""

    linears: list[int]


class Next(NamedTuple):
    """A member ends with output ``x``; the next member starts from the input of the tuple."""


class Join(NamedTuple):
    """A tuple ends: ``x`` becomes the tuple of the outputs of all ``members``."""

    members: int


class Repeat(NamedTuple):
    """A power: its steps, run ``times`` times, each time on the next copy of the ``stacked`` leaves.

    ``target``: the norm of an update of the power, in the power's own norm, if the update of the whole tree has norm 1.
    """

    times: int
    steps: list[Step]
    stacked: tuple[int, ...]
    target: float


Step = Apply | Transform | Fork | Next | Join | Repeat


class Program:
    """The steps of a tree, powers nested, and the paths of its leaves."""

    def __init__(self, core: _core.Program, norm: Norm) -> None:
        self.paths = norm.paths
        self._stacked = [bool(stack) for stack in norm.stacks]
        self.steps = self._nest(core.steps())

    def _nest(self, flat: Sequence[tuple[Any, ...]]) -> list[Step]:
        steps: list[Step] = []
        forks: list[Fork] = []  # the open tuples, the innermost last
        starts = False  # whether this step is the first of a member
        at = 0
        while at < len(flat):
            word, *fields = flat[at]
            at += 1
            match word, fields:
                case "atom", (atom, leaf):
                    steps.append(Apply(atom, leaf))
                    if starts and atom.may_join:
                        forks[-1].linears.append(leaf)
                case "bond", (None,):
                    pass
                case "bond", (bond,):
                    steps.append(Transform(bond))
                case "fork", _:
                    forks.append(Fork([]))
                    steps.append(forks[-1])
                case "next", _:
                    steps.append(Next())
                case "join", (members,):
                    forks.pop()
                    steps.append(Join(members))
                case "repeat", (times, length, target):
                    body = flat[at : at + length]
                    leaves = dict.fromkeys(step[2] for step in body if step[0] == "atom")
                    stacked = tuple(leaf for leaf in leaves if self._stacked[leaf])
                    steps.append(Repeat(times, self._nest(body), stacked, target))
                    at += length
            starts = word in ("fork", "next")
        return steps


class Walk:
    """Runs steps on a value. Subclasses override the methods for single steps."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = paths

    def run(self, steps: Sequence[Step], x: Any, weights: Mapping[int, Any], copy: tuple[int, ...] = ()) -> Any:
        """The value of ``x`` after the steps; ``copy`` is the index of the copy in each of the powers around the steps."""
        inputs: list[Any] = []  # the inputs of the open tuples
        outputs: list[Any] = []  # the outputs of their members so far
        for step in steps:
            match step:
                case Apply():
                    with naming(self.paths[step.leaf]):
                        x = self.apply(step, x, weights[step.leaf], copy)
                case Transform():
                    x = self.transform(step, x)
                case Fork():
                    inputs.append(x)
                    self.fork(step, x, weights)
                case Next():
                    outputs.append(x)
                    x = inputs[-1]
                    self.next()
                case Join():
                    inputs.pop()
                    first = len(outputs) - step.members + 1
                    x = (*outputs[first:], x)
                    del outputs[first:]
                    self.join()
                case Repeat():
                    x = self.repeat(step, x, weights, copy)
        return x

    def apply(self, step: Apply, x: Any, weight: Any, copy: tuple[int, ...]) -> Any:
        """Applies one copy of an atom."""
        return step.atom.apply(x, weight)

    def transform(self, step: Transform, x: Any) -> Any:
        """Applies a bond."""
        return step.bond.apply(x)

    def fork(self, step: Fork, x: Any, weights: Mapping[int, Any]) -> None:
        """A tuple begins."""

    def next(self) -> None:
        """A member ends, and the next member begins."""

    def join(self) -> None:
        """A tuple ends."""

    def repeat(self, power: Repeat, x: Any, weights: Mapping[int, Any], copy: tuple[int, ...]) -> Any:
        """Applies a power, one copy after the other."""
        for index in range(power.times):
            own = {leaf: weights[leaf][index] for leaf in power.stacked}
            x = self.run(power.steps, x, {**weights, **own}, (*copy, index))
        return x
