"""Scale-free arithmetic on batches of blocks (count, rows, cols), in `jax.numpy`.

``over``, where a function has it: mesh axes over which the axes of the blocks are split, inside ``shard_map``; none on one device.
"""

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


def total(x: Array, over: tuple[str, ...]) -> Array:
    """The sum over devices."""
    return lax.psum(x, over) if over else x


def largest(x: Array, over: tuple[str, ...]) -> Array:
    """The maximum over devices, which is constant under differentiation."""
    return lax.pmax(lax.stop_gradient(x), over) if over else x


def power_of_two(x: Array, axes: tuple[int, ...] = (-2, -1), over: tuple[str, ...] = ()) -> Array:
    """The power of two just below the largest entry (axes kept), 1 for zeros. Dividing by it is exact and keeps squares in range.

    Non-finite entries give infinity, so that they are still non-finite after the division. The power is constant under differentiation.
    """
    x = lax.stop_gradient(x)
    return power_below(largest(jnp.max(jnp.abs(x), axis=axes, keepdims=True, initial=0), over))


def power_below(entry: Array) -> Array:
    """The power of two just below each of these numbers, which are at least 0."""
    unsigned, mask = _EXPONENT[entry.dtype.itemsize]
    bits = lax.bitcast_convert_type(entry, unsigned) & jnp.array(mask, unsigned)
    power = lax.bitcast_convert_type(bits, entry.dtype)
    # The inverse of the power must be a normal number, because XLA's threads flush subnormal numbers to zero.
    power = jnp.where(jnp.isfinite(power), jnp.minimum(power, 1 / jnp.finfo(entry.dtype).tiny), power)
    return jnp.where(power == 0, 1, power)


def halves(power: Array) -> tuple[Array, Array]:
    """Two powers of two whose product is the given power of two: by one before a product and the other after it, no number is subnormal."""
    unsigned, mask = _EXPONENT[power.dtype.itemsize]
    before = lax.bitcast_convert_type(lax.bitcast_convert_type(jnp.sqrt(power), unsigned) & jnp.array(mask, unsigned), power.dtype)
    return before, power / before


def unit_range(x: Array, axes: tuple[int, ...] = (-2, -1), over: tuple[str, ...] = ()) -> tuple[Array, Array]:
    """`(x / p, p)`, where p is a power of two and the largest entry of each block of `x / p` is within [1, 2)."""
    power = power_of_two(x, axes, over)
    return x / power, power


def divide(x: Array, norm: Array) -> Array:
    """`x / norm`, and zero where the norm is zero; gradients are never NaN."""
    zero = norm == 0
    return jnp.where(zero, 0, x / jnp.where(zero, 1, norm))


def root(x: Array) -> Array:
    """Square root, with gradient zero at zero."""
    zero = x == 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, x)))


def euclidean(x: Array, axes: tuple[int, ...] = (-1,), over: tuple[str, ...] = ()) -> Array:
    """Square root of the sum of squares over `axes` (kept), for entries whose squares neither over- nor underflow."""
    return root(total(jnp.sum(x * x, axis=axes, keepdims=True), over))


def row_norms(x: Array, over: tuple[str, ...] = (), ways: int = 1) -> Array:
    """RMS of every row (last axis kept), for rows of any scale; each row is split over `ways` devices."""
    scaled, power = unit_range(x, (-1,), over)
    return euclidean(scaled, (-1,), over) / jnp.sqrt(jnp.array(x.shape[-1] * ways, x.dtype)) * power


def unit_rows(x: Array, over: tuple[str, ...] = (), ways: int = 1) -> Array:
    """Every row divided by its RMS; zero rows stay zero."""
    scaled, _ = unit_range(x, (-1,), over)
    return divide(scaled, euclidean(scaled, (-1,), over)) * jnp.sqrt(jnp.array(x.shape[-1] * ways, x.dtype))


def max_abs(x: Array, over: tuple[str, ...] = ()) -> Array:
    """Largest absolute entry of each block, axes kept; NaN if an entry is not finite."""
    entry = jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True, initial=0)
    if over:  # a maximum over devices may lose NaN, and is not differentiable
        entry = jnp.max(lax.all_gather(entry, over), axis=0)
    return jnp.where(jnp.isfinite(entry), entry, jnp.nan)


def hashed_start(length: int, dtype: jax.typing.DTypeLike) -> Array:
    """Numbers (length,) within [-1/2, 1/2], each a hash of its index: unrelated to any matrix, and equal to modula-core's bit for bit."""
    h = lax.iota(jnp.uint32, length) + jnp.uint32(1)
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)  # the finaliser of MurmurHash3
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    h = h ^ (h >> 16)
    # Reading the hash as a signed integer subtracts the half exactly, so that the result is rounded only once.
    return lax.bitcast_convert_type(h ^ jnp.uint32(1 << 31), jnp.int32).astype(dtype) / 2.0**32
