"""Layouts as text and as views: the blocks are the matrices by which the program multiplies."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modula_rs import tracing
from modula_rs.tracing.layout import LayoutError, parse_layout
from trace_cases import params, shape

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("text", "size", "blocks", "moved"),
    [
        ("io", (4, 6), ((1, 6, 4),), False),
        ("oi", (4, 6), ((1, 4, 6),), False),
        (".io", (3, 4, 6), ((3, 6, 4),), False),
        ("i.o", (4, 3, 6), ((3, 6, 4),), True),
        ("lio", (5, 4, 6), ((5, 6, 4),), False),
        ("ioo", (4, 2, 3), ((1, 6, 4),), False),
        ("iio", (2, 3, 4), ((1, 4, 6),), False),
        ("oio", (2, 3, 4), ((1, 8, 3),), True),
        ("kkio", (3, 3, 4, 6), ((9, 6, 4),), False),
        ("oikk", (6, 4, 3, 3), ((9, 6, 4),), True),
        ("i o/3", (4, 6), ((3, 2, 4),), True),
        ("o/3 i", (6, 4), ((3, 2, 4),), False),
        ("i (o2 /3 o)", (4, 12), ((3, 4, 4),), True),
        ("o/3+2+1 i", (6, 4), ((1, 3, 4), (1, 2, 4), (1, 1, 4)), False),
        ("k k i (.4 o)", (3, 3, 2, 16), ((36, 4, 2),), True),
        ("", (), ((1, 1, 1),), False),
    ],
)
def test_text_and_blocks(text: str, size: tuple[int, ...], blocks: Any, moved: bool) -> None:
    layout = parse_layout(text, size)
    assert layout.blocks == blocks
    assert layout.moved() is moved
    assert parse_layout(str(layout), size) == layout
    array = RNG.normal(size=size)
    for made, (count, out, inner) in zip(layout.to_blocks(array), blocks, strict=True):
        assert made.shape in {(count, out, inner), (count, inner, out)}
    np.testing.assert_array_equal(layout.from_blocks(layout.to_blocks(array)), array)
    assert np.shares_memory(layout.to_blocks(array)[0], array) or moved or not array.ndim


@pytest.mark.parametrize(
    ("text", "size", "message"),
    [
        ("i", (2, 3), "has 1 axes"),
        ("xo", (2, 3), "cannot read"),
        ("i o/", (2, 3), "has 3 axes"),
        ("i o/0", (2, 3), "cannot be cut so"),
        ("i (o2 o)", (2, 3), "does not fit an axis of length 3"),
        ("i (o o)", (2, 4), "does not fit an axis of length 4"),
        ("i /", (2, 3), "parts are parts of a letter"),
        ("i/1+1 o/1+2", (2, 3), "cuts two axes unevenly"),
    ],
)
def test_text_that_is_no_layout(text: str, size: tuple[int, ...], message: str) -> None:
    with pytest.raises(LayoutError, match=message.replace("(", r"\(")):
        parse_layout(text, size)


def _check_matrices(apply: Any, size: tuple[int, ...], inputs: int, matrices: list[np.ndarray]) -> None:
    """Checks that the blocks of the array, possibly transposed, are these (out, in) matrices."""
    array = RNG.normal(size=size).astype("float32")
    leaf = tracing.read(apply, params(w=size), shape(5, inputs))["w"]
    assert leaf.layout is not None
    made = [block for batch in leaf.layout.to_blocks(array) for block in batch]
    for block, matrix in zip(made, [f(array) for f in matrices], strict=True):
        assert block.shape in {matrix.shape, matrix.shape[::-1]}
        assert np.array_equal(block, matrix) or np.array_equal(block.T, matrix)


def _glu(y: Any, z: Any) -> Any:
    return jax.nn.silu(y) * z


@pytest.mark.parametrize(
    ("apply", "size", "matrices"),
    [
        (lambda p, x: _glu(*jnp.split(x @ p["w"], 2, -1)), (3, 8), [lambda w: w[:, :4].T, lambda w: w[:, 4:].T]),
        (lambda p, x: _glu((x @ p["w"])[:, ::2], (x @ p["w"])[:, 1::2]), (3, 8), [lambda w: w[:, ::2].T, lambda w: w[:, 1::2].T]),
        (lambda p, x: jnp.tanh(x @ p["w"].T), (8, 3), [lambda w: w]),
        (
            lambda p, x: _glu(*jnp.moveaxis((x @ p["w"]).reshape(5, 2, 2, 2), 2, 0)),
            (3, 8),
            [lambda w: w[:, [0, 1, 4, 5]].T, lambda w: w[:, [2, 3, 6, 7]].T],
        ),
        (lambda p, x: _glu(x @ p["w"][:, 0], x @ p["w"][:, 1]), (3, 2, 4), [lambda w: w[:, 0].T, lambda w: w[:, 1].T]),
        (
            lambda p, x: jnp.tanh((x @ p["w"])[:, :6]).sum() + (x @ p["w"])[:, 6:].sum(),
            (3, 8),
            [lambda w: w[:, :6].T, lambda w: w[:, 6:].T],
        ),
    ],
)
def test_blocks_are_the_matrices_of_the_program(apply: Any, size: Any, matrices: Any) -> None:
    _check_matrices(apply, size, 3, matrices)


@st.composite
def storages(draw: Any) -> tuple[list[int], list[int], int, list[int]]:
    """Digits of the fan-in and the fan-out, the number of members, and the order in which an array keeps them."""
    inner, out = (
        draw(st.lists(st.sampled_from([2, 3]), min_size=1, max_size=2)),
        draw(st.lists(st.sampled_from([2, 3]), min_size=1, max_size=2)),
    )
    members = draw(st.sampled_from([1, 4]))
    order = draw(st.permutations(range(1 + len(inner) + len(out))))
    return inner, out, members, order


@settings(max_examples=40, deadline=None)
@given(storages())
def test_singular_values_do_not_depend_on_how_a_matrix_is_kept(storage: Any) -> None:
    """For any order of the digits of (members, in, out), the blocks have the singular values of the matrices, computed in float64."""
    inner, out, members, order = storage
    kept = [members, *inner, *out]
    matrices = RNG.normal(size=(members, math.prod(inner), math.prod(out)))
    array = matrices.reshape(kept).transpose(order)
    back = np.argsort(order).tolist()

    def apply(p: Any, x: Any) -> Any:
        weight = jnp.transpose(p["w"], back).reshape(members, math.prod(inner), math.prod(out))
        return jax.vmap(lambda x, w: x @ w)(x, weight)

    leaf = tracing.read(apply, params(w=array.shape), shape(members, 7, math.prod(inner)))["w"]
    assert leaf.layout is not None
    assert leaf.blocks == (members, math.prod(out), math.prod(inner))
    (blocks,) = leaf.layout.to_blocks(array)
    np.testing.assert_allclose(np.linalg.svd(blocks, compute_uv=False), np.linalg.svd(matrices, compute_uv=False), rtol=1e-12)
    np.testing.assert_array_equal(leaf.layout.from_blocks([blocks]), array)


def test_units_are_the_geometric_norms_at_which_an_atom_has_norm_one() -> None:
    def apply(p: Any, ids: Any, x: Any) -> Any:
        y = p["table"][ids] * p["gain"] + p["bias"]
        z = jax.lax.conv_general_dilated(x, p["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        z = jax.lax.conv_general_dilated(z, p["depth"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=18)
        return y @ p["out"], z, jnp.split(y @ p["two"], [4], -1)

    given = params(table=(50, 8), gain=(8,), bias=(8,), conv=(3, 3, 2, 18), depth=(3, 3, 1, 18), out=(8, 2), two=(8, 6))
    reading = tracing.read(apply, given, shape(3, 7, dtype="int32"), shape(2, 6, 6, 2))
    assert {leaf.path: (leaf.geometry, leaf.unit) for leaf in reading.leaves} == {
        "table": ("row_rms", 1.0),
        "gain": ("max_abs", 1.0),
        "bias": ("rms", 1.0),
        "conv": ("spectral", 3.0 / 9),
        "depth": ("max_abs", 1 / 9),
        "out": ("spectral", 0.5),
        "two": ("spectral", ((4 / 8) ** 0.5, (2 / 8) ** 0.5)),
    }
