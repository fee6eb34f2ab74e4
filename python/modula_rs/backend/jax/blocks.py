"""Scale-free arithmetic on batches of blocks (count, rows, cols), in `jax.numpy`."""

import jax
import jax.numpy as jnp
from jax import Array, lax

# The unsigned integer type and the mask of the exponent field, by size of the floating-point type in bytes.
_EXPONENT = {4: (jnp.uint32, 0x7F80_0000), 8: (jnp.uint64, 0x7FF0_0000_0000_0000)}


def arithmetic(block: Array) -> Array:
    """The block in the precision of the arithmetic: float64 for float64, float32 for all other dtypes."""
    return block if block.dtype == jnp.float64 else block.astype(jnp.float32)


def product(equation: str, *operands: Array) -> Array:
    """`einsum` in full precision, even where the platform's default is TF32 or bfloat16."""
    return jnp.einsum(equation, *operands, precision=lax.Precision.HIGHEST)


def power_of_two(x: Array, axes: tuple[int, ...] = (-2, -1)) -> Array:
    """The power of two just below the largest entry (axes kept), 1 for zeros. Dividing by it is exact and keeps squares in range.

    Non-finite entries give infinity, so that they are still non-finite after the division. The power is constant under differentiation.
    """
    x = lax.stop_gradient(x)
    largest = jnp.max(jnp.abs(x), axis=axes, keepdims=True, initial=0)
    unsigned, mask = _EXPONENT[x.dtype.itemsize]
    bits = lax.bitcast_convert_type(largest, unsigned) & jnp.array(mask, unsigned)
    power = lax.bitcast_convert_type(bits, x.dtype)
    # The inverse of the power must be a normal number, because XLA's threads flush subnormal numbers to zero.
    power = jnp.where(jnp.isfinite(power), jnp.minimum(power, 1 / jnp.finfo(x.dtype).tiny), power)
    return jnp.where(power == 0, 1, power)


def unit_range(x: Array, axes: tuple[int, ...] = (-2, -1)) -> tuple[Array, Array]:
    """`(x / p, p)`, where p is a power of two and the largest entry of each block of `x / p` is within [1, 2)."""
    power = power_of_two(x, axes)
    return x / power, power


def divide(x: Array, norm: Array) -> Array:
    """`x / norm`, and zero where the norm is zero; gradients are never NaN."""
    zero = norm == 0
    return jnp.where(zero, 0, x / jnp.where(zero, 1, norm))


def root(x: Array) -> Array:
    """Square root, with gradient zero at zero."""
    zero = x == 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, x)))


def euclidean(x: Array, axes: tuple[int, ...] = (-1,)) -> Array:
    """Square root of the sum of squares over `axes` (kept), for entries whose squares neither over- nor underflow."""
    return root(jnp.sum(x * x, axis=axes, keepdims=True))


def row_norms(x: Array) -> Array:
    """RMS of every row (last axis kept), for rows of any scale."""
    scaled, power = unit_range(x, (-1,))
    return euclidean(scaled) / jnp.sqrt(jnp.array(x.shape[-1], x.dtype)) * power


def unit_rows(x: Array) -> Array:
    """Every row divided by its RMS; zero rows stay zero."""
    scaled, _ = unit_range(x, (-1,))
    return divide(scaled, euclidean(scaled)) * jnp.sqrt(jnp.array(x.shape[-1], x.dtype))


def max_abs(x: Array) -> Array:
    """Largest absolute entry of each block, axes kept; NaN if an entry is not finite."""
    largest = jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True, initial=0)
    return jnp.where(jnp.isfinite(largest), largest, jnp.nan)


def hashed_start(length: int, dtype: jax.typing.DTypeLike) -> Array:
    """Numbers (length,) within [-1/2, 1/2], each a hash of its index: unrelated to any matrix, and equal to modula-core's bit for bit."""
    h = lax.iota(jnp.uint32, length) + jnp.uint32(1)
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)  # the finaliser of MurmurHash3
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    h = h ^ (h >> 16)
    # Reading the hash as a signed integer subtracts the half exactly, so that the result is rounded only once.
    return lax.bitcast_convert_type(h ^ jnp.uint32(1 << 31), jnp.int32).astype(dtype) / 2.0**32
