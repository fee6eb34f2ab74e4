"""Activations: elementwise bonds, and their rescaled forms."""

from __future__ import annotations

import math
from typing import Any

from modula_rs import _core, arrays
from modula_rs.arrays import Pullback, narrow, widen
from modula_rs.checks import number
from modula_rs.network.bond import _BuiltIn
from modula_rs.network.module import Module
from modula_rs.network.primitive import bounds


class Abs(_BuiltIn):
    """``|x|`` elementwise, with slope 1 at 0, as in JAX. Not smooth.

    Args:
        sensitivity: declared instead of 1.
        sharpness: declared bounds (alpha, beta, gamma) instead of (0, 0, infinity).

    Input of any shape, output of the same shape. Raises TypeError at a call with a tuple.

    >>> import numpy as np, modula_rs as mr
    >>> mr.Abs()(np.array([-1.0, 0.0, 2.0]), [])
    array([1., 0., 2.])
    """

    def apply(self, x: Any) -> Any:
        return abs(x)

    def apply_vjp(self, x: Any) -> tuple[Any, Pullback]:
        where, falling = arrays.namespace_of(x).where, x < 0
        return abs(x), lambda dy: where(falling, -dy, dy)


class ReLU(_BuiltIn):
    """``max(x, 0)`` elementwise, with slope 0 at 0. Not smooth.

    Args:
        sensitivity: declared instead of 1, which is the largest slope. Large et al. (2024) declare ``2**-0.5``, an average-case estimate.
        sharpness: declared bounds (alpha, beta, gamma) instead of (0, 0, infinity).

    Input of any shape, output of the same shape. Raises TypeError at a call with a tuple.

    >>> import numpy as np, modula_rs as mr
    >>> mr.ReLU()(np.array([-1.0, 0.0, 2.0]), [])
    array([0., 0., 2.])
    """

    def apply(self, x: Any) -> Any:
        if arrays.library(x) == "jax":
            import jax

            return jax.nn.relu(x)  # jnp.maximum has slope 1/2 at 0
        return arrays.namespace_of(x).maximum(x, 0)

    def apply_vjp(self, x: Any) -> tuple[Any, Pullback]:
        where, rising = arrays.namespace_of(x).where, x > 0
        return self.apply(x), lambda dy: where(rising, dy, 0)


class Tanh(_BuiltIn):
    """``tanh x`` elementwise.

    Args:
        sensitivity: declared instead of 1, the largest slope.
        sharpness: declared bounds (alpha, beta, gamma) instead of (0, 0, ``4 / (3 sqrt 3) * sqrt(d)``) on d features.

    Input of any shape, output of the same shape. Raises TypeError at a call with a tuple.

    >>> import numpy as np, modula_rs as mr
    >>> mr.Tanh()(np.array([0.0, np.inf]), [])
    array([0., 1.])
    """

    def apply(self, x: Any) -> Any:
        return arrays.namespace_of(x).tanh(x)

    def apply_vjp(self, x: Any) -> tuple[Any, Pullback]:
        y = self.apply(x)
        return y, lambda dy: dy * (1 - widen(y) * widen(y))


class Sigmoid(_BuiltIn):
    """``1 / (1 + exp(-x))`` elementwise.

    Args:
        sensitivity: declared instead of 1/4, the largest slope.
        sharpness: declared bounds (alpha, beta, gamma) instead of (0, 0, ``1 / (6 sqrt 3) * sqrt(d)``) on d features.

    Input of any shape, output of the same shape. Raises TypeError at a call with a tuple.

    >>> import numpy as np, modula_rs as mr
    >>> mr.Sigmoid()(np.array([-np.inf, 0.0, np.inf]), [])
    array([0. , 0.5, 1. ])
    """

    def apply(self, x: Any) -> Any:
        # The tanh of half the argument does not overflow.
        return narrow(0.5 * arrays.namespace_of(x).tanh(0.5 * widen(x)) + 0.5, x)

    def apply_vjp(self, x: Any) -> tuple[Any, Pullback]:
        y = self.apply(x)
        return y, lambda dy: dy * (widen(y) * (1 - widen(y)))


