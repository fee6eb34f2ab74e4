"""Unusual arrays: strided, read-only, byte-swapped, of one row or none, of several libraries. Equal calls give equal bits."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import modula_rs as mr
import numpy as np
import pytest
from battery import DTYPES, arrays, check_like, model, to, wide
from modula_rs import _core

MAPS: dict[str, Callable[[list[Any]], Any]] = {
    "normalize": lambda w: model().normalize(w),
    "dualize": lambda w: model().dualize(w),
    "project": lambda w: model().project(w),
    "regularize": lambda w: model().regularize(w, 0.1),
    "norm": lambda w: model().norm(w),
    "dual_norm": lambda w: model().dual_norm(w),
}

LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "Fortran order": np.asfortranarray,
    "every other number": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "backwards": lambda a: np.ascontiguousarray(a[..., ::-1])[..., ::-1],
    "unaligned": lambda a: np.frombuffer(b"\0" + a.tobytes(), a.dtype, a.size, 1).reshape(a.shape) if a.size else a,
    "a subclass": lambda a: a.view(_Subclass),
}


class _Subclass(np.ndarray):
    pass


def same_bits(ours, theirs):
    for a, b in zip(ours, theirs, strict=True) if isinstance(ours, list) else [(ours, theirs)]:
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MAPS)
def test_layouts_make_no_difference(name, dtype):
    given = arrays("ordinary", dtype)
    expected = MAPS[name](given)
    for layout, change in LAYOUTS.items():
        changed = [change(a) for a in given]
        made = MAPS[name](changed)
        same_bits(made, expected)
        if isinstance(made, list):
            assert [a.dtype for a in made] == [a.dtype for a in given], layout
            assert all(a.flags.writeable and a.flags.c_contiguous for a in made), layout


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MAPS)
def test_read_only_arrays_are_read(name, dtype):
    given = arrays("ordinary", dtype)
    expected = MAPS[name]([a.copy() for a in given])
    for array in given:
        array.flags.writeable = False
    same_bits(MAPS[name](given), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["normalize", "dualize", "project", "regularize"])
def test_results_are_new_arrays(name, dtype):
    given = arrays("ordinary", dtype)
    for array, made in zip(given, MAPS[name](given), strict=True):
        assert not np.shares_memory(array, made)


@pytest.mark.parametrize("bytes_together", [1, 100, 2**25])
def test_results_side_by_side_do_not_overlap(monkeypatch, bytes_together):
    given = [a.astype(DTYPES[i // 2 % 4]) for i, a in enumerate(arrays("ordinary", "float64"))]
    expected = MAPS["dualize"](given)
    monkeypatch.setattr("modula_rs.backend.numpy._BLOCK", bytes_together)
    made = MAPS["dualize"](given)
    same_bits(made, expected)
    for i, array in enumerate(made):
        assert array.flags.c_contiguous
        before = [other.copy() for other in made]
        array[...] = 7
        same_bits(made[:i] + made[i + 1 :], before[:i] + before[i + 1 :])


@pytest.mark.parametrize("sizes", [[], [5], [7], [6, 1], [3, 3]])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_room_that_does_not_fit_is_refused(sizes, dtype):
    norm = mr.Linear(2, 3).norm_table.core
    room = [np.empty(size, dtype) for size in sizes]
    with pytest.raises(ValueError, match="room for the results"):
        _core.execute(norm, norm.recipe("dualize"), [(np.ones((2, 3), np.float32), "float32")], room, None, 1.0, "standard", "raise")


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("name", MAPS)
def test_byte_swapped_arrays_keep_their_dtype(name, dtype):
    given = arrays("ordinary", dtype)
    expected = MAPS[name](given)
    swapped = [a.astype(a.dtype.newbyteorder()) for a in given]
    made = MAPS[name](swapped)
    if isinstance(made, list):
        assert [a.dtype for a in made] == [a.dtype for a in swapped]
        made = [a.astype(dtype) for a in made]
    same_bits(made, expected)


@pytest.mark.parametrize("name", MAPS)
def test_a_broadcast_array_is_one(name):
    given = [np.broadcast_to(np.float32(0.5), a.shape) for a in arrays("ordinary", "float32")]
    same_bits(MAPS[name](given), MAPS[name]([a.copy() for a in given]))


@pytest.mark.parametrize("name", MAPS)
def test_the_same_bits_every_time(name):
    given = arrays("ordinary", "float32")
    first = MAPS[name](given)
    for _ in range(3):
        same_bits(MAPS[name](given), first)


@pytest.mark.parametrize("name", MAPS)
def test_dtypes_may_differ_between_leaves(name):
    given = [a.astype(DTYPES[i % 4]) for i, a in enumerate(arrays("ordinary", "float64"))]
    made = MAPS[name](given)
    if isinstance(made, list):
        check_like(made, given)
    else:
        assert np.isfinite(made)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["normalize", "dualize", "project", "norm", "dual_norm"])
def test_numpy_and_jax_agree(name):
    given = arrays("ordinary", "float32")
    ours, theirs = MAPS[name](given), MAPS[name](to("jax", given))
    pairs = zip(ours, theirs, strict=True) if isinstance(ours, list) else [(ours, theirs)]
    for a, b in pairs:
        # Both results keep the same promise: norms within 1 %, singular values of a direction within 0.01.
        np.testing.assert_allclose(wide(a), wide(b), atol=0.02 * max(1e-30, np.abs(wide(a)).max(initial=0)))


def test_a_list_that_mixes_libraries_is_refused():
    m = mr.Linear(2, 3) @ mr.Linear(3, 3)
    w = m.initialize(0)
    for name, function in {"norm": m.norm, "dual_norm": m.dual_norm, "normalize": m.normalize, "dualize": m.dualize}.items():
        with pytest.raises(TypeError, match="one library, got numpy for linear and jax for linear_1"):
            function([w[0], jnp.asarray(w[1])])
        assert name
    with pytest.raises(TypeError, match="one library"):
        m.regularize([jnp.asarray(w[0]), w[1]], 0.1)
    with pytest.raises(TypeError, match="one library"):
        m(np.ones((1, 3)), [jnp.asarray(w[0]), w[1]])


def test_results_stay_where_they_are():
    m = mr.Linear(2, 3)
    w = m.initialize(jax.random.key(0))
    for made in (m.normalize(w), m.dualize(w), m.project(w), m.regularize(w, 0.1)):
        assert made[0].devices() == w[0].devices()
    assert isinstance(m(np.ones((1, 3), np.float32), w), jax.Array)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_initialize_gives_what_was_asked_for(dtype):
    m = mr.Linear(2, 3) ** 0 @ mr.Conv2D(4, 3) @ mr.Linear(3, 3) ** 2 @ mr.Scale(3) @ mr.Bias(3) @ mr.Embed(3, 4)
    for key in (3, np.random.default_rng(3), jax.random.key(3)):
        with jax.enable_x64(dtype == "float64"):
            w = m.initialize(key, dtype)
        assert [(a.shape, a.dtype.name) for a in w] == [(leaf.shape, dtype) for leaf in m.leaves]
        assert all(isinstance(a, jax.Array) == isinstance(key, jax.Array) for a in w)
    same_bits(m.initialize(3, dtype), m.initialize(np.random.default_rng(3), dtype))
    assert [a.dtype.name for a in m.initialize(0)] == ["float32"] * len(m.leaves)


def test_initial_weights_have_norm_one_each():
    m = model()
    for leaf, a in zip(m.leaves, m.initialize(0, np.float64), strict=True):
        if not a.size:
            continue
        match leaf.kind:
            case "Bias":
                assert not a.any()
            case "Scale":
                assert (a == 1).all()
            case "Embed":
                np.testing.assert_allclose(np.sqrt((a**2).mean(axis=-1)), 1)
            case _:
                fanout, fanin = a.shape[-2:]
                taps = a.shape[-4] * a.shape[-3] if leaf.kind == "Conv2D" else 1
                singular = np.linalg.svd(a, compute_uv=False)
                np.testing.assert_allclose(singular, np.sqrt(fanout / fanin) / taps, rtol=1e-12)
