"""Derives what a parameter is from its uses: its kind and its layout, or the reason why the program does not decide."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import gcd
from typing import NamedTuple

import numpy as np

from modula_rs.tracing.axes import Factor
from modula_rs.tracing.layout import Layout, make_layout
from modula_rs.tracing.record import BIAS, CONV, DEPTHWISE, EMBED, LINEAR, PLACES, SCALE, UNKNOWN, Record, Use

KINDS = {
    LINEAR: "Linear",
    CONV: "Conv2D",
    EMBED: "Embed",
    PLACES: "Embed",
    BIAS: "Bias",
    SCALE: "Scale",
    DEPTHWISE: "Scale",
}


class Role(NamedTuple):
    """One way in which the program uses a parameter, with the layout that this use gives."""

    kind: str
    layout: Layout
    use: Use


@dataclass(frozen=True)
class Finding:
    """The result for a parameter: its roles, the leading role first, or the problem.

    ``notes``: questions that the program leaves open; ``stack``: for a problem, the layout that the loops over the parameter give.
    """

    roles: tuple[Role, ...] = ()
    problem: str = ""
    notes: tuple[str, ...] = ()
    unused: bool = False
    stack: Layout | None = None


class _Problem(Exception):
    """A layout that no mixed radix describes, or parts that are not all used."""


def find(record: Record, leaf: int, shape: Sequence[int], independent: set[Factor]) -> Finding:
    """The finding for one parameter, of which the ``independent`` digits only count blocks."""
    found = record.uses[leaf]
    notes = tuple(sorted(record.lost[leaf]))
    unknown = list(dict.fromkeys(use.why for use in found if use.kind == UNKNOWN))
    if not found:
        return Finding(problem="the program does not use it", unused=True)
    axes = _Axes(record, leaf, shape, independent)
    if unknown:
        others = list(dict.fromkeys(use.why for use in found if use.kind != UNKNOWN))
        problem = "; ".join(unknown + [f"elsewhere {why}" for why in others])
        return Finding(problem=problem, notes=notes, stack=axes.stack())
    roles: dict[tuple[str, Layout], Role] = {}
    try:
        for use in found:
            made = axes.layout(use)
            roles.setdefault((KINDS[use.kind], made), Role(KINDS[use.kind], made, use))
    except _Problem as problem:
        return Finding(problem=f"{found[0].why}; {problem}", notes=notes)
    ordered = sorted(roles.values(), key=lambda role: role.kind != "Embed")
    if conflict := _conflict(ordered):
        return Finding(problem=conflict, notes=notes)
    return Finding(tuple(ordered), notes=notes + axes.notes)


def _conflict(roles: Sequence[Role]) -> str:
    """The reason why roles contradict each other, or "". A table may be a matrix too, and a matrix may be used transposed."""
    kinds = {role.kind for role in roles}
    tables = any(role.kind == "Embed" and role.use.kind == PLACES for role in roles)
    fits = kinds in ({"Linear"}, {"Conv2D"}) or (kinds == {"Embed", "Linear"} and not tables) or len(roles) == 1
    same = len(kinds) == 1 and len({role.layout.blocks for role in roles}) == 1
    if fits or same:
        return ""
    return "its uses contradict each other: " + "; ".join(f"{role.use.why} ({role.kind} {role.layout})" for role in roles)


def independents(record: Record, count: int) -> list[set[Factor]]:
    """For each parameter the digits that only count blocks: experts, members of an ensemble.

    A digit of a vector counts if the digit of another parameter along which it runs does.
    """
    made = []
    side_by_side = _side_by_side(record)
    for leaf in range(count):
        own = {f.whole for f in record.independent[leaf]} | {f.whole for other, f in side_by_side if other == leaf}
        made.append(own | {f.whole for use in record.uses[leaf] if use.kind == LINEAR for f, role in use.roles if role == "."})
    changed = True
    while changed:
        changed = False
        for leaf in range(count):
            for mine, other, host in record.alongside[leaf]:
                if host.whole in made[other] and mine.whole not in made[leaf]:
                    made[leaf].add(mine.whole)
                    changed = True
    return made


def _side_by_side(record: Record) -> list[tuple[int, Factor]]:
    """The digits over which loops run whose turns do not feed each other, such as a loop over experts: they are no layers."""

    def serial(digits: list[tuple[int, Factor]]) -> bool:
        return any(use.seen >> leaf & 1 for leaf, _ in digits for use in record.uses[leaf])

    return [digit for digits in record.loops if not serial(digits) for digit in digits]


class _Axes:
    """The digits of one parameter's axes."""

    def __init__(self, record: Record, leaf: int, shape: Sequence[int], independent: set[Factor]) -> None:
        self.leaf, self.shape, self.independent = leaf, shape, independent
        self.notes: tuple[str, ...] = ()
        self.serial = bool(record.fed >> leaf & 1)
        self.uses = record.uses[leaf]
        self.cuts = {f: s for f, s in record.cuts[leaf].items() if f not in record.rejoined[leaf]}
        self.taken: dict[Factor, set[tuple[int | None, int | None]]] = {}
        for use in self.uses:
            for factor, low, high in use.taken:
                self.taken.setdefault(factor, set()).add((low, high))

    def layout(self, use: Use) -> Layout:
        """The layout that one use of the parameter gives."""
        digits: list[list[tuple[str, int]]] = []
        cut: tuple[int, int] | None = None
        sections: tuple[int, ...] = ()
        for axis, n in enumerate(self.shape):
            roles = [(f.whole, letter) for f, letter in use.roles if f.axis == axis]
            parts = self._parts(axis, n, use, roles)
            if parts is not None and len(parts.lengths) != parts.period:
                if cut is not None:
                    raise _Problem("two of its axes are cut unevenly")
                cut = axis, -1
            items, place = self._digits(axis, n, roles, parts, use.kind == LINEAR)
            digits.append(items)
            if parts is not None and cut == (axis, -1):
                cut, sections = (axis, place), parts.lengths
        return make_layout(self.shape, digits, cut, sections)

    def stack(self) -> Layout | None:
        """The layout of a vector of the layers that loops choose, if all uses agree on it."""
        try:
            layouts = {self.layout(use) for use in self.uses if use.kind == UNKNOWN}
        except _Problem:
            return None
        return layouts.pop() if len(layouts) == 1 else None

    def _digits(
        self, axis: int, n: int, roles: list[tuple[Factor, str]], parts: _Parts | None, product: bool
    ) -> tuple[list[tuple[str, int]], int]:
        """The letters and sizes of an axis's digits, the outermost first, and the position of the digit with uneven parts."""
        bounds = {1, n}
        for factor in [f for f, _ in roles] + [f for f in self.independent if f.axis == axis]:
            bounds |= {factor.stride, factor.stride * factor.radix}
        if parts is not None:
            if not any(1 < bound < parts.inner for bound in bounds) and len(parts.lengths) != parts.period:
                parts.widen()
            bounds |= {parts.inner, parts.inner * parts.period}
        chain = sorted(bounds)
        if any(b % a for a, b in pairwise(chain)) or chain[-1] != n:
            raise _Problem(f"axis {axis} of length {n} is cut at {chain[1:-1]}, which are no multiples of each other")
        items: list[tuple[str, int]] = []
        place = -1
        for low, high in zip(chain[-2::-1], chain[:0:-1], strict=True):
            digit = Factor(axis, low, high // low, high // low)
            letter = next((letter for f, letter in roles if _inside(digit, f)), "") or self._absent(digit)
            if letter and letter in ("oi" if product else "o") and any(_inside(digit, f) for f in self.independent):
                letter = "."
            if parts is not None and (low, high) == (parts.inner, parts.inner * parts.period):
                if len(parts.lengths) == parts.period:
                    letter = "/"
                else:
                    place = len(items)
            items.append((letter, digit.size))
        return items, place

    def _absent(self, digit: Factor) -> str:
        """The letter of a digit that a scan or an index chooses: layers if the output of one index is the input of the next, else parts."""
        if any(_inside(digit, f) for f in self.independent):
            return "."
        for factor, found in self.taken.items():
            if not _inside(digit, factor.whole) or (None, None) in found:
                continue
            if not _tiles(found, factor.size):
                raise _Problem(
                    f"only the parts {sorted(found, key=str)} of axis {digit.axis}, of length {self.shape[digit.axis]}, are used"
                )
            return "l" if self.serial else "/"
        return "l"

    def _parts(self, axis: int, n: int, use: Use, roles: list[tuple[Factor, str]]) -> _Parts | None:
        """The parts into which the axis is cut, if each part has a function of its own."""
        groups: list[tuple[Factor, list[tuple[int, int]]]] = []
        if use.kind in (LINEAR, CONV, EMBED, BIAS):
            for factor, sections in self.cuts.items():
                if factor.axis != axis or not any(letter == "o" and _inside(factor.whole, f) for f, letter in roles):
                    continue
                if _tiles(sections, factor.size):
                    groups.append((factor, sorted(sections)))
                else:
                    low, high = min(sections)
                    self.notes = (*self.notes, f"of {factor.size} features {low}:{high} are also used by themselves")
        for factor, found in self.taken.items():
            letter = next((letter for f, letter in roles if _inside(factor.whole, f)), "")
            if factor.axis != axis or not letter or (letter == "i" and use.kind in (EMBED, PLACES)):
                continue
            known = [(low, high) for low, high in found if low is not None and high is not None]
            if len(known) < len(found) or not _tiles(known, factor.size):
                raise _Problem(f"only the parts {sorted(found, key=str)} of axis {axis}, of length {n}, are used")
            groups.append((factor, sorted(known)))
        return _partition(n, groups) if groups else None


def _inside(digit: Factor, other: Factor) -> bool:
    inner, outer = other.stride, other.stride * other.radix
    return digit.axis == other.axis and inner <= digit.stride and digit.stride * digit.radix <= outer


def _tiles(sections: Iterable[tuple[int | None, int | None]], size: int) -> bool:
    """Whether there are two or more sections, which lie one after the other and cover ``size``."""
    ordered = sorted((low, high) for low, high in sections if low is not None and high is not None)
    ends = [0, *(high for _, high in ordered)]
    return len(ordered) > 1 and [low for low, _ in ordered] == ends[:-1] and ends[-1] == size


@dataclass
class _Parts:
    """A digit of stride ``inner`` and size ``period``, cut into parts of the given lengths."""

    inner: int
    period: int
    lengths: tuple[int, ...]

    def widen(self) -> None:
        """The same parts as parts of a digit of stride 1."""
        self.lengths = tuple(n * self.inner for n in self.lengths)
        self.period *= self.inner
        self.inner = 1


def _partition(n: int, groups: list[tuple[Factor, list[tuple[int, int]]]]) -> _Parts:
    """The parts of an axis of length n that several cuts make together."""
    labels = np.zeros(n, dtype=np.int64)
    for factor, sections in groups:
        digit = np.arange(n) // factor.stride % factor.radix - factor.first
        part = sum((k * ((low <= digit) & (digit < high)) for k, (low, high) in enumerate(sections, 1)), np.zeros(n, dtype=np.int64))
        labels = np.unique(labels * (len(sections) + 1) + part, return_inverse=True)[1]
    changes = np.flatnonzero(np.diff(labels)) + 1
    inner = gcd(n, *changes.tolist())
    runs = labels[::inner]
    period = next(p for p in range(1, len(runs) + 1) if len(runs) % p == 0 and (runs == np.resize(runs[:p], len(runs))).all())
    starts = [0, *(np.flatnonzero(np.diff(runs[:period])) + 1).tolist(), period]
    lengths = tuple(b - a for a, b in pairwise(starts))
    if len(lengths) != len(np.unique(runs[:period])):
        raise _Problem(f"its {n} features are cut into parts that do not lie in one piece")
    return _Parts(inner, period, lengths)
