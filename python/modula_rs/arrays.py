"""Which array library a value belongs to, without importing any that is not loaded already."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

#: An array of any library, the weights of a module, and a function from a cotangent to cotangents.
Array = Any
Weights = list[Array]
Pullback = Callable[[Any], Any]

#: Weights may have these dtypes, in every library.
DTYPES = ("float64", "float32", "float16", "bfloat16")


@cache
def dtype_name(dtype: Any) -> str:
    """Its name; NumPy takes microseconds to make it up."""
    return str(np.dtype(dtype).name)


def library(value: Any) -> str | None:
    """The library of an array: ``"numpy"``, ``"jax"`` or ``"cupy"``; None for anything else."""
    if isinstance(value, np.ndarray | np.generic):
        return "numpy"
    # An object can only be an array of a library that has been imported.
    jax = sys.modules.get("jax")
    if jax is not None and isinstance(value, jax.Array):
        return "jax"
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(value, cupy.ndarray):
        return "cupy"
    return None


def is_traced(value: Any) -> bool:
    """Whether a value is abstract: inside ``jax.jit``, ``grad`` or ``vmap``."""
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
    """The dtype of fresh weights: float32 unless told otherwise; ValueError for one that weights cannot have."""
    if isinstance(dtype, str) and dtype == "bfloat16":
        from ml_dtypes import bfloat16 as dtype  # NumPy knows the name only where this is installed
    wanted = np.dtype(np.float32 if dtype is None else dtype)
    if wanted.name not in DTYPES:
        raise ValueError(f"weights may be {', '.join(DTYPES)}, got {wanted.name}")
    return wanted


def working_dtype(dtype: Any) -> Any:
    """The dtype arithmetic is done in: float32 for half precision, else the dtype itself."""
    name = np.dtype(dtype).name
    return np.dtype("float32") if name in ("float16", "bfloat16") else np.dtype(dtype)


def is_floating(dtype: Any) -> bool:
    """Whether numbers of a dtype have derivatives: real floating point, half precision included."""
    return bool(np.issubdtype(dtype, np.floating)) or np.dtype(dtype).name in DTYPES


def widen(x: Any) -> Any:
    """Half precision as float32; all else as it is."""
    return x.astype(working_dtype(x.dtype), copy=False)


def narrow(y: Any, x: Any) -> Any:
    """``y`` in half precision if ``x`` is."""
    return y if working_dtype(x.dtype) == x.dtype else y.astype(x.dtype)


def common_library(arrays: list[Any], what: str, paths: list[str]) -> str:
    """The one library of a list of arrays; TypeError if there are two, or something that is no array."""
    found: str | None = None
    for array, path in zip(arrays, paths, strict=True):
        name = library(array)
        if name is None:
            raise TypeError(f"{what} of {path} must be a NumPy, JAX or CuPy array, got {type(array).__name__}")
        if found is not None and name != found:
            raise TypeError(f"{what}s must come from one library, got {found} for {paths[0]} and {name} for {path}")
        found = name
    return found or "numpy"
