"""Statistics: bonds that subtract means, divide by root mean squares, and average."""

from __future__ import annotations

from typing import Any

from modula_rs import arrays
from modula_rs.arrays import Pullback, narrow, widen
from modula_rs.checks import axes
from modula_rs.network.bond import _BuiltIn
from modula_rs.network.module import Module

Axis = int | tuple[int, ...]


class MeanSubtract(_BuiltIn):
    """``x - mean(x)`` over ``axis``.

    Args:
        axis: the axis, or a tuple of axes, over which the mean is taken.
        sensitivity: declared instead of 1, which is exact: the map is an orthogonal projection.
        sharpness: declared bounds (alpha, beta, gamma) instead of (0, 0, 0).

    Input of any shape that has these axes, output of the same shape.

    Raises:
        TypeError: an axis that is no integer; at a call, a tuple.
        ValueError: axes that repeat or that no array can have; at a call, an input without such an axis.

    >>> import numpy as np, modula_rs as mr
    >>> mr.MeanSubtract()(np.array([1.0, 2.0, 6.0]), [])
    array([-2., -1.,  3.])
    """

    def __init__(self, axis: Axis = -1, *, sensitivity: float | None = None, sharpness: tuple[float, float, float] | None = None) -> None:
        super().__init__(sensitivity=sensitivity, sharpness=sharpness)
        self.axis = axes("axis", axis)

    @property
    def _argument(self) -> float:  # type: ignore[override]
        return -1.0 if self.axis in (-1, (-1,)) else 0.0

    def apply(self, x: Any) -> Any:
        if x.size == 0:
            return x
        wide = widen(x)
        return narrow(wide - wide.mean(axis=self.axis, keepdims=True), x)

    def apply_vjp(self, x: Any) -> tuple[Any, Pullback]:
        return self.apply(x), self.apply  # an orthogonal projection is its own transpose


class RMSDivide(_BuiltIn):
    """``x / rms(x)`` over ``axis``, for x of any scale. Zero stays zero, and the gradient at zero is zero.

    Args:
        axis: the axis, or a tuple of axes, over which the mean square is taken.
        sensitivity: declared instead of 1, an estimate: it is a bound only for inputs of RMS 1 or more.
        sharpness: declared bounds (alpha, beta, gamma) instead of (0, 0, ``2 / sqrt 3``), also for inputs of RMS 1 or more.

    Input of any shape that has these axes, output of the same shape.

    Raises:
        TypeError: an axis that is no integer; at a call, a tuple.
        ValueError: axes that repeat or that no array can have; at a call, an input without such an axis.

    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019).

    >>> import numpy as np, modula_rs as mr
    >>> mr.RMSDivide()(np.array([[3.0, 3.0], [0.0, 0.0]]), [])
    array([[1., 1.],
           [0., 0.]])
    """

    def __init__(self, axis: Axis = -1, *, sensitivity: float | None = None, sharpness: tuple[float, float, float] | None = None) -> None:
        super().__init__(sensitivity=sensitivity, sharpness=sharpness)
        self.axis = axes("axis", axis)

    def apply(self, x: Any) -> Any:
        return self._divide(x)[0]

    def _divide(self, x: Any) -> tuple[Any, Any]:
        """The result, and the RMS by which x was divided: infinity in place of zero."""
        xp = arrays.namespace_of(x)
        wide = widen(x)
        if wide.size == 0:
            return x, 1
        # Dividing by the largest entry first keeps the squares in range. The result does not depend on that divisor, so the gradient
        # does not either, and JAX need not differentiate it.
        largest = abs(wide).max(axis=self.axis, keepdims=True)
        if arrays.library(x) == "jax":
            import jax

            largest = jax.lax.stop_gradient(largest)
        zero = largest == 0
        scaled = xp.where(zero, 0, wide) / xp.where(zero, 1, largest)
        rms = xp.sqrt(xp.where(zero, 1, (scaled * scaled).mean(axis=self.axis, keepdims=True)))
        return narrow(scaled / rms, x), xp.where(zero, xp.inf, largest * rms)

    def apply_vjp(self, x: Any) -> tuple[Any, Pullback]:
        y, rms = self._divide(x)

        def pullback(dy: Any) -> Any:
            if dy.size == 0:
                return dy
            unit, wide = widen(y), widen(dy)
            return (wide - unit * (unit * wide).mean(axis=self.axis, keepdims=True)) / rms

        return y, pullback


