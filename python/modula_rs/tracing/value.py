"""What is known of an array of the program: a constant, a rearranged parameter, or data."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any, NamedTuple

from numpy.typing import NDArray

from modula_rs.tracing.axes import Section, View


class Kind(Enum):
    """Whether an array depends on nothing, on parameters alone and affinely so, or on the inputs."""

    CONSTANT = "constant"
    PARAMETER = "parameter"
    DATA = "data"


class Known:
    """The value of a small constant. Equal only to itself, so that values can be compared."""

    __slots__ = ("array",)

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array


class Value(NamedTuple):
    """An array of the program.

    ``views``: where the axes of parameters lie in it. For a parameter they are the terms of a sum or the parts of a concatenation; for data
    they say whose features run along which axes. ``pieces``: sections of features that the array was cut to. ``seen``: the parameters on
    which data depends, as bits; of rows looked up, those on which the index depends. ``known``: the value of a small constant.
    ``onehot``: rows of a unit matrix. ``opaque``: features run along unknown axes. ``based``: a constant was added to a parameter.
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

    @property
    def is_data(self) -> bool:
        """Whether it depends on the inputs."""
        return self.kind is Kind.DATA

    @property
    def is_parameter(self) -> bool:
        """Whether it is a parameter, rearranged."""
        return self.kind is Kind.PARAMETER

    @property
    def is_constant(self) -> bool:
        """Whether it depends on nothing."""
        return self.kind is Kind.CONSTANT

    def features(self, axis: int) -> bool:
        """Whether features run along the axis."""
        return any(view.spans[axis].featured for view in self.views)

    def bare(self) -> Value:
        """The same array with nothing known of its axes."""
        return self._replace(views=(), pieces=frozenset(), onehot=False, known=None)

    def map(self, shape: tuple[int, ...], move: Callable[[View], View]) -> Value:
        """A rearranged array."""
        return self._replace(shape=shape, views=distinct(map(move, self.views)), known=None)

    def stale(self) -> Value:
        """The array after a function of its elements that is not affine."""
        views = tuple(view._replace(live=False) for view in self.views)
        return self._replace(views=views, pieces=frozenset(), onehot=False, known=None)


def constant(shape: tuple[int, ...], known: Known | None = None, onehot: bool = False) -> Value:
    """An array that depends on nothing."""
    return Value(Kind.CONSTANT, shape, known=known, onehot=onehot)


def fresh(shape: tuple[int, ...], *sources: Value, opaque: bool = False) -> Value:
    """Data of which only its sources are known."""
    return Value(Kind.DATA, shape, seen=union(sources), opaque=opaque)


def union(values: Iterable[Value]) -> int:
    """The parameters on which any of the arrays depends."""
    seen = 0
    for value in values:
        seen |= value.seen
    return seen


def distinct(views: Iterable[View]) -> tuple[View, ...]:
    """The views without repetitions; of two that differ only in ``live`` the live one."""
    kept: dict[View, bool] = {}
    for view in views:
        key = view._replace(live=False)
        kept[key] = kept.get(key, False) or view.live
    return tuple(view._replace(live=live) for view, live in kept.items())
