"""What is known about an array of the program: it is a constant, a rearranged parameter, or data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import Any, NamedTuple

from numpy.typing import NDArray

from modula_rs.tracing.axes import INPUT, Section, View, broadcast_view


class Kind(Enum):
    """Whether an array depends on nothing, affinely on parameters alone, or on the inputs."""

    CONSTANT = "constant"
    PARAMETER = "parameter"
    DATA = "data"


class Known:
    """The value of a small constant. It is equal only to itself, so that values can be compared."""

    __slots__ = ("array",)

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array


class Value(NamedTuple):
    """An array of the program.

    ``views``: where the axes of parameters lie in it. The views of a parameter are the terms of a sum or the parts of a concatenation; the
    views of data say whose features run along which axes. ``pieces``: sections of features to which the array was cut. ``seen``: as bits,
    the parameters on which data depends; for looked-up rows, the parameters on which the index depends. ``known``: the value of a small
    constant. ``onehot``: rows of a unit matrix. ``opaque``: features run along unknown axes. ``based``: a constant was added to a
    parameter. ``flat``: axes along which it has just been repeated. ``pending``: refusals that hold only if it meets data, see
    ``Walk.postpone``.
    """

    kind: Kind
    shape: tuple[int, ...]
    views: tuple[View, ...] = ()
    pieces: frozenset[tuple[int, Section]] = frozenset()
    seen: int = 0
    known: Known | None = None
    onehot: bool = False
    opaque: bool = False
    based: bool = False
    flat: frozenset[int] = frozenset()
    pending: frozenset[int] = frozenset()

    @property
    def is_data(self) -> bool:
        """Whether the array depends on the inputs."""
        return self.kind is Kind.DATA

    @property
    def is_parameter(self) -> bool:
        """Whether the array is a parameter, possibly rearranged."""
        return self.kind is Kind.PARAMETER

    @property
    def is_constant(self) -> bool:
        """Whether the array depends on nothing."""
        return self.kind is Kind.CONSTANT

    def features(self, axis: int) -> bool:
        """Whether features run along the axis."""
        return any(view.spans[axis].featured for view in self.views if view.leaf != INPUT)

    def varies(self, axis: int) -> bool:
        """Whether features or inputs are known to run along the axis."""
        return any(view.spans[axis].featured for view in self.views)

    def bare(self) -> Value:
        """The same array, with no knowledge about its axes."""
        return self._replace(views=(), pieces=frozenset(), onehot=False, known=None)

    def map(self, shape: tuple[int, ...], move: Callable[[View], View]) -> Value:
        """The array after a rearrangement, with its views moved."""
        return self._replace(shape=shape, views=distinct(map(move, self.views)), known=None, flat=frozenset())

    def broadcast(self, shape: tuple[int, ...], at: Sequence[int]) -> Value:
        """The array repeated along new axes, and along axes of length one; axis i becomes axis ``at[i]``."""
        kept = {new for axis, new in enumerate(at) if self.shape[axis] == shape[new] and axis not in self.flat}
        made = self.map(shape, lambda view: broadcast_view(view, self.shape, shape, at))
        return made._replace(flat=frozenset(range(len(shape))) - kept)

    def stale(self) -> Value:
        """The array after a function of its elements that is not affine."""
        return self._replace(pieces=frozenset(), onehot=False, known=None)


def constant(shape: tuple[int, ...], known: Known | None = None, onehot: bool = False) -> Value:
    """An array that depends on nothing."""
    return Value(Kind.CONSTANT, shape, known=known, onehot=onehot)


def fresh(shape: tuple[int, ...], *sources: Value, opaque: bool = False) -> Value:
    """Data about which only its sources are known."""
    return Value(Kind.DATA, shape, seen=union(sources), opaque=opaque)


def union(values: Iterable[Value]) -> int:
    """The parameters on which any of the arrays depends."""
    seen = 0
    for value in values:
        seen |= value.seen
    return seen


def distinct(views: Iterable[View]) -> tuple[View, ...]:
    """The views without repetitions, in their order."""
    return tuple(dict.fromkeys(views))
