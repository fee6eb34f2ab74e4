"""The digits of axes against NumPy: a random walk of reshapes, transpositions and slices, checked element by element."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from modula_rs.tracing import axes
from modula_rs.tracing.axes import View

SIZES = st.lists(st.sampled_from([1, 2, 3, 4, 6, 12]), min_size=1, max_size=3)


@st.composite
def walks(draw: Any) -> tuple[tuple[int, ...], np.ndarray, View, list[axes.Section]]:
    """A parameter's shape, the array of its flat indices after some moves, the view, and the chosen sections."""
    start = tuple(draw(SIZES))
    array, view = np.arange(math.prod(start)).reshape(start), axes.whole_array(0, start)
    taken: list[axes.Section] = []
    for _ in range(draw(st.integers(0, 5))):
        old = array.shape
        move = draw(st.sampled_from(["reshape", "transpose", "cut", "step", "broadcast"]))
        if move == "reshape":
            new = draw(st.sampled_from(_factorisations(array.size)))
            array, view = array.reshape(new), axes.reshape_view(view, old, new)
        elif move == "transpose":
            order = draw(st.permutations(range(array.ndim)))
            array, view = array.transpose(order), axes.transpose_view(view, order)
        elif move == "broadcast":
            array, view = np.broadcast_to(array, (2, *old)), axes.broadcast_view(view, old, (2, *old), range(1, array.ndim + 1))
        elif array.ndim and array.size:
            axis = draw(st.integers(0, array.ndim - 1))
            n = old[axis]
            low = draw(st.integers(0, n - 1))
            high = draw(st.integers(low + 1, n))
            step = draw(st.integers(2, 3)) if move == "step" else 1
            made = axes.cut_view(view, axis, n, low, high, step)
            assert made is not None  # the whole parameter lies in the array
            view, sections = made
            taken += sections
            array = array[(slice(None),) * axis + (slice(low, high, step),)]
    return start, array, view, taken


def _factorisations(size: int) -> list[tuple[int, ...]]:
    pairs = [(a, size // a) for a in range(1, size + 1) if size % a == 0]
    return [(size,), *pairs, *[(a, b, c) for a, rest in pairs for b in range(1, rest + 1) if rest % b == 0 for c in [rest // b]]]


def _digits(factors: tuple[axes.Factor, ...], index: np.ndarray) -> list[tuple[axes.Factor, np.ndarray]]:
    made = []
    for factor in reversed(factors):
        made.append((factor, index % factor.size))
        index = index // factor.size
    return made


@given(walks())
def test_a_view_says_where_every_element_comes_from(walk: Any) -> None:
    start, array, view, taken = walk
    assert len(view.spans) == array.ndim
    source = np.unravel_index(array, start)
    places = np.indices(array.shape)
    for axis, span in enumerate(view.spans):
        assert not span.factors or (span.start == 0 and span.size == array.shape[axis])
        for factor, digit in _digits(span.factors, places[axis]):
            if factor.own:
                actual = source[factor.axis] // factor.stride % factor.radix
                np.testing.assert_array_equal(actual, factor.first + digit)
    for factor, low, high in taken:
        actual = source[factor.axis] // factor.stride % factor.radix - factor.first
        assert ((low <= actual) & (actual < high)).all()


@given(walks())
def test_a_view_forgets_no_axis(walk: Any) -> None:
    """A parameter's digit that varies over the array runs along an axis of the view, unless the axis is blurred."""
    start, array, view, _ = walk
    if any(f.axis == axes.BLURRED for span in view.spans for f in span.factors):
        return
    for axis, indices in enumerate(np.unravel_index(array, start)):
        found = math.prod(f.size for span in view.spans for f in span.own if f.axis == axis)
        assert len(np.unique(indices)) == found
