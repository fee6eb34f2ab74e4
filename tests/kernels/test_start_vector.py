"""The start vector of every power iteration, written in Rust, jax.numpy, CUDA and for CuPy: the same bits in all."""

from __future__ import annotations

import ctypes
from pathlib import Path

import host
import numpy as np
import pytest
from modula_rs import _core
from modula_rs.backend.cupy import arithmetic

LENGTH = 1000


def test_entries_are_spread_over_the_interval():
    """A start vector must be bounded, centred, and have the variance of a uniform distribution on [-1/2, 1/2)."""
    for entries in _core.start_vector(LENGTH):
        assert np.abs(entries).max() <= 0.5
        # Five standard deviations of the mean, and of the mean square, of LENGTH uniform numbers.
        assert abs(entries.mean()) < 5 / np.sqrt(12 * LENGTH)
        assert abs((entries**2).mean() - 1 / 12) < 5 / np.sqrt(180 * LENGTH)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_portable_way_has_the_bits_of_rust(dtype):
    length = 70_000  # beyond 16 bits
    wanted = next(entries for entries in _core.start_vector(length) if entries.dtype == dtype)
    found = arithmetic.hashed_start(np, length, np.dtype(dtype))
    assert found.dtype == dtype
    assert found.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_jax_has_the_bits_of_rust(dtype):
    jax = pytest.importorskip("jax", reason="JAX is not installed: nothing to compare with")
    from modula_rs.backend.jax.blocks import hashed_start

    wanted = next(entries for entries in _core.start_vector(LENGTH) if entries.dtype == dtype)
    with jax.enable_x64(dtype == "float64"):
        for start in (hashed_start, jax.jit(hashed_start, static_argnums=(0, 1))):
            found = np.asarray(start(LENGTH, dtype))
            assert found.dtype == dtype
            assert found.tobytes() == wanted.tobytes()


@pytest.mark.skipif(host.COMPILER is None, reason=host.NO_COMPILER)
def test_cuda_has_the_bits_of_rust():
    """The kernels compute entries in double precision and round them for float32 arithmetic."""
    entry = host.library(Path(__file__).with_name("start_entry.cu")).entry
    entry.argtypes, entry.restype = [ctypes.c_uint], ctypes.c_double
    found = np.array([entry(index) for index in range(LENGTH)])
    single, double = _core.start_vector(LENGTH)
    assert found.tobytes() == double.tobytes()
    assert found.astype(np.float32).tobytes() == single.tobytes()