class Mean(_BuiltIn):
    """The mean over ``axis``, which is removed from the shape.

    Args:
        axis: the axis, or a tuple of axes, over which the mean is taken.
        sensitivity: declared instead of 1.
        sharpness: declared bounds (alpha, beta, gamma) instead of (0, 0, 0).

    Input of any shape that has these axes, output without them.

    Raises:
        TypeError: an axis that is no integer; at a call, a tuple.
        ValueError: axes that repeat or that no array can have; at a call, an input without such an axis.

    >>> import numpy as np, modula_rs as mr
    >>> mr.Mean(-2)(np.ones((2, 5, 3)), []).shape
    (2, 3)
    """

    def __init__(self, axis: Axis, *, sensitivity: float | None = None, sharpness: tuple[float, float, float] | None = None) -> None:
        super().__init__(sensitivity=sensitivity, sharpness=sharpness)
        self.axis = axes("axis", axis)
        # An axis counted from the front may be the last one, so the number of output features is not known for it either.
        several = self.axis if isinstance(self.axis, tuple) else (self.axis,)
        self._argument = -1.0 if any(a == -1 or a >= 0 for a in several) else 0.0

    def apply(self, x: Any) -> Any:
        wide = widen(x)
        return narrow(wide.mean(axis=self.axis) if x.size else wide.sum(axis=self.axis), x)

    def apply_vjp(self, x: Any) -> tuple[Any, Pullback]:
        y, shape, xp = self.apply(x), x.shape, arrays.namespace_of(x)
        along = self.axis if isinstance(self.axis, tuple) else (self.axis,)
        share = y.size / max(x.size, 1)
        return y, lambda dy: xp.broadcast_to(xp.expand_dims(widen(dy) * share, along), shape).copy()


class AvgPool(_BuiltIn):
    """The mean over height and width of images.

    Args:
        sensitivity: declared instead of 1.
        sharpness: declared bounds (alpha, beta, gamma) instead of (0, 0, 0).

    Input of shape (..., height, width, channels), output of shape (..., channels).

    Raises:
        TypeError: at a call, a tuple.
        ValueError: at a call, an array of another shape, or images without pixels.

    >>> import numpy as np, modula_rs as mr
    >>> mr.AvgPool()(np.ones((2, 8, 8, 3)), []).shape
    (2, 3)
    """

    def apply(self, x: Any) -> Any:
        if x.ndim < 3 or 0 in x.shape[-3:-1]:
            raise ValueError(f"AvgPool: expected images of shape (..., height, width, channels), got {tuple(x.shape)}")
        return widen(x).mean(axis=(-3, -2)).astype(x.dtype)

    def apply_vjp(self, x: Any) -> tuple[Any, Pullback]:
        def pullback(dy: Any) -> Any:
            share = widen(dy)[..., None, None, :] / (x.shape[-3] * x.shape[-2])
            return arrays.namespace_of(x).broadcast_to(share, x.shape).astype(x.dtype)

        return self.apply(x), pullback


def LayerNorm(axis: Axis = -1, *, sensitivity: float | None = None, sharpness: tuple[float, float, float] | None = None) -> Module:
    """``RMSDivide(axis) @ MeanSubtract(axis)``. It has no weights; compose it with Scale and Bias for a gain and an offset.

    Args:
        axis: the axis, or a tuple of axes, over which mean and mean square are taken.
        sensitivity: declared for RMSDivide instead of 1.
        sharpness: bounds (alpha, beta, gamma) declared for RMSDivide.

    Input of any shape that has these axes, output of the same shape. Raises as :class:`RMSDivide` does.
    Source: Ba, Kiros and Hinton, "Layer Normalization" (2016).

    >>> import numpy as np, modula_rs as mr
    >>> mr.LayerNorm()(np.array([1.0, 3.0]), [])
    array([-1.,  1.])
    """
    return RMSDivide(axis, sensitivity=sensitivity, sharpness=sharpness) @ MeanSubtract(axis)
