"""Positions in a sequence: their numbers, which an Embed looks up, and rotations by them. The sequence is on the last axis but one."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from modula_rs import arrays
from modula_rs.arrays import Pullback
from modula_rs.checks import number, size
from modula_rs.forward.arithmetic import of_rank
from modula_rs.network.bond import Sharp, _BuiltIn


class Enumerate(_BuiltIn):
    """Tokens of shape (..., length) to their positions 0, 1, ..., int32 of shape (length,).

    Args:
        limit: the longest sequence that is accepted; None for no limit.
        sensitivity: declared instead of 1.
        sharpness: declared bounds (alpha, beta, gamma) instead of (0, 0, 0).

    Raises:
        TypeError: a limit that is no integer; at a call, a tuple.
        ValueError: a negative limit; at a call, a sequence of more than ``limit`` tokens.

    >>> import numpy as np, modula_rs as mr
    >>> mr.Enumerate()(np.array([[7, 7, 7]]), [])
    array([0, 1, 2], dtype=int32)
    """

    def __init__(self, limit: int | None = None, *, sensitivity: float | None = None, sharpness: Sharp | None = None) -> None:
        super().__init__(sensitivity=sensitivity, sharpness=sharpness)
        self.limit = None if limit is None else size("limit", limit)

    def apply(self, x: Any) -> Any:
        if x.ndim == 0:
            raise ValueError("Enumerate: expected tokens of shape (..., length), got a single number")
        if self.limit is not None and x.shape[-1] > self.limit:
            raise ValueError(f"expected sequences of at most {self.limit} tokens, got {x.shape[-1]}")
        return arrays.namespace_of(x).arange(x.shape[-1], dtype=np.int32)

    def apply_vjp(self, x: Any) -> tuple[Any, Pullback]:
        return self.apply(x), lambda dy: None  # tokens have no cotangent


class Rope(_BuiltIn, takes_tuples=True):
    """Rotary positions: feature pair (i, i + d/2) of the token at position n turns by the angle ``n / base**(2i/d)``, in radians.

    The inner product of a turned query and a turned key depends on their positions only through the difference. Modula's Rope computes
    ``(a cos + b sin, a sin - b cos)`` of a pair (a, b), because it exchanges its tables of sines and cosines: a reflection, after which
    inner products depend on the difference with the opposite sign. Weights trained with it give other outputs here.

    Args:
        d_head: number of features d of a head, which must be even.
        base: ratio between the longest and the shortest wavelength, positive.
        sensitivity: declared instead of 1, which is exact: a rotation keeps the norm.
        sharpness: declared bounds (alpha, beta, gamma) instead of (0, 0, 0).

    Input: an array (..., length, d_head) or a tuple of such arrays; the output has the same shapes.

    Raises:
        TypeError: ``d_head`` is no integer or ``base`` no number.
        ValueError: an odd ``d_head``; a ``base`` that is not positive and finite; at a call, an input of another shape.

    Source: Su et al., "RoFormer" (2021).

    >>> import numpy as np, modula_rs as mr
    >>> x = np.tile(np.array([1.0, 0.0]), (4, 1))
    >>> np.allclose(mr.Rope(2)(x, []), [[np.cos(n), np.sin(n)] for n in range(4)])
    True
    """

    def __init__(self, d_head: int, base: float = 10000.0, *, sensitivity: float | None = None, sharpness: Sharp | None = None) -> None:
        super().__init__(sensitivity=sensitivity, sharpness=sharpness)
        self.d_head, self.base = size("d_head", d_head), number("base", base)
        if self.d_head % 2:
            raise ValueError(f"Rope turns pairs of features: d_head must be even, got {self.d_head}")
        if not 0 < self.base < math.inf:
            raise ValueError(f"base must be positive and finite, got {self.base}")

    def apply(self, x: Any) -> Any:
        return self._turned(x, 1.0)

    def apply_vjp(self, x: Any) -> tuple[Any, Pullback]:
        return self.apply(x), lambda dy: self._turned(dy, -1.0)

    def _turned(self, x: Any, direction: float) -> Any:
        if isinstance(x, tuple):
            return tuple(self._turned(member, direction) for member in x)
        if x.ndim < 2 or x.shape[-1] != self.d_head:
            raise ValueError(f"Rope: expected (..., length, {self.d_head}), got {tuple(x.shape)}")
        xp, dtype = arrays.namespace_of(x), arrays.working_dtype(x.dtype)
        cos, sin = (of_rank(xp.asarray(table.astype(dtype)), x.ndim) for table in _rotations(x.shape[-2], self.d_head // 2, self.base))
        sin = sin * direction
        wide = x.astype(dtype)
        real, imaginary = wide[..., : self.d_head // 2], wide[..., self.d_head // 2 :]
        return xp.concatenate([real * cos - imaginary * sin, real * sin + imaginary * cos], axis=-1).astype(x.dtype)


@cache
def _rotations(length: int, pairs: int, base: float) -> tuple[Any, Any]:
    """Cosines and sines (length, pairs). They are NumPy arrays, which may be cached, because no tracer of JAX can leak into them."""
    angles = np.outer(np.arange(length), base ** -(np.arange(pairs) / max(pairs, 1)))
    return np.cos(angles), np.sin(angles)
