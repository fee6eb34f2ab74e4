"""Finds the array library of a value, without importing a library that is not loaded already."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

#: Types: an array of any library, the weights of a module, a function from the output's cotangent to the inputs' cotangents.
Array = Any
Weights = list[Array]
Pullback = Callable[[Any], Any]

#: The dtypes that weights may have, in every library.
DTYPES = ("float64", "float32", "float16", "bfloat16")

_NUMPY = (np.ndarray, np.generic)


@cache
def dtype_name(dtype: Any) -> str:
    """The name of a dtype, cached: NumPy takes microseconds to compose one."""
    return str(np.dtype(dtype).name)


def library(value: Any) -> str | None:
    """The library of an array: ``"numpy"``, ``"jax"`` or ``"cupy"``; None for anything else."""
    if isinstance(value, _NUMPY):
        return "numpy"
    # A value cannot be an array of a library that was never imported.
    jax = sys.modules.get("jax")
    if jax is not None and isinstance(value, jax.Array):
        return "jax"
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(value, cupy.ndarray):
        return "cupy"
    return None


def is_traced(value: Any) -> bool:
    """Whether a value is a tracer of JAX, as inside ``jax.jit``, ``grad`` or ``vmap``."""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(value, jax.core.Tracer)


def is_key(value: Any) -> bool:
    """Whether a value is an array of JAX's random keys."""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(value, jax.Array) and bool(jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key))


def namespace(name: str) -> Any:
    """The NumPy-like module of a library."""
    if name == "numpy":
        return np
    if name == "jax":
        import jax.numpy as jnp

        return jnp
    import cupy

    return cupy


def namespace_of(value: Any) -> Any:
    """The NumPy-like module of an array, or of the first array in a tuple."""
    while isinstance(value, tuple | list) and value:
        value = value[0]
    return namespace(library(value) or "numpy")


def weight_dtype(dtype: Any) -> np.dtype[Any]:
    """The dtype of fresh weights, float32 for None; ValueError for a dtype that weights cannot have."""
    if isinstance(dtype, str) and dtype == "bfloat16":
        from ml_dtypes import bfloat16 as dtype  # NumPy knows the name only where this is installed
    wanted = np.dtype(np.float32 if dtype is None else dtype)
    if wanted.name not in DTYPES:
        raise ValueError(f"weights may be {', '.join(DTYPES)}, got {wanted.name}")
    return wanted


def working_dtype(dtype: Any) -> Any:
    """The dtype in which arithmetic on ``dtype`` is done: float32 for half precision, else ``dtype`` itself."""
    name = np.dtype(dtype).name
    return np.dtype("float32") if name in ("float16", "bfloat16") else np.dtype(dtype)


def is_floating(dtype: Any) -> bool:
    """Whether a dtype is real floating point, half precision included, so that its numbers have derivatives."""
    return bool(np.issubdtype(dtype, np.floating)) or np.dtype(dtype).name in DTYPES


def widen(x: Any) -> Any:
    """Half precision converted to float32; other arrays unchanged."""
    return x.astype(working_dtype(x.dtype), copy=False)


def narrow(y: Any, x: Any) -> Any:
    """``y`` converted to the dtype of ``x`` if ``x`` is in half precision."""
    return y if working_dtype(x.dtype) == x.dtype else y.astype(x.dtype)


def common_library(arrays: list[Any], what: str, paths: list[str]) -> str:
    """The library of all arrays in a list; TypeError if they belong to two libraries, or one is no array."""
    found: str | None = None
    for array, path in zip(arrays, paths, strict=True):
        name = library(array)
        if name is None:
            raise TypeError(f"{what} of {path} must be a NumPy, JAX or CuPy array, got {type(array).__name__}")
        if found is not None and name != found:
            raise TypeError(f"{what}s must come from one library, got {found} for {paths[0]} and {name} for {path}")
        found = name
    return found or "numpy"


def to_numpy(array: Any) -> np.ndarray[Any, Any]:
    """The array as one of NumPy; TypeError for an array of JAX whose value is not known yet, as inside ``jax.jit``."""
    if is_traced(array):
        raise TypeError("the values of this array are needed here, but inside jax.jit, grad and vmap they are not known yet")
    return np.asarray(array.get() if library(array) == "cupy" else array)
