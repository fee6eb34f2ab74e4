"""Composition: the modules that ``@``, ``+``, ``-``, ``*``, ``/``, ``**`` and tuples make."""

from __future__ import annotations

import copy
import operator
from typing import TYPE_CHECKING, Any, Self, cast

from modula_rs.checks import is_number, number
from modula_rs.network.construction import Made

if TYPE_CHECKING:
    from modula_rs.network.module import Module

#: Tuples nested more deeply are refused before they exhaust the stack; the core refuses tuples at a lower limit of its own.
_DEEPEST = 100


class Composable:
    """The operators of :class:`Module`. Each appends a call to the calls that made its operands."""

    _made: Made

    #: With None, NumPy leaves ``array * module`` to the module, instead of multiplying every entry by the module.
    __array_ufunc__ = None

    @classmethod
    def _of(cls, made: Made) -> Module:
        raise NotImplementedError

    def __matmul__(self, inner: Any) -> Module:
        other = _made_of(inner)
        return NotImplemented if other is None else self._of(self._made.compose(other))

    def __rmatmul__(self, outer: Any) -> Module:
        other = _made_of(outer)
        return NotImplemented if other is None else self._of(other.compose(self._made))

    def __add__(self, other: Any) -> Module:
        if isinstance(other, int) and other == 0:  # the built-in sum() starts from 0
            return cast("Module", self)
        if not isinstance(other, Composable):
            return NotImplemented
        from modula_rs.network.bond import Add  # an Add is a module, and so needs this file

        return Add() @ (self, other)

    __radd__ = __add__

    def __mul__(self, scalar: Any) -> Module:
        return self @ _mul(scalar) if is_number(scalar) else NotImplemented

    def __rmul__(self, scalar: Any) -> Module:
        return _mul(scalar) @ self if is_number(scalar) else NotImplemented

    def __truediv__(self, scalar: Any) -> Module:
        if not is_number(scalar):
            return NotImplemented
        divisor = number("the divisor of a module", scalar)
        if divisor == 0.0:
            raise ZeroDivisionError(f"cannot divide {self._made.tree} by 0")
        return self * (1.0 / divisor)

    def __neg__(self) -> Module:
        return -1.0 * self

    def __sub__(self, other: Any) -> Module:
        return self + (-1.0) * other if isinstance(other, Composable) else NotImplemented

    def __pow__(self, times: Any) -> Module:
        try:
            count = operator.index(times)
        except TypeError:
            return NotImplemented
        if not 0 <= count < 2**63:
            raise ValueError(f"the power of a module must be at least 0 and below 2^63, got {count if count < 0 else 'more'}")
        try:
            return self._of(self._made.changed("power", count))
        except ValueError:
            if count == 1:  # the output of a single copy is not fed to another copy, so its size may differ from the input's
                return self._of(self._made)
            raise

    def tare(self, absolute: float = 1.0, relative: float | None = None) -> Self:
        """Rescales the masses of this module and of all its parts, in place, and returns the module.

        Args:
            absolute: the new mass of the whole.
            relative: if given, a factor of all masses, instead of ``absolute``.

        Raises:
            TypeError: a value that is no number.
            ValueError: the mass is 0, or the new mass is negative or not finite.

        >>> import modula_rs as mr
        >>> (mr.Linear(4, 4) ** 10).tare(5).mass
        5.0
        """
        if relative is None:
            self._made = self._made.changed("tare_absolute", number("the absolute mass of a tare", absolute))
        else:
            self._made = self._made.changed("tare_relative", number("the relative mass of a tare", relative))
        return self

    def named(self, name: str) -> Self:
        """The same module under a name, which shows in the paths of its leaves. The original is not changed.

        >>> import modula_rs as mr
        >>> [leaf.path for leaf in (mr.Linear(4, 4).named("q") ** 2).named("blocks").leaves]
        ['blocks/q']
        """
        renamed = copy.copy(self)
        renamed._made = self._made.changed("named", name)
        return renamed


def _made_of(value: Any, known: dict[int, Made | None] | None = None, depth: int = 0) -> Made | None:
    """The calls that made a module, or a tuple of modules and tuples (a tuple used twice is one part); None for anything else."""
    if isinstance(value, Composable):
        return value._made
    if not isinstance(value, tuple | list):
        return None
    if depth == _DEEPEST:
        raise ValueError(f"tuples of modules are nested more than {_DEEPEST} deep")
    known = {} if known is None else known
    if id(value) not in known:
        members = [_made_of(member, known, depth + 1) for member in value]
        known[id(value)] = None if None in members else Made.tuple([member for member in members if member is not None])
    return known[id(value)]


def _mul(scalar: Any) -> Module:
    from modula_rs.network.bond import Mul  # a Mul is a module, and so needs this file

    return Mul(scalar)