class GELU(_BuiltIn):
    """``gelu(x) / 1.1289`` elementwise, where ``gelu(x) = x Phi(x)`` exactly and 1.1289 is its largest slope, at ``x = sqrt 2``.

    Args:
        sensitivity: leaves gelu undivided and declares this value; without it, the division makes the sensitivity 1.
        sharpness: declared bounds (alpha, beta, gamma) instead of (0, 0, ``sqrt(2 / pi) / 1.1289 * sqrt(d)``) on d features; undivided,
            instead of (0, 0, ``sqrt(2 / pi) * sqrt(d)``).

    Input of any shape, output of the same shape. Raises TypeError at a call with a tuple.
    Source: Hendrycks and Gimpel, "Gaussian Error Linear Units" (2016).

    >>> import numpy as np, modula_rs as mr
    >>> mr.GELU()(np.array([-1.0, 0.0, 1.0]), []).round(3)
    array([-0.141,  0.   ,  0.745])
    """

    SLOPE = 0.5 * (1.0 + math.erf(1.0)) + math.exp(-1.0) / math.sqrt(math.pi)

    def _build(self) -> _core.Tree:
        if "sensitivity" in self._declared:
            self._catalogue = "UnscaledGELU"
        return super()._build()

    def apply(self, x: Any) -> Any:
        return narrow(_gelu(widen(x)) * self._factor, x)

    def apply_vjp(self, x: Any) -> tuple[Any, Pullback]:
        return self.apply(x), lambda dy: dy * (_gelu_slope(widen(x)) * self._factor)

    @property
    def _factor(self) -> float:
        return 1.0 if self._catalogue else 1.0 / self.SLOPE


def ScaledReLU(*, sensitivity: float | None = None, sharpness: tuple[float, float, float] | None = None) -> Module:
    """``sqrt(2) relu(x)`` elementwise.

    Args:
        sensitivity: declared instead of 1, an average-case estimate: for a Gaussian input the RMS of the output is the RMS of the input.
        sharpness: declared bounds (alpha, beta, gamma) instead of (0, 0, infinity).

    Input of any shape, output of the same shape. Source: Large et al., "Scalable Optimization in the Modular Norm" (2024).

    >>> import modula_rs as mr
    >>> round(mr.ScaledReLU().sensitivity, 12)
    1.0
    """
    inner = 2**-0.5 if sensitivity is None else number("sensitivity", sensitivity) * 2**-0.5
    return 2**0.5 * ReLU(sensitivity=inner, sharpness=_scaled(sharpness, 2**-0.5))


def ScaledGELU(*, sensitivity: float | None = None, sharpness: tuple[float, float, float] | None = None) -> Module:
    """``sqrt(2) gelu(x)`` elementwise.

    Args:
        sensitivity: declared instead of 1, an average-case estimate.
        sharpness: declared bounds (alpha, beta, gamma) instead of (0, 0, ``2 / sqrt(pi) * sqrt(d)``) on d features.

    Input of any shape, output of the same shape. Source: Large et al., "Scalable Optimization in the Modular Norm" (2024).

    >>> import numpy as np, modula_rs as mr
    >>> round(mr.ScaledGELU().sensitivity, 12), mr.ScaledGELU()(np.array([-1.0, 1.0]), []).round(3)
    (1.0, array([-0.224,  1.19 ]))
    """
    inner = 2**-0.5 if sensitivity is None else number("sensitivity", sensitivity) * 2**-0.5
    return 2**0.5 * GELU(sensitivity=inner, sharpness=_scaled(sharpness, 2**-0.5))


def _scaled(sharpness: tuple[float, float, float] | None, factor: float) -> tuple[float, float, float] | None:
    if sharpness is None:
        return None
    alpha, beta, gamma = bounds(sharpness)
    return alpha * factor, beta * factor, gamma * factor


def _gelu(x: Any) -> Any:
    if arrays.library(x) == "jax":
        from modula_rs.forward.jax_gelu import gelu  # needs JAX, which is optional

        return gelu(x)
    return x * _gaussian_share(x)


def _gaussian_share(x: Any) -> Any:
    """``Phi(x)``: the probability that a standard Gaussian is below ``x``."""
    if arrays.library(x) == "cupy":
        from cupyx.scipy.special import erf
    else:
        erf = _core.erf
    return 0.5 + 0.5 * erf(arrays.namespace_of(x).asarray(x * 0.5**0.5))


def _gelu_slope(x: Any) -> Any:
    """``gelu'(x) = Phi(x) + x phi(x)``."""
    xp = arrays.namespace_of(x)
    near = xp.clip(x, -40, 40)  # beyond 40, phi is 0 in every dtype, and the square of x could overflow
    return _gaussian_share(x) + near * xp.exp(-0.5 * near * near) / math.sqrt(2 * math.pi)
