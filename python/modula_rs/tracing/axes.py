"""How the axes of an array lie in the axes of another one, through reshapes, transpositions and slices.

An axis of a parameter is read as a number in a mixed radix: reshaping splits its digits, a slice narrows one. A ``View`` says which digits
of one parameter's axes run along each axis of an array. The array is either the parameter itself, rearranged, or data whose features the
parameter made: the output of a product runs along the free axes of its weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

# Values of ``Factor.axis`` for digits that belong to no axis of the parameter: DATA runs along none.
DATA = -1
BLURRED = -2  # runs along features, whose place in the parameter is not known

# The value of ``View.leaf`` for the inputs, whose views say along which axes data varies.
INPUT = -1


class Factor(NamedTuple):
    """A digit of an axis: the index is a sum of ``stride * (first + digit)``, with digit < ``size``.

    ``radix`` is the size before any slice narrowed it.
    """

    axis: int
    stride: int
    size: int
    radix: int
    first: int = 0

    @property
    def own(self) -> bool:
        """Whether this is a digit of one of the parameter's axes."""
        return self.axis >= 0

    @property
    def whole(self) -> Factor:
        """The digit before any slice narrowed it."""
        return self._replace(size=self.radix, first=0)


class Section(NamedTuple):
    """A slice of a digit: the part from ``low`` to ``high``. Both are None if the program computes them."""

    factor: Factor
    low: int | None
    high: int | None


class Span(NamedTuple):
    """The factors that run along an axis of an array, from index ``start`` on. The outermost factor comes first."""

    start: int
    factors: tuple[Factor, ...]

    @property
    def size(self) -> int:
        """The number of indices covered."""
        return prod(factor.size for factor in self.factors)

    @property
    def own(self) -> tuple[Factor, ...]:
        """The parameter's digits among the factors."""
        return tuple(factor for factor in self.factors if factor.own)

    @property
    def featured(self) -> bool:
        """Whether features run along the axis."""
        return any(factor.axis != DATA for factor in self.factors)


def data_span(size: int) -> Span:
    """An axis along which no axis of the parameter runs."""
    return Span(0, (Factor(DATA, 1, size, size),) if size != 1 else ())


def blurred_span(size: int) -> Span:
    """An axis of features whose place in the parameter is not known."""
    return Span(0, (Factor(BLURRED, 1, size, size),) if size != 1 else ())


class View(NamedTuple):
    """Where one parameter's axes lie in an array.

    ``taken``: sections of the parameter chosen on the way; ``rows``: digits looked up by an index; ``inner``: digits contracted with
    another parameter. ``vector``: the features were added or multiplied, not made by a product; ``outer``: the features multiply data that
    is not known to vary along them, such as the statistics that a normalisation multiplies by its gain first.
    """

    leaf: int
    spans: tuple[Span, ...]
    taken: tuple[Section, ...] = ()
    rows: tuple[Factor, ...] = ()
    inner: tuple[Factor, ...] = ()
    vector: bool = False
    outer: bool = False

    @property
    def varies(self) -> bool:
        """Whether the parameter or the input runs along any axis."""
        return any(span.featured for span in self.spans)

    @property
    def labels(self) -> bool:
        """Whether features of this parameter run along any axis."""
        return self.leaf != INPUT and any(span.featured for span in self.spans)

    def move(self, spans: Sequence[Span]) -> View:
        """The view of a rearranged array, whose axes have these spans."""
        return self._replace(spans=tuple(spans))


def whole_array(leaf: int, shape: Sequence[int]) -> View:
    """A parameter's view of itself."""
    return View(leaf, tuple(Span(0, (Factor(axis, 1, n, n),) if n != 1 else ()) for axis, n in enumerate(shape)))


def transpose_view(view: View, permutation: Sequence[int]) -> View:
    """The view after a transposition."""
    return view.move([view.spans[axis] for axis in permutation])


def broadcast_view(view: View, old: Sequence[int], new: Sequence[int], at: Sequence[int]) -> View:
    """The view after ``broadcast_in_dim``: axis i of the old array becomes axis ``at[i]`` of the new one."""
    spans = [data_span(n) for n in new]
    for axis, target in enumerate(at):
        if old[axis] == new[target]:
            spans[target] = view.spans[axis]
    return view.move(spans)


def reshape_view(view: View, old: Sequence[int], new: Sequence[int]) -> View:
    """The view after a reshape. Where the new axes cut across the digits, the features have no known place."""
    spans = [Span(0, ())] * len(new)
    for before, after in _groups(old, new):
        for axis, span in zip(after, _regroup(view, old, new, before, after), strict=True):
            spans[axis] = span
    # An axis of length one that a slice left is kept, because it distinguishes a slice from an index.
    ones = [view.spans[axis] for axis, n in enumerate(old) if n == 1 and view.spans[axis].factors]
    places = [axis for axis, n in enumerate(new) if n == 1]
    for span, place in zip(ones, places, strict=False):
        spans[place] = span
    return view.move(spans)


