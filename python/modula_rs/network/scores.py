"""Attention in parts, as Modula has it: scores of queries and keys, and averages of values. :class:`FunctionalAttention` is all in one.

>>> import numpy as np, modula_rs as mr
>>> q, k, v = (np.random.default_rng(seed).standard_normal((2, 5, 4)) for seed in range(3))
>>> scores = mr.Softmax() @ mr.CausalMask() @ mr.AttentionQK()
>>> parts = mr.ApplyAttentionScores()((v, scores((q, k), [])), [])
>>> bool(np.allclose(parts, mr.FunctionalAttention(causal=True)((q, k, v), [])))
True
"""

from __future__ import annotations

from typing import Any

from modula_rs.arrays import Pullback
from modula_rs.network.attention import _matmul
from modula_rs.network.bond import _BuiltIn


class AttentionQK(_BuiltIn, takes_tuples=True):
    """``q k^T / d``, with ``d`` the size of a query: the scores of attention.

    Args:
        sensitivity: declared instead of 1. The norm of (q, k) is the sum of their norms, each the largest RMS of a token; scores are
            measured by the largest entry.
        sharpness: declared bounds (alpha, beta, gamma) instead of (0, 0, 1).

    Input: a tuple of q (..., queries, d) and k (..., keys, d). Output of shape (..., queries, keys).

    Raises:
        TypeError: at a call, an input that is no tuple of two.
        ValueError: at a call, shapes that do not go together.

    Source: Modula, ``bond.AttentionQK``.

    >>> import numpy as np, modula_rs as mr
    >>> mr.AttentionQK()((np.ones((2, 3, 4)), np.ones((2, 5, 4))), [])[0].tolist()
    [[1.0, 1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0, 1.0]]
    """

    def apply(self, x: Any) -> Any:
        q, k = self._pair(x)
        return (_matmul(q, k.swapaxes(-1, -2)) / max(q.shape[-1], 1)).astype(q.dtype)

    def apply_vjp(self, x: Any) -> tuple[Any, Pullback]:
        q, k = self._pair(x)

        def pullback(dy: Any) -> tuple[Any, Any]:
            scaled = dy / max(q.shape[-1], 1)
            return _matmul(scaled, k).astype(q.dtype), _matmul(scaled.swapaxes(-1, -2), q).astype(k.dtype)

        return self.apply(x), pullback

    def _pair(self, x: Any) -> tuple[Any, Any]:
        q, k = _two(x, "AttentionQK", "queries and keys")
        if q.ndim < 2 or k.ndim != q.ndim or k.shape[:-2] != q.shape[:-2] or k.shape[-1] != q.shape[-1]:
            raise ValueError(f"AttentionQK: expected q (..., queries, d) and k (..., keys, d), got {tuple(q.shape)} and {tuple(k.shape)}")
        return q, k


class ApplyAttentionScores(_BuiltIn, takes_tuples=True):
    """``scores @ v``: averages of values. The values come first in the tuple, as in Modula.

    Args:
        sensitivity: declared instead of 1. The norm of (v, scores) is the sum of the largest RMS of a token and the largest sum of
            absolute scores of a query.
        sharpness: declared bounds (alpha, beta, gamma) instead of (0, 0, 1).

    Input: a tuple of v (..., keys, d) and scores (..., queries, keys). Output of shape (..., queries, d), in the dtype of v.

    Raises:
        TypeError: at a call, an input that is no tuple of two.
        ValueError: at a call, shapes that do not go together.

    Source: Modula, ``bond.ApplyAttentionScores``.

    >>> import numpy as np, modula_rs as mr
    >>> mr.ApplyAttentionScores()((np.arange(4.0).reshape(2, 2), np.full((1, 2), 0.5)), [])
    array([[1., 2.]])
    """

    def apply(self, x: Any) -> Any:
        v, scores = self._pair(x)
        return _matmul(scores, v).astype(v.dtype)

    def apply_vjp(self, x: Any) -> tuple[Any, Pullback]:
        v, scores = self._pair(x)

        def pullback(dy: Any) -> tuple[Any, Any]:
            return _matmul(scores.swapaxes(-1, -2), dy).astype(v.dtype), _matmul(dy, v.swapaxes(-1, -2)).astype(scores.dtype)

        return self.apply(x), pullback

    def _pair(self, x: Any) -> tuple[Any, Any]:
        v, scores = _two(x, "ApplyAttentionScores", "values and scores")
        if v.ndim < 2 or scores.ndim != v.ndim or scores.shape[:-2] != v.shape[:-2] or scores.shape[-1] != v.shape[-2]:
            raise ValueError(
                f"ApplyAttentionScores: expected v (..., keys, d) and scores (..., queries, keys), got {tuple(v.shape)} and "
                f"{tuple(scores.shape)}"
            )
        return v, scores


def _two(x: Any, name: str, what: str) -> tuple[Any, Any]:
    if not isinstance(x, tuple) or len(x) != 2:
        raise TypeError(f"{name} takes a tuple of {what}")
    return x
