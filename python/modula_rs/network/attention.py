"""Attention: the bonds between a transformer's projections. The sequence is on the last axis but one, heads on the axis before it."""

from __future__ import annotations

import math
from typing import Any

from modula_rs import arrays
from modula_rs.arrays import Pullback, widen
from modula_rs.checks import flag, number, size
from modula_rs.network.bond import Sharp, _BuiltIn


class SplitIntoHeads(_BuiltIn):
    """(..., length, heads * d) to (..., heads, length, d).

    Args:
        num_heads: number of heads, at least 1.
        sensitivity: declared instead of 1.
        sharpness: declared bounds (alpha, beta, gamma) instead of (0, 0, 0).

    Raises:
        TypeError: a number of heads that is no integer; at a call, a tuple.
        ValueError: fewer than 1 head; at a call, an input of another shape, or features that the heads do not divide.

    >>> import numpy as np, modula_rs as mr
    >>> mr.SplitIntoHeads(4)(np.zeros((2, 10, 32)), []).shape
    (2, 4, 10, 8)
    """

    def __init__(self, num_heads: int, *, sensitivity: float | None = None, sharpness: Sharp | None = None) -> None:
        super().__init__(sensitivity=sensitivity, sharpness=sharpness)
        self.num_heads = size("num_heads", num_heads, 1)

    @property
    def _argument(self) -> float:  # type: ignore[override]
        return float(self.num_heads)

    def apply(self, x: Any) -> Any:
        if x.ndim < 2 or x.shape[-1] % self.num_heads:
            raise ValueError(f"SplitIntoHeads({self.num_heads}): expected (..., length, {self.num_heads} * d), got {tuple(x.shape)}")
        heads = x.reshape(*x.shape[:-1], self.num_heads, x.shape[-1] // self.num_heads)
        return heads.swapaxes(-2, -3)

    def apply_vjp(self, x: Any) -> tuple[Any, Pullback]:
        return self.apply(x), _merge


class MergeHeads(_BuiltIn):
    """(..., heads, length, d) to (..., length, heads * d): the inverse of :class:`SplitIntoHeads`.

    Args:
        sensitivity: declared instead of 1.
        sharpness: declared bounds (alpha, beta, gamma) instead of (0, 0, 0).

    Raises:
        TypeError: at a call, a tuple.
        ValueError: at a call, an input of fewer than three axes.

    >>> import numpy as np, modula_rs as mr
    >>> mr.MergeHeads()(np.zeros((2, 4, 10, 8)), []).shape
    (2, 10, 32)
    """

    def apply(self, x: Any) -> Any:
        if x.ndim < 3:
            raise ValueError(f"MergeHeads: expected (..., heads, length, d), got {tuple(x.shape)}")
        return _merge(x)

    def apply_vjp(self, x: Any) -> tuple[Any, Pullback]:
        return self.apply(x), SplitIntoHeads(x.shape[-3]).apply


def _merge(x: Any) -> Any:
    *batch, heads, length, d = x.shape
    return x.swapaxes(-2, -3).reshape(*batch, length, heads * d)


class CausalMask(_BuiltIn):
    """Sets the scores of keys that come after their query to minus infinity. Input and output of shape (..., queries, keys).

    Args:
        sensitivity: declared instead of 1.
        sharpness: declared bounds (alpha, beta, gamma) instead of (0, 0, 0).

    Raises:
        TypeError: at a call, a tuple.
        ValueError: at a call, an input of fewer than two axes.

    >>> import numpy as np, modula_rs as mr
    >>> mr.CausalMask()(np.zeros((2, 2)), [])
    array([[  0., -inf],
           [  0.,   0.]])
    """

    def apply(self, x: Any) -> Any:
        xp = arrays.namespace_of(x)
        return xp.where(_past(xp, x), x, xp.asarray(-math.inf, dtype=x.dtype))

    def apply_vjp(self, x: Any) -> tuple[Any, Pullback]:
        xp = arrays.namespace_of(x)
        return self.apply(x), lambda dy: xp.where(_past(xp, dy), dy, xp.zeros((), dy.dtype))


def _past(xp: Any, scores: Any) -> Any:
    if scores.ndim < 2:
        raise ValueError(f"CausalMask: expected scores of shape (..., queries, keys), got {tuple(scores.shape)}")
    return xp.tri(*scores.shape[-2:], dtype=bool)


class Softmax(_BuiltIn):
    """``softmax(scale * x)`` over the last axis. A row that holds nothing but minus infinity gives zeros, not NaN.

    Args:
        scale: the factor of the scores, positive and finite.
        sensitivity: declared instead of ``scale``, where the input is measured by its largest entry, the output by its sum of absolute
            values.
        sharpness: declared bounds (alpha, beta, gamma) instead of (0, 0, ``2 * scale**2``).

    Input of shape (..., n), output of the same shape and dtype.

    Raises:
        TypeError: a scale that is no number; at a call, a tuple.
        ValueError: a scale that is not positive and finite.

    >>> import numpy as np, modula_rs as mr
    >>> mr.Softmax(1.0)(np.array([[0.0, -np.inf], [-np.inf, -np.inf]]), [])
    array([[1., 0.], [0., 0.]])
    """

    def __init__(self, scale: float = 1.0, *, sensitivity: float | None = None, sharpness: Sharp | None = None) -> None:
        super().__init__(sensitivity=sensitivity, sharpness=sharpness)
        self.scale = self._argument = number("the scale of a Softmax", scale)
        if not 0 < self.scale < math.inf:
            raise ValueError(f"the scale of a Softmax must be positive and finite, got {self.scale}")

    def apply(self, x: Any) -> Any:
        weights, total = _exponentials(widen(x), self.scale)
        return (weights / total).astype(x.dtype)

    def apply_vjp(self, x: Any) -> tuple[Any, Pullback]:
        weights, total = _exponentials(widen(x), self.scale)
        y = weights / total

        def pullback(dy: Any) -> Any:
            return (self.scale * _softmax_pullback(y, dy)).astype(x.dtype)

        return y.astype(x.dtype), pullback


def _exponentials(scores: Any, scale: float) -> tuple[Any, Any]:
    """``exp(scale * (x - max x))``, and its sum over the last axis, with 1 in place of the sum where every score is minus infinity."""
    if scores.size == 0:
        return scores, 1.0
    xp = arrays.namespace_of(scores)
    largest = scores.max(axis=-1, keepdims=True)
    if arrays.library(scores) == "jax":
        import jax

        largest = jax.lax.stop_gradient(largest)
    weights = xp.exp(scale * (scores - xp.maximum(largest, xp.finfo(scores.dtype).min)))
    total = weights.sum(axis=-1, keepdims=True)
    return weights, xp.where(total > 0, total, 1)


def _softmax_pullback(y: Any, dy: Any) -> Any:
    return y * (dy - (y * dy).sum(axis=-1, keepdims=True))


class FunctionalAttention(_BuiltIn, takes_tuples=True):
    """``softmax(q k^T / d) v``, with ``d`` the size of a query: 1/d, not 1/sqrt(d), because queries and keys have norm 1 per feature.

    Half precision keeps its scores in float32.

    Args:
        causal: whether query number i sees keys 0 to i only. A query that sees no key gets zeros.
        scale: factor s of the scores, positive and finite.
        sensitivity: declared instead of ``max(1, s / 4)``. The norm of (q, k, v) is the sum of the three norms, each the largest RMS of a
            token.
        sharpness: declared bounds (alpha, beta, gamma) instead of (0, 0, ``3 max(1, s^2)``).

    Input: a tuple of q (..., queries, d), k (..., keys, d) and v (..., keys, d_value). Output of shape (..., queries, d_value), in the
    dtype of v.

    Raises:
        TypeError: ``causal`` is no bool, a scale that is no number; at a call, an input that is no tuple of three.
        ValueError: a scale that is not positive and finite; at a call, shapes that do not go together.

    Source: Large et al., "Scalable Optimization in the Modular Norm" (2024), appendix on attention.

    >>> import numpy as np, modula_rs as mr
    >>> q = k = np.ones((2, 3, 4))
    >>> v = np.arange(6.0).reshape(2, 3, 1)
    >>> mr.FunctionalAttention(causal=True)((q, k, v), [])[0, :, 0].tolist()
    [0.0, 0.5, 1.0]
    """

    scale: float = 1.0

    def __init__(self, causal: bool, scale: float = 1.0, *, sensitivity: float | None = None, sharpness: Sharp | None = None) -> None:
        super().__init__(sensitivity=sensitivity, sharpness=sharpness)
        self.causal = flag("causal", causal)
        factor = number("the scale of a FunctionalAttention", scale)
        if not 0 < factor < math.inf:
            raise ValueError(f"the scale of a FunctionalAttention must be positive and finite, got {factor}")
        if factor != 1.0:  # an attribute of the object only then, so that fingerprints of networks without scales stay what they were
            self.scale = self._argument = factor

    def apply(self, x: Any) -> Any:
        q, k, v = _queries_keys_values(x)
        weights, total = self._weights(q, k)
        # The averages are divided, not the weights: the weights are the largest array, and so are read and written once less.
        return (_matmul(weights.astype(v.dtype), v) / total).astype(v.dtype)

    def apply_vjp(self, x: Any) -> tuple[Any, Pullback]:
        q, k, v = _queries_keys_values(x)
        weights, total = self._weights(q, k)
        weights = weights / total

        def pullback(dy: Any) -> tuple[Any, Any, Any]:
            dscores = _softmax_pullback(weights, _matmul(dy, v.swapaxes(-1, -2))) * self._factor(q)
            dq = _matmul(dscores, k)
            dk = _matmul(dscores.swapaxes(-1, -2), q)
            dv = _matmul(weights.swapaxes(-1, -2), dy)
            return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)

        return _matmul(weights, v).astype(v.dtype), pullback

    def _weights(self, q: Any, k: Any) -> tuple[Any, Any]:
        """The softmax of the scores as a numerator (..., queries, keys) and a denominator (..., queries, 1)."""
        scores = _matmul(q, k.swapaxes(-1, -2))
        if self.causal:
            xp = arrays.namespace_of(scores)
            scores = xp.where(_past(xp, scores), scores, xp.asarray(-math.inf, dtype=scores.dtype))
        return _exponentials(scores, self._factor(q))

    def _factor(self, q: Any) -> float:
        """The factor of the inner products."""
        return self.scale / int(max(q.shape[-1], 1))


def _queries_keys_values(x: Any) -> tuple[Any, Any, Any]:
    if not isinstance(x, tuple) or len(x) != 3:
        raise TypeError("FunctionalAttention takes a tuple of queries, keys and values")
    q, k, v = x
    *batch, _, d = q.shape if q.ndim >= 2 else (None, None)
    if k.ndim != q.ndim or v.ndim != q.ndim or k.shape != (*batch, v.shape[-2], d) or list(v.shape[:-2]) != batch:
        raise ValueError(
            "FunctionalAttention: expected q (..., queries, d), k (..., keys, d) and v (..., keys, d_value), "
            f"got {tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
        )
    return q, k, v


def _matmul(a: Any, b: Any) -> Any:
    """``a @ b`` accumulated in float32 or better, and returned so. JAX multiplies half precision as it is; the others convert it first."""
    if arrays.library(a) == "jax" or arrays.library(b) == "jax":
        import jax.numpy as jnp

        return jnp.matmul(a, b, preferred_element_type=arrays.working_dtype(jnp.result_type(a, b)))
    return widen(a) @ widen(b)
