"""Where blocks lie if their array is split over a mesh, against a simulation that numbers every entry."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modula_rs.backend import Batch
from modula_rs.backend.jax.sharded.lay import Lay, Merged, plain, share, split

SIZES = {"a": 2, "b": 3, "c": 1}


@st.composite
def lays(draw: Any) -> tuple[Lay, tuple[tuple[str, ...], ...]]:
    """An array of a few axes of a few digits, and mesh axes that divide its axes."""
    digits, axes, roles, spec = [], [], "", []
    free = draw(st.permutations(list(SIZES)))
    for _ in range(draw(st.integers(1, 3))):
        number = draw(st.integers(1, 3))
        own = [draw(st.sampled_from([1, 2, 3, 4, 6])) for _ in range(number)]
        digits += own
        axes.append(number)
        roles += "".join(draw(st.sampled_from("krc")) for _ in range(number))
        names: tuple[str, ...] = ()
        while free and draw(st.booleans()):
            name = free.pop()
            if prod(own) % prod(SIZES[n] for n in (*names, name)) == 0:
                names += (name,)
        spec.append(names)
    return Lay(tuple(digits), tuple(axes), roles), tuple(spec)


def blocks(lay: Lay, array: np.ndarray, digits: tuple[int, ...]) -> np.ndarray:
    """The array as (count, rows, cols), of digits of these sizes."""
    sizes = [prod(digits[at] for at in lay.order if lay.roles[at] == role) for role in "krc"]
    return array.reshape(digits).transpose(lay.order).reshape(sizes)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(lays())
def test_shares_cover_every_block(case: tuple[Lay, Any]) -> None:
    """What the devices hold are blocks of whole rows and columns, as the axes say, each entry as often as there are copies."""
    lay, spec = case
    array = np.arange(prod(lay.shape)).reshape(lay.shape)
    where = split(lay, spec, SIZES)
    whole = blocks(lay, array, lay.digits)
    found = share(Batch("spectral", *whole.shape), lay, where, SIZES).share
    seen = np.zeros(array.size, int)
    for position in np.ndindex(*SIZES.values()):
        at = dict(zip(SIZES, position, strict=True))
        local = array
        for axis, names in enumerate(spec):
            names = [name for name in names if SIZES[name] > 1 and name not in where.gathered[axis]]
            part = 0
            for name in names:
                part = part * SIZES[name] + at[name]
            local = np.split(local, prod(SIZES[name] for name in names), axis=axis)[part]
        digits = tuple(n // prod(SIZES[name] for name in own) for n, own in zip(lay.digits, where.digits, strict=True))
        held = blocks(lay, local, digits)
        assert held.shape == (
            len(whole) // found.ways(found.over),
            *(whole.shape[1] // found.ways(found.rows), whole.shape[2] // found.ways(found.cols)),
        )
        seen[held.reshape(-1)] += 1
        # The entries of a held block belong to one block, and those of its rows to one row.
        index = np.argsort(whole, axis=None)[held]
        owner = np.stack(np.unravel_index(index, whole.shape))
        assert (owner[0] == owner[0][:, :1, :1]).all()
        assert (owner[1] == owner[1][:, :, :1]).all()
        assert (owner[2] == owner[2][:, :1, :]).all()
    assert (seen == found.ways(where.copies)).all()


@pytest.mark.parametrize(
    ("shape", "batch", "roles"),
    [
        ((5, 3, 3, 16, 8), (45, 16, 8), "kkkrc"),
        ((7, 4), (7, 1, 4), "kc"),
        ((4,), (1, 1, 4), "c"),
        ((), (1, 1, 1), ""),
        ((5, 1), (1, 5, 1), "rr"),
    ],
)
def test_plain_arrays(shape: tuple[int, ...], batch: tuple[int, ...], roles: str) -> None:
    assert plain(shape, Batch("spectral", *batch)).roles == roles


def test_an_array_that_is_no_such_batch() -> None:
    with pytest.raises(ValueError, match="no batch of 16 x 8"):
        plain((3, 8), Batch("spectral", 3, 16, 8))


def test_parts_of_different_sizes_are_gathered_along_their_axis() -> None:
    lay = Lay((16, 96), (1, 1), "cr", cut=1, sections=(64, 16, 16))
    assert split(lay, (("a",), ("b",)), SIZES).gathered == ((), ("b",))
    assert split(lay, (("a",), ("b",)), SIZES).digits == (("a",), ())


def test_the_axes_along_which_a_merged_axis_is_split_as_a_whole() -> None:
    assert Merged((2, 3), (("a",), ())).spec(SIZES) == ("a",)
    assert Merged((2, 3), (("a",), ("b",))).spec(SIZES) == ("a", "b")
    assert Merged((4, 3), (("a",), ("b",))).spec(SIZES) == ("a",)
    assert Merged((2, 3), ((), ("b",))).spec(SIZES) == ()