def _groups(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The shortest runs of old axes and new axes with equal numbers of elements; axes of length one belong to no run."""
    rest_old = [axis for axis, n in enumerate(old) if n != 1]
    rest_new = [axis for axis, n in enumerate(new) if n != 1]
    groups = []
    while rest_old and rest_new:
        before, after = [rest_old.pop(0)], [rest_new.pop(0)]
        while (a := prod(old[i] for i in before)) != (b := prod(new[i] for i in after)):
            source, group = (rest_old, before) if a < b else (rest_new, after)
            if not source:  # an empty array
                break
            group.append(source.pop(0))
        groups.append((before, after))
    return groups


def _regroup(view: View, old: Sequence[int], new: Sequence[int], before: list[int], after: list[int]) -> list[Span]:
    spans = [view.spans[axis] for axis in before]
    if len(before) == len(after) == 1:
        return spans
    if not any(span.featured for span in spans):
        return [data_span(new[axis]) for axis in after]
    if all(span.start == 0 and span.size == old[axis] for span, axis in zip(spans, before, strict=True)):
        made = _distribute([factor for span in spans for factor in span.factors], [new[axis] for axis in after])
        if made is not None:
            return made
    return [blurred_span(new[axis]) for axis in after]


def _distribute(factors: list[Factor], sizes: list[int]) -> list[Span] | None:
    """The factors assigned to axes of the given sizes, split where an axis ends within a factor; None if an axis cuts across factors."""
    merged: list[Factor] = []
    for factor in factors:
        if merged and not factor.own and merged[-1].axis == factor.axis:
            size = merged.pop().size * factor.size
            factor = factor._replace(size=size, radix=size)
        merged.append(factor)
    spans = []
    for size in sizes:
        taken = []
        while size > 1:
            if not merged:
                return None
            factor = merged.pop(0)
            if factor.size > size:
                split = _split(factor, size)
                if split is None:
                    return None
                factor, inner = split
                merged.insert(0, inner)
            if size % factor.size:
                return None
            taken.append(factor)
            size //= factor.size
        spans.append(Span(0, tuple(taken)))
    return spans if not merged else None


def _split(factor: Factor, outer: int) -> tuple[Factor, Factor] | None:
    """A digit split in two: an outer digit of the given size, and the rest."""
    inner = factor.size // outer
    if factor.size % outer or factor.first % inner or factor.radix % inner:
        return None
    high = Factor(factor.axis, factor.stride * inner, outer, factor.radix // inner, factor.first // inner)
    return high, Factor(factor.axis, factor.stride, inner, inner)


def cut_view(view: View, axis: int, size: int, low: int, high: int, step: int = 1) -> tuple[View, list[Section]] | None:
    """The view after a slice of one axis of length ``size``, and the sections of the parameter that the slice chooses.

    None if no part of the parameter is left. An axis that is cut across its digits has no known place afterwards.
    """
    span = view.spans[axis]
    length = -(-(high - low) // step)
    if not span.factors:
        return view, []
    if step != 1:
        made = _stride(span, size, low, length, step)
    else:
        a, b = max(low, span.start), min(high, span.start + span.size)
        if a >= b:
            return None
        made = _narrow(span.factors, a - span.start, b - span.start)
        if made is not None:
            made = Span(a - low if any(f.axis != DATA for f in made[0].factors) else 0, made[0].factors), made[1]
    if made is None:
        made = (blurred_span(length) if span.featured else data_span(length)), []
    elif not any(factor.axis != DATA for factor in made[0].factors):
        made = data_span(length), made[1]
    spans = list(view.spans)
    spans[axis] = made[0]
    return view.move(spans), made[1]


def _stride(span: Span, size: int, low: int, length: int, step: int) -> tuple[Span, list[Section]] | None:
    """The span of every step-th index: the last digit is split in two, and one index of the inner digit is chosen."""
    if span.start or span.size != size or low >= step or length * step != size:
        return None
    made = _distribute(list(span.factors), [length, step])
    if made is None or len(made[1].factors) != 1:
        return None
    factor = made[1].factors[0]
    return made[0], [Section(factor, low, low + 1)] if factor.own else []


def _narrow(factors: tuple[Factor, ...], low: int, high: int) -> tuple[Span, list[Section]] | None:
    if low == 0 and high == prod(factor.size for factor in factors):
        return Span(0, factors), []
    first, rest = factors[0], factors[1:]
    inner = prod(factor.size for factor in rest)
    if low % inner == 0 and high % inner == 0:
        a, b = low // inner, high // inner
        sections = [Section(first, a, b)] if first.own else []
        return Span(0, (first._replace(size=b - a, first=first.first + a), *rest)), sections
    digit = low // inner
    if (high - 1) // inner != digit:
        return None
    made = _narrow(rest, low - digit * inner, high - digit * inner)
    if made is None:
        return None
    return made[0], ([Section(first, digit, digit + 1)] if first.own else []) + made[1]


def cut_anywhere(view: View, axis: int, length: int) -> tuple[View, list[Section]]:
    """The view after a slice at a place that the program computes."""
    own = view.spans[axis].own
    spans = list(view.spans)
    if length == 1 and len(own) == 1:  # the axis is kept until it is squeezed, see reshape_view
        spans[axis] = Span(0, (own[0]._replace(size=1),))
    else:
        spans[axis] = blurred_span(length) if view.spans[axis].featured else data_span(length)
    return view.move(spans), [Section(factor, None, None) for factor in own]
